"""The brakes that all requests of one connection share: how soon the next one may be sent.

It sends nothing and does not sleep; watch.py asks it before each request and tells it each answer's status.
"""

from __future__ import annotations

from airflow_provider_flows.core.polling.schedule import MAX_RETRY_AFTER_SECONDS

DEFAULT_RETRY_AFTER_SECONDS = 5.0  # after a 429 that names no time
INITIAL_INTERVAL_SECONDS = (
    0.5  # seconds between the first two requests after the gate was closed; each success halves the next gap
)
MIN_INTERVAL_SECONDS = 0.001
TOO_MANY_REQUESTS, SERVICE_UNAVAILABLE = 429, 503


class RateLimiter:
    """Closed for as long as the service asks, then opened little by little.

    :param per_second: the most requests in a second, None for no bound.
    """

    def __init__(self, per_second: float | None = None) -> None:
        """Begin with the gate open."""
        self._min_interval = 1 / per_second if per_second else 0.0
        self._interval = self._min_interval
        self._blocked_until = 0.0  # epoch seconds
        self._next_at = 0.0

    def try_acquire(self, now: float) -> float:
        """Give 0 and let one request through, or the seconds after which it may ask again.

        :param now: epoch seconds.
        """
        wait = max(self._blocked_until, self._next_at) - now
        if wait > 0:
            return wait
        self._next_at = now + self._interval
        return 0.0

    def record_response(self, status: int, retry_after: float | None, now: float) -> bool:
        """Take notice of an answer; tells whether it has closed the gate.

        :param retry_after: seconds that the service asks for, if it does; kept up to an hour.
        """
        if status == TOO_MANY_REQUESTS or (status == SERVICE_UNAVAILABLE and retry_after is not None):
            seconds = (
                DEFAULT_RETRY_AFTER_SECONDS
                if retry_after is None
                else min(retry_after, MAX_RETRY_AFTER_SECONDS)
            )
            is_new_block = now >= self._blocked_until and seconds > 0
            self._blocked_until = max(self._blocked_until, now + seconds)
            self._interval = max(self._min_interval, INITIAL_INTERVAL_SECONDS)
            return is_new_block
        if now >= self._blocked_until and self._interval > self._min_interval:
            self._interval = max(
                self._min_interval, self._interval / 2 if self._interval > MIN_INTERVAL_SECONDS else 0.0
            )
        return False
