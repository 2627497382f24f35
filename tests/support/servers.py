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
class ReceivedRequest:
    """One request as it came in; header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class StubResponse:
    """What is answered, after so many seconds."""

    status: int = 200
    headers: Mapping[str, str] = ()  # type: ignore[assignment]
    body: bytes = b"{}"
    delay: float = 0.0


class StubServer:
    """An HTTP server that answers what `reply` says, and keeps what it saw."""

    def __init__(
        self,
        reply: Callable[[ReceivedRequest], StubResponse] = lambda _: StubResponse(),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.requests: list[ReceivedRequest] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def respond(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                headers = {name.lower(): value for name, value in self.headers.items()}
                received = ReceivedRequest(self.command, self.path, headers, self.rfile.read(length))
                stub.requests.append(received)
                response = reply(received)
                time.sleep(response.delay)
                self.send_response(response.status)
                for name, value in dict(response.headers).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(response.body)))
                self.end_headers()
                self.wfile.write(response.body)

            do_GET = do_POST = do_PATCH = do_DELETE = do_CONNECT = respond  # noqa: N815  # the names are http.server's

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


class MisbehavingServer:
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
            data = b""
            while not _is_complete(data):
                part = connection.recv(65536)
                if not part:
                    return
                data += part
            self.bodies.append(data.partition(b"\r\n\r\n")[2])
            self._act(connection)
        except OSError:
            return
        finally:
            connection.close()


def _is_complete(data: bytes) -> bool:
    head, found, body = data.partition(b"\r\n\r\n")
    lengths = [
        int(line.split(b":")[1])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length:")
    ]
    return bool(found) and len(body) >= sum(lengths)


def reset(connection: socket.socket) -> None:
    """Close with RST, as a crashed peer does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def send_and_close(data: bytes) -> Callable[[socket.socket], None]:
    """Send these bytes and close."""
    return lambda connection: connection.sendall(data)


def forward(request: ReceivedRequest) -> StubResponse:
    """Do what an HTTP proxy does: ask the host in the request line, and give its answer; refuse to tunnel."""
    if request.method == "CONNECT":
        return StubResponse(403)
    parts = urlsplit(request.path)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=5)
    headers = {name: value for name, value in request.headers.items() if not name.startswith("proxy-")}
    connection.request(
        request.method, parts._replace(scheme="", netloc="").geturl(), request.body or None, headers
    )
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return StubResponse(response.status, {"X-Via": "proxy"}, body)


@contextmanager
def unused_url() -> Iterator[str]:
    """Give the URL of a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{probe.getsockname()[1]}"
