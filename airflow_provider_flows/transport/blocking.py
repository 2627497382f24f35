"""Conversations over `requests`, for workers and the command line.

It knows no service; redirects and retries are conversations of their own (flow/exchange, flow/retry), not done here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import requests
from requests import exceptions as trouble

from airflow_provider_flows.flow.errors import FlowServiceError
from airflow_provider_flows.flow.exchange import Pause, Request, Response
from airflow_provider_flows.transport.settings import CHUNK, Settings

if TYPE_CHECKING:
    from airflow_provider_flows.flow.exchange import Conversation, T


def new_session(settings: Settings) -> requests.Session:
    """Make a session with the TLS settings; proxies and CA bundles of the environment work as `requests` documents."""
    session = requests.Session()
    session.verify = settings.verify
    return session


class BlockingTransport:
    """One `requests` session and the settings to use it with."""

    def __init__(self, settings: Settings, session: requests.Session) -> None:
        """Take the session; whoever made it closes it."""
        self._settings = settings
        self._session = session

    def send(self, request: Request) -> Response:
        """Send one request and read its whole answer.

        :raises FlowUnreachable: no answer, or one that broke off.
        :raises FlowMalformed: an answer beyond the bound.
        """
        settings = self._settings
        try:
            with self._session.request(
                request.method,
                settings.url(request),
                params=request.query or None,
                data=request.body,
                headers=settings.headers(request),
                timeout=(settings.connect_timeout, settings.read_timeout),
                # a CA bundle of the environment would win over the session's own `verify`, so it is said again here
                verify=None if settings.verify is True else settings.verify,
                auth=_no_netrc,
                allow_redirects=False,
                stream=True,
            ) as answer:
                body = bytearray()
                for chunk in answer.iter_content(CHUNK):
                    body += chunk
                    settings.bounded(request, len(body))
                headers = {name.lower(): value for name, value in answer.headers.items()}
                return Response(answer.status_code, headers, bytes(body), answer.url)
        except trouble.RequestException as error:
            raise settings.unreachable(request, error, may_have_arrived=_may_have_arrived(error)) from None


def _no_netrc(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Keep `requests` from replacing our credentials by what a ~/.netrc of the machine says."""
    return request


def _may_have_arrived(error: trouble.RequestException) -> bool:
    """Whether the service may have seen the request: not if no connection ever stood."""
    if isinstance(error, (trouble.ConnectTimeout, trouble.ProxyError, trouble.SSLError, trouble.InvalidURL)):
        return False
    cause = error.args[0] if error.args else None
    reason = getattr(cause, "reason", None)  # urllib3's MaxRetryError names what happened
    return type(reason).__name__ not in {"NewConnectionError", "NameResolutionError", "ConnectTimeoutError"}


def hold(
    conversation: Conversation[T],
    send: Callable[[Request], Response],
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Hold a conversation to its end: send what it yields, hand it what comes back."""
    try:
        step = next(conversation)
        while True:
            try:
                came = send(step) if isinstance(step, Request) else None
                if isinstance(step, Pause):
                    sleep(step.seconds)
            except FlowServiceError as error:
                step = conversation.throw(error)
            else:
                step = conversation.send(came)
    except StopIteration as stop:
        result: T = stop.value
        return result
