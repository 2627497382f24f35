"""The transport over `aiohttp`, for the triggerer, and its driver of conversations."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING

import aiohttp
from yarl import URL

from airflow_provider_flows.core.exceptions import FlowError, FlowInputError
from airflow_provider_flows.core.http import ConversationState, Request, Response, Sleep
from airflow_provider_flows.core.payload.sink import WriteFailedError
from airflow_provider_flows.transport.deadline import Deadline, Upload
from airflow_provider_flows.transport.response_reader import ResponseReader
from airflow_provider_flows.transport.settings import ACCEPTED_ENCODINGS, Settings
from airflow_provider_flows.transport.tls_and_proxy import get_proxy, load_tls_context

if TYPE_CHECKING:
    from airflow_provider_flows.core.http import Conversation, T

# No connection was established, so the service cannot have received the request. ValueError: the URL is
# invalid.
NEVER_ARRIVED = (
    aiohttp.ClientConnectorError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.ClientHttpProxyError,
    ValueError,
)


# The transports over which the current request is sent: to a proxy, and to the service.
_TRANSPORTS: ContextVar[list[asyncio.Transport] | None] = ContextVar("transports", default=None)


class _TracedRequest(aiohttp.ClientRequest):
    """A request that adds its transport to `_TRANSPORTS`."""

    async def send(self, conn: aiohttp.connector.Connection) -> aiohttp.ClientResponse:
        """Start to send the request over a connection."""
        if (transports := _TRANSPORTS.get()) is not None and conn.transport is not None:
            transports.append(conn.transport)
        return await super().send(conn)


async def new_session(settings: Settings) -> aiohttp.ClientSession:
    """Create a session with the connection's TLS settings, bound to the running event loop.

    :raises OSError: the CA bundle cannot be read.
    """
    # Loading certificates reads files and takes tens of milliseconds, so it runs in a thread, and only for
    # https.
    is_https = settings.base_url.startswith("https:")
    context = await asyncio.to_thread(load_tls_context, settings.verify) if is_https else True
    connector = aiohttp.TCPConnector(ssl=context)
    # aiohttp decompresses without a bound; the reader of the response does it instead
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept-Encoding": ACCEPTED_ENCODINGS},
        auto_decompress=False,
        request_class=_TracedRequest,
    )


class AsyncTransport:
    """Sends requests over one `aiohttp` session, which the caller closes."""

    def __init__(self, settings: Settings, session: aiohttp.ClientSession) -> None:
        self._settings = settings
        self._session = session
        self._get_proxy = cache(get_proxy)
        self._timeout = aiohttp.ClientTimeout(
            sock_connect=settings.connect_timeout, sock_read=settings.read_timeout
        )

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
            proxy, proxy_headers = self._get_proxy(url.scheme, url.host or "")
            async with (
                _interrupt_at(deadline),
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
                reader = ResponseReader(settings, request, response.status, response.headers.items())
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
            may_have_arrived = is_sent and (has_status or not isinstance(error, NEVER_ARRIVED))
            failure = settings.unreachable_error(
                request, error, deadline.explain_delay(), may_have_arrived=may_have_arrived
            )
        raise failure


@asynccontextmanager
async def _interrupt_at(deadline: Deadline) -> AsyncIterator[None]:
    """Interrupt the block, which sends one request, when a deadline has expired, whatever it awaits then.

    After any error the request's connection is closed at once: aiohttp would first send what is left of an
    upload, and take a response whose framing is broken for one that continues.

    :raises TimeoutError: the deadline has expired.
    """
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle
    transports: list[asyncio.Transport] = []
    previous = _TRANSPORTS.set(transports)

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
            yield
        except BaseException:
            for transport in transports:
                transport.abort()
            raise
        finally:
            timer.cancel()
            _TRANSPORTS.reset(previous)


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
