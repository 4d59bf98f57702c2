"""A page under watch: what it complains about, what it still waits for, what it must not show."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import ConsoleMessage, Page, Request, Response

from kit.stack import ROOT, poll

SCREENSHOTS = ROOT / "build" / "screenshots"
PATIENCE_SECONDS = 60

# Panels and buttons of features that are off, by what finds them on MLflow's own page.
# test_features_off.py shows that each of these does find something there.
FEATURES_OFF = {
    "Assistant panel": '[data-assistant-ui="true"]',
    "Assistant's name": "text=MLflow Assistant",
    "Assistant tab": '[role="tab"]:has-text("assistant")',
    "Analyze button of a trace": '[data-component-id="mlflow.evaluations_review.modal.analyze-trace"]',
    "Analyze button of a run": '[data-component-id="mlflow.run-view-evaluations.analyze-button"]',
    "telemetry banner": '[data-component-id="mlflow.home.telemetry-alert"]',
    "telemetry switch": '[data-component-id="mlflow.settings.telemetry.toggle-switch"]',
    "LLM connections": 'aside a:has-text("LLM Connections")',
    "Evaluate traces button": '[data-component-id="mlflow.eval-runs.start-run-button"]',
    "Run scorers item": '[data-component-id="mlflow.traces-v4.actions.run-judges"]',
}


@dataclass
class WatchedPage:
    """A page and what happened on it."""

    page: Page
    name: str
    problems: list[str] = field(default_factory=list)
    under_way: set[Request] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.problems.append(f"page error: {error}"))
        self.page.on("response", self._on_response)
        self.page.on("request", self._on_request)
        self.page.on("requestfinished", self._on_request_end)
        self.page.on("requestfailed", self._on_request_end)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.problems.append(f"console: {message.text} ({message.location.get('url')})")

    def _on_response(self, response: Response) -> None:
        if response.status >= 400:
            self.problems.append(f"{response.status}: {response.request.method} {response.url}")

    def _on_request(self, request: Request) -> None:
        address = urlsplit(request.url)
        if address.scheme in {"data", "blob"}:
            return
        self.under_way.add(request)
        if address.netloc != urlsplit(self.page.url).netloc and self.page.url != "about:blank":
            self.problems.append(f"asks another server: {request.url}")

    def _on_request_end(self, request: Request) -> None:
        self.under_way.discard(request)

    def settle(self) -> None:
        """Wait until every request that the page made has its answer."""

        def is_settled() -> bool:
            self.page.wait_for_timeout(100)  # lets the browser's events in
            return not self.under_way

        waiting = f"{self.name}: all requests are answered"
        poll(is_settled, seconds=PATIENCE_SECONDS, what=waiting, interval=0)

    def features_shown(self) -> list[str]:
        """Return the names of the features that are off and yet visible."""
        return [
            name
            for name, selector in FEATURES_OFF.items()
            if self.page.locator(selector).locator("visible=true").count()
        ]

    def screenshot(self) -> Path:
        """Write build/screenshots/NAME.png and return its path."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        path = SCREENSHOTS / f"{self.name}.png"
        self.page.screenshot(path=path, animations="disabled")
        return path
