"""A cache with a time limit, in which concurrent callers of a key share one load.

The cache starts no thread and no task. The caller that gets a new entry loads its value, and all callers wait
for the entry's future: with `future.result()` in a thread, with `asyncio.wrap_future` on an event loop.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")

MAX_ENTRIES = 500


@dataclass(eq=False)
class CacheEntry(Generic[T]):
    """One load of a value, in progress or done.

    :param started_at: clock seconds at the start of the load.
    :param expires_at: clock seconds from which the load is no longer shared or its value no longer valid.
    :param previous: the value before this load, until the load is done; None if there was none.
    :param size: of the value, or of the previous one, in bytes.
    :param future: has the value or the error of the load. Cancelling a wait for it does not cancel it.
    """

    key: Hashable
    started_at: float
    expires_at: float
    previous: T | None
    size: int = 0
    future: Future[T] = field(default_factory=Future)


class SingleFlightCache(Generic[T]):
    """A thread-safe cache of up to `MAX_ENTRIES` values; the least recently used entry is removed first.

    :param clock: returns monotonic seconds.
    :param max_load_seconds: a load that takes longer is no longer shared with new callers.
    :param max_bytes: maximum size of all values together, as far as `set_value` is given their sizes.
    :param max_stale_seconds: for how long an expired value is kept, which the next load gets as `previous`.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        max_load_seconds: float = inf,
        *,
        max_bytes: float = inf,
        max_stale_seconds: float = inf,
    ) -> None:
        self._clock = clock
        self._max_load_seconds = max_load_seconds
        self._max_bytes = max_bytes
        self._max_stale_seconds = max_stale_seconds
        self._lock = Lock()
        self._entries: OrderedDict[Hashable, CacheEntry[T]] = OrderedDict()

    def get(
        self, key: Hashable, should_reload: Callable[[T, float], bool] = lambda *_: False
    ) -> tuple[CacheEntry[T], bool]:
        """Return the entry of a key, and whether it is new, so that the caller must load its value.

        :param should_reload: takes a valid value and the time at which its load started, in seconds of the
            clock, and returns whether to load it again.
        """
        with self._lock:
            now = self._clock()
            self._remove_stale_entries(now)
            entry, previous, size = self._entries.get(key), None, 0
            is_new = entry is None or entry.expires_at <= now
            if entry is not None and entry.future.done():
                previous, size = entry.future.result(), entry.size
                is_new = is_new or should_reload(previous, entry.started_at)
            if entry is None or is_new:
                entry = CacheEntry(key, now, now + self._max_load_seconds, previous, size)
                entry.future.set_running_or_notify_cancel()  # a caller that is cancelled cannot cancel it now
                self._entries[key] = entry
            self._entries.move_to_end(key)
            self._remove_surplus_entries()
        return entry, is_new

    def set_value(self, entry: CacheEntry[T], value: T, ttl: float, size: int = 0) -> None:
        """Set the result of a load.

        :param ttl: seconds for which the value is valid, from now on.
        :param size: of the value in bytes, which counts towards `max_bytes`.
        """
        with self._lock:
            entry.expires_at = self._clock() + ttl
            entry.previous, entry.size = None, size
            self._remove_surplus_entries()
        _finish(entry, lambda future: future.set_result(value))

    @contextmanager
    def share_errors(self, entry: CacheEntry[T]) -> Iterator[None]:
        """Run a load in the `with` block; an error becomes its result, which is not cached.

        An `Exception` is not raised again; a cancellation and other errors are.
        """
        try:
            yield
        except BaseException as error:  # others wait for this result, also after a cancellation
            failure = error
            with self._lock:
                if self._entries.get(entry.key) is entry:
                    del self._entries[entry.key]
            _finish(entry, lambda future: future.set_exception(failure))
            if not isinstance(error, Exception):
                raise

    def clear(self) -> None:
        """Remove all entries."""
        with self._lock:
            self._entries.clear()

    @property
    def size(self) -> int:
        """The size of all values in bytes, as far as `set_value` was given it."""
        with self._lock:
            return self._get_size()

    def _get_size(self) -> int:
        return sum(entry.size for entry in self._entries.values())

    def _remove_stale_entries(self, now: float) -> None:
        latest_expiry = now - self._max_stale_seconds
        stale_keys = [
            key
            for key, entry in self._entries.items()
            if entry.expires_at <= latest_expiry and entry.future.done()
        ]
        for key in stale_keys:
            del self._entries[key]

    def _remove_surplus_entries(self) -> None:
        size = self._get_size()
        while self._entries and (len(self._entries) > MAX_ENTRIES or size > self._max_bytes):
            size -= self._entries.popitem(last=False)[1].size


def _finish(entry: CacheEntry[T], set_result: Callable[[Future[T]], None]) -> None:
    # The future that callers wait for has callbacks, which hold their event loops. It is not cached.
    done: Future[T] = Future()
    set_result(done)
    waiting, entry.future = entry.future, done
    set_result(waiting)
