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
from requests import exceptions as trouble

from airflow_provider_flows.core.exceptions import FlowError
from airflow_provider_flows.core.http import Pause, Request, Response, Talk
from airflow_provider_flows.core.request_body import Body, may_be_read
from airflow_provider_flows.transport.response_reader import Receiving
from airflow_provider_flows.transport.settings import CHUNK, Settings

if TYPE_CHECKING:
    from airflow_provider_flows.core.http import Conversation, T

NEVER_ARRIVED = (
    trouble.ConnectTimeout,
    trouble.ProxyError,
    trouble.InvalidURL,
    trouble.InvalidSchema,
    trouble.MissingSchema,
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
        sent: bytes | Body | None = None
        try:
            sent = request.body
            with self._session.request(
                request.method,
                settings.url(request),
                params=request.query or None,
                data=sent,
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
            ) as answer:
                coming = Receiving(settings, request, answer.status_code, answer.headers.items())
                all(map(coming.take, answer.iter_content(CHUNK)))  # to its end, or until no more is wanted
                return coming.response(answer.url)
        except (
            OSError,
            ValueError,
        ) as error:  # RequestException is an OSError; others are of bad addresses and CA bundles
            told = settings.unreachable(
                request, error, may_have_arrived=may_be_read(sent) and _may_have_arrived(error)
            )
        raise told from None  # out here: the library's error, which it would be tied to, may hold an answer that is open


def _may_have_arrived(error: Exception) -> bool:
    """Whether the service may have seen the request: not if no connection ever stood, or none was ever tried."""
    if isinstance(error, NEVER_ARRIVED) or not isinstance(error, trouble.RequestException):
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


def hold(
    conversation: Conversation[T],
    send: Callable[[Request], Response],
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Hold a conversation to its end: send what it yields, hand it what comes back."""
    talk = Talk(conversation)
    while talk.step is not None:
        if isinstance(talk.step, Pause):
            sleep(talk.step.seconds)
            talk.answered(None)
            continue
        try:
            response = send(talk.step)
        except FlowError as error:
            talk.failed(error)
        else:
            talk.answered(response)
    return talk.result
