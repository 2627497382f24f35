"""Conversations over `requests`, for workers and the command line.

It knows no service; redirects and retries are conversations of their own (flow/exchange, flow/retry), not done here.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import requests
import urllib3
from requests import exceptions as requests_exceptions

from airflow_provider_flows.core.exceptions import FlowError
from airflow_provider_flows.core.http import ConversationState, Request, Response, Sleep
from airflow_provider_flows.core.request_body import Body, is_fully_sent
from airflow_provider_flows.transport.response_reader import ResponseReader
from airflow_provider_flows.transport.settings import READ_CHUNK_BYTES, Settings

if TYPE_CHECKING:
    from airflow_provider_flows.core.http import Conversation, T

NEVER_ARRIVED = (
    requests_exceptions.ConnectTimeout,
    requests_exceptions.ProxyError,
    requests_exceptions.InvalidURL,
    requests_exceptions.InvalidSchema,
    requests_exceptions.MissingSchema,
)


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
        :raises FlowInputError: a file in it has changed.
        :raises FlowMalformed: an answer beyond the bound.
        """
        settings = self._settings
        body: bytes | Body | None = None
        try:
            body = request.body
            with self._session.request(
                request.method,
                settings.url(request),
                params=request.query or None,
                data=body,
                headers=settings.headers(request),
                timeout=(settings.connect_timeout, settings.read_timeout),
                verify=None
                if settings.verify is True
                else settings.verify,  # the session's own would give way to environment's
                auth=lambda prepared: (
                    prepared
                ),  # else a ~/.netrc of the machine would replace our credentials
                allow_redirects=False,
                stream=True,
            ) as response:
                reader = ResponseReader(settings, request, response.status_code, response.headers.items())
                all(
                    map(reader.feed, response.iter_content(READ_CHUNK_BYTES))
                )  # to its end, or until no more is wanted
                return reader.response(response.url)
        except (
            OSError,
            ValueError,
        ) as error:  # RequestException is an OSError; others are of bad addresses and CA bundles
            failure = settings.unreachable_error(
                request, error, may_have_arrived=is_fully_sent(body) and _may_have_arrived(error)
            )
        raise failure from None  # out here: the library's error, which it would be tied to, may hold an answer that is open


def _may_have_arrived(error: Exception) -> bool:
    """Whether the service may have seen the request: not if no connection ever stood, or none was ever tried."""
    if isinstance(error, NEVER_ARRIVED) or not isinstance(error, requests_exceptions.RequestException):
        return False
    reason = getattr(
        error.args[0] if error.args else None, "reason", None
    )  # urllib3's MaxRetryError names what happened
    if isinstance(
        reason, urllib3.exceptions.SSLError
    ):  # one that comes after the handshake says nothing of what was seen
        return not isinstance(reason.args[0], ssl.SSLCertVerificationError)
    return not isinstance(
        reason, (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError)
    )


def run(
    conversation: Conversation[T],
    send: Callable[[Request], Response],
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Hold a conversation to its end: send what it yields, hand it what comes back."""
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
