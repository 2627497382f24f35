"""The rate limiters of a process: one for each account, which all its threads and event loops share."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from copy import copy
from math import inf
from threading import Lock
from typing import TYPE_CHECKING

from airflow_provider_flows.core.exceptions import FlowRateLimited
from airflow_provider_flows.core.polling.schedule import MAX_RETRY_AFTER_SECONDS

if TYPE_CHECKING:
    from airflow_provider_flows.core.http import Request, Response
    from airflow_provider_flows.core.redaction import ErrorTexts
    from airflow_provider_flows.transport.asynchronous import AsyncTransport
    from airflow_provider_flows.transport.settings import Settings

DEFAULT_RETRY_AFTER_SECONDS = 5.0  # after a 429 without Retry-After
# between the first two requests after a block; each success halves the interval
INITIAL_INTERVAL_SECONDS = 0.5
MIN_INTERVAL_SECONDS = 0.001  # a shorter interval counts as none
MAX_LIMITERS = 500  # that of the account which was not used for the longest time is removed
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
    """A rate limiter for the requests of several threads and event loops.

    :param per_second: maximum number of requests per second, None for no limit but the service's.
    """

    def __init__(self, per_second: float | None = None) -> None:
        self._limiter = RateLimiter(per_second)
        self._lock = Lock()

    def try_acquire(self) -> float:
        """Return 0 and count one request as sent, or return the seconds after which to try again."""
        with self._lock:
            return self._limiter.try_acquire(time.monotonic())

    def record_response(self, response: Response) -> bool:
        """Adapt to a response, and return whether it starts a block."""
        retry_after = response.retry_after(time.time())
        with self._lock:
            return self._limiter.record_response(response.status, retry_after, time.monotonic())

    def limit(
        self,
        send: Callable[[Request], Response],
        max_wait: float = inf,
        is_foreign: Callable[[Request], bool] = lambda _: False,
    ) -> Callable[[Request], Response]:
        """Return a function that sends a request as soon as the limiter admits it; it blocks.

        The function raises `FlowRateLimited` at once if that takes too long, or until after the request's
        deadline.

        :param max_wait: longest time that a request waits, in seconds.
        :param is_foreign: returns whether a request leads to another host than the service's, which is not
            limited.
        """

        def send_limited(request: Request) -> Response:
            if is_foreign(request):
                return send(request)
            wait_until = time.monotonic() + max_wait
            if request.deadline is not None:
                wait_until = min(wait_until, request.deadline)
            while delay := self.try_acquire():
                if time.monotonic() + delay > wait_until:
                    raise _rate_limited_error(request, delay)
                time.sleep(delay)
            response = send(request)
            self.record_response(response)
            return response

        return send_limited


def _rate_limited_error(request: Request, delay: float) -> FlowRateLimited:
    message = (
        f"{request} was not sent: the service, or max_requests_per_second of the connection, admits no "
        f"further request for {delay:.0f} seconds. Try again after that."
    )
    return FlowRateLimited(message, retry_after=delay)


class RateLimitedTransport:
    """A transport of one event loop behind the rate limiter of its account.

    :param on_block: called when the service demands that no request is sent for a time.
    """

    def __init__(
        self,
        transport: AsyncTransport,
        limiter: SharedRateLimiter,
        on_block: Callable[[], None] = lambda: None,
    ) -> None:
        self._transport = transport
        self._limiter = limiter
        self._on_block = on_block
        self._turn = asyncio.Lock()  # in which requests wait one after the other

    def with_error_texts(self, error_texts: ErrorTexts) -> RateLimitedTransport:
        """Return a transport over the same session whose errors hide the inputs of another flow run."""
        other = copy(self)
        other._transport = self._transport.with_error_texts(error_texts)  # noqa: SLF001  # the same class
        return other

    async def send(self, request: Request) -> Response:
        """Send a request as soon as the rate limiter admits it."""
        await self.acquire()
        return await self.send_now(request)

    async def acquire(self) -> None:
        """Wait until the rate limiter admits one request."""
        async with self._turn:
            while delay := self._limiter.try_acquire():  # noqa: ASYNC110  # it waits for a time, not an event
                await asyncio.sleep(delay)

    async def send_now(self, request: Request) -> Response:
        """Send a request that was admitted, and report its response to the rate limiter."""
        response = await self._transport.send(request)
        if self._limiter.record_response(response):
            self._on_block()
        return response


class SharedRateLimiters:
    """The rate limiters of the accounts that a process uses, of at most `MAX_LIMITERS` accounts."""

    def __init__(self) -> None:
        self._limiters: OrderedDict[Hashable, SharedRateLimiter] = OrderedDict()
        self._lock = Lock()

    def get(self, settings: Settings, per_second: float | None) -> SharedRateLimiter:
        """Return the rate limiter of an account; another host, key or rate has another one."""
        account = (settings.base_url, tuple(sorted(settings.credentials.items())), per_second)
        with self._lock:
            limiter = self._limiters.setdefault(account, SharedRateLimiter(per_second))
            self._limiters.move_to_end(account)
            if len(self._limiters) > MAX_LIMITERS:
                self._limiters.popitem(last=False)
            return limiter

    def clear(self) -> None:
        """Forget all limits that services have set."""
        with self._lock:
            self._limiters.clear()


SHARED_RATE_LIMITERS = SharedRateLimiters()
