"""The transport over `aiohttp`, for the triggerer, and its driver of conversations."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import cache
from typing import TYPE_CHECKING

import aiohttp
from yarl import URL

from airflow_provider_flows.core.exceptions import FlowError, FlowInputError
from airflow_provider_flows.core.http import Body, ConversationState, Request, Response, Sleep, is_fully_sent
from airflow_provider_flows.core.payload.sink import WriteFailedError
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

        :raises FlowUnreachable: no response arrived, or an incomplete one.
        :raises FlowInputError: a file in the body has changed, or cannot be read.
        :raises FlowMalformed: the response exceeds `Settings.max_response_bytes`, or its sink rejects it.
        :raises Exception: any error of what the sink writes to.
        """
        settings = self._settings
        body: bytes | Body | None = None
        failure: Exception
        has_status = False
        try:
            body = request.body
            # Paths are quoted already. Quoting a signed URL again would invalidate its signature.
            url = URL(settings.url(request), encoded=True)
            proxy, proxy_headers = self._get_proxy(url.scheme, url.host or "")
            async with self._session.request(
                request.method,
                url.update_query(request.query) if request.query else url,
                data=_read_chunks(body) if isinstance(body, Body) else body,
                headers=settings.headers(request) | _content_length(body),
                timeout=self._timeout,
                proxy=proxy,
                proxy_headers=proxy_headers,
                allow_redirects=False,
            ) as response:
                has_status = True
                reader = ResponseReader(settings, request, response.status, response.headers.items())
                while chunk := await response.content.readany():
                    reader.feed(chunk)
                return reader.finish(str(response.url))
        except WriteFailedError as error:
            failure = error.cause
        except (aiohttp.ClientError, OSError, ValueError) as error:  # a TimeoutError is an OSError
            if isinstance(error.__cause__, FlowInputError):  # raised by the body, and wrapped by aiohttp
                raise error.__cause__ from None
            may_have_arrived = is_fully_sent(body) and (has_status or not isinstance(error, NEVER_ARRIVED))
            failure = settings.unreachable_error(request, error, may_have_arrived=may_have_arrived)
        raise failure


async def _read_chunks(body: Body) -> AsyncIterator[bytes]:
    """Yield the chunks of a body, each read in a thread, because reading a file blocks."""
    chunks = iter(body)
    while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
        yield chunk


def _content_length(body: bytes | Body | None) -> dict[str, str]:
    """Return the header without which aiohttp would send a body in chunks of unknown total length."""
    return {"Content-Length": str(len(body))} if isinstance(body, Body) else {}


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
