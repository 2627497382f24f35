"""Retries of single HTTP requests, with backoff and Retry-After, and redirects.

`Request.resend` decides which requests may be sent again. Retries of a task, and polls that fail, are not
retries in the sense of this module.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING
from urllib.parse import urljoin

from airflow_provider_flows.core.exceptions import FlowMalformed, FlowUnreachable
from airflow_provider_flows.core.http import Request, Resend, Response, Sleep, map_requests, send
from airflow_provider_flows.core.payload.sink import TooLargeError
from airflow_provider_flows.core.responses import is_quota_exceeded, malformed_message

if TYPE_CHECKING:
    from airflow_provider_flows.core.http import Conversation, T

RATE_LIMIT_STATUSES = frozenset({429})  # the service reports that it did nothing
GATEWAY_ERROR_STATUSES = frozenset({502, 503, 504})  # a gateway responded; the service may have acted or not
REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})
MAX_REDIRECTS = 5


@dataclass(frozen=True, slots=True)
class Retry:
    """A policy for sending a request again: exponential backoff with full jitter, and Retry-After.

    :param attempts: maximum number of attempts; 1 means no retry.
    :param initial_delay: upper bound of the first delay, in seconds; it doubles with each attempt.
    :param max_delay: longest delay, in seconds. If the service requests a longer one, its response is final.
    :param jitter: returns numbers between 0 and 1; tests replace it.
    :param now: returns epoch seconds, for a Retry-After that contains a date.
    """

    attempts: int = 4
    initial_delay: float = 1.0
    max_delay: float = 60.0
    jitter: Callable[[], float] = random.random
    now: Callable[[], float] = time.time

    def send(self, request: Request) -> Conversation[Response]:
        """Send one request, and retry it as the policy and `Request.resend` allow.

        :returns: the last response, which may be an error.
        :raises FlowUnreachable: the last attempt got no response, or the request must not be sent again.
        """
        for attempt in count(1):
            delay: float | None
            try:
                response = yield from follow_redirects(request)
            except FlowUnreachable as error:
                delay = self._get_backoff(attempt)
                if attempt >= self.attempts or not _can_resend(request, error, delay):
                    raise
            else:
                delay = self._get_retry_delay(request, response, attempt)
                if delay is None or delay > self.max_delay or not _is_in_time(request, delay):
                    return replace(response, attempts=attempt)
            yield Sleep(delay)
        raise AssertionError  # unreachable: count() does not end

    def retry_incomplete(self, create_conversation: Callable[[], Conversation[T]]) -> Conversation[T]:
        """Run a conversation that only reads, and run it again while what arrives is malformed or incomplete.

        :param create_conversation: returns a new conversation for each attempt.
        :raises FlowMalformed: the response of the last attempt is malformed as well, or one is too large.
        """
        for attempt in range(1, self.attempts):
            try:
                return (yield from create_conversation())
            except FlowMalformed as error:
                if isinstance(error.__cause__, TooLargeError):
                    raise
                yield Sleep(self._get_backoff(attempt))
        return (yield from create_conversation())

    def _get_retry_delay(self, request: Request, response: Response, attempt: int) -> float | None:
        """Return the delay before a request is sent again, None if its response is final."""
        is_rate_limited = (
            response.status in RATE_LIMIT_STATUSES
            and request.resend is not Resend.IF_NEVER_ARRIVED
            and not is_quota_exceeded(response)
        )
        is_gateway_error = response.status in GATEWAY_ERROR_STATUSES and request.resend is Resend.ALWAYS
        if attempt >= self.attempts or not (is_rate_limited or is_gateway_error):
            return None
        return max(self._get_backoff(attempt), response.retry_after(self.now()) or 0.0)

    def _get_backoff(self, attempt: int) -> float:
        return self.jitter() * min(self.max_delay, self.initial_delay * 2.0 ** (attempt - 1))


NO_RETRY = Retry(attempts=1)


def with_retries(conversation: Conversation[T], retry: Retry) -> Conversation[T]:
    """Run a conversation and send each of its requests as a retry policy says."""
    return map_requests(conversation, retry.send)


def _can_resend(request: Request, error: FlowUnreachable, delay: float) -> bool:
    if error.is_permanent:
        return False
    is_safe = request.resend is Resend.ALWAYS or not error.may_have_arrived
    return is_safe and _is_in_time(request, delay)


def _is_in_time(request: Request, delay: float) -> bool:
    """Return whether a request can be sent after a delay in seconds, before its deadline."""
    return request.deadline is None or time.monotonic() + delay < request.deadline


def follow_redirects(request: Request) -> Conversation[Response]:
    """Send a request, and follow the redirects of a GET.

    A redirect of another method is returned as it is: following it would change the method, or send the
    request twice. The transport raises an error for a URL to which the request must not be sent.

    :raises FlowMalformed: a redirect has no valid URL, or there are more than `MAX_REDIRECTS`.
    """
    for _ in range(MAX_REDIRECTS):
        response = yield from send(request)
        location = response.headers.get("location")
        if request.method != "GET" or response.status not in REDIRECT_STATUSES or not location:
            return response
        try:
            redirect_url = urljoin(response.url, location)
        except ValueError as error:
            raise FlowMalformed(
                malformed_message(request, response, "redirects to an invalid URL"), status=response.status
            ) from error
        request = request.follow(redirect_url)
    message = f"{request} was redirected more than {MAX_REDIRECTS} times; check the host of the connection"
    raise FlowMalformed(message, status=response.status)
