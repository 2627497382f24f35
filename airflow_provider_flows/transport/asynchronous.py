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
from airflow_provider_flows.core.http import Pause, Request, Response, Talk
from airflow_provider_flows.core.request_body import Body, may_be_read
from airflow_provider_flows.transport import tls_and_proxy, uploads
from airflow_provider_flows.transport.response_reader import Receiving
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
        sent: bytes | Body | None = None
        try:
            sent = request.body
            url = URL(
                settings.url(request), encoded=True
            )  # ids are quoted already; a signed URL must not be quoted again
            proxy, proxy_headers = self._proxy(url.scheme, url.host or "")
            async with self._session.request(
                request.method,
                url.update_query(request.query) if request.query else url,
                data=uploads.streamed(sent),
                headers=settings.headers(request) | uploads.length(sent),
                timeout=self._timeout,
                proxy=proxy,
                proxy_headers=proxy_headers,
                allow_redirects=False,
            ) as answer:
                coming = Receiving(settings, request, answer.status, answer.headers.items())
                while (chunk := await answer.content.readany()) and coming.take(chunk):
                    pass
                return coming.response(str(answer.url))
        except (aiohttp.ClientError, OSError, ValueError) as error:  # a TimeoutError is an OSError
            uploads.raise_own(error)
            arrived = may_be_read(sent) and not isinstance(error, NEVER_ARRIVED)
            raise settings.unreachable(request, error, may_have_arrived=arrived) from None


async def hold(
    conversation: Conversation[T],
    send: Callable[[Request], Awaitable[Response]],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> T:
    """Hold a conversation to its end: send what it yields, hand it what comes back."""
    talk = Talk(conversation)
    while talk.step is not None:
        if isinstance(talk.step, Pause):
            await sleep(talk.step.seconds)
            talk.answered(None)
            continue
        try:
            response = await send(talk.step)
        except FlowError as error:
            talk.failed(error)
        else:
            talk.answered(response)
    return talk.result
