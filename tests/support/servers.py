"""The socket server of all tests, and on it HTTP servers that respond by rule, and a server that misbehaves.

The servers use nothing of the package. Each runs in threads from the start of its `with` block to the end.
"""

from __future__ import annotations

import http.client
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any, Self
from urllib.parse import urlsplit

LOOPBACK = "127.0.0.1"
BACKLOG = 128


class TcpServer:
    """A TCP server on a free port; it handles each connection in a thread and closes it afterwards."""

    def __init__(self, handle: Callable[[socket.socket], object], tls: ssl.SSLContext | None = None) -> None:
        self._handle_connection = handle
        self._tls = tls
        self._listener = socket.create_server((LOOPBACK, 0), backlog=BACKLOG)
        self._connections: set[socket.socket] = set()
        self.port: int = self._listener.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://{'localhost' if tls else LOOPBACK}:{self.port}"
        self.peers: set[Any] = set()
        """The address of each client that has connected."""

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    def start(self) -> None:
        """Start to accept connections."""
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        """Stop accepting connections, and end those that are open."""
        for end in (self._listener, *list(self._connections)):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @property
    def open_connections(self) -> int:
        """The number of open connections."""
        return len(self._connections)

    def _accept(self) -> None:
        while True:
            try:
                connection, peer = self._listener.accept()
            except OSError:
                return
            self.peers.add(peer)
            self._connections.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        secured = connection
        try:
            secured = self._tls.wrap_socket(connection, server_side=True) if self._tls else connection
            self._handle_connection(secured)
        except OSError:
            return  # clients that disconnect are part of many tests
        finally:
            self._connections.discard(connection)
            secured.close()


class HttpHandler(BaseHTTPRequestHandler):
    """The requests of one connection; a subclass responds to them."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Any

    def respond(self) -> None:
        """Respond to a request."""
        raise NotImplementedError

    def do_GET(self) -> None:
        """Respond to a request of any method."""
        self.respond()

    do_POST = do_PUT = do_PATCH = do_DELETE = do_CONNECT = do_GET  # noqa: N815  # the names are http.server's

    def read_body(self) -> bytes:
        """Return the body of the request, also one in chunks."""
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("content-length") or 0))
        body = b""
        while head := self.rfile.readline():
            size = int(head.partition(b";")[0], 16)
            body += self.rfile.read(size)
            self.rfile.readline()
            if not size:
                return body
        raise ConnectionError("the client disconnected within a body")

    def send_head(self, status: int, headers: Mapping[str, str], content_length: int) -> None:
        """Send the status line and the headers."""
        self.send_response_only(status)
        defaults = {"Date": self.date_time_string(), "Content-Length": str(content_length)}
        for name, value in (defaults | dict(headers)).items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


class HttpServer(TcpServer):
    """An HTTP server with a subclass of `HttpHandler`, which has the server as its attribute `server`."""

    def __init__(self, handler: type[HttpHandler], tls: ssl.SSLContext | None = None) -> None:
        super().__init__(
            lambda connection: handler(connection, connection.getpeername(), self),
            tls,
        )


@dataclass(frozen=True)
class ReceivedRequest:
    """A received request; header names are in lower case, `at` is in epoch seconds."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    at: float = field(default_factory=time.time)


@dataclass(frozen=True)
class StubResponse:
    """A response, and the seconds before it is sent."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b"{}"
    delay: float = 0.0


class StubServer(HttpServer):
    """An HTTP server that responds what `reply` returns, and records the requests."""

    def __init__(
        self,
        reply: Callable[[ReceivedRequest], StubResponse] = lambda _: StubResponse(),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(_StubHandler, tls)
        self._reply = reply
        self.requests: list[Any] = []
        self.max_in_flight = 0
        """The largest number of requests that waited for their response at the same time."""
        self._in_flight = 0
        self._lock = threading.Lock()

    def respond(self, request: ReceivedRequest) -> StubResponse:
        """Record a request, and return the response to it."""
        self.requests.append(request)
        return self._reply(request)

    @contextmanager
    def count_in_flight(self) -> Iterator[None]:
        """Count a request as waiting for its response."""
        with self._lock:
            self._in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self._in_flight)
        try:
            yield
        finally:
            with self._lock:
                self._in_flight -= 1


class _StubHandler(HttpHandler):
    server: StubServer

    def respond(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        received = ReceivedRequest(self.command, self.path, headers, self.read_body())
        with self.server.count_in_flight():
            response = self.server.respond(received)
            if self._is_client_gone_within(response.delay):
                self.close_connection = True
                return
        self.send_head(response.status, response.headers, len(response.body))
        self.wfile.write(response.body)

    def _is_client_gone_within(self, seconds: float) -> bool:
        """Wait, but not longer than the client does: one that disconnects makes its socket readable."""
        return bool(seconds and select.select([self.connection], [], [], seconds)[0])


class MisbehavingServer(TcpServer):
    """A TCP server that reads one complete request of each connection, and then calls `act` with it."""

    def __init__(self, act: Callable[[socket.socket], None], tls: ssl.SSLContext | None = None) -> None:
        super().__init__(self._read_and_act, tls)
        self._act = act
        self.bodies: list[bytes] = []
        self.request_lines: list[str] = []

    def _read_and_act(self, connection: socket.socket) -> None:
        data = b""
        while not _is_complete(data):
            part = connection.recv(65536)
            if not part:
                return
            data += part
        self.bodies.append(data.partition(b"\r\n\r\n")[2])
        self.request_lines.append(data.partition(b"\r\n")[0].decode("latin-1"))
        self._act(connection)


def _is_complete(data: bytes) -> bool:
    head, found, body = data.partition(b"\r\n\r\n")
    lengths = [
        int(line.split(b":")[1])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length:")
    ]
    return bool(found) and len(body) >= sum(lengths)


def reset(connection: socket.socket) -> None:
    """Let a connection be closed with RST, as by a crashed peer."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def send_and_close(data: bytes) -> Callable[[socket.socket], None]:
    """Return an action that sends these bytes; the connection is closed after it."""
    return lambda connection: connection.sendall(data)


def forward(request: ReceivedRequest) -> StubResponse:
    """Respond as an HTTP proxy: with the response of the host in the request line; reject tunnels."""
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
    """Yield the URL of a port that no server listens on."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        yield f"http://{LOOPBACK}:{probe.getsockname()[1]}"
