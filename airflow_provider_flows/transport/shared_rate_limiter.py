"""A rate limiter for the blocking requests of several threads."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING

from airflow_provider_flows.core.rate_limiter import RateLimiter

if TYPE_CHECKING:
    from airflow_provider_flows.core.http import Request, Response


class SharedRateLimiter:
    """A rate limiter for the requests of several threads, which wait one after the other.

    :param per_second: maximum number of requests per second, None for no limit but the service's.
    """

    def __init__(self, per_second: float | None = None) -> None:
        self._limiter = RateLimiter(per_second)
        self._wait_lock = Lock()  # held during a wait, so that responses need a lock of their own
        self._state_lock = Lock()

    def limit(self, send: Callable[[Request], Response]) -> Callable[[Request], Response]:
        """Return a function that sends a request as soon as the limiter admits it."""

        def send_limited(request: Request) -> Response:
            with self._wait_lock:
                while delay := self._try_acquire():
                    time.sleep(delay)
            response = send(request)
            retry_after = response.retry_after(time.time())
            with self._state_lock:
                self._limiter.record_response(response.status, retry_after, time.monotonic())
            return response

        return send_limited

    def _try_acquire(self) -> float:
        with self._state_lock:
            return self._limiter.try_acquire(time.monotonic())
