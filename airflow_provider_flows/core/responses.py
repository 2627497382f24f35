"""From an HTTP response to a JSON value or an error.

`ERRORS_BY_STATUS` is the table of which status raises which error. The JSON of a service is untrusted: it is
read with a limit on its depth, and with finite numbers only, so that Airflow and the standard library can
process it.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from urllib.parse import urljoin, urlsplit

from airflow_provider_flows.core.exceptions import (
    FlowAuthError,
    FlowConflict,
    FlowInvalid,
    FlowMalformed,
    FlowNotFound,
    FlowQuotaExceeded,
    FlowRateLimited,
    FlowServiceError,
    reason_sentence,
)
from airflow_provider_flows.core.http import (
    UPGRADE_HINT,
    Conversation,
    Request,
    Response,
    T,
    is_upgrade_to_https,
    run_apart,
    send,
    to_origin,
)
from airflow_provider_flows.core.limits import (
    MAX_ERROR_LENGTH,
    MAX_INLINE_BYTES,
    MAX_JSON_DEPTH,
    MAX_JSON_VALUES,
    MAX_REASON_LENGTH,
)
from airflow_provider_flows.core.redaction import get_max_spelling_length, mask_json
from airflow_provider_flows.core.safe_text import decode_text, replace_unsafe_escapes, to_line

MAX_EXCERPT_BYTES = 2 * MAX_REASON_LENGTH  # of a body from which the excerpt in a message is taken

REDIRECT_HINT = (
    "The service redirects it to {target}, and nothing was sent there. If the service has moved there, set "
    "the connection's host to it."
)
FOREIGN_HINT = "Another host, {origin}, to which the service led, did not deliver the file."
PAGE = "A page in HTML{title} came instead of the service's JSON, so "
GATEWAY_HINT = (
    f"{PAGE}a gateway or a proxy has answered, or the host is another web server, and this says nothing "
    "about the API key. Check the connection's host, and whether the gateway lets requests of this machine "
    "through."
)
BUSY_GATEWAY_HINT = (
    f"{PAGE}a gateway has answered that does not reach the service; try again later. If that does not help, "
    "check the connection's host."
)
OTHER_SERVER_HINT = f"{PAGE}the host is perhaps another web server. Check the connection's host."
PROXY_HINT = (
    "A proxy requires credentials; put them into its URL (HTTP_PROXY, HTTPS_PROXY), or the service's host "
    "into NO_PROXY."
)
INVALID_HINT = "The service rejected the request; check the arguments named below."
QUOTA_HINT = "The account's quota or credit is used up; add credit or raise the limit at the service."
NOT_FOUND_HINT = (
    "The service has nothing at that address. Check the connection's host; then the name or id (flow, "
    "flow_run_id), which may be misspelt, deleted, or of another account or service (flows_conn_id)."
)
MISSING_ID_HINT = (
    "The service has nothing of that name or id ({argument}); check it: it may be misspelt, deleted, or of "
    "another account or service (flows_conn_id). Check the host of the connection as well."
)
HOST_PATH_HINT = "The connection's host has the path {path!r}: check first that the service's API is there. "
RATE_HINT = (
    "The service receives too many requests. Run fewer tasks of this connection at a time (a pool of "
    "Airflow's), set max_requests_per_second in its extra, which limits deferred tasks, and let the tasks "
    "retry later (retries, retry_delay)."
)
ERRORS_BY_STATUS: dict[int, tuple[type[FlowServiceError], str]] = {
    **dict.fromkeys((301, 302, 303, 307, 308), (FlowServiceError, REDIRECT_HINT)),
    400: (FlowInvalid, INVALID_HINT),
    401: (FlowAuthError, "The service does not accept the API key; check the connection's password."),
    402: (FlowQuotaExceeded, QUOTA_HINT),
    403: (
        FlowAuthError,
        "The service does not allow this with the connection's API key; check the password and its rights.",
    ),
    404: (
        FlowNotFound,
        NOT_FOUND_HINT,
    ),
    407: (FlowServiceError, PROXY_HINT),
    409: (FlowConflict, "The flow run is not in a state that allows this."),
    413: (FlowInvalid, "The inputs are larger than the service accepts."),
    415: (FlowInvalid, "The flow does not accept inputs of this media type."),
    422: (FlowInvalid, INVALID_HINT),
    425: (FlowConflict, "The flow run is not ready for this yet."),
    429: (FlowRateLimited, RATE_HINT),
}
OTHER_STATUS_HINT = "The service could not process the request; try again later."

# A 403 or 429 that contains one of these subjects is about the account's quota. A number of requests in a
# short time is a rate limit, whatever the service calls it, and `credits:read` is the name of a permission.
# A page in HTML, after a byte order mark, an XML declaration and comments, if there are any.
_HTML_START = re.compile(
    rb"(?:\xef\xbb\xbf)?(?>\s+|<\?xml[^>]{0,200}>|<!--.{0,200}?-->){0,20}+<(?:!doctype\s+html|html|head|body|title)\b",
    re.IGNORECASE | re.DOTALL,
)
_HTML_TITLE = re.compile(rb"<(?:title|h1)\b[^>]{0,200}>([^<]{1,200})</", re.IGNORECASE)
MAX_PAGE_HEAD_BYTES = 8 * 1024  # in which the title of a page in HTML is searched
GATEWAY_STATUSES = frozenset({502, 503, 504})
TEXT_STATUSES = frozenset({403, 429})
_QUOTA_SUBJECT = re.compile(
    r"(?<![a-z])(?:quotas?|credits?|billing|payment[ _-]required|insufficient[ _-](?:balance|funds)"
    r"|spending[ _-]limit)(?![a-z]|:\w)",
    re.IGNORECASE,
)
_RATE = re.compile(
    r"(?:per|a|each|/)[\s_-]*(?:second|minute|hour|sec|min)\b"
    r"|requests?[ _-]per(?![ _-](?:day|week|month|year))",
    re.IGNORECASE,
)
_CAMEL_CASE = re.compile(r"(?<=[a-z])(?=[A-Z])")  # between the words of a code such as QuotaExceeded
# The status of a `success: false` says nothing, so the text must also say that there is none left.
_USED_UP = re.compile(
    r"exceeded|exhausted|used up|insufficient|not enough|out of|depleted|no (?:more )?(?:credits?|quota)",
    re.IGNORECASE,
)


def request_json(request: Request, parse: Callable[[Any], T]) -> Conversation[T]:
    """Send a request, and parse the JSON value of its response.

    :param parse: receives the JSON value, None if the body is empty. It may access what it expects without
        checks, because its LookupError, TypeError, ValueError, AttributeError and ArithmeticError become a
        `FlowMalformed`.
    :raises FlowServiceError: the response is not a success.
    :raises FlowMalformed: the response is not JSON, or `parse` failed.
    """
    response = yield from send(request)
    return (yield from run_apart_if_large(response, partial(_parse_with, request, response, parse)))


def _parse_with(request: Request, response: Response, parse: Callable[[Any], T]) -> T:
    value = parse_json(request, response)
    try:
        return parse(value)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        problem = f"does not have the expected content ({type(error).__name__})"
        message = malformed_message(request, response, problem)
        # without its cause, whose message may contain any text of the response
        raise FlowMalformed(message, status=response.status) from None


def run_apart_if_large(response: Response, parse: Callable[[], T]) -> Conversation[T]:
    """Return what a function makes of a response; an event loop calls it in a thread if the body is large.

    :raises Exception: what the function raises.
    """
    return (yield from run_apart(parse)) if len(response.body) > MAX_INLINE_BYTES else parse()


def load_json(request: Request, response: Response) -> Conversation[Any]:
    """Return what `parse_json` returns; an event loop parses a large body in a thread.

    :raises FlowServiceError: as `parse_json`.
    """
    return (yield from run_apart_if_large(response, partial(parse_json, request, response)))


def parse_json(request: Request, response: Response) -> Any:
    """Return the JSON value of a response, None if its body is empty.

    The content type is ignored (vendor_notes.md, P-10).

    :raises FlowServiceError: the response is not a success; the class depends on the status.
    :raises FlowMalformed: the body of a success is not JSON.
    """
    raise_for_status(request, response)
    if not response.body.strip():
        return None
    try:
        value = parse_bounded_json(response.body, response.secrets)
    except ValueError as error:
        raise FlowMalformed(
            malformed_message(request, response, f"cannot be read as JSON ({error})"), status=response.status
        ) from error
    _raise_if_unsuccessful(request, response, value)
    return value


def expect_success(request: Request, response: Response) -> None:
    """Raise an error unless a response is a success; its body may be anything.

    :raises FlowServiceError: the response is not a success, or its JSON contains `success: false`
        (vendor_notes.md, 1.8).
    """
    raise_for_status(request, response)
    try:
        value = parse_bounded_json(response.body, response.secrets)
    except ValueError:
        return
    _raise_if_unsuccessful(request, response, value)


def _raise_if_unsuccessful(request: Request, response: Response, value: Any) -> None:
    if isinstance(value, dict) and value.get("success") is False:
        message = f"{request} returned success: false. {reason_sentence(error_reason(response))}"
        if any(_QUOTA_SUBJECT.search(text) and _USED_UP.search(text) for text in _iter_texts(value)):
            raise FlowQuotaExceeded(message, status=response.status, is_permanent=request.method != "GET")
        raise FlowServiceError(message, status=response.status)


def raise_for_status(request: Request, response: Response, now: float | None = None) -> None:
    """Raise the error of a response's status, unless the response is a success.

    :param now: the current time in epoch seconds, for a Retry-After that contains a date.
    :raises FlowServiceError: or the subclass in `ERRORS_BY_STATUS` (vendor_notes.md, 1.8). Its message
        contains the reason that the service gives.
    """
    if response.is_success:
        return
    error_class, hint = _get_error_class_and_hint(request, response)
    current_time = time.time() if now is None else now
    has_reason = not response.is_foreign and not is_html(response)
    reason = reason_sentence(error_reason(response)) if has_reason else ""
    retry_after = response.retry_after(current_time)
    if is_quota_exceeded(response):
        message = f"{request} returned HTTP {response.status}. {QUOTA_HINT} {reason}"
        is_permanent = request.method != "GET"
        raise FlowQuotaExceeded(
            message, status=response.status, retry_after=retry_after, is_permanent=is_permanent
        )
    message = f"{request} returned HTTP {response.status}. {hint} {reason}".rstrip()
    raise error_class(message, status=response.status, retry_after=retry_after)


def _get_error_class_and_hint(request: Request, response: Response) -> tuple[type[FlowServiceError], str]:
    """Return the class and the hint of an error response's exception."""
    error_class, hint = ERRORS_BY_STATUS.get(response.status, (FlowServiceError, OTHER_STATUS_HINT))
    if response.is_foreign:  # such as an expired signature; it says nothing about the key or the account
        error_class = FlowNotFound if error_class is FlowNotFound else FlowServiceError
        return error_class, FOREIGN_HINT.format(origin=to_origin(response.url))
    if hint is REDIRECT_HINT:
        location = response.headers.get("location", "")
        try:
            url = urljoin(response.url, location)
            target = to_origin(url) if location else "no URL"
            hint = UPGRADE_HINT if is_upgrade_to_https(response.url, url) else hint
        except ValueError:
            target = "an invalid URL"
        return error_class, hint.format(target=target)
    if is_html(response) and response.status != 429:
        is_rejection = 400 <= response.status < 500
        hint = BUSY_GATEWAY_HINT if response.status in GATEWAY_STATUSES else OTHER_SERVER_HINT
        hint = (GATEWAY_HINT if is_rejection else hint).format(title=_quote_page_title(response))
        return (FlowServiceError if error_class is FlowAuthError else error_class), hint
    if hint is NOT_FOUND_HINT:
        if request.argument:
            hint = MISSING_ID_HINT.format(argument=request.argument)
        host_path = urlsplit(response.url).path.removesuffix(request.path)
        if request.path.startswith("/") and host_path.strip("/") and request.path in response.url:
            hint = HOST_PATH_HINT.format(path=to_line(host_path)) + hint
    return error_class, hint


