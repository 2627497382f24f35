"""The threads that load what the pages show, a cache of what they load, and the slots of downloads.

All users of one API server process share them; each connection has threads of its own. Concurrent requests
for the same key wait for one call. The cache checks no permissions: callers do that first.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import tzinfo
from enum import Enum
from threading import Lock, Thread, current_thread
from typing import Any, Generic, TypeVar

from fastapi import HTTPException

from airflow_provider_flows.core.exceptions import FlowError, FlowMalformed, FlowServiceError, FlowUnreachable
from airflow_provider_flows.core.limits import (
    MAX_CACHED_BYTES,
    MAX_CACHED_RESPONSE_BYTES,
    MAX_DOWNLOADS,
    MAX_EXTRA_THREADS,
    MAX_FILE_THREADS,
    MAX_FILE_WAIT_SECONDS,
    MAX_QUEUED_JOBS,
    MAX_SERVICE_THREADS,
    MAX_SLOT_WAIT_SECONDS,
    MAX_STALE_SECONDS,
    MAX_STALL_SECONDS,
    MAX_THREAD_POOLS,
    MIB,
)
from airflow_provider_flows.core.single_flight import CacheEntry, SingleFlightCache

T = TypeVar("T")

TOO_MANY_REQUESTS = 429
SLOT_POLL_SECONDS = 0.1
FINAL_TTL_SECONDS = 60.0  # for responses that no longer change
RESPONSE_WAIT_SECONDS = 10.0  # a page waits this long; a later response is stored for the next request
MIN_ERROR_TTL_SECONDS = 5.0
MAX_ERROR_TTL_SECONDS = 60.0  # upper bound of a service's Retry-After
STILL_WAITING = "The service is slow to respond; still waiting."
QUEUE_FULL = (
    "Too many requests of the pages wait for this connection, whose service or storage is slow to respond. "
    "Try again in a minute."
)
FILE_TOO_SLOW = "The file did not arrive in time, because its service or storage is slow. Try again later."
RESPONSE_TOO_LARGE = (
    f"The response is larger than {MAX_CACHED_RESPONSE_BYTES // MIB} MiB, the maximum that a page shows. "
    "Tasks and the command line can read it."
)


class PageWaitError(FlowUnreachable):
    """A page does not wait any longer for a service or a storage; the message contains nothing of theirs."""


@dataclass(frozen=True)
class CachedResponse(Generic[T]):
    """The most recent value, None if there was none yet, and the error of the last call if it failed."""

    value: T | None
    error: FlowError | None = None


@dataclass(eq=False)
class _Pool:
    """The threads of one key, the jobs that wait for one of them, and the number of those that run."""

    threads: list[Thread] = field(default_factory=list)
    running: int = 0
    jobs: deque[tuple[Future[Any], Callable[[], Any]]] = field(default_factory=deque)


class ThreadPools:
    """A small pool of threads for each key, with a bounded queue: a slow job delays those of its key only.

    A thread ends when no job of its key is left. They are daemon threads, unlike those of a
    `ThreadPoolExecutor`, so that a slow service does not delay the exit of the API server.

    :param name: of the threads.
    :param max_threads: of one key. Each key in use has at least one thread; the further ones of all keys are
        at most `MAX_EXTRA_THREADS` together.
    :param max_queued: jobs of one key that wait for a thread.
    :param max_pools: keys that are in use at the same time.
    """

    def __init__(
        self,
        name: str,
        max_threads: int,
        *,
        max_queued: int = MAX_QUEUED_JOBS,
        max_pools: float = MAX_THREAD_POOLS,
    ) -> None:
        self._name = name
        self._max_threads = max_threads
        self._max_queued = max_queued
        self._max_pools = max_pools
        self._pools: dict[Hashable, _Pool] = {}
        self._lock = Lock()

    def submit(self, key: Hashable, job: Callable[[], T]) -> Future[T]:
        """Run a job in a thread of this key, and return the future of its result.

        :raises PageWaitError: too many jobs of this key are waiting, or too many keys are in use.
        """
        future: Future[T] = Future()
        with self._lock:
            pool = self._pools.get(key)
            if pool is None:
                if len(self._pools) >= self._max_pools:
                    raise PageWaitError(QUEUE_FULL, may_have_arrived=False)
                pool = self._pools[key] = _Pool()
            if not all(thread.is_alive() for thread in pool.threads):  # a fork has none
                pool.threads, pool.running = [], 0
            if self._may_start_thread(pool):
                self._start_thread(key, pool)
            elif len(pool.jobs) + pool.running >= len(pool.threads) + self._max_queued:
                raise PageWaitError(QUEUE_FULL, may_have_arrived=False)
            pool.jobs.append((future, job))
        return future

    def _may_start_thread(self, pool: _Pool) -> bool:
        if not pool.threads:
            return True
        extra_threads = sum(max(0, len(other.threads) - 1) for other in self._pools.values())
        return len(pool.threads) < self._max_threads and extra_threads < MAX_EXTRA_THREADS

    def _start_thread(self, key: Hashable, pool: _Pool) -> None:
        thread = Thread(target=self._work, args=(key, pool), name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the process has too many threads
            if not pool.threads:
                del self._pools[key]
                raise PageWaitError(QUEUE_FULL, may_have_arrived=False) from error
        else:
            pool.threads.append(thread)

    def _work(self, key: Hashable, pool: _Pool) -> None:
        """Run the jobs of a key until none is left."""
        while (next_job := self._next_job(key, pool)) is not None:
            _run(*next_job)
            del next_job  # with its result, before the wait for the lock
            with self._lock:
                pool.running -= 1

    def _next_job(self, key: Hashable, pool: _Pool) -> tuple[Future[Any], Callable[[], Any]] | None:
        with self._lock:
            if pool.jobs:
                pool.running += 1
                return pool.jobs.popleft()
            pool.threads.remove(current_thread())
            if not pool.threads and self._pools.get(key) is pool:
                del self._pools[key]
            return None


def _run(future: Future[Any], job: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = job()
    except BaseException as error:  # noqa: BLE001  # who waits for the result gets it
        future.set_exception(error)
    else:
        future.set_result(result)


class DownloadSlots:
    """The downloads in progress in this process: at most one of each output, and a few of each connection.

    :param max_downloads: maximum number of one connection.
    :param wait_seconds: how long a request waits for others to end.
    :param stall_seconds: how long a reader may take nothing.
    """

    def __init__(
        self,
        max_downloads: int = MAX_DOWNLOADS,
        wait_seconds: float = MAX_SLOT_WAIT_SECONDS,
        stall_seconds: float = MAX_STALL_SECONDS,
    ) -> None:
        self.stall_seconds = stall_seconds
        self._max_downloads = max_downloads
        self._wait_seconds = wait_seconds
        self._keys: set[tuple[Hashable, Hashable]] = set()

    def __len__(self) -> int:
        """Return the number of downloads in progress."""
        return len(self._keys)

    async def acquire(self, key: tuple[Hashable, Hashable]) -> None:
        """Register a download.

        :param key: the connection, and an output of one of its runs.
        :raises HTTPException: it has to wait for too long (429).
        """
        deadline = time.monotonic() + self._wait_seconds
        while key in self._keys or self._count(key[0]) >= self._max_downloads:
            if time.monotonic() >= deadline:
                text = (
                    "This output is being downloaded by another request."
                    if key in self._keys
                    else "Too many outputs of this connection are being downloaded."
                )
                raise HTTPException(TOO_MANY_REQUESTS, f"{text} Try again later.", {"retry-after": "10"})
            await asyncio.sleep(SLOT_POLL_SECONDS)
        self._keys.add(key)

    def release(self, key: tuple[Hashable, Hashable]) -> None:
        """Remove a download that has ended."""
        self._keys.discard(key)

    def _count(self, connection: Hashable) -> int:
        return sum(other == connection for other, _ in self._keys)


class ResponseCache:
    """A time-limited cache that runs its calls in threads and at most one call per key at a time.

    It keeps at most `MAX_CACHED_BYTES`; a larger response than `MAX_CACHED_RESPONSE_BYTES` is an error.

    :param clock: returns monotonic seconds.
    :param wait_seconds: how long `get` waits for a call before it returns the previous value and an error.
    :param file_wait_seconds: how long `run_in_file_pool` waits.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        wait_seconds: float = RESPONSE_WAIT_SECONDS,
        file_wait_seconds: float = MAX_FILE_WAIT_SECONDS,
    ) -> None:
        self._wait_seconds = wait_seconds
        self._file_wait_seconds = file_wait_seconds
        self._responses: SingleFlightCache[CachedResponse[Any]] = SingleFlightCache(
            clock, max_bytes=MAX_CACHED_BYTES, max_stale_seconds=MAX_STALE_SECONDS
        )
        self._service_pools = ThreadPools("flows-pages", MAX_SERVICE_THREADS)
        self._file_pools = ThreadPools("flows-files", MAX_FILE_THREADS)

    async def get(
        self,
        key: Hashable,
        load: Callable[[], T],
        get_ttl: Callable[[T], float],
        pool: Hashable = None,
    ) -> CachedResponse[T]:
        """Return the cached response of a key, or load it.

        A `FlowError` is cached too, together with the value before it. Any other exception is raised and not
        cached.

        :param load: called in a thread.
        :param get_ttl: returns the number of seconds for which a value is valid.
        :param pool: the loads of the same pool share its threads, and wait for nothing else.
        """
        entry, is_new = self._responses.get(key)
        previous = _get_previous_value(entry)
        if is_new:
            with self._responses.share_errors(entry):
                try:
                    self._service_pools.submit(pool, lambda: self._load(entry, load, get_ttl))
                except PageWaitError as error:
                    response = CachedResponse(previous, _without_frames(error))
                    self._set_response(entry, response, MIN_ERROR_TTL_SECONDS)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(entry.future), self._wait_seconds)
        except TimeoutError:
            return CachedResponse(previous, PageWaitError(STILL_WAITING))

    async def run_in_file_pool(
        self, job: Callable[[], T], pool: Hashable = None, discard: Callable[[T], object] = lambda _: None
    ) -> T:
        """Run a download in a thread of a pool for files, because it may take minutes.

        :param pool: as in `get`.
        :param discard: called with the result once no request waits for it any more.
        :raises PageWaitError: too many downloads are waiting, or this one takes too long.
        """
        future, is_taken = self._file_pools.submit(pool, job), False
        try:
            result = await asyncio.wait_for(asyncio.wrap_future(future), self._file_wait_seconds)
            is_taken = True
        except TimeoutError:
            raise PageWaitError(FILE_TOO_SLOW) from None
        finally:
            if not is_taken:  # the browser has disconnected, or the file is too slow
                future.add_done_callback(lambda done: _discard_result(done, discard))
        return result

    def clear(self) -> None:
        """Remove all entries."""
        self._responses.clear()

    @property
    def size(self) -> int:
        """The estimated size of all cached responses, in bytes."""
        return self._responses.size

    def _load(
        self, entry: CacheEntry[CachedResponse[T]], load: Callable[[], T], get_ttl: Callable[[T], float]
    ) -> None:
        with self._responses.share_errors(entry):
            try:
                value = _check_size(load())
            except FlowError as error:
                response = CachedResponse(_get_previous_value(entry), _without_frames(error))
                ttl = _get_error_ttl(error)
            else:
                response, ttl = CachedResponse(value), get_ttl(value)
            self._set_response(entry, response, ttl)

    def _set_response(
        self, entry: CacheEntry[CachedResponse[T]], response: CachedResponse[T], ttl: float
    ) -> None:
        self._responses.set_value(entry, response, ttl, estimate_size((entry.key, response)))


