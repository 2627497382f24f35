"""The adapter of the `requests` session: framing, bodies as they are on the wire, deadlines, and errors.

`Framing` reads the bytes of a response before `http.client` does. An error while the connection is
established is marked, because no request was sent then.

The timeouts of `requests` are for each call of a socket, so that a byte now and then makes them endless. A
`ConnectionWatch` shuts the connection of a request down when its deadline has expired. That interrupts
whatever the thread does with it: TLS handshake, proxy tunnel, upload, headers or body. Only the resolution of
the host's name is left to the time limits of the operating system.
"""

from __future__ import annotations

import io
import math
import os
import socket
import ssl
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from contextvars import ContextVar
from http.client import HTTPMessage, HTTPResponse
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any, Self

from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, ProxyManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import NewConnectionError

from airflow_provider_flows.transport.framing import Framing
from airflow_provider_flows.transport.network import get_keep_alive_options

if TYPE_CHECKING:
    from urllib3 import PoolManager

    from airflow_provider_flows.transport.deadline import Deadline

MIN_TIMEOUT_SECONDS = 0.001  # a socket does not block at all with 0


class HandshakeError(ssl.SSLError):
    """The TLS connection could not be established, so no request was sent."""


class ConnectionWatch:
    """Shuts the connection down that the block uses for a request, when the request's deadline has expired.

    The block then gets an error, or an early end of the response: `Deadline.has_expired` is True then.

    :param deadline: that of the request.
    """

    def __init__(self, deadline: Deadline) -> None:
        self.deadline = deadline
        self._is_over = Event()
        self._lock = Lock()
        # A duplicate, because urllib3 gives the descriptor to another object for TLS, and may close it early.
        self._socket: socket.socket | None = None
        self._thread = Thread(target=self._run, name="request-deadline", daemon=True)

    def __enter__(self) -> Self:
        """Start to watch."""
        self._previous = _WATCH.set(self)
        with suppress(RuntimeError):  # no thread starts while the interpreter shuts down
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop to watch."""
        try:
            _WATCH.reset(self._previous)
            self._is_over.set()
            if self._thread.ident is not None:
                self._thread.join()
        finally:  # also when a signal interrupts it
            if self._socket is not None:
                self._socket.close()

    def watch(self, connection: socket.socket) -> None:
        """Watch this connection from now on.

        :raises TimeoutError: the deadline has expired already.
        """
        duplicate = socket.socket(fileno=os.dup(connection.fileno()))
        with self._lock:
            previous, self._socket = self._socket, duplicate
        if previous is not None:
            previous.close()
        self.deadline.raise_if_expired()

    def _run(self) -> None:
        while seconds_left := self.deadline.seconds_left():
            if self._is_over.wait(seconds_left):
                return
        self.deadline.expire()
        with self._lock, suppress(OSError):  # the service may have closed the connection
            if self._socket is not None and not self._is_over.is_set():
                # the end is a reset, without what the service did not take in
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self._socket.shutdown(socket.SHUT_RDWR)


_WATCH: ContextVar[ConnectionWatch | None] = ContextVar("connection_watch", default=None)


class _FramedReads(io.RawIOBase):
    """Reads from a socket, and returns the bytes that `Framing` has for `http.client`.

    The response shows bytes only when it has a chunk of them, so their number is reported here.

    :param raw: the socket as a file.
    :param abandon: is called when bytes follow the response.
    """

    def __init__(
        self, raw: io.RawIOBase, framing: Framing, deadline: Deadline | None, abandon: Callable[[], None]
    ) -> None:
        self._raw = raw
        self._framing = framing
        self._deadline = deadline
        self._abandon = abandon
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Read bytes into a buffer.

        :raises FramingError: what arrives is no response, or an incomplete one.
        """
        while not self._ready and not self._framing.is_complete:
            data = self._raw.read(max(len(buffer), io.DEFAULT_BUFFER_SIZE))
            if data is None:
                return None
            if self._deadline is not None:
                self._deadline.on_bytes(len(data))
            self._ready = memoryview(self._framing.feed(data) if data else self._framing.finish())
            if self._framing.has_surplus:
                self._abandon()
            if not data:
                break
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def close(self) -> None:
        super().close()
        self._raw.close()


