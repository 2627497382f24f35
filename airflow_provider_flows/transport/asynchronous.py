"""Conversations over `aiohttp`, for the triggerer.

It knows no service; redirects and retries are conversations of their own (flow/exchange, flow/retry), not done here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import cache
from typing import TYPE_CHECKING

import aiohttp
from yarl import URL

from airflow_provider_flows.core.exceptions import FlowError
from airflow_provider_flows.core.http import ConversationState, Request, Response, Sleep
from airflow_provider_flows.core.request_body import Body, is_fully_sent
from airflow_provider_flows.transport import tls_and_proxy, uploads
from airflow_provider_flows.transport.response_reader import ResponseReader
from airflow_provider_flows.transport.settings import Settings

if TYPE_CHECKING:
    from airflow_provider_flows.core.http import Conversation, T

# where no connection ever stood, the service cannot have seen the request; ValueError: no address at all
NEVER_ARRIVED = (
    aiohttp.ClientConnectorError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.ClientHttpProxyError,
    ValueError,
)


async def new_session(settings: Settings) -> aiohttp.ClientSession:
    """Make a session with the TLS settings, bound to the running loop."""
    # loading certificates reads files and takes tens of milliseconds: not on the triggerer's loop, and only for https
    https = settings.base_url.startswith("https:")
    context = await asyncio.to_thread(tls_and_proxy.tls, settings.verify) if https else True
    connector = aiohttp.TCPConnector(ssl=context)
    return aiohttp.ClientSession(
        connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=True
    )


class AsyncTransport:
    """One `aiohttp` session and the settings to use it with."""

    def __init__(self, settings: Settings, session: aiohttp.ClientSession) -> None:
        """Take the session; whoever made it closes it."""
        self._settings = settings
        self._session = session
        self._proxy = cache(tls_and_proxy.proxy)
        self._timeout = aiohttp.ClientTimeout(
            sock_connect=settings.connect_timeout, sock_read=settings.read_timeout
        )

    async def send(self, request: Request) -> Response:
        """Send one request and read its whole answer.

        :raises FlowError: as the other transport's `send` does.
        """
        settings = self._settings
        body: bytes | Body | None = None
        try:
            body = request.body
            url = URL(
                settings.url(request), encoded=True
            )  # ids are quoted already; a signed URL must not be quoted again
            proxy, proxy_headers = self._proxy(url.scheme, url.host or "")
            async with self._session.request(
                request.method,
                url.update_query(request.query) if request.query else url,
                data=uploads.to_stream(body),
                headers=settings.headers(request) | uploads.length_header(body),
                timeout=self._timeout,
                proxy=proxy,
                proxy_headers=proxy_headers,
                allow_redirects=False,
            ) as response:
                reader = ResponseReader(settings, request, response.status, response.headers.items())
                while (chunk := await response.content.readany()) and reader.feed(chunk):
                    pass
                return reader.response(str(response.url))
        except (aiohttp.ClientError, OSError, ValueError) as error:  # a TimeoutError is an OSError
            uploads.raise_input_error(error)
            may_have_arrived = is_fully_sent(body) and not isinstance(error, NEVER_ARRIVED)
            raise settings.unreachable_error(request, error, may_have_arrived=may_have_arrived) from None


async def run(
    conversation: Conversation[T],
    send: Callable[[Request], Awaitable[Response]],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> T:
    """Hold a conversation to its end: send what it yields, hand it what comes back."""
    state = ConversationState(conversation)
    while state.step is not None:
        if isinstance(state.step, Sleep):
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
