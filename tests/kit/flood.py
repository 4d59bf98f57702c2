"""Guessers of passwords, many at once: one thread, many connections, a guess on each all the time."""

from __future__ import annotations

import itertools
import secrets
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType

from kit.door import basic

END = b"\r\n\r\n"


@dataclass
class _Guesser:
    connection: socket.socket
    address: str
    received: bytearray = field(default_factory=bytearray)


class Flood:
    """Guesses passwords of `names` and of unknown users until the block ends.

    `addresses` are what the guesses claim as X-Forwarded-For, a connection for each; "" claims
    nothing. Each guess is another password.
    """

    def __init__(self, port: int, names: Sequence[str], addresses: Sequence[str]) -> None:
        self.statuses: Counter[int] = Counter()
        self.seconds = 0.0
        self._port = port
        self._names = itertools.cycle([*names, ""])
        self._addresses = addresses
        self._selector = selectors.DefaultSelector()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.failed: list[str] = []

    def __enter__(self) -> Flood:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        started = time.monotonic()
        try:
            for address in self._addresses:
                self._open(address)
            while not self._stop.is_set():
                for key, _ in self._selector.select(timeout=0.5):
                    self._read(key.data)
        except OSError as error:
            self.failed.append(repr(error))
        finally:
            self.seconds = time.monotonic() - started
            for key in list(self._selector.get_map().values()):
                key.data.connection.close()
            self._selector.close()

    def _open(self, address: str) -> None:
        connection = socket.create_connection(("127.0.0.1", self._port), timeout=60)
        guesser = _Guesser(connection, address)
        self._selector.register(connection, selectors.EVENT_READ, guesser)
        self._guess(guesser)

    def _guess(self, guesser: _Guesser) -> None:
        name = next(self._names) or f"nobody-{secrets.token_hex(4)}"
        claim = f"X-Forwarded-For: {guesser.address}\r\n" if guesser.address else ""
        guesser.connection.sendall(
            f"HEAD /version HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n{claim}"
            f"Authorization: {basic(name, secrets.token_hex(8))}\r\n\r\n".encode()
        )

    def _read(self, guesser: _Guesser) -> None:
        part = guesser.connection.recv(65536)
        guesser.received += part
        if END in guesser.received:  # an answer to HEAD ends there
            self.statuses[int(guesser.received[9:12])] += 1
            ended = b"connection: close" in guesser.received.lower()
            guesser.received.clear()
            if not ended:
                self._guess(guesser)
                return
        elif part:
            return
        self._selector.unregister(guesser.connection)
        guesser.connection.close()
        self._open(guesser.address)
