"""Requests, responses and conversations as plain values, and the one place where a response becomes a value or an error.

It does no I/O and knows no service: the transports send, flow/services says what to send, retry.py says what to send again.

A conversation is a generator: it yields a `Request` and is sent the `Response` (or is thrown the `FlowError` that kept
it from coming), or yields a `Pause` and is sent None when the time is over; what it returns is its result.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import urlsplit

from airflow_provider_flows.core.bounded_json import parse_bounded_json
from airflow_provider_flows.core.exceptions import (
    FlowAuthError,
    FlowConflict,
    FlowError,
    FlowInvalid,
    FlowMalformed,
    FlowNotFound,
    FlowRateLimited,
    FlowServiceError,
)
from airflow_provider_flows.core.redaction import mask_values
from airflow_provider_flows.core.request_body import Body, to_body
from airflow_provider_flows.core.timestamps import parse_http_date

if TYPE_CHECKING:
    from airflow_provider_flows.core.payload.sink import Sink

T = TypeVar("T")
MAX_EXCERPT_CHARS = 200  # characters of a service's own words that go into a message
MAX_EXCERPT_BYTES = 2 * MAX_EXCERPT_CHARS  # bytes of a body in which they are looked for


class Resend(Enum):
    """When a request may be sent a second time."""

    ALWAYS = "doing it twice is doing it once"
    IF_REFUSED = "only when it never arrived, or when the service said that it did nothing (429)"
    IF_NEVER_ARRIVED = "only when it never arrived: doing it twice costs money"


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request, without host, without credentials.

    `path` is relative to the connection's host and quoted already, or an absolute URL; the credentials go with a request only to
    the connection's own host. `json` is sent as the body unless it is None. `into` takes the body of a success, of any size.
    `follow` says of a URL whether a redirect may lead there; without it, any may.
    """

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    json: Any = field(default=None, repr=False)
    resend: Resend = Resend.ALWAYS
    sink: Sink | None = field(default=None, repr=False)
    allow_redirect: Callable[[str], bool] | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        """Give method and path, never a query (a signed URL's query is a secret) and never the body."""
        return f"{self.method} {self.path.partition('?')[0]}"

    @property
    def body(self) -> bytes | Body | None:
        """The JSON body (UTF-8), or None; with files in it, one that is gone through a chunk at a time."""
        return None if self.json is None else to_body(self.json)


@dataclass(frozen=True, slots=True)
class Response:
    """What came back: the status, the headers with lower-case names, the body (its start if a sink took it), and the URL."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = field(default=b"", repr=False)
    url: str = field(default="", repr=False)  # not shown: a signed URL is a secret
    secrets: tuple[str, ...] = field(default=(), repr=False)  # the key, for an answer that repeats it
    bytes_received: int | None = None  # bytes that a sink took

    def redact(self, text: str) -> str:
        """Give a part of the answer as it may be shown."""
        return mask_values(text, self.secrets)

    @property
    def is_success(self) -> bool:
        """Whether the status says success (2xx)."""
        return 200 <= self.status < 300

    def retry_after(self, now: float) -> float | None:
        """Seconds that the service asks to wait (header Retry-After, seconds or a date), or None; nonsense counts as absent.

        :param now: the present in epoch seconds, for a date.
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
    """Nothing to send for so many seconds."""

    seconds: float


Step = Request | Sleep
Conversation = Generator[Step, Response | None, T]


def send(request: Request) -> Conversation[Response]:
    """Hold the smallest conversation: one request, one response."""
    response = yield request
    if response is None:
        message = f"{request} was answered as if it were a pause: the driver of this conversation is broken"
        raise TypeError(message)
    return response


class ConversationState(Generic[T]):
    """A conversation under way, as a driver sees it: the step to do next, or None and the result."""

    result: T

    def __init__(self, conversation: Conversation[T]) -> None:
        """Begin the conversation, up to its first step."""
        self._conversation = conversation
        self.step: Step | None = None
        self._advance(conversation.send, None)

    def send_response(self, response: Response | None) -> None:
        """Hand over what came back, None after a pause."""
        self._advance(self._conversation.send, response)

    def throw(self, error: FlowError) -> None:
        """Tell what kept the answer from coming."""
        self._advance(self._conversation.throw, error)

    def _advance(self, method: Callable[[Any], Step], value: Any) -> None:
        try:
            self.step = method(value)
        except StopIteration as stop:
            self.step, self.result = None, stop.value


