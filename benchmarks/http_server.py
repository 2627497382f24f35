"""A minimal HTTP/1.1 server on asyncio that responds with JSON.

It only has what the benchmarks' clients need, because its own time must not matter in a measurement.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus

RawResponse = tuple[int, bytes]
RequestHandler = Callable[[str, str, bytes], RawResponse]  # method, target with query, body

HEAD_END = b"\r\n\r\n"
BACKLOG = 4096  # thousands of clients connect within a second


class HttpProtocol(asyncio.Protocol):
    """A connection; its requests are handled one after another."""

    def __init__(self, handler: RequestHandler, latency: float) -> None:
        """Create the protocol.

        :param latency: seconds before each response.
        """
        self._handler = handler
        self._latency = latency
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Save the transport."""
        self._transport = transport  # type: ignore[assignment]  # a stream's transport is a Transport

    def data_received(self, data: bytes) -> None:
        """Respond to each complete request."""
        self._buffer += data
        while (end := self._buffer.find(HEAD_END)) >= 0:
            head = self._buffer[:end]
            start, stop = end + len(HEAD_END), end + len(HEAD_END) + _length(head)
            if len(self._buffer) < stop:
                return
            body, self._buffer = self._buffer[start:stop], self._buffer[stop:]
            method, target, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
            self._send(*self._handler(method, target, body), close=b"connection: close" in head.lower())

    def _send(self, status: int, body: bytes, *, close: bool) -> None:
        headers = f"Content-Type: application/json\r\nContent-Length: {len(body)}"
        message = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{headers}\r\n\r\n".encode() + body
        if self._latency:
            asyncio.get_running_loop().call_later(self._latency, self._write, message, close)
        else:
            self._write(message, close)

    def _write(self, message: bytes, close: bool) -> None:  # noqa: FBT001  # call_later takes no keywords
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(message)
        if close:
            self._transport.close()


async def serve(handler: RequestHandler, host: str, port: int, latency: float) -> None:
    """Serve until the process is stopped."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: HttpProtocol(handler, latency), host, port, backlog=BACKLOG)
    await server.serve_forever()


def _length(head: bytes) -> int:
    """Return the length of the body in a request's head."""
    at = head.lower().find(b"\r\ncontent-length:")
    return 0 if at < 0 else int(head[at + 17 :].split(b"\r\n", 1)[0])
