"""Tests of the cache whose concurrent callers share one load, with a clock that the tests set."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from weakref import ref

import pytest

from airflow_provider_flows.core.single_flight import MAX_ENTRIES, SingleFlightCache


class Clock:
    """Monotonic seconds that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        """Return the seconds."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Return a clock at 100 s."""
    return Clock()


@pytest.fixture
def cache(clock: Clock) -> SingleFlightCache[str]:
    """Return a cache that is bound to the clock."""
    return SingleFlightCache(clock)


def load(cache: SingleFlightCache[str], value: str, ttl: float = 60.0, *, reload: bool = False) -> str:
    """Return the cached value, or load the given one."""
    entry, is_new = cache.get("key", lambda *_: reload)
    if is_new:
        cache.set_value(entry, value, ttl)
    return entry.future.result(0)


def test_callers_share_the_load_in_progress(cache: SingleFlightCache[str]) -> None:
    """Only the first caller loads the value of a key; a reload joins the load in progress."""
    entry, is_new = cache.get("key")
    assert is_new
    assert cache.get("key") == cache.get("key", lambda *_: True) == (entry, False)
    assert cache.get("other")[1]
    future = entry.future
    cache.set_value(entry, "value", 60)
    assert future.result(0) == cache.get("key")[0].future.result(0) == "value"


def test_threads_load_a_value_once() -> None:
    """Twenty threads that need a value at the same time load it once."""
    cache: SingleFlightCache[int] = SingleFlightCache()
    barrier, loads = Barrier(20), []

    def get(number: int) -> int:
        barrier.wait(10)
        entry, is_new = cache.get("key")
        if is_new:
            with cache.share_errors(entry):
                loads.append(number)
                cache.set_value(entry, number, 60)
        return entry.future.result(10)

    with ThreadPoolExecutor(20) as pool:
        assert set(pool.map(get, range(20))) == set(loads)
    assert len(loads) == 1


def test_a_value_expires_after_the_time_that_its_loader_sets(
    clock: Clock, cache: SingleFlightCache[str]
) -> None:
    """The time to live begins when the value is there, not when its load starts."""
    entry, _ = cache.get("key")
    clock.now += 1000
    cache.set_value(entry, "first", 60)
    clock.now += 59.9
    assert load(cache, "second", ttl=5) == "first"
    clock.now += 0.1
    assert load(cache, "second", ttl=5) == "second"
    clock.now += 5
    assert load(cache, "third") == "third"


def test_an_error_reaches_all_callers_and_is_not_cached(cache: SingleFlightCache[str]) -> None:
    """All callers of a failed load get its error, and the next caller loads the value again."""
    entry, _ = cache.get("key")
    futures = [entry.future, cache.get("key")[0].future]
    with cache.share_errors(entry):
        raise ValueError("no")
    for future in [*futures, entry.future]:
        with pytest.raises(ValueError, match="no"):
            future.result(0)
    assert load(cache, "value") == "value"


def test_a_load_that_is_cancelled_is_cancelled(cache: SingleFlightCache[str]) -> None:
    """A cancellation is raised where the load runs and to its callers; the next one loads the value again."""
    for error in (KeyboardInterrupt(), asyncio.CancelledError()):
        entry, is_new = cache.get("key")
        future = entry.future
        with pytest.raises(type(error)), cache.share_errors(entry):
            raise error
        assert is_new
        assert future.exception(0) is error
    assert load(cache, "value") == "value"


def test_a_load_knows_the_previous_value(clock: Clock, cache: SingleFlightCache[str]) -> None:
    """The entry of a load has the value that it replaces, but not a value before a failed load."""
    assert cache.get("key")[0].previous is None
    cache.clear()
    load(cache, "first", ttl=60)
    clock.now += 60
    entry, _ = cache.get("key")
    assert entry.previous == "first"
    with cache.share_errors(entry):
        raise ValueError
    assert cache.get("key")[0].previous is None


def test_a_valid_value_is_reloaded_on_a_condition(clock: Clock, cache: SingleFlightCache[str]) -> None:
    """A caller can replace a valid value, depending on when its load started."""
    assert load(cache, "first") == load(cache, "second") == "first"
    assert load(cache, "second", reload=True) == "second"
    clock.now += 5
    assert not cache.get("key", lambda _, started_at: started_at < clock() - 5)[1]
    clock.now += 1
    assert cache.get("key", lambda _, started_at: started_at < clock() - 5)[1]


