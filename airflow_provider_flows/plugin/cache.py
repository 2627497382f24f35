"""What a service has told of late, for all who look at it: asked for once, by whoever comes first, and kept for a moment.

What is asked it does not know; the answers of this process are shared by all its users, so whoever asks must be let in before.
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

MAX_CACHED_RESPONSES = 500
MAX_SERVICE_THREADS = 8  # threads that wait for services; those of Airflow's own pages are not used
MAX_FILE_THREADS = 4  # threads that fetch whole files, which may take minutes, while others look at runs
RESPONSE_WAIT_SECONDS = (
    10.0  # seconds that a page waits for an answer; what comes later is there for who comes later
)
MIN_ERROR_TTL_SECONDS = 5.0  # for so long an error serves whoever comes
MAX_ERROR_TTL_SECONDS = 60.0  # seconds that a service may ask us to stay away for
STILL_WAITING = "It has not answered for a while, and is still waited for."


@dataclass(frozen=True)
class CachedResponse(Generic[T]):
    """What was told: the value, None if there never was one; and what went wrong the last time, if something did."""

    value: T | None
    error: FlowError | None = None


@dataclass
class _Entry:
    future: Future[CachedResponse[Any]]
    previous_value: Any = None
    expires_at: float = float("inf")


class ResponseCache:
    """Answers by what they are of; an answer under way is waited for by all who want it.

    :param clock: gives monotonic seconds.
    :param wait_seconds: seconds after which whoever waits is told so, and of what was known before.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, wait_seconds: float = RESPONSE_WAIT_SECONDS
    ) -> None:
        """Begin with nothing."""
        self._clock = clock
        self._wait_seconds = wait_seconds
        self._lock = Lock()
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._service_pool = ThreadPoolExecutor(MAX_SERVICE_THREADS, thread_name_prefix="flows-pages")
        self._file_pool = ThreadPoolExecutor(MAX_FILE_THREADS, thread_name_prefix="flows-files")

    async def get(
        self, key: Hashable, load: Callable[[], T], get_ttl: Callable[[T], float]
    ) -> CachedResponse[T]:
        """Give what is kept of this, else ask for it.

        After an error the value before it is given beside it.

        :param load: is called in another thread.
        :param get_ttl: gives the seconds for which a value serves whoever comes.
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
        """Fetch a whole file in a thread, of which there are others than those that look at runs."""
        return await asyncio.wrap_future(self._file_pool.submit(job))

    def clear(self) -> None:
        """Forget everything."""
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
                response, seconds = CachedResponse(previous_value, error), _get_error_ttl(error)
            else:
                response, seconds = CachedResponse(value), get_ttl(value)
            entry.expires_at = self._clock() + seconds
            return response

        entry = self._entries[key] = _Entry(Future(), previous_value)
        entry.future = self._service_pool.submit(load_response)
        entry.future.add_done_callback(lambda done: _expire(entry) if done.exception() else None)
        while len(self._entries) > MAX_CACHED_RESPONSES:
            self._entries.popitem(last=False)
        return entry


def _expire(entry: _Entry) -> None:
    """Keep nothing of what ended in an error that is none of ours."""
    entry.expires_at = float("-inf")


def _get_value(entry: _Entry | None) -> Any:
    if entry is None or not entry.future.done() or entry.future.exception() is not None:
        return None
    return entry.future.result().value


def _get_error_ttl(error: FlowError) -> float:
    retry_after = error.retry_after if isinstance(error, FlowServiceError) else None
    return min(max(MIN_ERROR_TTL_SECONDS, retry_after or 0.0), MAX_ERROR_TTL_SECONDS)
