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

MAX_BODY_BYTES = 64 * 1024
OK_RESPONSE = (
    b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 21\r\n\r\n{"asset_id": "asset"}'
)


@dataclass
class ReceivedUpload:
    """One request as far as it came in."""

    head: str
    body: bytes = b""  # its beginning
    size: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    client_closed: bool = False  # whether the client hung up before its end
    is_finished: bool = False  # whether no more of it is read

    @property
    def headers(self) -> dict[str, str]:
        """Its headers by their names in lower case."""
        lines = (line.partition(":") for line in self.head.split("\r\n")[1:])
        return {name.lower(): value.strip() for name, _, value in lines}

    @property
    def is_complete(self) -> bool:
        """Whether all that was promised came."""
        return self.size == int(self.headers["content-length"])


class UploadServer:
    """The server, until its `with` block ends.

    :param early: for each connection in turn, after how many bytes of a body it hangs up, or the answer that it then gives
        without reading on; None and every one after the last: it reads all and answers.
    """

    def __init__(self, *cutoffs: int | tuple[int, bytes] | None) -> None:
        self._cutoffs = list(cutoffs)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.uploads: list[ReceivedUpload] = []

    def __enter__(self) -> Self:
        """Begin to take."""
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take no more connections."""
        self._listener.close()

    def wait_until_finished(self) -> None:
        """Wait until every request that was begun is over."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and not all(upload.is_finished for upload in self.uploads):
            time.sleep(0.01)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(20)
            cutoff = self._cutoffs.pop(0) if self._cutoffs else None
            threading.Thread(target=self._handle, args=(connection, cutoff), daemon=True).start()

    def _handle(self, connection: socket.socket, cutoff: int | tuple[int, bytes] | None) -> None:
        limit, response = cutoff if isinstance(cutoff, tuple) else (cutoff, b"")
        # TimeoutError: nobody uses the connection any more, which a pool keeps open
        with suppress(ConnectionError, TimeoutError), connection, connection.makefile("rb") as stream:
            while head := _read_head(stream):
                upload = ReceivedUpload(head)
                self.uploads.append(upload)
                complete = _read_body(stream, upload, limit)
                upload.is_finished = True
                if not complete:
                    _hang_up(connection, response)
                if upload.client_closed or not complete:
                    return
                connection.sendall(OK_RESPONSE)


def _read_head(stream: Any) -> str:
    lines: list[str] = []
    while (line := stream.readline().decode("latin-1")) not in {"", "\r\n"}:
        lines.append(line.rstrip("\r\n"))
    return "\r\n".join(lines)


def _read_body(stream: Any, upload: ReceivedUpload, limit: int | None) -> bool:
    """Read a body; gives whether it was read to its end, which may be one that the client makes."""
    content_length = int(upload.headers.get("content-length", 0))
    while upload.size < content_length:
        if limit is not None and upload.size >= limit:
            return False
        try:
            chunk = stream.read1(min(256 * 1024, content_length - upload.size))
        except ConnectionError:
            chunk = b""
        if not chunk:
            upload.client_closed = True
            return True
        upload.size += len(chunk)
        upload.digest.update(chunk)
        upload.body = (upload.body + chunk)[:MAX_BODY_BYTES]
    return True


def _hang_up(connection: socket.socket, response: bytes) -> None:
    """Hang up, or answer and take what still comes, so that the answer is not lost with a reset."""
    if not response:
        return reset(connection)
    connection.sendall(response)
    while connection.recv(256 * 1024):
        pass
    return None
