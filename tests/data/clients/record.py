"""Record what clients of some versions ask a server of today.

`PYTHONPATH=tests .venv/bin/python tests/data/clients/record.py 1.30.1 2.9.2 2.22.5 3.1.4 3.17.2`.
For each version tests/data/clients/VERSION.json has the requests of flow.py, one a line, in their order:
method, target, headers, body; ids by the names that kit.differential gives them. It needs a package index.
"""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from kit.differential import START_IDS, Answer, Names
from kit.differential_servers import HostTables, mlflow_server, postgres

HERE = Path(__file__).resolve().parent
LEFT_OUT = {"host", "connection", "content-length", "accept-encoding"}
"""Headers that are the connection's; answers are compared as they are, not compressed."""


class Recorder(BaseHTTPRequestHandler):
    """Hands each request to the server and keeps it."""

    protocol_version = "HTTP/1.1"
    server: Recording

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = [[name, text] for name, text in self.headers.items() if name.lower() not in LEFT_OUT]
        answer = self.server.ask(self.command, self.path, headers, body)
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type or "text/plain")
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = _pass_on  # noqa: N815  the library's names


class Recording(ThreadingHTTPServer):
    """Between a client and the server at `url`; `requests` is what was asked."""

    def __init__(self, url: str) -> None:
        super().__init__(("127.0.0.1", 0), Recorder)
        self.requests: list[list] = []
        self._address = urlsplit(url).netloc
        self._names = Names()

    def ask(self, method: str, target: str, headers: list[list[str]], body: bytes) -> Answer:
        """Ask the server; keep the request with names in place of ids."""
        named = [self._names.name_all(text) for text in (target, body.decode())]
        self.requests.append([method, named[0], headers, named[1]])
        connection = http.client.HTTPConnection(self._address, timeout=60)
        connection.request(method, target, body or None, dict(headers))
        response = connection.getresponse()
        answer = Answer(response.status, response.getheader("Content-Type"), response.read())
        connection.close()
        self._names.learn_from(target, answer)
        return answer


def install(version: str, work: Path) -> Path:
    """Return the Python of a new virtual environment with that client."""
    subprocess.run([sys.executable, "-m", "venv", work / "venv"], check=True)
    python = work / "venv" / "bin" / "python"
    packages = (f"mlflow-skinny=={version}", "setuptools<80")  # pkg_resources
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    return python


def record(version: str, url: str, work: Path) -> list[list]:
    """Return the requests of that version's client."""
    python = install(version, work)
    shutil.copy(HERE / "flow.py", work)
    with Recording(url) as recording:
        thread = threading.Thread(target=recording.serve_forever)
        thread.start()
        try:
            address = f"http://127.0.0.1:{recording.server_address[1]}"
            environment = {
                "HOME": str(work),
                "USER": "ada",
                "LOGNAME": "ada",
                "MLFLOW_DISABLE_TELEMETRY": "true",
            }
            subprocess.run([python, "flow.py", address], cwd=work, env=environment, check=True)
        finally:
            recording.shutdown()
            thread.join()
    return recording.requests


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, postgres() as make_database:
        database = make_database("recorded")
        HostTables(database).query(START_IDS)
        with mlflow_server(database, Path(folder) / "mlflow") as url:
            for version in sys.argv[1:]:
                work = Path(folder) / version
                work.mkdir()
                lines = [json.dumps(request, ensure_ascii=False) for request in record(version, url, work)]
                (HERE / f"{version}.json").write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
                print(f"{version}: {len(lines)} requests")


if __name__ == "__main__":
    main()
