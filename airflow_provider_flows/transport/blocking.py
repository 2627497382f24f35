"""The transport over `requests`, for workers and the command line, and its driver of conversations.

The session's adapter has connections of its own. `Framing` reads the bytes of a response before `http.client`
does, and bodies stay as they are on the wire. An error while the connection is established is marked, because
no request was sent then.

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
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from contextvars import ContextVar
from http.client import HTTPMessage, HTTPResponse
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any, Self

import requests
import urllib3
from requests import exceptions as requests_exceptions
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, ProxyManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import NewConnectionError

from airflow_provider_flows.core.exceptions import FlowError
from airflow_provider_flows.core.http import ConversationState, Request, Response, Sleep
from airflow_provider_flows.core.payload.sink import WriteFailedError
from airflow_provider_flows.transport.deadline import Deadline, Upload
from airflow_provider_flows.transport.framing import Framing, FramingError
from airflow_provider_flows.transport.network import get_keep_alive_options, get_proxy_url
from airflow_provider_flows.transport.response_reader import ResponseReader
from airflow_provider_flows.transport.settings import ACCEPTED_ENCODINGS, READ_CHUNK_BYTES, Settings

if TYPE_CHECKING:
    from urllib3 import PoolManager

    from airflow_provider_flows.core.http import Conversation, T

MIN_TIMEOUT_SECONDS = 0.001  # a socket does not block at all with 0
# No connection was established, so the service cannot have received the request.
NEVER_ARRIVED = (
    requests_exceptions.ConnectTimeout,
    requests_exceptions.ProxyError,
    requests_exceptions.InvalidURL,
    requests_exceptions.InvalidSchema,
    requests_exceptions.MissingSchema,
)


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


class _Session(requests.Session):
    """A session that leaves redirects alone, and uses the proxies that both transports use.

    `requests` reads the body of a redirect, of any size, and parses its URL, even if it does not follow it.
    """

    def merge_environment_settings(self, url: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the settings for a request, with the proxy of the environment for its URL, or none."""
        merged = super().merge_environment_settings(url, *args, **kwargs)
        proxy_url = get_proxy_url(url)
        return {**merged, "proxies": {} if proxy_url is None else {"all": proxy_url}}

    def get_redirect_target(self, resp: requests.Response) -> None:  # noqa: ARG002  # the method of requests
        """Return None: no response is a redirect."""
        return


def new_session(settings: Settings) -> requests.Session:
    """Create a session with the connection's TLS settings.

    CA bundles of the environment apply as the documentation of `requests` describes.
    """
    session = _Session()
    session.verify = settings.verify
    session.headers["Accept-Encoding"] = ACCEPTED_ENCODINGS
    for scheme in ("http://", "https://"):
        session.mount(scheme, BlockingAdapter())
    return session


class BlockingTransport:
    """Sends requests over one `requests` session, which the caller closes."""

    def __init__(self, settings: Settings, session: requests.Session) -> None:
        self._settings = settings
        self._session = session

    def send(self, request: Request) -> Response:
        """Send one request and return its complete response; redirects are not followed.

        :raises FlowUnreachable: no response arrived, or an incomplete one, or not in time.
        :raises FlowInputError: a file in the body has changed, or cannot be read.
        :raises FlowMalformed: the response exceeds `Settings.max_response_bytes`, or its sink rejects it.
        :raises Exception: any error of what the sink writes to.
        """
        settings = self._settings
        upload: Upload | None = None
        failure: Exception
        statuses: list[int] = []  # that of the response, as soon as there is one
        deadline = Deadline(settings, request)
        if not deadline.check():
            raise settings.unreachable_error(
                request, TimeoutError(), deadline.explain_delay(), may_have_arrived=False
            )
        has_body = request.json is not None
        try:
            body = request.body
            upload = None if body is None else Upload(body, deadline)
            with (
                ConnectionWatch(deadline),
                self._session.request(
                    request.method,
                    settings.url(request),
                    params=request.query or None,
                    data=upload,
                    headers=settings.headers(request),
                    timeout=(settings.connect_timeout, settings.read_timeout),
                    # A CA bundle of the environment takes precedence over the session's `verify`, but not
                    # over this one.
                    verify=None if settings.verify is True else settings.verify,
                    # else ~/.netrc would replace the connection's credentials
                    auth=lambda prepared: prepared,
                    allow_redirects=False,
                    stream=True,
                    # called before `requests` does anything else with the response, which may fail
                    hooks={"response": lambda received, **_: statuses.append(received.status_code)},
                ) as response,
            ):
                deadline.on_response_start(response.status_code)
                reader = ResponseReader(settings, request, response.status_code, response.headers.items())
                for chunk in response.iter_content(READ_CHUNK_BYTES):
                    with deadline.paused():
                        reader.feed(chunk)
                deadline.raise_if_expired()  # else the connection's early end might pass for the response's
                return reader.finish(response.url)
        except WriteFailedError as error:
            failure = error.cause
        except (OSError, ValueError) as error:  # a RequestException is an OSError; ValueError: an invalid URL
            is_sent = not has_body or (upload is not None and upload.is_exhausted)
            is_connected = bool(statuses) or _is_connected(error)
            failure = settings.unreachable_error(
                request,
                error,
                deadline.explain_delay(),
                may_have_arrived=is_sent and is_connected,
                is_connected=is_connected,
                is_proxy=isinstance(error, requests_exceptions.ProxyError),
            )
        # Raised outside the handler: as its context, the library's error would hold an unread response open.
        raise failure


def _is_connected(error: Exception) -> bool:
    """Return whether a connection was established, so that the service may have received the request."""
    if isinstance(error, FramingError):
        return True
    if isinstance(error, NEVER_ARRIVED) or not isinstance(error, requests_exceptions.RequestException):
        return False
    # The cause is the `reason` of urllib3's MaxRetryError.
    reason = getattr(error.args[0] if error.args else None, "reason", None)
    if isinstance(reason, urllib3.exceptions.SSLError):
        # After the handshake, a TLS error does not show how much the service received.
        return not isinstance(reason.args[0], HandshakeError)
    return not isinstance(
        reason, (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError)
    )


def run(
    conversation: Conversation[T],
    send: Callable[[Request], Response],
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Run a conversation to its end, and return its result.

    :param send: sends one request; it returns the response or raises a `FlowError`.
    :param sleep: waits for a number of seconds.
    """
    state = ConversationState(conversation)
    while state.step is not None:
        if isinstance(state.step, Sleep):
            sleep(state.step.seconds)
            state.send_response(None)
            continue
        try:
            response = send(state.step)
        except FlowError as error:
            state.throw(error)
        else:
            state.send_response(response)
    return state.result
