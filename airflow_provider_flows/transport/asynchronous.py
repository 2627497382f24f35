"""Conversations over `aiohttp`, for the triggerer.

It knows no service; redirects and retries are conversations of their own (flow/exchange, flow/retry), not done here.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import certifi
from yarl import URL

from airflow_provider_flows.flow.errors import FlowServiceError
from airflow_provider_flows.flow.exchange import Pause, Request, Response
from airflow_provider_flows.transport.settings import CHUNK, Settings

if TYPE_CHECKING:
    from airflow_provider_flows.flow.exchange import Conversation, T


async def new_session(settings: Settings) -> aiohttp.ClientSession:
    """Make a session with the TLS settings, bound to the running loop; proxies of the environment work (`trust_env`)."""
    # loading certificates reads files and takes tens of milliseconds: not on the triggerer's loop, and only for https
    context = await asyncio.to_thread(_tls, settings.verify) if settings.base_url.startswith("https:") else True
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context), trust_env=True, auto_decompress=True)


def _tls(verify: str | bool) -> ssl.SSLContext | bool:  # noqa: FBT001  # as Settings has it
    if verify is False:
        return False
    bundle = certifi.where() if verify is True else verify  # what `requests` trusts, so that both transports agree
    if Path(bundle).is_dir():
        return ssl.create_default_context(capath=bundle)
    return ssl.create_default_context(cafile=bundle)


class AsyncTransport:
    """One `aiohttp` session and the settings to use it with."""

    def __init__(self, settings: Settings, session: aiohttp.ClientSession) -> None:
        """Take the session; whoever made it closes it."""
        self._settings = settings
        self._session = session
        self._timeout = aiohttp.ClientTimeout(
            total=None, connect=None, sock_connect=settings.connect_timeout, sock_read=settings.read_timeout
        )

    async def send(self, request: Request) -> Response:
        """Send one request and read its whole answer.

        :raises FlowUnreachable: no answer, or one that broke off.
        :raises FlowMalformed: an answer beyond the bound.
        """
        settings = self._settings
        try:
            async with self._session.request(
                request.method,
                # ids are quoted already, and a signed URL must not be quoted again
                URL(settings.url(request), encoded=True).update_query(request.query),
                data=request.body,
                headers=settings.headers(request),
                timeout=self._timeout,
                allow_redirects=False,
            ) as answer:
                body = bytearray()
                async for chunk in answer.content.iter_chunked(CHUNK):
                    body += chunk
                    settings.bounded(request, len(body))
                headers = {name.lower(): value for name, value in answer.headers.items()}
                return Response(answer.status, headers, bytes(body), str(answer.url))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            never = isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL))
            raise settings.unreachable(request, error, may_have_arrived=not never) from None


async def hold(
    conversation: Conversation[T],
    send: Callable[[Request], Awaitable[Response]],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> T:
    """Hold a conversation to its end: send what it yields, hand it what comes back."""
    try:
        step = next(conversation)
        while True:
            try:
                came = await send(step) if isinstance(step, Request) else None
                if isinstance(step, Pause):
                    await sleep(step.seconds)
            except FlowServiceError as error:
                step = conversation.throw(error)
            else:
                step = conversation.send(came)
    except StopIteration as stop:
        result: T = stop.value
        return result
