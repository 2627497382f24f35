"""A server for uploads of any size: it records head, length and digest of each, and can disconnect early.

It reads from the socket itself, because its tests are about the bytes that arrive before a connection ends.
"""

from __future__ import annotations

import hashlib
import socket
import time
from dataclasses import dataclass, field
from typing import Any

from tests.support.servers import TcpServer, reset

MAX_BODY_BYTES = 64 * 1024
OK_RESPONSE = (
    b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 21\r\n\r\n{"asset_id": "asset"}'
)


@dataclass
class ReceivedUpload:
    """A request, as far as it has arrived."""

    head: str
    body: bytes = b""  # the first `MAX_BODY_BYTES`
    size: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    client_closed: bool = False  # whether the client disconnected before the end
    is_finished: bool = False  # whether the server has stopped reading it

    @property
    def headers(self) -> dict[str, str]:
        """The headers by name, in lower case."""
        lines = (line.partition(":") for line in self.head.split("\r\n")[1:])
        return {name.lower(): value.strip() for name, _, value in lines}

    @property
    def is_complete(self) -> bool:
        """Whether the number of bytes is that of the header."""
        return self.size == int(self.headers["content-length"])


class UploadServer(TcpServer):
    """The server.

    :param cutoffs: for each connection in turn, the number of bytes of a body after which the server resets
        the connection, or that number and a response that it sends then. None, and for each other connection:
        it reads everything and responds.
    """

    def __init__(self, *cutoffs: int | tuple[int, bytes] | None) -> None:
        super().__init__(self._receive)
        self._cutoffs = list(cutoffs)
        self.uploads: list[ReceivedUpload] = []

    def wait_until_finished(self) -> None:
        """Wait until each request has come to its end."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and not all(upload.is_finished for upload in self.uploads):
            time.sleep(0.01)

    def _receive(self, connection: socket.socket) -> None:
        cutoff = self._cutoffs.pop(0) if self._cutoffs else None
        limit, response = cutoff if isinstance(cutoff, tuple) else (cutoff, b"")
        connection.settimeout(20)  # a pool does not close a connection that it no longer needs
        with connection.makefile("rb") as stream:
            while head := _read_head(stream):
                upload = ReceivedUpload(head)
                self.uploads.append(upload)
                complete = _read_body(stream, upload, limit)
                upload.is_finished = True
                if not complete:
                    _disconnect(connection, response)
                if upload.client_closed or not complete:
                    return
                connection.sendall(OK_RESPONSE)


def _read_head(stream: Any) -> str:
    lines: list[str] = []
    while (line := stream.readline().decode("latin-1")) not in {"", "\r\n"}:
        lines.append(line.rstrip("\r\n"))
    return "\r\n".join(lines)


def _read_body(stream: Any, upload: ReceivedUpload, limit: int | None) -> bool:
    """Receive a body; return False if the limit came before the end and before the client disconnected."""
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


def _disconnect(connection: socket.socket, response: bytes) -> None:
    """Reset the connection, or respond and read the rest, so that a reset does not destroy the response."""
    if not response:
        reset(connection)
        return
    connection.sendall(response)
    while connection.recv(256 * 1024):
        pass
