"""The package's two drivers of conversations, with one signature, so that a test can run with both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

import pytest

from airflow_provider_flows.core.exceptions import FlowUnreachable
from airflow_provider_flows.core.http import Conversation, Request, Response, T
from airflow_provider_flows.transport import asynchronous, blocking
from airflow_provider_flows.transport.settings import Settings

TOKEN = "t0ken-that-nobody-may-see"


class Driver(Protocol):
    """Runs one conversation in a new session."""

    def __call__(
        self, settings: Settings, conversation: Conversation[T], sleep: Callable[[float], None] = ...
    ) -> T:
        """Return the result of the conversation."""


def no_sleep(_: float) -> None:
    """Do not wait."""


def run_with_requests(
    settings: Settings, conversation: Conversation[T], sleep: Callable[[float], None] = no_sleep
) -> T:
    """Run a conversation over `requests`."""
    with blocking.new_session(settings) as session:
        return blocking.run(conversation, blocking.BlockingTransport(settings, session).send, sleep)


def run_with_aiohttp(
    settings: Settings, conversation: Conversation[T], sleep: Callable[[float], None] = no_sleep
) -> T:
    """Run a conversation over `aiohttp`."""

    async def run() -> T:
        async def asleep(seconds: float) -> None:
            sleep(seconds)

        async with await asynchronous.new_session(settings) as session:
            transport = asynchronous.AsyncTransport(settings, session)
            return await asynchronous.run(conversation, transport.send, asleep)

    return asyncio.run(run())


DRIVERS = {"requests": run_with_requests, "aiohttp": run_with_aiohttp}


def settings_for(url: str, **more: Any) -> Settings:
    """Return settings with a token and short timeouts."""
    known: dict[str, Any] = {
        "connect_timeout": 2.0,
        "read_timeout": 2.0,
        "credentials": {"Authorization": f"Bearer {TOKEN}"},
    }
    return Settings(url, **(known | more))


def single_request(request: Request) -> Conversation[Response]:
    """Return the response to one request, whatever its status."""
    response = yield request
    assert response is not None
    return response


def catch_unreachable(driver: Driver, settings: Settings, request: Request) -> FlowUnreachable:
    """Send a request, and return the error, which never contains the token."""
    with pytest.raises(FlowUnreachable) as caught:
        driver(settings, single_request(request))
    assert TOKEN not in f"{caught.value} {caught.value!r} {caught.getrepr()}"
    return caught.value


def clear_proxy_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the machine's proxies and certificates from the environment."""
    for name in (
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "SSL_CERT_FILE",
    ):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
