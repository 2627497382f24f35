"""A TCP server that takes in requests however large, and keeps of each its head, its length and its digest; it can hang up early.

It knows nothing of the package, and holds no body in memory but the beginning of it.
"""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

from tests.support.servers import reset

KEPT = 64 * 1024
OK = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 21\r\n\r\n{"asset_id": "asset"}'


@dataclass
class Taken:
    """One request as far as it came in."""

    head: str
    body: bytes = b""  # its beginning
    size: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    ended: bool = False  # whether the client hung up before its end
    over: bool = False  # whether no more of it is read

    @property
    def headers(self) -> dict[str, str]:
        """Its headers by their names in lower case."""
        lines = (line.partition(":") for line in self.head.split("\r\n")[1:])
        return {name.lower(): value.strip() for name, _, value in lines}

    @property
    def whole(self) -> bool:
        """Whether all that was promised came."""
        return self.size == int(self.headers["content-length"])


class Intake:
    """The server, until its `with` block ends.

    :param early: for each connection in turn, after how many bytes of a body it hangs up, or the answer that it then gives
        without reading on; None and every one after the last: it reads all and answers.
    """

    def __init__(self, *early: int | tuple[int, bytes] | None) -> None:
        self._early = list(early)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.taken: list[Taken] = []

    def __enter__(self) -> Self:
        """Begin to take."""
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take no more connections."""
        self._listener.close()

    def settle(self) -> None:
        """Wait until every request that was begun is over."""
        until = time.monotonic() + 10
        while time.monotonic() < until and not all(taken.over for taken in self.taken):
            time.sleep(0.01)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(20)
            early = self._early.pop(0) if self._early else None
            threading.Thread(target=self._take, args=(connection, early), daemon=True).start()

    def _take(self, connection: socket.socket, early: int | tuple[int, bytes] | None) -> None:
        limit, answer = early if isinstance(early, tuple) else (early, b"")
        # TimeoutError: nobody uses the connection any more, which a pool keeps open
        with suppress(ConnectionError, TimeoutError), connection, connection.makefile("rb") as stream:
            while head := _head(stream):
                taken = Taken(head)
                self.taken.append(taken)
                to_its_end = _read(stream, taken, limit)
                taken.over = True
                if not to_its_end:
                    _break_off(connection, answer)
                if taken.ended or not to_its_end:
                    return
                connection.sendall(OK)


def _head(stream: Any) -> str:
    lines: list[str] = []
    while (line := stream.readline().decode("latin-1")) not in {"", "\r\n"}:
        lines.append(line.rstrip("\r\n"))
    return "\r\n".join(lines)


def _read(stream: Any, taken: Taken, limit: int | None) -> bool:
    """Read a body; gives whether it was read to its end, which may be one that the client makes."""
    promised = int(taken.headers.get("content-length", 0))
    while taken.size < promised:
        if limit is not None and taken.size >= limit:
            return False
        try:
            chunk = stream.read1(min(256 * 1024, promised - taken.size))
        except ConnectionError:
            chunk = b""
        if not chunk:
            taken.ended = True
            return True
        taken.size += len(chunk)
        taken.digest.update(chunk)
        taken.body = (taken.body + chunk)[:KEPT]
    return True


def _break_off(connection: socket.socket, answer: bytes) -> None:
    """Hang up, or answer and take what still comes, so that the answer is not lost with a reset."""
    if not answer:
        return reset(connection)
    connection.sendall(answer)
    while connection.recv(256 * 1024):
        pass
    return None
