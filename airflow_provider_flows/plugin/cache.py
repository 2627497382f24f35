"""A cache of service responses, shared by all users of one API server process.

Concurrent requests for the same key wait for one call. The cache checks no permissions: callers do that
first.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from airflow_provider_flows.core.exceptions import FlowError, FlowServiceError, FlowUnreachable
from airflow_provider_flows.core.single_flight import CacheEntry, SingleFlightCache

T = TypeVar("T")

FINAL_TTL_SECONDS = 60.0  # for responses that no longer change
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


class ResponseCache:
    """A time-limited cache that runs its calls in threads and at most one call per key at a time.

    :param clock: returns monotonic seconds.
    :param wait_seconds: how long `get` waits for a call before it returns the previous value and an error.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, wait_seconds: float = RESPONSE_WAIT_SECONDS
    ) -> None:
        self._wait_seconds = wait_seconds
        self._responses: SingleFlightCache[CachedResponse[Any]] = SingleFlightCache(clock)
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
        entry, is_new = self._responses.get(key)
        if is_new:
            with self._responses.share_errors(entry):
                self._service_pool.submit(self._load, entry, load, get_ttl)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(entry.future), self._wait_seconds)
        except TimeoutError:
            return CachedResponse(_get_previous_value(entry), FlowUnreachable(STILL_WAITING))

    async def run_in_file_pool(self, job: Callable[[], T]) -> T:
        """Run a download in a thread of the pool for files."""
        return await asyncio.wrap_future(self._file_pool.submit(job))

    def clear(self) -> None:
        """Remove all entries."""
        self._responses.clear()

    def _load(
        self, entry: CacheEntry[CachedResponse[T]], load: Callable[[], T], get_ttl: Callable[[T], float]
    ) -> None:
        with self._responses.share_errors(entry):
            try:
                value = load()
            except FlowError as error:
                response, ttl = CachedResponse(_get_previous_value(entry), error), _get_error_ttl(error)
            else:
                response, ttl = CachedResponse(value), get_ttl(value)
            self._responses.set_value(entry, response, ttl)


def _get_previous_value(entry: CacheEntry[CachedResponse[T]]) -> T | None:
    return None if entry.previous is None else entry.previous.value


def _get_error_ttl(error: FlowError) -> float:
    retry_after = error.retry_after if isinstance(error, FlowServiceError) else None
    return min(max(MIN_ERROR_TTL_SECONDS, retry_after or 0.0), MAX_ERROR_TTL_SECONDS)


RESPONSE_CACHE = ResponseCache()
