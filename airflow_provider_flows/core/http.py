"""HTTP requests and responses as plain values, and the conversations that they form.

A *conversation* is a generator. It yields a `Request` and is sent the `Response`, or is thrown the
`FlowError` that was raised instead. It may also yield a `Sleep`, and is sent None when that time has passed.
The value that it returns is the result of the conversation.

Conversations do no I/O. A driver (`transport.blocking.run`, `transport.asynchronous.run`) sends their
requests.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import urlsplit

from airflow_provider_flows.core.exceptions import FlowError
from airflow_provider_flows.core.redaction import mask_values
from airflow_provider_flows.core.request_body import Body, to_body
from airflow_provider_flows.core.timestamps import parse_http_date

if TYPE_CHECKING:
    from airflow_provider_flows.core.payload.sink import Sink

T = TypeVar("T")
DEFAULT_PORTS = {"http": 80, "https": 443}


class Resend(Enum):
    """When a request may be sent a second time."""

    ALWAYS = "always: sending it twice has the same effect as sending it once"
    IF_REFUSED = "only if it never arrived, or if the service reports that it did nothing (HTTP 429)"
    IF_NEVER_ARRIVED = "only if it never arrived, because each time that it arrives costs money"


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request, without host and credentials.

    :param method: the HTTP method, in capitals.
    :param path: a quoted path that starts with a slash, relative to the connection's host; or an absolute
        URL. The credentials are sent to the connection's own host only.
    :param query: the query parameters, unquoted.
    :param json: the value that is sent as the JSON body, or None for no body. An `UploadSource` at any depth
        in it is sent as a data URI.
    :param resend: when the request may be sent again.
    :param sink: receives the body of a successful response, of any size, a chunk at a time.
    :param allow_redirect: decides for a URL whether a redirect to it may be followed; None allows any URL.
    """

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    json: Any = field(default=None, repr=False)
    resend: Resend = Resend.ALWAYS
    sink: Sink | None = field(default=None, repr=False)
    allow_redirect: Callable[[str], bool] | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        """Return method and path, without query and body: the query of a signed URL is a secret."""
        return f"{self.method} {self.path.partition('?')[0]}"

    @property
    def body(self) -> bytes | Body | None:
        """The JSON body in UTF-8, as a `Body` that is read in chunks if it contains files, or None."""
        return None if self.json is None else to_body(self.json)


@dataclass(frozen=True, slots=True)
class Response:
    """One HTTP response.

    :param status: the HTTP status.
    :param headers: the headers, with names in lower case.
    :param body: the decompressed body; only its first bytes if a sink received it.
    :param url: the URL that was requested. It may be signed, so `repr` omits it.
    :param secrets: the credentials of the request, which `redact` removes from what the service repeats.
    :param bytes_received: how many bytes the sink received, None if the request has no sink.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = field(default=b"", repr=False)
    url: str = field(default="", repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)
    bytes_received: int | None = None

    def redact(self, text: str) -> str:
        """Return a text with the credentials of the request replaced by asterisks."""
        return mask_values(text, self.secrets)

    @property
    def is_success(self) -> bool:
        """Whether the status is a success (2xx)."""
        return 200 <= self.status < 300

    def retry_after(self, now: float) -> float | None:
        """Return the seconds to wait according to the header Retry-After, None if it is absent or invalid.

        :param now: the current time in epoch seconds, because the header may contain a date.
        """
        value = self.headers.get("retry-after", "").strip()
        if not value:
            return None
        try:
            seconds = float(value) if value[:1].isdigit() else parse_http_date(value) - now
        except (ValueError, TypeError, OverflowError):
            return None
        return max(0.0, seconds)


@dataclass(frozen=True, slots=True)
class Sleep:
    """A pause in a conversation, in seconds."""

    seconds: float


Step = Request | Sleep
Conversation = Generator[Step, Response | None, T]


def send(request: Request) -> Conversation[Response]:
    """Send one request and return its response: the smallest conversation."""
    response = yield request
    if response is None:
        message = f"The driver of this conversation treated the request {request} as a pause"
        raise TypeError(message)
    return response


class ConversationState(Generic[T]):
    """A conversation in progress, as a driver uses it.

    `step` is what the driver must do next. It is None when the conversation has returned `result`.

    :param conversation: a conversation that has not started; it is run up to its first step.
    """

    result: T

    def __init__(self, conversation: Conversation[T]) -> None:
        self._conversation = conversation
        self.step: Step | None = None
        self._advance(conversation.send, None)

    def send_response(self, response: Response | None) -> None:
        """Continue the conversation with a response, or with None after a pause."""
        self._advance(self._conversation.send, response)

    def throw(self, error: FlowError) -> None:
        """Continue the conversation with the error that was raised instead of a response."""
        self._advance(self._conversation.throw, error)

    def _advance(self, method: Callable[[Any], Step], value: Any) -> None:
        try:
            self.step = method(value)
        except StopIteration as stop:
            self.step, self.result = None, stop.value


def map_requests(
    conversation: Conversation[T], send_one: Callable[[Request], Conversation[Response]]
) -> Conversation[T]:
    """Run a conversation in which another conversation sends each request, for example with retries.

    :param conversation: a conversation that has not started.
    :param send_one: sends one request; it returns the response or raises a `FlowError`.
    """
    state = ConversationState(conversation)
    while state.step is not None:
        if isinstance(state.step, Sleep):
            state.send_response((yield state.step))
            continue
        try:
            response = yield from send_one(state.step)
        except FlowError as error:
            state.throw(error)
        else:
            state.send_response(response)
    return state.result


def restrict_redirects(conversation: Conversation[T], is_allowed: Callable[[str], bool]) -> Conversation[T]:
    """Run a conversation whose requests follow redirects to allowed URLs only."""
    return map_requests(conversation, lambda request: send(replace(request, allow_redirect=is_allowed)))


def is_same_origin(first: str, second: str) -> bool:
    """Return whether two URLs share scheme, host and port, so that both may receive the same credentials.

    A URL with a user name or a backslash before its path matches no other, because libraries disagree about
    its host.
    """
    try:
        origin, other_origin = (
            (parts.scheme, parts.hostname, parts.port or DEFAULT_PORTS.get(parts.scheme))
            for parts in map(urlsplit, (first, second))
        )
        is_ambiguous = bool(set("@\\") & set(urlsplit(first).netloc))
    except ValueError:  # an invalid port or IP address
        return False
    return origin == other_origin and not is_ambiguous