def _quote_page_title(response: Response) -> str:
    """Return the title of a page in HTML in parentheses, for a message; empty if it has none."""
    match = _HTML_TITLE.search(response.body[:MAX_PAGE_HEAD_BYTES])
    title = "" if match is None else " ".join(decode_text(match[1]).split())
    return f" ({to_line(response.quote(title))!r})" if title and response.error_texts.is_shown else ""


def is_html(response: Response) -> bool:
    """Return whether the body is a page in HTML, which no service sends: it is that of a gateway or proxy."""
    return _HTML_START.match(response.body) is not None


def is_quota_exceeded(response: Response) -> bool:
    """Return whether an error response says that the account's quota or credit is used up."""
    if response.is_foreign:
        return False
    if ERRORS_BY_STATUS.get(response.status, (None,))[0] is FlowQuotaExceeded:
        return True
    if response.status not in TEXT_STATUSES:
        return False
    try:
        texts = [*_iter_texts(parse_bounded_json(response.body, response.secrets))]
    except ValueError:
        text = decode_text(response.body).strip()[:MAX_ERROR_LENGTH]
        texts = [] if text.startswith("<") else [text]  # a gateway's page may contain any word
    text = _CAMEL_CASE.sub(" ", "\n".join(texts))
    return _QUOTA_SUBJECT.search(text) is not None and _RATE.search(text) is None


