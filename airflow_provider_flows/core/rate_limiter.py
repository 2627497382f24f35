"""The rate limiter that the requests of a connection share: all in a triggerer, and the API server's aborts.

It does not sleep and does not read a clock; the caller passes the time.
"""

from __future__ import annotations

from airflow_provider_flows.core.polling.schedule import MAX_RETRY_AFTER_SECONDS

DEFAULT_RETRY_AFTER_SECONDS = 5.0  # after a 429 without Retry-After
# between the first two requests after a block; each success halves the interval
INITIAL_INTERVAL_SECONDS = 0.5
MIN_INTERVAL_SECONDS = 0.001  # a shorter interval counts as none
TOO_MANY_REQUESTS, SERVICE_UNAVAILABLE = 429, 503


class RateLimiter:
    """Blocks requests for as long as the service demands, and then lets more and more of them through.

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