def test_a_load_that_takes_too_long_is_not_shared_any_more(clock: Clock) -> None:
    """Its callers still get its value, but later callers get that of the next load."""
    cache: SingleFlightCache[str] = SingleFlightCache(clock, max_load_seconds=10)
    slow, _ = cache.get("key")
    future = slow.future
    clock.now += 9
    assert cache.get("key") == (slow, False)
    clock.now += 1
    assert load(cache, "fast") == "fast"
    cache.set_value(slow, "slow", 60)
    assert future.result(0) == "slow"
    assert load(cache, "next") == "fast"


def test_the_number_of_entries_is_bounded(cache: SingleFlightCache[str]) -> None:
    """The entry that was not used for the longest time is removed first."""
    for key in range(MAX_ENTRIES):
        cache.get(key)
    cache.get(0)
    cache.get("one more")
    assert not cache.get(0)[1]
    assert not cache.get(2)[1]
    assert cache.get(1)[1]


def test_the_size_of_the_values_is_bounded(clock: Clock) -> None:
    """The values that were not used for the longest time are removed, and an expired one counts as well."""
    cache: SingleFlightCache[str] = SingleFlightCache(clock, max_bytes=100)
    for key in range(4):
        cache.set_value(cache.get(key)[0], "value", 60, size=30)
        assert cache.size == 30 * min(key + 1, 3)
    clock.now += 60
    entry, is_new = cache.get(3)  # its load needs the expired value, which counts until it is replaced
    assert is_new
    assert cache.size == 90
    cache.set_value(entry, "value", 60, size=100)
    assert cache.size == 100
    cache.set_value(cache.get("large")[0], "value", 60, size=101)
    assert cache.size == 0


def test_a_value_that_expired_long_ago_is_removed(clock: Clock) -> None:
    """It is the previous value of the next load only for a while; a load in progress is not removed."""
    cache: SingleFlightCache[str] = SingleFlightCache(clock, max_load_seconds=60, max_stale_seconds=300)
    cache.set_value(cache.get("key")[0], "value", 60, size=10)
    slow, _ = cache.get("slow")
    clock.now += 359.9
    assert cache.get("key")[0].previous == "value"
    cache.clear()
    cache.set_value(cache.get("key")[0], "value", 60, size=10)
    clock.now += 360
    assert cache.get("other")[1]
    assert cache.size == 0
    assert cache.get("key")[0].previous is None
    cache.set_value(slow, "late", 60)
    assert slow.future.result(0) == "late"


def test_a_replaced_value_is_not_referenced() -> None:
    """Once a load is done, nothing refers to the value before it."""

    class Value:
        """A value to which a weak reference is possible."""

    cache: SingleFlightCache[Value] = SingleFlightCache()
    first = Value()
    reference = ref(first)
    cache.set_value(cache.get("key")[0], first, 0)
    del first
    entry, is_new = cache.get("key")
    assert is_new
    assert entry.previous is reference()
    cache.set_value(entry, Value(), 60)
    gc.collect()
    assert reference() is None


async def test_a_cancelled_wait_cancels_nothing_else(cache: SingleFlightCache[str]) -> None:
    """Any caller on an event loop can be cancelled while others wait for the same load."""
    entry, _ = cache.get("key")
    waits = [asyncio.ensure_future(asyncio.wrap_future(cache.get("key")[0].future)) for _ in range(3)]
    waits[0].cancel()
    await asyncio.sleep(0)
    cache.set_value(entry, "value", 60)
    assert await asyncio.gather(*waits[1:]) == ["value", "value"]
    assert waits[0].cancelled()


@pytest.mark.parametrize("finish", [lambda: "value", lambda: 1 / 0])
def test_finished_load_has_no_reference_to_an_event_loop(
    cache: SingleFlightCache[str], finish: Callable[[], str]
) -> None:
    """A loop on which callers waited can be collected, also while the value is still cached."""

    async def wait() -> ref[asyncio.AbstractEventLoop]:
        entry, _ = cache.get("key")
        wait = asyncio.wrap_future(entry.future)
        with cache.share_errors(entry):
            cache.set_value(entry, finish(), 60)
        await asyncio.gather(wait, return_exceptions=True)
        return ref(asyncio.get_running_loop())

    loop = asyncio.run(wait())
    gc.collect()
    assert loop() is None
