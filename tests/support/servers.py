"""Small real servers for the tests of the transports: one that answers, one that misbehaves, and a proxy.

They know nothing of the package; each serves from threads of its own until its `with` block ends.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Seen:
    """One request as it came in; header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Reply:
    """What is answered, after so many seconds."""

    status: int = 200
    headers: Mapping[str, str] = ()  # type: ignore[assignment]
    body: bytes = b"{}"
    delay: float = 0.0


class Station:
    """An HTTP server that answers what `reply` says, and keeps what it saw."""

    def __init__(
        self, reply: Callable[[Seen], Reply] = lambda _: Reply(), tls: ssl.SSLContext | None = None
    ) -> None:
        self.seen: list[Seen] = []
        station = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                headers = {name.lower(): value for name, value in self.headers.items()}
                seen = Seen(self.command, self.path, headers, self.rfile.read(length))
                station.seen.append(seen)
                told = reply(seen)
                time.sleep(told.delay)
                self.send_response(told.status)
                for name, value in dict(told.headers).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(told.body)))
                self.end_headers()
                self.wfile.write(told.body)

            do_GET = do_POST = do_PATCH = do_DELETE = do_CONNECT = answer  # noqa: N815  # the names are http.server's

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = _QuietServer(("127.0.0.1", 0), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port: int = self._server.server_address[1]
        self.url = f"{'https' if tls else 'http'}://{'localhost' if tls else '127.0.0.1'}:{self.port}"

    def __enter__(self) -> Self:
        """Begin to serve."""
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._server.shutdown()
        self._server.server_close()


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: Any) -> None:
        """Say nothing: clients that hang up are what the tests are about."""


class Rude:
    """A TCP server that reads each request whole and then does what it should not."""

    def __init__(self, act: Callable[[socket.socket], None], tls: ssl.SSLContext | None = None) -> None:
        """Take what to do with a connection whose request was read."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._act = act
        self._tls = tls
        self.port: int = self._listener.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://{'localhost' if tls else '127.0.0.1'}:{self.port}"
        self.bodies: list[bytes] = []

    def __enter__(self) -> Self:
        """Begin to serve."""
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._handle, args=(connection,), daemon=True).start()

    def _handle(self, connection: socket.socket) -> None:
        try:
            connection = self._tls.wrap_socket(connection, server_side=True) if self._tls else connection
            read = b""
            while not _whole(read):
                part = connection.recv(65536)
                if not part:
                    return
                read += part
            self.bodies.append(read.partition(b"\r\n\r\n")[2])
            self._act(connection)
        except OSError:
            return
        finally:
            connection.close()


def _whole(read: bytes) -> bool:
    head, found, body = read.partition(b"\r\n\r\n")
    lengths = [
        int(line.split(b":")[1])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length:")
    ]
    return bool(found) and len(body) >= sum(lengths)


def reset(connection: socket.socket) -> None:
    """Close with RST, as a crashed peer does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def say(data: bytes) -> Callable[[socket.socket], None]:
    """Send these bytes and close."""
    return lambda connection: connection.sendall(data)


def forward(seen: Seen) -> Reply:
    """Do what an HTTP proxy does: ask the host in the request line, and give its answer; refuse to tunnel."""
    if seen.method == "CONNECT":
        return Reply(403)
    parts = urlsplit(seen.path)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=5)
    headers = {name: value for name, value in seen.headers.items() if not name.startswith("proxy-")}
    connection.request(seen.method, parts._replace(scheme="", netloc="").geturl(), seen.body or None, headers)
    came = connection.getresponse()
    body = came.read()
    connection.close()
    return Reply(came.status, {"X-Via": "proxy"}, body)


@contextmanager
def nobody() -> Iterator[str]:
    """Give the URL of a port on which nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"