def _iter_texts(value: Any) -> Iterator[str]:
    """Yield the texts among the values of a parsed JSON, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _iter_texts(inner)


def malformed_message(request: Request, response: Response, problem: str) -> str:
    """Return the message of a `FlowMalformed`.

    :param problem: what is wrong with the response, as the predicate of a sentence ("is not ...").
    """
    if response.is_foreign:
        return f"The response to {request}, from another host, {problem} (HTTP {response.status})."
    size = len(response.body) if response.bytes_received is None else response.bytes_received
    problem = to_line(response.redact(problem))
    head = f"The response to {request} {problem} (HTTP {response.status}, {size} bytes)."
    if is_html(response):
        head = f"{head} {OTHER_SERVER_HINT.format(title=_quote_page_title(response))}"
    if not response.error_texts.is_shown:
        return head
    start = decode_text(response.body[: MAX_EXCERPT_BYTES + get_max_spelling_length(response.secrets)])
    return f"{head} It starts with: {response.quote(start, MAX_EXCERPT_BYTES)!r}"


def error_reason(response: Response) -> str:
    """Return the reason that a service gives in an error response.

    It is the first non-empty of `detail` (a text, list or object), `message`, `error` and `details`, else the
    start of the body, which may be empty. It is one line, as messages may show it (`ErrorTexts`), and empty
    for a response from another host.
    """
    if response.is_foreign or is_html(response):  # the hint has the title of the page
        return ""
    try:
        value = parse_bounded_json(response.body, response.secrets)
    except ValueError:
        value = decode_text(response.body)
    if isinstance(value, dict):
        value = next(
            (value[key] for key in ("detail", "message", "error", "details") if value.get(key)), value
        )
    items = value if isinstance(value, list) else [value]
    text = "; ".join(_format_detail(item) for item in items).strip()
    return to_line(response.quote(" ".join(text.split())))


def _format_detail(item: Any) -> str:
    """Return an item of FastAPI's list of validation errors (`loc`, `msg`), or any other value, as text."""
    if isinstance(item, dict) and "msg" in item:
        location = item.get("loc") if isinstance(item.get("loc"), list) else []
        return f"{'.'.join(str(part) for part in location or [])}: {item['msg']}"
    return item if isinstance(item, str) else json.dumps(item, default=str)


