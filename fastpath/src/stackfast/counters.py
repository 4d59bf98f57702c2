"""The counters of the service, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest


class Counters:
    """Answers by route, outcome and reason."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "mlflow_fastpath_requests",
            "Requests: answered here (fast), given to MLflow (fallback), or of unknown outcome",
            ["route", "outcome", "reason"],
            registry=self._registry,
        )
        self.unexpected = Counter(
            "mlflow_fastpath_unexpected",
            "Exceptions that nobody foresaw; must stay 0",
            registry=self._registry,
        )
        self.on = Gauge("mlflow_fastpath_on", "1 if requests may be answered here", registry=self._registry)
        self._children: dict[tuple[str, str, str], Counter] = {}

    def count(self, route: str, outcome: str, reason: str = "") -> None:
        """Count one request."""
        labels = (route, outcome, reason)
        child = self._children.get(labels)
        if child is None:
            child = self._children[labels] = self._requests.labels(*labels)
        child.inc()

    def text(self) -> bytes:
        """Return all of them in Prometheus' form."""
        return generate_latest(self._registry)
