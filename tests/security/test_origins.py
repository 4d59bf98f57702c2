"""A page of another site cannot use the login that a browser remembers, on any route."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from kit.stack import Stack
from kit.wire import Wire

ORIGINS = ("https://evil.example", "null")


def test_no_route_takes_a_request_of_another_sites_page(
    stack: Stack,
    server_routes: frozenset[tuple[str, str]],
    nothing_changes: Callable[[], AbstractContextManager[None]],
    figures: dict[str, str],
) -> None:
    """With the admin's login, which would pass. What a page of the site itself may do: tests/browser."""
    headers = {"Authorization": stack.authorization, "Content-Type": "application/json"}
    tried = sorted(route for route in server_routes if route[1] != "/health")
    through = []
    with nothing_changes(), Wire(stack.port) as wire:
        for method, path in tried:
            for origin in ORIGINS:
                answer = wire.ask(method, path, {**headers, "Origin": origin}, b"{}")
                said = method == "HEAD" or b"another site" in answer.body
                if answer.status != 403 or not said or "Access-Control-Allow-Origin" in answer.headers:
                    through.append((method, path, origin, answer.status))
    figures["foreign origins"] = f"{len(tried)} routes, {wire.asked} requests, {len(through)} got through"
    assert through == []


def test_an_absolute_address_does_not_make_another_host_the_pages_own(stack: Stack) -> None:
    host = f"127.0.0.1:{stack.port}"
    own = {"Authorization": stack.authorization, "Content-Type": "application/json"}
    path, body = "/api/2.0/mlflow/experiments/search", b'{"max_results": 1}'
    with Wire(stack.port) as wire:
        for target, origin, status in (
            (f"http://{host}{path}", f"http://{host}", 200),
            (f"http://evil.example{path}", "http://evil.example", 403),
            (f"http://evil.example{path}", f"http://{host}", 200),  # the Host header is what counts
            (f"http://evil.example@{host}{path}", "http://evil.example", 400),
        ):
            assert wire.ask("POST", target, {**own, "Origin": origin}, body).status == status, target
