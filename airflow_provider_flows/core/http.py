"""HTTP requests and responses as plain values, and the conversations that they form.

A *conversation* is a generator. It yields a `Request`; the driver sends back the `Response` or throws a
`FlowError`. It may also yield a `Sleep`; the driver sends back None when that time has passed. The value that
it returns is the result of the conversation.

Conversations do no I/O. A driver (`transport.blocking.run`, `transport.asynchronous.run`) sends their
requests.

A request's JSON body may contain files, which are read a chunk at a time. It states its length in advance,
and can be read again from its start when the request is sent again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

from airflow_provider_flows.core.exceptions import FlowError, FlowInputError
from airflow_provider_flows.core.flow_run import UploadSource
from airflow_provider_flows.core.limits import (
    MAX_ERROR_LENGTH,
    MAX_ORIGIN_LENGTH,
    MAX_SHOWN_PATH_LENGTH,
    MAX_TIMESTAMP_CHARACTERS,
)
from airflow_provider_flows.core.payload import data_uri
from airflow_provider_flows.core.redaction import ErrorTexts, mask_values
from airflow_provider_flows.core.safe_text import to_line
from airflow_provider_flows.core.timestamps import parse_http_date

if TYPE_CHECKING:
    from airflow_provider_flows.core.payload.sink import Sink

T = TypeVar("T")
DEFAULT_PORTS = {"http": 80, "https": 443}


# they frame the request, or name its host or its sender; the transports set them
RESERVED_HEADERS = frozenset(
    {
        "accept-encoding",
        "authorization",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "cookie",
        "expect",
        "host",
        "keep-alive",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
    }
)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
_HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,4000}[\x21-\x7e])?")


class Resend(Enum):
    """When a request may be sent a second time."""

    ALWAYS = "always: sending it twice has the same effect as sending it once"
    IF_REFUSED = "only if it never arrived, or if the service reports that it did nothing (HTTP 429)"
    IF_NEVER_ARRIVED = "only if it never arrived, because each time that it arrives costs money"


class Purpose(Enum):
    """What a request serves, which decides how long it may take (`transport.deadline`)."""

    QUESTION = "something that the service knows, or does at once: a poll, a list, a change of state"
    RUN = "a flow run: the response arrives when the run has ended, and it is paid for"
    TRANSFER = "a file of any size, in either direction"


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request, without host and credentials.

    :param method: the HTTP method, in capitals.
    :param path: a quoted path that starts with a slash, relative to the connection's host; or an absolute
        URL, with or without a scheme. The transport sends a request to the connection's own origin only,
        unless `allow_url` allows another one, which gets no credentials.
    :param query: the query parameters, unquoted.
    :param json: the value that is sent as the JSON body, or None for no body. An `UploadSource` at any depth
        in it is sent as a data URI.
    :param headers: more headers, such as an Idempotency-Key. They go to the connection's own host only, and
        cannot replace the credentials or what the transport sets (`RESERVED_HEADERS`).
    :param resend: when the request may be sent again.
    :param sink: receives the body of a successful response, a chunk at a time.
    :param max_bytes: maximum size of the body of a successful response, or of the file that the sink makes of
        it; None for that of the connection, which no request exceeds.
    :param allow_url: decides for a URL outside of the connection's own origin whether the request may be sent
        to it; None allows none.
    :param label: how messages name the request; by default by its method and path.
    :param is_anonymous: whether no host gets credentials, not even the connection's own.
    :param purpose: what the request serves; by default a TRANSFER with a sink, and else a QUESTION.
    :param argument: the argument of which the request has the value, `flow` or `flow_run_id`, for messages.
    :param deadline: the time at which it must be complete, by the monotonic clock; None for no other limit
        than that of its purpose.
    """

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    json: Any = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False, kw_only=True)
    resend: Resend = Resend.ALWAYS
    sink: Sink | None = field(default=None, repr=False)
    max_bytes: int | None = None
    allow_url: Callable[[str], bool] | None = field(default=None, repr=False, compare=False)
    label: str = ""
    is_anonymous: bool = False
    purpose: Purpose | None = field(default=None, repr=False)
    deadline: float | None = field(default=None, repr=False, compare=False)
    argument: str = field(default="", repr=False, compare=False)

    def __post_init__(self) -> None:
        """Set the default purpose.

        :raises FlowInputError: a header cannot be sent.
        """
        for name, value in self.headers.items():
            if not _HEADER_NAME.fullmatch(name) or name.lower() in RESERVED_HEADERS:
                raise FlowInputError(f"{name!r} cannot be a header of a request")
            if not _HEADER_VALUE.fullmatch(value):
                raise FlowInputError(f"the header {name} of a request must be printable ASCII")
        if self.purpose is None:
            purpose = Purpose.QUESTION if self.sink is None else Purpose.TRANSFER
            object.__setattr__(self, "purpose", purpose)

    def __str__(self) -> str:
        """Return method and path, without query, user name and body: those of a link may be secrets."""
        if self.label:
            return self.label
        path = self.path.partition("?")[0]
        if not path.startswith("/"):
            path = f"{to_origin(path)}/{path.partition('://')[2].partition('/')[2]}"
        return to_line(f"{self.method} {path[:MAX_SHOWN_PATH_LENGTH]}")  # the path may be a service's link

    def follow(self, url: str, *, query: Mapping[str, str] | None = None) -> Request:
        """Return this request to the URL that its response led to; messages name it as this one."""
        return replace(self, path=url, query=query or {}, label=str(self))

    @property
    def body(self) -> bytes | Body | None:
        """The JSON body in UTF-8, as a `Body` that is read in chunks if it contains files, or None."""
        return None if self.json is None else to_body(self.json)


