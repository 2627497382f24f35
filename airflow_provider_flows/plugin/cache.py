"""A cache of service responses, shared by all users of one API server process.

Concurrent requests for the same key wait for one call. The cache checks no permissions: callers do that
first.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any, Generic, TypeVar

from airflow_provider_flows.core.exceptions import FlowError, FlowServiceError, FlowUnreachable

T = TypeVar("T")

FINAL_TTL_SECONDS = 60.0  # for responses that no longer change
MAX_CACHED_RESPONSES = 500
MAX_SERVICE_THREADS = 8  # a pool of our own, so that a slow service does not block Airflow's pages
MAX_FILE_THREADS = 4  # downloads may take minutes, so they have a pool of their own
RESPONSE_WAIT_SECONDS = 10.0  # a page waits this long; a later response is stored for the next request
MIN_ERROR_TTL_SECONDS = 5.0
MAX_ERROR_TTL_SECONDS = 60.0  # upper bound of a service's Retry-After
STILL_WAITING = "The service is slow to respond; still waiting."


@dataclass(frozen=True)
class CachedResponse(Generic[T]):
    """The most recent value, None if there was none yet, and the error of the last call if it failed."""

    value: T | None
    error: FlowError | None = None


@dataclass
class _Entry:
    future: Future[CachedResponse[Any]]
    previous_value: Any = None
    expires_at: float = float("inf")


class ResponseCache:
    """A time-limited cache that runs its calls in threads and at most one call per key at a time.

    :param clock: returns monotonic seconds.
    :param wait_seconds: how long `get` waits for a call before it returns the previous value and an error.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, wait_seconds: float = RESPONSE_WAIT_SECONDS
    ) -> None:
        self._clock = clock
        self._wait_seconds = wait_seconds
        self._lock = Lock()
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._service_pool = ThreadPoolExecutor(MAX_SERVICE_THREADS, thread_name_prefix="flows-pages")
        self._file_pool = ThreadPoolExecutor(MAX_FILE_THREADS, thread_name_prefix="flows-files")

    async def get(
        self, key: Hashable, load: Callable[[], T], get_ttl: Callable[[T], float]
    ) -> CachedResponse[T]:
        """Return the cached response of a key, or load it.

        A `FlowError` is cached too, together with the value before it. Any other exception is raised and not
        cached.

        :param load: called in a thread.
        :param get_ttl: returns the number of seconds for which a value is valid.
        """
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or entry.expires_at <= self._clock():
                entry = self._submit(key, load, get_ttl, entry)
            self._entries.move_to_end(key)
        try:
            return await asyncio.wait_for(
                asyncio.shield(asyncio.wrap_future(entry.future)), self._wait_seconds
            )
        except TimeoutError:
            return CachedResponse(entry.previous_value, FlowUnreachable(STILL_WAITING))

    async def run_in_file_pool(self, job: Callable[[], T]) -> T:
        """Run a download in a thread of the pool for files."""
        return await asyncio.wrap_future(self._file_pool.submit(job))

    def clear(self) -> None:
        """Remove all entries."""
        with self._lock:
            self._entries.clear()

    def _submit(
        self, key: Hashable, load: Callable[[], T], get_ttl: Callable[[T], float], previous: _Entry | None
    ) -> _Entry:
        previous_value = _get_value(previous)

        def load_response() -> CachedResponse[T]:
            try:
                value = load()
            except FlowError as error:
                response, ttl = CachedResponse(previous_value, error), _get_error_ttl(error)
            else:
                response, ttl = CachedResponse(value), get_ttl(value)
            entry.expires_at = self._clock() + ttl
            return response

        entry = self._entries[key] = _Entry(Future(), previous_value)
        entry.future = self._service_pool.submit(load_response)
        entry.future.add_done_callback(lambda future: _expire(entry) if future.exception() else None)
        while len(self._entries) > MAX_CACHED_RESPONSES:
            self._entries.popitem(last=False)
        return entry


def _expire(entry: _Entry) -> None:
    entry.expires_at = float("-inf")


def _get_value(entry: _Entry | None) -> Any:
    if entry is None or not entry.future.done() or entry.future.exception() is not None:
        return None
    return entry.future.result().value


def _get_error_ttl(error: FlowError) -> float:
    retry_after = error.retry_after if isinstance(error, FlowServiceError) else None
    return min(max(MIN_ERROR_TTL_SECONDS, retry_after or 0.0), MAX_ERROR_TTL_SECONDS)


RESPONSE_CACHE = ResponseCache()
