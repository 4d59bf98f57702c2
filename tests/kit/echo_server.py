"""A server of a test's own in MLflow's place: it answers with what it got."""

from __future__ import annotations

import json
from typing import Any

from kit.door import Answer

ECHO_SERVER = r"""
import hashlib, json, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

seen, received, release = {}, {}, threading.Event()

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def answer(self, facts, status=200):
        body = json.dumps(facts).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self):
        digest, size = hashlib.sha256(), 0
        for part in self.parts():
            digest.update(part)
            size += len(part)
            received[self.path] = received.get(self.path, 0) + len(part)
        return {"sha256": digest.hexdigest(), "bytes": size}

    def parts(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            size = None
            while size != 0:
                line = self.rfile.readline()
                assert line.endswith(b"\r\n"), line
                size = int(line, 16)
                yield self.rfile.read(size)
                assert self.rfile.read(2) == b"\r\n"
        left = int(self.headers.get("Content-Length") or 0)
        while left:
            part = self.rfile.read1(min(left, 65536))
            left -= len(part)
            yield part

    def do_GET(self):
        seen[self.path] = seen.get(self.path, 0) + 1
        if self.path == "/facts":
            return self.answer({"seen": seen, "received": received})
        if self.path == "/release":
            release.set()
            return self.answer({})
        if self.path.startswith("/gateway/stream"):
            return self.stream()
        body = self.body()
        if self.path.startswith("/drop"):
            self.close_connection = True
            return
        given = self.path[8:] if self.path.startswith("/status/") else self.headers.get("X-Status")
        status = int(given or 200)
        self.answer({
            "method": self.command, "path": self.path, "headers": self.headers.items(), **body,
        }, status)

    do_POST = do_PUT = do_DELETE = do_PATCH = do_GET

    def stream(self):
        self.body()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(2):
            event = b"data: %d\n\n" % number
            self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
            if number == 0:
                release.wait(60)
        self.wfile.write(b"0\r\n\r\n")

ThreadingHTTPServer.request_queue_size = 128
ThreadingHTTPServer(("0.0.0.0", 5000), Handler).serve_forever()
"""
"""For `python3 -c`, on port 5000. GET /facts: what it was asked and how many bytes it got, by path."""
PYTHON_ALONE = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges:true", "--init")
"""How Compose runs the stack's services, as options of docker run."""


def echo(answer: Answer) -> dict[str, Any]:
    """Return what the server says it got, its headers by small names."""
    assert answer.status == 200, answer.body
    got = json.loads(answer.body)
    names = [name.lower() for name, _ in got["headers"]]
    assert len(names) == len(set(names)), names
    return {**got, "headers": {name.lower(): value for name, value in got["headers"]}}