class Body:
    """A JSON text in which each file is a data URI. Iterate over it to read it from its start.

    :param parts: the JSON text around the files, one part more than there are files.
    :param sources: the files, in their order in the text.
    """

    def __init__(self, parts: Sequence[bytes], sources: Sequence[UploadSource]) -> None:
        self._parts = parts
        self._sources = sources

    def __len__(self) -> int:
        """Return the number of bytes, for Content-Length."""
        return sum(map(len, self._parts)) + sum(
            data_uri.size(source.media_type, source.size) for source in self._sources
        )

    def __iter__(self) -> Iterator[bytes]:
        """Yield the bytes, from the start.

        :raises FlowInputError: a file cannot be read, or its content has changed. The last bytes are not
            yielded.
        """
        *leading_parts, last_part = self._parts
        for part, source in zip(leading_parts, self._sources, strict=True):
            yield part + data_uri.head(source.media_type).encode()
            yield from data_uri.iter_base64(source.chunks())
        yield last_part


def to_body(value: Any) -> bytes | Body:
    """Return a value as JSON in UTF-8, with each `UploadSource` in it, at any depth, as a data URI.

    :raises TypeError: the value contains an object that JSON cannot represent.
    :raises ValueError: the value contains NaN or an infinity.
    """
    sources: list[UploadSource] = []
    placeholder = uuid4().hex  # replaces each file while the JSON is written; no caller can know it

    def replace_source(item: object) -> str:
        if not isinstance(item, UploadSource):
            message = f"{type(item).__name__} cannot be sent as JSON"
            raise TypeError(message)
        sources.append(item)
        return placeholder

    text = json.dumps(value, allow_nan=False, default=replace_source)
    if not sources:
        return text.encode()
    return Body([part.encode() for part in text.split(placeholder)], sources)


