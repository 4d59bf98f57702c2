"""The life of the service: start, listen, serve, go without harming a request."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from pathlib import Path

import uvloop

from stackfast.counters import Counters
from stackfast.database import READING, WRITING, Database, connector
from stackfast.gate import Gate, unproven_mlflow
from stackfast.protocol import Connections
from stackfast.requests import Request
from stackfast.routes import NOT_MINE, Router, routes
from stackfast.settings import FastSettings, read_fast_settings
from stackserver.audit import AuditLog, AuditRecorder
from stackserver.errors import RefusedError, exit_refused

BACKLOG = 4096
"""So many connections may wait, as Linux has it since 5.4 (net.core.somaxconn). After three that are
refused nginx gives all to MLflow for five seconds: with 512, 1,000 clients logged 147 runs/s instead of 440
(measured)."""
DRAIN_SECONDS = 25.0
PLAIN = b"HTTP/1.1 %b\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%b"


async def serve(settings: FastSettings) -> None:
    """Serve until SIGTERM or SIGINT."""
    gate, counters = Gate(), Counters()
    passwords = Path(os.environ.get("PGPASSFILE", "/nonexistent"))
    writer = Database(connector(settings, passwords, WRITING), settings.connections, gate.check)
    reader = Database(connector(settings, passwords, READING), settings.searches, gate.check)
    off = settings.off_because or unproven_mlflow()
    audit = AuditRecorder(AuditLog(settings.audit_folder))
    router = Router({} if off else routes(writer, reader, writes=settings.writes), counters, audit)
    if off:
        print(f"nothing is answered here: {off}", flush=True)
    else:
        await writer.fill()
        await reader.fill()

    async def inside(request: Request) -> bytes:
        """Answer the stack's own questions, which nginx does not pass on."""
        if request.path == b"/healthy":
            if not off and not gate.revision:  # never reached the database yet
                await writer.fill()
            return PLAIN % (b"204 No Content", 0, b"")
        if request.path == b"/metrics":
            counters.on.set(float(not off and gate.open))
            text = counters.text()
            return PLAIN % (b"200 OK", len(text), text)
        return PLAIN % (b"404 Not Found", 0, b"")

    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    shared = Connections(router.answer, NOT_MINE % b"large")
    own = await loop.create_server(
        Connections(inside, PLAIN % (b"413 Content Too Large", 0, b"")), port=settings.port
    )
    # Bound beside its place and renamed: nobody ever sees a socket without a listener.
    beside = settings.socket.with_suffix(".new")
    beside.unlink(missing_ok=True)
    server = await loop.create_unix_server(shared, str(beside), backlog=BACKLOG)
    beside.chmod(0o666)
    beside.rename(settings.socket)

    await stop.wait()
    settings.socket.unlink(missing_ok=True)
    await shared.all_made()  # a listener that closes resets who waits for it
    server.close()
    await shared.drain(DRAIN_SECONDS)
    own.close()
    audit.flush()
    await writer.close()
    await reader.close()


def main() -> None:
    """Serve, or exit with 78 and say what mends it."""
    try:
        settings = read_fast_settings()
    except RefusedError as refusal:
        exit_refused(refusal)
    # Docker 29 gives 1,024 descriptors unless asked for more: nginx keeps as many connections open.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    uvloop.run(serve(settings))
