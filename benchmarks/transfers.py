"""Uploads and downloads over kept connections, timed: run by rows/artifacts.py in a process of its own.

Usage: .venv/bin/python benchmarks/transfers.py <JSON

The JSON has the addresses to `put` and to `get`, a list of each for every connection, the `headers`
of all requests and the `size` of a file in bytes. Prints one JSON object: for `put` and `get` the
`seconds` of each transfer and how many all of them took together (`elapsed`). The exit status is 1
if an answer is not a 200 with as many bytes as the file has.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

BLOCK = 1 << 20
TIMEOUT_SECONDS = 600


def blocks(size: int) -> Iterator[memoryview]:
    """Return the bytes of a file in parts: one random block again and again."""
    block = memoryview(os.urandom(min(BLOCK, size)))
    whole, rest = divmod(size, BLOCK)
    return itertools.chain(itertools.repeat(block, whole), [block[:rest]] if rest else [])


class Connection:
    """One kept connection to a server."""

    def __init__(self, address: str, headers: Mapping[str, str], size: int) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=TIMEOUT_SECONDS)
        self._headers = dict(headers)
        self._size = size
        self._room = bytearray(BLOCK)

    def put(self, address: str) -> None:
        """Upload a file. Raise RuntimeError if it is not taken."""
        headers = {**self._headers, "Content-Length": str(self._size)}
        self._ask("PUT", address, headers, blocks(self._size))

    def get(self, address: str) -> None:
        """Download a file. Raise RuntimeError if it does not come whole."""
        came = self._ask("GET", address, self._headers)
        if came != self._size:
            raise RuntimeError(f"GET: {came} bytes of {self._size}")

    def _ask(
        self, method: str, address: str, headers: Mapping[str, str], body: Iterator[memoryview] | None = None
    ) -> int:
        parts = urlsplit(address)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        self._connection.request(method, path, body=body, headers=dict(headers), encode_chunked=False)
        answer = self._connection.getresponse()
        size = 0
        while part := answer.readinto(self._room):
            size += part
        if answer.status != 200:
            raise RuntimeError(f"{method}: {answer.status}")
        return size


def transfers(given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Upload everything, then download everything; each list of addresses on a connection of its own."""
    found = {}
    for method in ("put", "get"):
        lists: list[list[str]] = given[method]
        connections = [Connection(one[0], given["headers"], given["size"]) for one in lists]

        def all_of(connection: Connection, addresses: list[str], method: str = method) -> list[float]:
            seconds = []
            for address in addresses:
                started = time.perf_counter()
                getattr(connection, method)(address)
                seconds.append(time.perf_counter() - started)
            return seconds

        started = time.perf_counter()
        with ThreadPoolExecutor(len(lists)) as pool:
            seconds = [each for some in pool.map(all_of, connections, lists) for each in some]
        found[method] = {"seconds": seconds, "elapsed": time.perf_counter() - started}
    return found


def main() -> int:
    try:
        print(json.dumps(transfers(json.load(sys.stdin))))
    except (OSError, http.client.HTTPException, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
