"""The HTTP face of the login service, for nginx's auth_request.

GET /verify    Authorization, X-Client-Address and X-Needed-Right in; 204 with X-User, X-Role and
               X-Account, 401, or 403 with X-Retry-After (too many wrong passwords) or with the
               three and X-Missing-Right out. No body, ever.
GET /healthy   204 when the users file can be read, else 503.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stackauth.login import LoginDesk, Outcome
from stackauth.users import ROLES, Watched, parse_tokens, parse_users


def create_app(users_path: Path) -> Starlette:
    """Return the application that reads its users from `users_path` and the tokens beside it."""
    users_file = Watched(users_path, parse_users)
    tokens_file = Watched(users_path.with_name("tokens"), parse_tokens, optional=True)
    desk = LoginDesk(users_file.current, tokens_file.current)

    async def verify(request: Request) -> Response:
        login = await desk.decide(
            request.headers.get("authorization", ""),
            request.headers.get("x-client-address", ""),
        )
        if login.outcome is Outcome.TOO_MANY:
            return Response(status_code=403, headers={"X-Retry-After": str(login.retry_after_seconds)})
        if login.outcome is Outcome.REFUSED:
            return Response(status_code=401)
        headers = {"X-User": quote(login.user, safe="@+ "), "X-Role": login.role, "X-Account": login.id}
        right = request.headers.get("x-needed-right", ROLES[-1])
        if login.may(right):
            return Response(status_code=204, headers=headers)
        return Response(status_code=403, headers=headers | {"X-Missing-Right": right})

    async def healthy(_: Request) -> Response:
        files = (users_file, tokens_file)
        usable = users_file.current() and not any(file.current() is None or file.error for file in files)
        return Response(status_code=204 if usable else 503)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        checks = asyncio.create_task(desk.serve_checks())
        yield
        checks.cancel()

    routes = [Route("/verify", verify), Route("/healthy", healthy)]
    return Starlette(routes=routes, lifespan=lifespan)


def main_app() -> Starlette:
    """Return the application for uvicorn; the users file is named by USERS_FILE."""
    return create_app(Path(os.environ.get("USERS_FILE", "/secrets/auth/accounts")))
