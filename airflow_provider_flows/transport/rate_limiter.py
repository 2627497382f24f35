"""The rate limiter that the requests of a connection share, and one for blocking requests of several threads.

The triggers on an event loop share a `RateLimiter`, the threads of a process a `SharedRateLimiter`.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from math import inf
from threading import Lock
from typing import TYPE_CHECKING

from airflow_provider_flows.core.exceptions import FlowRateLimited
from airflow_provider_flows.core.polling.schedule import MAX_RETRY_AFTER_SECONDS

if TYPE_CHECKING:
    from airflow_provider_flows.core.http import Request, Response
    from airflow_provider_flows.transport.settings import Settings

DEFAULT_RETRY_AFTER_SECONDS = 5.0  # after a 429 without Retry-After
# between the first two requests after a block; each success halves the interval
INITIAL_INTERVAL_SECONDS = 0.5
MIN_INTERVAL_SECONDS = 0.001  # a shorter interval counts as none
MAX_LIMITERS = 500  # that of the connection which was not used for the longest time is removed
TOO_MANY_REQUESTS, SERVICE_UNAVAILABLE = 429, 503


class RateLimiter:
    """Blocks requests for as long as the service demands, and then lets more and more of them through.

    It does not sleep and does not read a clock; the caller passes the time.

    :param per_second: maximum number of requests per second, None for no limit.
    """

    def __init__(self, per_second: float | None = None) -> None:
        self._min_interval = 1 / per_second if per_second else 0.0
        self._interval = self._min_interval
        self._blocked_until = 0.0  # epoch seconds
        self._next_at = 0.0

    def try_acquire(self, now: float) -> float:
        """Return 0 and count one request as sent, or return the seconds after which to try again.

        :param now: the current time in epoch seconds.
        """
        wait = max(self._blocked_until, self._next_at) - now
        if wait > 0:
            return wait
        self._next_at = now + self._interval
        return 0.0

    def record_response(self, status: int, retry_after: float | None, now: float) -> bool:
        """Adapt to a response, and return whether it starts a block.

        :param status: the HTTP status.
        :param retry_after: the seconds that the service demands, None if it demands none; at most an hour
            counts.
        :param now: the current time in epoch seconds.
        """
        if status == TOO_MANY_REQUESTS or (status == SERVICE_UNAVAILABLE and retry_after is not None):
            seconds = DEFAULT_RETRY_AFTER_SECONDS if retry_after is None else retry_after
            seconds = min(seconds, MAX_RETRY_AFTER_SECONDS)
            is_new_block = now >= self._blocked_until and seconds > 0
            self._blocked_until = max(self._blocked_until, now + seconds)
            self._interval = max(self._min_interval, INITIAL_INTERVAL_SECONDS)
            return is_new_block
        if now >= self._blocked_until and self._interval > self._min_interval:
            halved = self._interval / 2 if self._interval > MIN_INTERVAL_SECONDS else 0.0
            self._interval = max(self._min_interval, halved)
        return False


class SharedRateLimiter:
    """A rate limiter for the requests of several threads.

    :param per_second: maximum number of requests per second, None for no limit but the service's.
    """

    def __init__(self, per_second: float | None = None) -> None:
        self._limiter = RateLimiter(per_second)
        self._lock = Lock()

    def limit(
        self, send: Callable[[Request], Response], max_wait: float = inf
    ) -> Callable[[Request], Response]:
        """Return a function that sends a request as soon as the limiter admits it.

        The function raises `FlowRateLimited` at once if that takes too long.

        :param max_wait: longest time that a request waits, in seconds.
        """

        def send_limited(request: Request) -> Response:
            wait_until = time.monotonic() + max_wait
            while delay := self._try_acquire():
                if time.monotonic() + delay > wait_until:
                    raise _rate_limited_error(request, delay)
                time.sleep(delay)
            response = send(request)
            retry_after = response.retry_after(time.time())
            with self._lock:
                self._limiter.record_response(response.status, retry_after, time.monotonic())
            return response

        return send_limited

    def _try_acquire(self) -> float:
        with self._lock:
            return self._limiter.try_acquire(time.monotonic())


def _rate_limited_error(request: Request, delay: float) -> FlowRateLimited:
    message = (
        f"{request} was not sent: the service, or max_requests_per_second of the connection, admits no "
        f"further request for {delay:.0f} seconds. Try again after that."
    )
    return FlowRateLimited(message, retry_after=delay)


class SharedRateLimiters:
    """The rate limiters of the connections that a process uses, of at most `MAX_LIMITERS` connections."""

    def __init__(self) -> None:
        self._limiters: OrderedDict[str, tuple[tuple[object, ...], SharedRateLimiter]] = OrderedDict()
        self._lock = Lock()

    def get(self, conn_id: str, settings: Settings, per_second: float) -> SharedRateLimiter:
        """Return the rate limiter of a connection; a change of its host, key or rate gives it a new one."""
        account = (settings.base_url, settings.credentials, per_second)
        with self._lock:
            known_account, limiter = self._limiters.get(conn_id, (None, None))
            if limiter is None or known_account != account:
                limiter = SharedRateLimiter(per_second)
                self._limiters[conn_id] = (account, limiter)
            self._limiters.move_to_end(conn_id)
            if len(self._limiters) > MAX_LIMITERS:
                self._limiters.popitem(last=False)
            return limiter


SHARED_RATE_LIMITERS = SharedRateLimiters()