def map_requests(
    conversation: Conversation[T], send_one: Callable[[Request], Conversation[Response]]
) -> Conversation[T]:
    """Hold a conversation in which each request is asked by `asking`, for example again and again, or along redirects.

    :param conversation: any conversation that has not begun.
    :param asking: what becomes of one request: a conversation that returns its response or raises a `FlowError`.
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
    """Hold a conversation whose requests are redirected only to where they may be."""
    return map_requests(conversation, lambda request: send(replace(request, allow_redirect=is_allowed)))


def is_same_origin(one: str, other: str) -> bool:
    """Whether two URLs share scheme, host and port, so that credentials for the one may go to the other.

    A URL with a user or a backslash before its path shares nothing: libraries differ about its host.
    """
    default = {"http": 80, "https": 443}
    try:
        first, second = (
            (parts.scheme, parts.hostname, parts.port or default.get(parts.scheme))
            for parts in map(urlsplit, (one, other))
        )
        odd = set("@\\") & set(urlsplit(one).netloc)
    except ValueError:  # a port or an address that is none
        return False
    return first == second and not odd


def parse_json(request: Request, response: Response) -> Any:
    """Read a response into a JSON value, or raise what it means.

    :raises FlowServiceError: any answer that is not a success, as the type the status stands for.
    :raises FlowMalformed: a success whose body is not JSON (whatever its content type says, vendor-api P-10).
    """
    raise_for_status(request, response)
    if not response.body.strip():
        return None
    try:
        value = parse_bounded_json(response.body)
    except ValueError as error:
        raise FlowMalformed(
            malformed_message(request, response, f"cannot be read as JSON ({error})"), status=response.status
        ) from error
    _raise_if_unsuccessful(request, response, value)
    return value


def expect_success(request: Request, response: Response) -> None:
    """Take a success whose body nobody needs, and which may be anything.

    :raises FlowServiceError: any answer that is not a success, also one that says so in its body only (vendor-api 1.8).
    """
    raise_for_status(request, response)
    try:
        value = parse_bounded_json(response.body)
    except ValueError:
        return
    _raise_if_unsuccessful(request, response, value)


def _raise_if_unsuccessful(request: Request, response: Response, value: Any) -> None:
    if isinstance(value, dict) and value.get("success") is False:
        message = f"{request} was answered with success: false. The service says: {error_reason(response)}"
        raise FlowServiceError(message, status=response.status)


def malformed_message(request: Request, response: Response, problem: str) -> str:
    """Word the message of a `FlowMalformed`: what was asked, why the answer cannot be read, and how it begins."""
    excerpt = response.redact(response.body[:MAX_EXCERPT_BYTES].decode("utf-8", "replace"))[
        :MAX_EXCERPT_CHARS
    ]
    size = len(response.body) if response.bytes_received is None else response.bytes_received
    return f"The answer to {request} {problem} (HTTP {response.status}, {size} bytes). It begins: {excerpt!r}"


REDIRECT_HINT = (
    "The service redirects to where this request is not sent on. Check the host of the connection."
)
ERRORS_BY_STATUS: dict[int, tuple[type[FlowServiceError], str]] = {
    **dict.fromkeys((301, 302, 303, 307, 308), (FlowServiceError, REDIRECT_HINT)),
    400: (FlowInvalid, "The service refuses the request; check the arguments named below."),
    401: (FlowAuthError, "The service does not accept the key; check the connection's password."),
    402: (FlowServiceError, "The account's quota or credit seems to be used up."),
    403: (
        FlowAuthError,
        "The service does not allow this with the connection's key; check the password and its rights.",
    ),
    404: (FlowNotFound, "The service knows nothing by that name or id; check it, and the connection's host."),
    409: (FlowConflict, "This cannot be done in the flow run's present state."),
    413: (FlowInvalid, "The inputs are larger than the service takes."),
    415: (FlowInvalid, "The flow does not take an input of this media type."),
    422: (FlowInvalid, "The service refuses the request; check the arguments named below."),
    425: (FlowConflict, "It is too early for this; the flow run is not that far yet."),
    429: (FlowRateLimited, "The service asks for fewer requests."),
}


def raise_for_status(request: Request, response: Response, now: float | None = None) -> None:
    """Raise what a response's status stands for, unless it is a success.

    :raises FlowServiceError: or the subclass of the status (vendor-api 1.8); the message carries the service's own reason.
    """
    if response.is_success:
        return
    error_class, hint = ERRORS_BY_STATUS.get(
        response.status, (FlowServiceError, "The service could not answer; try again later.")
    )
    current_time = time.time() if now is None else now
    message = f"{request} was answered with HTTP {response.status}. {hint} The service says: {error_reason(response)}"
    raise error_class(message, status=response.status, retry_after=response.retry_after(current_time))


def error_reason(response: Response) -> str:
    """Find the service's own words in an error answer: `detail` (text, list, object), `message`, `error`, or its start."""
    try:
        value = parse_bounded_json(response.body)
    except ValueError:
        value = response.body.decode("utf-8", "replace")
    if isinstance(value, dict):
        value = next(
            (value[key] for key in ("detail", "message", "error", "details") if value.get(key)), value
        )
    items = value if isinstance(value, list) else [value]
    text = "; ".join(_format_detail(item) for item in items).strip()
    return response.redact(" ".join(text.split()))[: 3 * MAX_EXCERPT_CHARS] or "(nothing)"


def _format_detail(item: Any) -> str:
    """Word one item of FastAPI's detail list (`loc`, `msg`), or anything else."""
    if isinstance(item, dict) and "msg" in item:
        location = item.get("loc") if isinstance(item.get("loc"), list) else []
        return f"{'.'.join(str(part) for part in location or [])}: {item['msg']}"
    return item if isinstance(item, str) else json.dumps(item, default=str)
