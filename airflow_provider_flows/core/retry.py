"""Which requests may be sent again, when, how often, and where a redirect leads.

It is about single requests; that a wait goes on although a look failed is waiting.py's business.
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
from airflow_provider_flows.core.http import (
    Request,
    Resend,
    Response,
    Sleep,
    malformed_message,
    map_requests,
    send,
)

if TYPE_CHECKING:
    from airflow_provider_flows.core.http import Conversation, T

RATE_LIMIT_STATUSES = frozenset({429})  # the service says that it did nothing
GATEWAY_ERROR_STATUSES = frozenset(
    {502, 503, 504}
)  # somebody in between answered; it may or may not have arrived
MAX_REDIRECTS = 5


@dataclass(frozen=True, slots=True)
class Retry:
    """How patiently a single request is asked: exponential backoff with full jitter, and Retry-After honoured.

    :param attempts: how often it is asked at the most, 1 for once.
    :param first: seconds; the bound of the first pause, doubled each time.
    :param longest: seconds; no pause is longer, and a service that asks for a longer one is not waited for.
    :param jitter: gives numbers in 0 to 1; replaced in tests.
    :param now: gives epoch seconds, for a Retry-After that is a date.
    """

    attempts: int = 4
    initial_delay: float = 1.0
    max_delay: float = 60.0
    jitter: Callable[[], float] = random.random
    now: Callable[[], float] = time.time

    def send(self, request: Request) -> Conversation[Response]:
        """Ask one request as often as it may be asked.

        :raises FlowUnreachable: the last attempt brought no answer, or the request must not be sent again.
        """
        for attempt in count(1):
            delay: float | None
            try:
                response = yield from follow_redirects(request)
            except FlowUnreachable as error:
                if attempt >= self.attempts or not _can_resend(request, error):
                    raise
                delay = self._get_backoff(attempt)
            else:
                delay = self._get_retry_delay(request, response, attempt)
                if delay is None or delay > self.max_delay:
                    return response
            yield Sleep(delay)
        raise AssertionError  # not reached: count() does not end

    def retry_incomplete(self, conversation: Callable[[], Conversation[T]]) -> Conversation[T]:
        """Hold a conversation that changes nothing, and hold it anew while its answer cannot be read.

        :raises FlowMalformed: the last attempt's.
        """
        for attempt in range(1, self.attempts):
            try:
                return (yield from conversation())
            except FlowMalformed:
                yield Sleep(self._get_backoff(attempt))
        return (yield from conversation())

    def _get_retry_delay(self, request: Request, response: Response, attempt: int) -> float | None:
        """Give the pause before the request is sent again, None if its answer stands."""
        rate_limited = (
            response.status in RATE_LIMIT_STATUSES and request.resend is not Resend.IF_NEVER_ARRIVED
        )
        gateway_error = response.status in GATEWAY_ERROR_STATUSES and request.resend is Resend.ALWAYS
        if attempt >= self.attempts or not (rate_limited or gateway_error):
            return None
        return max(self._get_backoff(attempt), response.retry_after(self.now()) or 0.0)

    def _get_backoff(self, attempt: int) -> float:
        return self.jitter() * min(self.max_delay, self.initial_delay * 2.0 ** (attempt - 1))


def _can_resend(request: Request, error: FlowUnreachable) -> bool:
    return request.resend is Resend.ALWAYS or not error.may_have_arrived


def follow_redirects(request: Request) -> Conversation[Response]:
    """Ask, and follow redirects of a GET, to where its request may be sent; the credentials stay behind at another host.

    A redirect of anything else is handed back as it is: it would be sent again as something else, or twice.
    """
    for _ in range(MAX_REDIRECTS):
        response = yield from send(request)
        target = response.headers.get("location")
        if request.method != "GET" or response.status not in {301, 302, 303, 307, 308} or not target:
            return response
        try:
            redirect_url = urljoin(response.url, target)
        except ValueError as error:
            raise FlowMalformed(
                malformed_message(request, response, "redirects to no address"), status=response.status
            ) from error
        if request.allow_redirect is not None and not request.allow_redirect(redirect_url):
            return response
        request = replace(request, path=redirect_url, query={})
    message = f"{request} is redirected more than {MAX_REDIRECTS} times; check the host of the connection"
    raise FlowMalformed(message, status=response.status)


NO_RETRY = Retry(attempts=1)


def with_retries(conversation: Conversation[T], retry: Retry) -> Conversation[T]:
    """Hold a conversation in which each request is asked as often as it may be."""
    return map_requests(conversation, retry.send)