def get_storage_pool(conn_id: str | None) -> Hashable:
    """Return the pool of what is read from a storage for a connection, so that its service delays nothing."""
    return "storage", conn_id


def get_download_pool(conn_id: str | None) -> Hashable:
    """Return the pool of downloads from a connection's service, so that they delay none of its pages."""
    return "downloads", conn_id


def _get_previous_value(entry: CacheEntry[CachedResponse[T]]) -> T | None:
    previous = entry.previous
    return None if previous is None else previous.value


def _discard_result(future: Future[T], discard: Callable[[T], object]) -> None:
    if not future.cancelled() and future.exception() is None:
        discard(future.result())


def _check_size(value: T) -> T:
    if estimate_size(value) > MAX_CACHED_RESPONSE_BYTES:
        raise FlowMalformed(RESPONSE_TOO_LARGE)
    return value


def _get_error_ttl(error: FlowError) -> float:
    retry_after = error.retry_after if isinstance(error, FlowServiceError) else None
    return min(max(MIN_ERROR_TTL_SECONDS, retry_after or 0.0), MAX_ERROR_TTL_SECONDS)


def _without_frames(error: FlowError) -> FlowError:
    """Return an error without its traceback and causes, whose frames hold the response."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def estimate_size(value: object) -> int:
    """Return the size of a value in memory with all that it refers to, in bytes.

    What it refers to twice counts once.
    """
    seen: set[int] = set()
    pending, size = [value], 0
    while pending:
        one = pending.pop()
        if id(one) in seen or one is None or isinstance(one, type | Enum | tzinfo | bool):
            continue  # shared by the whole process
        seen.add(id(one))
        size += sys.getsizeof(one)
        pending.extend(_iter_parts(one))
    return size


def _iter_parts(value: object) -> Iterator[object]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield key
            yield part
    elif isinstance(value, tuple | list | set | frozenset | deque):
        yield from value
    elif isinstance(value, BaseException):
        yield value.args
        yield value.__dict__
    elif is_dataclass(value):
        yield from (getattr(value, one.name, None) for one in fields(value))


RESPONSE_CACHE = ResponseCache()
DOWNLOAD_SLOTS = DownloadSlots()
