"""A rate limiter for the blocking requests of several threads, and one for each connection of a process."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from math import inf
from threading import Lock
from typing import TYPE_CHECKING

from airflow_provider_flows.core.exceptions import FlowRateLimited
from airflow_provider_flows.core.rate_limiter import RateLimiter

if TYPE_CHECKING:
    from airflow_provider_flows.core.http import Request, Response
    from airflow_provider_flows.transport.settings import Settings

MAX_LIMITERS = 500  # that of the connection which was not used for the longest time is removed


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
