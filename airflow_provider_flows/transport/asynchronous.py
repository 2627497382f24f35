"""The transport over `aiohttp`, for the triggerer, and its driver of conversations."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from copy import copy
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import aiohttp
from yarl import URL

from airflow_provider_flows.core.exceptions import FlowError, FlowInputError
from airflow_provider_flows.core.http import ConversationState, Request, Response, Sleep
from airflow_provider_flows.core.payload.sink import WriteFailedError
from airflow_provider_flows.transport.deadline import Deadline, Upload
from airflow_provider_flows.transport.framing import Framing, FramingError, Head
from airflow_provider_flows.transport.network import (
    get_keep_alive_options,
    get_proxy_url,
    load_tls_context,
    split_credentials,
)
from airflow_provider_flows.transport.response_reader import ResponseReader
from airflow_provider_flows.transport.settings import ACCEPTED_ENCODINGS, Settings

if TYPE_CHECKING:
    from aiohttp.client_proto import ResponseHandler

    from airflow_provider_flows.core.http import Conversation, T
    from airflow_provider_flows.core.redaction import ErrorTexts

# No connection was established, so the service cannot have received the request. ValueError: the URL is
# invalid.
NEVER_ARRIVED = (
    aiohttp.ClientConnectorError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.ClientHttpProxyError,
    ValueError,
)
PROXY_ERRORS = (aiohttp.ClientProxyConnectionError, aiohttp.ClientHttpProxyError)


class _Wire(asyncio.Protocol):
    """Reads what a connection receives by `Framing`, and passes it to the protocol of aiohttp.

    :param protocol: that of aiohttp, which all other events of the connection reach as they are.
    """

    def __init__(self, transport: asyncio.Transport, protocol: ResponseHandler) -> None:
        self.transport = transport
        self.failure: FramingError | None = None
        """Why the response cannot be read."""
        self._protocol = protocol
        self._framing = Framing()

    @property
    def head(self) -> Head | None:
        """Status and headers of the response."""
        return self._framing.head

    def expect_response(self, method: str) -> None:
        """Prepare for the response to a request that is about to be sent."""
        self._framing = Framing(has_body=method != "HEAD")
        self.failure = None

    def data_received(self, data: bytes) -> None:
        """Pass on what the bytes mean. After an error, or bytes that belong to no response, disconnect."""
        if self._framing.is_complete:
            self.transport.abort()
            return
        self._protocol.start_timeout()
        try:
            passed = self._framing.feed(data)
        except FramingError as error:
            self.failure = error
            self.transport.abort()
            return
        if passed:
            self._protocol.data_received(passed)
        if self._framing.has_surplus:
            self.transport.close()

    def eof_received(self) -> None:
        """Pass on; the transport closes itself."""
        self._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Complete a response that ends with its connection, and pass on."""
        if exc is None and self.failure is None:
            try:
                if passed := self._framing.finish():
                    self._protocol.data_received(passed)
            except FramingError as error:
                self.failure = error
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        """Pass on."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """Pass on."""
        self._protocol.resume_writing()


# The connections over which the current request is sent: to a proxy, and to the service.
_WIRES: ContextVar[list[_Wire] | None] = ContextVar("wires", default=None)


class _FramedRequest(aiohttp.ClientRequest):
    """A request whose connection is a `_Wire`, and is added to `_WIRES`."""

    async def send(self, conn: aiohttp.connector.Connection) -> aiohttp.ClientResponse:
        """Start to send the request over a connection."""
        if conn.transport is not None and conn.protocol is not None:
            wire = conn.transport.get_protocol()
            if not isinstance(wire, _Wire):
                wire = _Wire(conn.transport, conn.protocol)
                for option in get_keep_alive_options():
                    conn.transport.get_extra_info("socket").setsockopt(*option)
                conn.transport.set_protocol(wire)
            wire.expect_response(self.method)
            if (wires := _WIRES.get()) is not None:
                wires.append(wire)
        return await super().send(conn)


async def new_session(settings: Settings) -> aiohttp.ClientSession:
    """Create a session with the connection's TLS settings, bound to the running event loop.

    :raises OSError: the CA bundle cannot be read.
    """
    # Loading certificates reads files and takes tens of milliseconds, so it runs in a thread, and only for
    # https.
    is_https = settings.base_url.startswith("https:")
    context = await asyncio.to_thread(load_tls_context, settings.verify) if is_https else True
    # the callers bound how many requests they send at a time, each by a measure of its own
    connector = aiohttp.TCPConnector(ssl=context, limit=0)
    # aiohttp decompresses without a bound; the reader of the response does it instead
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept-Encoding": ACCEPTED_ENCODINGS},
        auto_decompress=False,
        request_class=_FramedRequest,
    )


class AsyncTransport:
    """Sends requests over one `aiohttp` session, which the caller closes."""

    def __init__(self, settings: Settings, session: aiohttp.ClientSession) -> None:
        self._settings = settings
        self._session = session
        self._get_proxy_url = cache(get_proxy_url)
        self._timeout = aiohttp.ClientTimeout(
            sock_connect=settings.connect_timeout, sock_read=settings.read_timeout
        )

    def with_error_texts(self, error_texts: ErrorTexts) -> AsyncTransport:
        """Return a transport over the same session whose errors hide the inputs of another flow run."""
        other = copy(self)
        other._settings = replace(self._settings, error_texts=error_texts)  # noqa: SLF001  # the same class
        return other

    async def send(self, request: Request) -> Response:
        """Send one request and return its complete response; redirects are not followed.

        :raises FlowUnreachable: no response arrived, or an incomplete one, or not in time.
        :raises FlowInputError: a file in the body has changed, or cannot be read.
        :raises FlowMalformed: the response exceeds `Settings.max_response_bytes`, or its sink rejects it.
        :raises Exception: any error of what the sink writes to.
        """
        settings = self._settings
        upload: Upload | None = None
        failure: Exception
        has_status = False
        deadline = Deadline(settings, request)
        if not deadline.check():
            raise settings.unreachable_error(
                request, TimeoutError(), deadline.explain_delay(), may_have_arrived=False
            )
        has_body = request.json is not None
        try:
            body = request.body
            upload = None if body is None else Upload(body, deadline)
            # Paths are quoted already. Quoting a signed URL again would invalidate its signature.
            url = URL(settings.url(request), encoded=True)
            proxy_url = self._get_proxy_url(str(url.origin()))
            proxy, proxy_headers = split_credentials(proxy_url) if proxy_url else (None, None)
            async with (
                _interrupt_at(deadline) as wires,
                self._session.request(
                    request.method,
                    url.update_query(request.query) if request.query else url,
                    data=None if upload is None else _read_pieces(upload),
                    headers=settings.headers(request) | _content_length(upload),
                    timeout=self._timeout,
                    proxy=proxy,
                    proxy_headers=proxy_headers,
                    allow_redirects=False,
                ) as response,
            ):
                has_status = True
                deadline.on_response_start(response.status)
                if (head := wires[-1].head) is None:  # for mypy: aiohttp has the status from it
                    raise FramingError("its response has no headers")
                reader = ResponseReader(settings, request, head.status, head.to_dict().items())
                while chunk := await response.content.readany():
                    deadline.on_bytes(len(chunk))
                    with deadline.paused():
                        reader.feed(chunk)
                return reader.finish(str(response.url))
        except WriteFailedError as error:
            failure = error.cause
        except (aiohttp.ClientError, OSError, ValueError) as error:  # a TimeoutError is an OSError
            if isinstance(error.__cause__, FlowInputError):  # raised by the body, and wrapped by aiohttp
                raise error.__cause__ from None
            is_sent = not has_body or (upload is not None and upload.is_exhausted)
            is_connected = (
                has_status or isinstance(error, FramingError) or not isinstance(error, NEVER_ARRIVED)
            )
            failure = settings.unreachable_error(
                request,
                error,
                deadline.explain_delay(),
                may_have_arrived=is_sent and is_connected,
                is_connected=is_connected,
                is_proxy=isinstance(error, PROXY_ERRORS),
            )
        raise failure


@asynccontextmanager
async def _interrupt_at(deadline: Deadline) -> AsyncIterator[list[_Wire]]:
    """Interrupt the block, which sends one request, when a deadline has expired, whatever it awaits then.

    After any error the request's connection is closed at once: aiohttp would first send what is left of an
    upload, and take a response whose framing is broken for one that continues.

    :returns: the connections over which the request is sent.
    :raises FramingError: the response cannot be read.
    :raises TimeoutError: the deadline has expired.
    """
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle
    wires: list[_Wire] = []
    previous = _WIRES.set(wires)

    def check() -> None:
        nonlocal timer
        if seconds_left := deadline.seconds_left():
            timer = loop.call_later(seconds_left, check)
        else:
            deadline.expire()
            timeout.reschedule(loop.time())

    async with asyncio.timeout(None) as timeout:
        timer = loop.call_later(deadline.seconds_left(), check)
        try:
            yield wires
        except BaseException as error:
            for wire in wires:
                wire.transport.abort()
            if wires and wires[-1].failure is not None and isinstance(error, aiohttp.ClientError):
                raise wires[-1].failure from error
            raise
        finally:
            timer.cancel()
            _WIRES.reset(previous)


async def _read_pieces(upload: Upload) -> AsyncIterator[bytes]:
    """Yield the pieces of an upload. Each chunk is read in a thread, because reading a file blocks."""
    while (chunk := await asyncio.to_thread(upload.read_chunk)) is not None:
        for piece in upload.split(chunk):
            yield piece


def _content_length(upload: Upload | None) -> dict[str, str]:
    """Return the header without which aiohttp would send a body in chunks of unknown total length."""
    return {} if upload is None else {"Content-Length": str(len(upload))}


async def run(
    conversation: Conversation[T],
    send: Callable[[Request], Awaitable[Response]],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> T:
    """Run a conversation to its end, and return its result.

    :param send: sends one request; it returns the response or raises a `FlowError`.
    :param sleep: waits for a number of seconds.
    """
    state = ConversationState(conversation)
    while state.step is not None:
        if isinstance(state.step, Sleep):
            if state.step.work is not None:
                await asyncio.to_thread(state.step.work)
            await sleep(state.step.seconds)
            state.send_response(None)
            continue
        try:
            response = await send(state.step)
        except FlowError as error:
            state.throw(error)
        else:
            state.send_response(response)
    return state.result