def parse_bounded_json(body: bytes, secrets: tuple[str, ...] = ()) -> Any:
    """Return the value of a JSON text, at most `MAX_JSON_DEPTH` levels deep.

    NaN and the infinities become None, also when they are written as large numbers (1e999). Texts, also
    keys, have U+FFFD in place of what no store accepts (see `core.safe_text`), and `***` in place of secrets:
    this is the one place where the texts of a service come in.

    A large text is parsed with a call of a Python function for each object and number, between which other
    threads run, because an event loop must continue while this runs in a thread. That takes twice as long.

    :raises ValueError: the text is not JSON, is nested too deeply, or has too many values.
    """
    if len(body) > MAX_JSON_VALUES and sum(map(body.count, (b",", b"[", b"{"))) > MAX_JSON_VALUES:
        raise ValueError(f"it has more than {MAX_JSON_VALUES:,} values")
    is_large = len(body) > MAX_INLINE_BYTES
    try:
        text = replace_unsafe_escapes(decode_text(body))
        value = (_COOPERATIVE_DECODER if is_large else _FAST_DECODER).decode(text)
    except RecursionError:
        raise _depth_error() from None
    # Walk the value level by level. `level` holds all values at one depth, so no recursion is needed, and one
    # membership test a level finds the infinities. They are rare, and only then the slower decoder runs.
    level: list[Any] = [value]
    for _ in range(MAX_JSON_DEPTH + 2):
        if not is_large and (math.inf in level or -math.inf in level):
            level = [value := _FINITE_DECODER.decode(text)]
        containers = [outer for outer in level if type(outer) in _CONTAINERS]
        if not containers:
            return mask_json(value, text, secrets)
        level = [
            inner for outer in containers for inner in (outer.values() if type(outer) is dict else outer)
        ]
    raise _depth_error()


def _parse_finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


_CONTAINERS = frozenset({dict, list})
# Created once: `json.loads` with arguments creates a decoder for each call, which takes as long as decoding a
# small response. The finite decoder takes twice as long as the fast one.
_FAST_DECODER = json.JSONDecoder(parse_constant=lambda _: None)
_FINITE_DECODER = json.JSONDecoder(parse_constant=lambda _: None, parse_float=_parse_finite)
_COOPERATIVE_DECODER = json.JSONDecoder(
    object_hook=lambda value: value, parse_constant=lambda _: None, parse_float=_parse_finite
)


def _depth_error() -> ValueError:
    return ValueError(f"nested more than {MAX_JSON_DEPTH} levels deep")
