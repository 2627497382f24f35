"""The transport over `requests`, for workers and the command line, and its driver of conversations."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import requests
import urllib3
from requests import exceptions as requests_exceptions

from airflow_provider_flows.core.exceptions import FlowError
from airflow_provider_flows.core.http import ConversationState, Request, Response, Sleep
from airflow_provider_flows.core.payload.sink import WriteFailedError
from airflow_provider_flows.transport.blocking_adapter import BlockingAdapter, ConnectionWatch, HandshakeError
from airflow_provider_flows.transport.deadline import Deadline, Upload
from airflow_provider_flows.transport.framing import FramingError
from airflow_provider_flows.transport.network import get_proxy_url
from airflow_provider_flows.transport.response_reader import ResponseReader
from airflow_provider_flows.transport.settings import ACCEPTED_ENCODINGS, READ_CHUNK_BYTES, Settings

if TYPE_CHECKING:
    from airflow_provider_flows.core.http import Conversation, T

# No connection was established, so the service cannot have received the request.
NEVER_ARRIVED = (
    requests_exceptions.ConnectTimeout,
    requests_exceptions.ProxyError,
    requests_exceptions.InvalidURL,
    requests_exceptions.InvalidSchema,
    requests_exceptions.MissingSchema,
)


class _Session(requests.Session):
    """A session that leaves redirects alone, and uses the proxies that both transports use.

    `requests` reads the body of a redirect, of any size, and parses its URL, even if it does not follow it.
    """

    def merge_environment_settings(self, url: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the settings for a request, with the proxy of the environment for its URL, or none."""
        merged = super().merge_environment_settings(url, *args, **kwargs)
        proxy_url = get_proxy_url(url)
        return {**merged, "proxies": {} if proxy_url is None else {"all": proxy_url}}

    def get_redirect_target(self, resp: requests.Response) -> None:  # noqa: ARG002  # the method of requests
        """Return None: no response is a redirect."""
        return


def new_session(settings: Settings) -> requests.Session:
    """Create a session with the connection's TLS settings.

    CA bundles of the environment apply as the documentation of `requests` describes.
    """
    session = _Session()
    session.verify = settings.verify
    session.headers["Accept-Encoding"] = ACCEPTED_ENCODINGS
    for scheme in ("http://", "https://"):
        session.mount(scheme, BlockingAdapter())
    return session


class BlockingTransport:
    """Sends requests over one `requests` session, which the caller closes."""

    def __init__(self, settings: Settings, session: requests.Session) -> None:
        self._settings = settings
        self._session = session

    def send(self, request: Request) -> Response:
        """Send one request and return its complete response; redirects are not followed.

        :raises FlowUnreachable: no response arrived, or an incomplete one, or not in time.
        :raises FlowInputError: a file in the body has changed, or cannot be read.
        :raises FlowMalformed: the response exceeds `Settings.max_response_bytes`, or its sink rejects it.
        :raises Exception: any error of what the sink writes to.
        """
        settings = self._settings
        upload: Upload | None = None
        failure: Exception
        statuses: list[int] = []  # that of the response, as soon as there is one
        deadline = Deadline(settings, request)
        if not deadline.check():
            raise settings.unreachable_error(
                request, TimeoutError(), deadline.explain_delay(), may_have_arrived=False
            )
        has_body = request.json is not None
        try:
            body = request.body
            upload = None if body is None else Upload(body, deadline)
            with (
                ConnectionWatch(deadline),
                self._session.request(
                    request.method,
                    settings.url(request),
                    params=request.query or None,
                    data=upload,
                    headers=settings.headers(request),
                    timeout=(settings.connect_timeout, settings.read_timeout),
                    # A CA bundle of the environment takes precedence over the session's `verify`, but not
                    # over this one.
                    verify=None if settings.verify is True else settings.verify,
                    # else ~/.netrc would replace the connection's credentials
                    auth=lambda prepared: prepared,
                    allow_redirects=False,
                    stream=True,
                    # called before `requests` does anything else with the response, which may fail
                    hooks={"response": lambda received, **_: statuses.append(received.status_code)},
                ) as response,
            ):
                deadline.on_response_start(response.status_code)
                reader = ResponseReader(settings, request, response.status_code, response.headers.items())
                for chunk in response.iter_content(READ_CHUNK_BYTES):
                    with deadline.paused():
                        reader.feed(chunk)
                deadline.raise_if_expired()  # else the connection's early end might pass for the response's
                return reader.finish(response.url)
        except WriteFailedError as error:
            failure = error.cause
        except (OSError, ValueError) as error:  # a RequestException is an OSError; ValueError: an invalid URL
            is_sent = not has_body or (upload is not None and upload.is_exhausted)
            is_connected = bool(statuses) or _is_connected(error)
            failure = settings.unreachable_error(
                request,
                error,
                deadline.explain_delay(),
                may_have_arrived=is_sent and is_connected,
                is_connected=is_connected,
                is_proxy=isinstance(error, requests_exceptions.ProxyError),
            )
        # Raised outside the handler: as its context, the library's error would hold an unread response open.
        raise failure


def _is_connected(error: Exception) -> bool:
    """Return whether a connection was established, so that the service may have received the request."""
    if isinstance(error, FramingError):
        return True
    if isinstance(error, NEVER_ARRIVED) or not isinstance(error, requests_exceptions.RequestException):
        return False
    # The cause is the `reason` of urllib3's MaxRetryError.
    reason = getattr(error.args[0] if error.args else None, "reason", None)
    if isinstance(reason, urllib3.exceptions.SSLError):
        # After the handshake, a TLS error does not show how much the service received.
        return not isinstance(reason.args[0], HandshakeError)
    return not isinstance(
        reason, (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError)
    )


def run(
    conversation: Conversation[T],
    send: Callable[[Request], Response],
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Run a conversation to its end, and return its result.

    :param send: sends one request; it returns the response or raises a `FlowError`.
    :param sleep: waits for a number of seconds.
    """
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