class _FramedResponse(HTTPResponse):
    """A response whose bytes `Framing` has read, and whose headers are those that it has found."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._framing = Framing(has_body=kwargs.get("method") != "HEAD")
        watch = _WATCH.get()

        def abandon() -> None:
            """Let urllib3 find the connection closed: what follows is not the next response."""
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RD)

        deadline = None if watch is None else watch.deadline
        self.fp = io.BufferedReader(_FramedReads(self.fp.detach(), self._framing, deadline, abandon))

    def begin(self) -> None:
        """Read status and headers."""
        super().begin()
        if (head := self._framing.head) is not None:
            self.reason = head.reason
            self.headers = self.msg = HTTPMessage()
            for name, value in head.headers:
                self.headers[name] = value  # adds a header, also a second one of the same name


class _WatchedConnection(HTTPConnection):
    """A connection that the `ConnectionWatch` of the current request watches, from its first byte."""

    response_class = _FramedResponse

    def _new_conn(self) -> socket.socket:
        """Open the socket; the host's addresses together get the time that is left."""
        if (watch := _WATCH.get()) is None:
            return super()._new_conn()
        timeout, options = self.timeout, self.socket_options
        self.socket_options = _UntilDeadline(options or (), watch.deadline)  # type: ignore[assignment]
        self.timeout = min(timeout or math.inf, watch.deadline.seconds_left() or MIN_TIMEOUT_SECONDS)
        try:
            connection = super()._new_conn()
        finally:
            self.timeout, self.socket_options = timeout, options
        try:
            watch.watch(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def request(self, *args: Any, **kwargs: Any) -> None:
        """Send a request, perhaps over an open connection."""
        if self.sock is not None and (watch := _WATCH.get()) is not None:
            watch.watch(self.sock)
        super().request(*args, **kwargs)


class _UntilDeadline:
    """Options for the socket of each address of a host; no further address is tried after the deadline."""

    def __init__(self, options: Iterable[Any], deadline: Deadline) -> None:
        self._options = options
        self._deadline = deadline

    def __iter__(self) -> Iterator[Any]:
        """Yield the options.

        :raises TimeoutError: no time is left.
        """
        self._deadline.raise_if_expired()
        yield from self._options


class _HttpConnection(_WatchedConnection):
    def connect(self) -> None:
        """Connect, also through a proxy."""
        try:
            super().connect()
        except OSError as error:  # urllib3's own errors are no OSErrors, and are marked already
            raise NewConnectionError(self, str(error)) from error


class _HttpsConnection(_WatchedConnection, HTTPSConnection):
    def connect(self) -> None:
        """Connect, also through a proxy's tunnel, and complete the TLS handshake."""
        try:
            super().connect()
        except (ssl.SSLError, ValueError) as error:  # ValueError: the certificate is of another host
            raise HandshakeError(*error.args) from error
        except OSError as error:
            raise NewConnectionError(self, str(error)) from error


class _HttpPool(HTTPConnectionPool):
    ConnectionCls = _HttpConnection


class _HttpsPool(HTTPSConnectionPool):
    ConnectionCls = _HttpsConnection


class BlockingAdapter(HTTPAdapter):
    """An adapter with these connections, directly and through HTTP proxies.

    SOCKS needs its own, which no `ConnectionWatch` watches: only the timeouts of `requests` apply there.
    """

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Create the manager of direct connections."""
        options = HTTPConnection.default_socket_options + get_keep_alive_options()
        super().init_poolmanager(*args, socket_options=options, **kwargs)
        _use_pools(self.poolmanager)

    def build_response(self, req: Any, resp: Any) -> Any:
        """Return the response, whose body urllib3 leaves as it is.

        Some versions of urllib3 decompress without a bound; the reader of the response does it instead, by
        the headers of the response, which are a copy.
        """
        response = super().build_response(req, resp)
        resp.headers.pop("Content-Encoding", None)
        return response

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        """Return the manager of connections through a proxy."""
        options = HTTPConnection.default_socket_options + get_keep_alive_options()
        manager = super().proxy_manager_for(*args, socket_options=options, **kwargs)
        if isinstance(manager, ProxyManager):
            _use_pools(manager)
        return manager


def _use_pools(manager: PoolManager) -> None:
    manager.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}
