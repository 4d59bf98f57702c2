"""The HTTP face of the login service, for nginx's auth_request.

GET /verify    Authorization and X-Client-Address in; 204 with X-User, 401, or 403 with
               Retry-After (too many wrong passwords) out. No body, ever.
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
from stackauth.users import UsersFile


def create_app(users_path: Path) -> Starlette:
    """Return the application that reads its users from `users_path`."""
    users_file = UsersFile(users_path)
    desk = LoginDesk(users_file.current)

    async def verify(request: Request) -> Response:
        login = await desk.decide(
            request.headers.get("authorization", ""),
            request.headers.get("x-client-address", ""),
        )
        headers = {}
        if login.outcome is Outcome.ACCEPTED:
            headers["X-User"] = quote(login.user, safe="@+ ")
        elif login.outcome is Outcome.TOO_MANY:
            headers["X-Retry-After"] = str(login.retry_after_seconds)
        return Response(status_code=login.outcome.value, headers=headers)

    async def healthy(_: Request) -> Response:
        usable = users_file.current() and users_file.error is None
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
    return create_app(Path(os.environ.get("USERS_FILE", "/secrets/auth/users")))
