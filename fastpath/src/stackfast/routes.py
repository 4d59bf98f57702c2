"""Which request is whose, and how each ends. To add a route: a handler, and a line in `routes`."""

from __future__ import annotations

import time
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from stackfast.counters import Counters
from stackfast.database import Database
from stackfast.experiments import Experiments
from stackfast.logs import Logs
from stackfast.outcomes import NotMineError, UndoneError, UnknownOutcomeError
from stackfast.requests import Request
from stackfast.runs import Runs
from stackfast.search import Search
from stackserver.audit import AuditRecorder

PREFIXES = (b"/api/2.0/mlflow/", b"/ajax-api/2.0/mlflow/")
AGE_SECONDS = 4.0
"""What nginx took in longer ago is not begun: after a stall of this process it may have given it up."""

OK = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
    b"X-Answered-By: fastpath\r\nContent-Length: %d\r\n\r\n%b"
)
NOT_MINE = b"HTTP/1.1 418 Not Mine\r\nX-Reason: %b\r\nContent-Length: 0\r\n\r\n"
UNKNOWN = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


@dataclass(frozen=True)
class Route:
    """A route: its handler, and whether it changes something."""

    name: str
    handle: Callable[[Request], Awaitable[bytes]]
    changes: bool


def routes(writer: Database, reader: Database, *, writes: bool) -> dict[tuple[bytes, bytes], Route]:
    """Return the routes by (method, path)."""
    logs, runs, experiments = Logs(writer), Runs(writer), Experiments(writer)
    posts = {
        "runs/create": runs.create,
        "runs/update": runs.update,
        "runs/log-metric": logs.log_metric,
        "runs/log-parameter": logs.log_param,
        "runs/log-batch": logs.log_batch,
        "runs/set-tag": logs.set_tag,
        "experiments/create": experiments.create,
    }
    table = [(b"POST", Route(name, handle, changes=True)) for name, handle in posts.items() if writes]
    table += [
        (b"POST", Route("runs/search", Search(reader).search, changes=False)),
        (b"GET", Route("runs/get", runs.get, changes=False)),
        (b"GET", Route("experiments/get", experiments.get, changes=False)),
        (b"GET", Route("experiments/get-by-name", experiments.get_by_name, changes=False)),
    ]
    return {(method, prefix + route.name.encode()): route for method, route in table for prefix in PREFIXES}


class Router:
    """Gives each request to its route and turns every end into an answer."""

    def __init__(
        self, table: dict[tuple[bytes, bytes], Route], counters: Counters, audit: AuditRecorder
    ) -> None:
        self._table = table
        self._counters = counters
        self._audit = audit

    async def answer(self, request: Request) -> bytes:
        """Return the whole answer to a request."""
        route = self._table.get((request.method, request.path))
        if route is None:
            return self._not_mine("", "route")
        try:
            _check_age(request)
            body = await route.handle(request)
        except NotMineError as error:
            return self._not_mine(route.name, error.reason)
        except UndoneError:
            return self._not_mine(route.name, "refused by the database")
        except UnknownOutcomeError as error:
            if not route.changes:
                return self._not_mine(route.name, "connection lost")
            print(f"{route.name}: outcome unknown: {error}", flush=True)
            self._counters.count(route.name, "unknown", str(error))
            self._note(request, 503)
            return UNKNOWN
        except Exception:  # noqa: BLE001  a bug here must not be a bug of clients: nothing plain was done
            traceback.print_exc()
            self._counters.unexpected.inc()
            # A route that changes something may have done it.
            return UNKNOWN if route.changes else self._not_mine(route.name, "unexpected")
        self._counters.count(route.name, "fast")
        if route.changes:
            request.done = True
            self._note(request, 200)
        return OK % (len(body), body)

    def _note(self, request: Request, status: int) -> None:
        self._audit.note(
            method="POST",
            path=request.path.decode(),
            user=request.header(b"x-forwarded-user"),
            address=request.header(b"x-real-ip"),
            request_id=request.header(b"x-request-id"),
            given=request.given,
            status=status,
        )

    def _not_mine(self, route: str, reason: str) -> bytes:
        self._counters.count(route, "fallback", reason)
        return NOT_MINE % reason.encode()


def _check_age(request: Request) -> None:
    try:
        age = time.time() - float(request.headers.get(b"x-t", b"nan"))
    except ValueError:
        raise NotMineError("late") from None
    if age > AGE_SECONDS:
        raise NotMineError("late")