@dataclass(frozen=True, slots=True)
class Response:
    """One HTTP response.

    :param status: the HTTP status.
    :param headers: the headers, with names in lower case.
    :param body: the decompressed body; only its first bytes if a sink received it.
    :param url: the URL that was requested. It may be signed, so `repr` omits it.
    :param secrets: the credentials of the request, which `redact` removes from what the service repeats.
    :param bytes_received: how many bytes the sink received, None if the request has no sink.
    :param attempts: how many times the request was sent until this response arrived.
    :param is_foreign: whether another host than the connection's own has sent it. Its text is in no message.
    :param error_texts: what messages show of the text with which it explains an error (`quote`).
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = field(default=b"", repr=False)
    url: str = field(default="", repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)
    bytes_received: int | None = None
    attempts: int = 1
    is_foreign: bool = False
    error_texts: ErrorTexts = field(default=ErrorTexts(), repr=False, compare=False)

    def quote(self, text: str, max_length: int = MAX_ERROR_LENGTH) -> str:
        """Return a text of the service as messages show it: without credentials and inputs, and not long.

        :param max_length: how many characters of the text are read.
        """
        return self.error_texts.quote(self.redact(text, max_length))

    def redact(self, text: str, max_length: int | None = None) -> str:
        """Return a text with the credentials of the request replaced by asterisks, in whichever spelling.

        :param max_length: how many characters of the text are read, before they are masked.
        """
        return mask_values(text, self.secrets, max_length)

    @property
    def is_success(self) -> bool:
        """Whether the status is a success (2xx)."""
        return 200 <= self.status < 300

    def retry_after(self, now: float) -> float | None:
        """Return the seconds to wait according to the header Retry-After, None if it is absent or invalid.

        :param now: the current time in epoch seconds, because the header may contain a date.
        """
        value = self.headers.get("retry-after", "").strip()
        if not value or len(value) > MAX_TIMESTAMP_CHARACTERS:
            return None
        try:
            seconds = float(value) if value[:1].isdigit() else parse_http_date(value) - now
        except (ValueError, TypeError, OverflowError):
            return None
        return max(0.0, seconds)


@dataclass(frozen=True, slots=True)
class Sleep:
    """A pause in a conversation, in seconds.

    :param work: what the driver of an event loop runs in a thread during the pause; other drivers ignore it.
    """

    seconds: float
    work: Callable[[], object] | None = field(default=None, repr=False, compare=False)


Step = Request | Sleep
Conversation = Generator[Step, Response | None, T]


def send(request: Request) -> Conversation[Response]:
    """Send one request and return its response: the smallest conversation."""
    response = yield request
    if response is None:
        message = f"The driver of this conversation treated the request {request} as a pause"
        raise TypeError(message)
    return response


def run_apart(function: Callable[[], T]) -> Conversation[T]:
    """Return what a function returns that takes long, such as a write to a store, on whichever driver.

    The driver of an event loop calls the function in a thread; any other driver calls it where it is.

    :raises Exception: what the function raises.
    """
    outcomes: list[tuple[T, None] | tuple[None, Exception]] = []

    def work() -> None:
        try:
            outcomes.append((function(), None))
        except Exception as error:  # noqa: BLE001  # raised below, inside the conversation
            outcomes.append((None, error))

    yield Sleep(0.0, work)
    if not outcomes:  # the driver has no event loop
        return function()
    result, error = outcomes[0]
    if error is not None:
        raise error
    return result  # type: ignore[return-value]  # without an error there is a result


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


def allow_urls(conversation: Conversation[T], is_allowed: Callable[[str], bool]) -> Conversation[T]:
    """Run a conversation whose requests may also be sent to these URLs outside of the own origin."""
    return map_requests(conversation, lambda request: send(replace(request, allow_url=is_allowed)))


class ForbiddenUrlError(ValueError):
    """A URL leads where its request must not be sent; the cause of the error that the transport raises."""


# Excludes what libraries parse in different ways: user names, backslashes, escapes, zones of IPv6 addresses,
# and characters outside of ASCII.
_HOST_AND_PORT = re.compile(r"(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::\d{1,5})?", re.IGNORECASE | re.ASCII)
_DROPPED_BY_PARSERS = re.compile(r"[\x00-\x1f\x7f]|^ ")
_ODD_IN_ORIGIN = re.compile(r"[^\w.:\[\]-]", re.ASCII)


def has_unambiguous_host(url: str) -> bool:
    """Return whether every library finds the same host in a URL."""
    try:
        netloc = urlsplit(url).netloc
    except ValueError:
        return False
    return _HOST_AND_PORT.fullmatch(netloc) is not None and _DROPPED_BY_PARSERS.search(url) is None


def to_origin(url: str) -> str:
    """Return scheme, host and port of a URL for a message, without user name, path and query."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "an invalid URL"
    if set("@\\") & set(parts.netloc):
        return "a URL whose host is ambiguous"
    host = _ODD_IN_ORIGIN.sub("?", parts.netloc)[:MAX_ORIGIN_LENGTH]
    return f"{parts.scheme or 'https'}://{host}" if host else "a URL without a host"


def with_deadline(
    conversation: Conversation[T], deadline: float, purposes: Collection[Purpose] = tuple(Purpose)
) -> Conversation[T]:
    """Run a conversation whose requests must be complete, all together, at a time of the monotonic clock.

    :param purposes: the deadline is for the requests of these purposes only.
    """

    def send_in_time(request: Request) -> Conversation[Response]:
        if request.purpose in purposes:
            request = replace(request, deadline=min(deadline, request.deadline or deadline))
        return send(request)

    return map_requests(conversation, send_in_time)


UPGRADE_HINT = (
    "The service answers plain http with a redirect to https; set the connection's host to it ({target})."
)


def is_upgrade_to_https(url: str, target: str) -> bool:
    """Return whether a redirect leads from plain http to https at the same host."""
    try:
        first, second = urlsplit(url), urlsplit(target)
    except ValueError:
        return False
    return (first.scheme, second.scheme, first.hostname) == ("http", "https", second.hostname)


def is_same_origin(first: str, second: str) -> bool:
    """Return whether two URLs share scheme, host and port, so that both may receive the same credentials.

    A URL whose host is ambiguous matches no other.

    :param second: the URL that a connection is configured with.
    """
    try:
        origin, other_origin = (
            (parts.scheme, parts.hostname, parts.port or DEFAULT_PORTS.get(parts.scheme))
            for parts in map(urlsplit, (first, second))
        )
        # the netloc of the second may be an internationalized name
        is_same_spelling = urlsplit(first).netloc == urlsplit(second).netloc
    except ValueError:  # an invalid port or IP address
        return False
    is_safe = has_unambiguous_host(first) or (is_same_spelling and not _DROPPED_BY_PARSERS.search(first))
    return origin == other_origin and is_safe
