"""Tests of the cache of service responses that all users of an API server process share."""

from __future__ import annotations

import asyncio
import time
import tracemalloc
from collections.abc import Callable
from threading import Event, active_count
from threading import enumerate as enumerate_threads

import pytest

from airflow_provider_flows.core.definition import FlowDefinition, Parameter
from airflow_provider_flows.core.exceptions import (
    FlowError,
    FlowMalformed,
    FlowRateLimited,
    FlowUnreachable,
)
from airflow_provider_flows.core.flow_run import FlowOutput, FlowRun
from airflow_provider_flows.core.limits import (
    MAX_CACHED_BYTES,
    MAX_EXTRA_THREADS,
    MAX_FILE_THREADS,
    MAX_QUEUED_JOBS,
    MAX_SERVICE_THREADS,
    MAX_STALE_SECONDS,
    MAX_THREAD_POOLS,
    MIB,
)
from airflow_provider_flows.plugin.cache import (
    MAX_ERROR_TTL_SECONDS,
    MIN_ERROR_TTL_SECONDS,
    QUEUE_FULL,
    RESPONSE_TOO_LARGE,
    STILL_WAITING,
    CachedResponse,
    PageWaitError,
    ResponseCache,
    ThreadPools,
    estimate_size,
)


class Clock:
    """Monotonic seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Return the seconds."""
        return self.now


async def test_a_response_is_loaded_once_per_interval_for_any_number_of_requests() -> None:
    """Twenty requests during a call, and twenty more before it expires, cost one call."""
    clock, go = Clock(), Event()
    cache, calls = ResponseCache(clock), []

    def load() -> int:
        calls.append(clock.now)
        assert go.wait(10)
        return len(calls)

    requests = [asyncio.create_task(cache.get("run", load, lambda _: 2.5)) for _ in range(20)]
    await asyncio.sleep(0)
    requests[0].cancel()  # a tab that is closed does not cancel the call for the others
    go.set()
    assert await asyncio.gather(*requests[1:]) == [CachedResponse(1)] * 19
    for later, expected in ((2.4, 1), (2.5, 2), (4.9, 2), (5.0, 3)):
        clock.now = 100.0 + later
        assert (await cache.get("run", load, lambda _: 2.5)).value == expected
    assert calls == [100.0, 102.5, 105.0]


async def test_an_error_is_cached_together_with_the_previous_value() -> None:
    """A failing service is not called for a while or its Retry-After; its last value is still returned."""
    clock = Clock()
    cache = ResponseCache(clock)
    results = iter(["known", FlowUnreachable("away"), FlowRateLimited("slow", retry_after=3600), "back"])

    def load() -> str:
        value = next(results)
        if isinstance(value, Exception):
            raise value
        return value

    async def get() -> tuple[str | None, str]:
        response = await cache.get("run", load, lambda _: 1.0)
        return response.value, str(response.error)

    assert await get() == ("known", "None")
    clock.now += 1
    assert await get() == await get() == ("known", "away")
    clock.now += MIN_ERROR_TTL_SECONDS
    assert await get() == ("known", "slow")
    clock.now += MAX_ERROR_TTL_SECONDS - 1
    assert await get() == ("known", "slow")
    clock.now += 1
    assert await get() == ("back", "None")


async def test_any_other_exception_is_raised_and_not_cached() -> None:
    """A programming error is visible, and the next request calls again."""
    cache, results = ResponseCache(), iter([ZeroDivisionError("fault"), "fine"])

    def load() -> str:
        value = next(results)
        if isinstance(value, Exception):
            raise value
        return value

    with pytest.raises(ZeroDivisionError):
        await cache.get("run", load, lambda _: 60.0)
    assert (await cache.get("run", load, lambda _: 60.0)).value == "fine"


async def test_a_request_that_waits_too_long_gets_the_previous_value() -> None:
    """A service that does not respond blocks no page; its late response is cached for the next request."""
    clock, go = Clock(), Event()
    cache = ResponseCache(clock, wait_seconds=0.05)
    assert (await cache.get("run", lambda: "known", lambda _: 1.0)).value == "known"
    clock.now += 1
    late = [await cache.get("run", lambda: go.wait(10) and "late", lambda _: 1.0) for _ in range(2)]
    assert [(response.value, str(response.error)) for response in late] == [("known", STILL_WAITING)] * 2
    go.set()
    cache._wait_seconds = 10
    assert await cache.get("run", lambda: "again", lambda _: 1.0) == CachedResponse("late")


async def test_slow_downloads_block_no_page() -> None:
    """Files are downloaded in thread pools of their own."""
    go, cache = Event(), ResponseCache()
    files = [
        asyncio.create_task(cache.run_in_file_pool(lambda: go.wait(10)))
        for _ in range(2 * MAX_SERVICE_THREADS)
    ]
    await asyncio.sleep(0)
    assert (await cache.get("run", lambda: "here", lambda _: 1.0)).value == "here"
    assert not any(file.done() for file in files)
    go.set()
    assert all(await asyncio.gather(*files))


async def test_slow_jobs_of_one_pool_block_no_other() -> None:
    """Loads and files of another pool run while all threads and the queue of one are in use."""
    go, cache = Event(), ResponseCache()
    slow = [
        asyncio.create_task(cache.get(number, lambda: go.wait(10), lambda _: 1.0, "slow"))
        for number in range(MAX_SERVICE_THREADS + MAX_QUEUED_JOBS)
    ]
    slow_files = [
        asyncio.create_task(cache.run_in_file_pool(lambda: go.wait(10), "slow"))
        for _ in range(MAX_FILE_THREADS + MAX_QUEUED_JOBS)
    ]
    await asyncio.sleep(0)
    assert (await cache.get("run", lambda: "here", lambda _: 1.0, "fast")).value == "here"
    assert await cache.run_in_file_pool(lambda: "file", "fast") == "file"
    full = await cache.get("one more", lambda: "too many", lambda _: 1.0, "slow")
    assert (full.value, str(full.error)) == (None, QUEUE_FULL)
    with pytest.raises(PageWaitError, match="Try again"):
        await cache.run_in_file_pool(lambda: "too many", "slow")
    assert not any(job.done() for job in (*slow, *slow_files))
    go.set()
    assert all(response.value for response in await asyncio.gather(*slow))
    assert all(await asyncio.gather(*slow_files))


async def test_pools_that_are_not_used_have_no_threads() -> None:
    """Hundreds of connections are served one after the other without leaving a thread behind."""
    pools, before = ThreadPools("flows-test", 4), active_count()
    for number in range(3 * MAX_THREAD_POOLS):
        assert pools.submit(number, lambda: "done").result(10) == "done"
    deadline = time.monotonic() + 10
    while any(thread.name == "flows-test" for thread in enumerate_threads()):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    assert active_count() <= before


def test_the_threads_of_all_pools_are_bounded() -> None:
    """Each pool has a thread, more only within a bound of all; too many pools at once are rejected."""
    go, pools = Event(), ThreadPools("flows-test", 4, max_pools=30)
    try:
        jobs = [pools.submit(number % 30, lambda: go.wait(10)) for number in range(120)]
        threads = [thread for thread in enumerate_threads() if thread.name == "flows-test"]
        assert len(threads) == 30 + MAX_EXTRA_THREADS
        with pytest.raises(PageWaitError, match="Try again"):
            pools.submit("one more", lambda: True)
    finally:
        go.set()
    assert all(job.result(10) for job in jobs)


async def test_a_file_for_which_nobody_waits_is_discarded() -> None:
    """It is discarded after its time is over, and after the browser has disconnected."""
    for is_cancelled in (False, True):
        go, started, discarded = Event(), Event(), Event()
        cache = ResponseCache(file_wait_seconds=10 if is_cancelled else 0.05)

        def open_file(go: Event = go, started: Event = started) -> str:
            started.set()
            assert go.wait(10)
            return "file"

        wait = asyncio.create_task(
            cache.run_in_file_pool(open_file, discard=lambda _, discarded=discarded: discarded.set())
        )
        await asyncio.to_thread(started.wait, 10)
        if is_cancelled:
            wait.cancel()
        with pytest.raises(asyncio.CancelledError if is_cancelled else PageWaitError):
            await wait
        assert not discarded.is_set()
        go.set()
        assert await asyncio.to_thread(discarded.wait, 10)


# size -------------------------------------------------------------------------------------------------------


def create_runs(count: int) -> tuple[FlowRun, ...]:
    """Return runs with texts of their own."""
    return tuple(
        FlowRun(f"run {number}", "generio", flow=f"flow {number}", error="e" * 1000, raw_state="running")
        for number in range(count)
    )


def create_strings(count: int) -> dict[str, list[str]]:
    """Return texts of one and of four bytes a character."""
    return {
        str(number): ["a" * 500 + str(number), "\U0001f600" * 500 + str(number)] for number in range(count)
    }


def create_error(size: int) -> FlowError:
    """Return an error whose message has a size."""
    return FlowUnreachable("e" * size)


@pytest.mark.parametrize(
    "create",
    [
        lambda: create_runs(2000),
        lambda: create_strings(500),
        lambda: CachedResponse(None, create_error(10**6)),
        lambda: FlowDefinition("f", "s", parameters={str(n): Parameter(f"p{n}" * 99) for n in range(999)}),
        lambda: tuple(FlowOutput(f"output {number}", value=f"{number}" * 999) for number in range(999)),
        lambda: [[[float(number)] for number in range(9999)]],
    ],
    ids=["runs", "texts", "error", "definition", "outputs", "nested lists"],
)
def test_the_estimated_size_is_honest(create: Callable[[], object]) -> None:
    """The estimate is what Python allocates, within a third."""
    create()  # what is allocated once
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        value = create()
        allocated = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert allocated * 2 / 3 < estimate_size(value) < allocated * 3 / 2


@pytest.mark.parametrize(
    "large",
    [
        lambda number: "x" * (4 * MIB) + str(number),
        lambda number: ("x" * (15 * MIB) + str(number),),
        lambda number: "x" * (65 * MIB) + str(number),
        lambda number: create_error(4 * MIB + number),
    ],
    ids=["4 MiB", "15 MiB", "65 MiB", "error"],
)
async def test_large_responses_use_bounded_memory(large: Callable[[int], object]) -> None:
    """Of forty large responses the cache keeps at most its bound, by its own account and by Python's."""
    cache = ResponseCache()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(40):

            def load(number: int = number) -> object:
                value = large(number)
                if isinstance(value, FlowError):
                    raise value
                return value

            await cache.get(number, load, lambda _: 60.0)
        await asyncio.sleep(0.05)  # the thread of the last load ends
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert cache.size <= MAX_CACHED_BYTES
    assert used <= MAX_CACHED_BYTES + MIB
    assert used <= cache.size + MIB


async def test_a_response_that_is_too_large_has_a_message() -> None:
    """It is not cached and not loaded again at once; the previous value is still shown."""
    clock = Clock()
    cache, values = ResponseCache(clock), iter(["small", "x" * (17 * MIB)])
    assert (await cache.get("run", lambda: next(values), lambda _: 1.0)).value == "small"
    clock.now += 1
    for _ in range(2):
        response = await cache.get("run", lambda: next(values), lambda _: 1.0)
        assert (response.value, str(response.error)) == ("small", RESPONSE_TOO_LARGE)


async def test_a_cached_error_does_not_hold_the_response_that_caused_it() -> None:
    """The frames and the causes of an error refer to the response, so they are dropped."""
    cache = ResponseCache()

    def fail(number: int) -> None:
        response = "x" * (8 * MIB) + str(number)
        try:
            raise ValueError(response)  # noqa: TRY301  # the cause has the response
        except ValueError as error:
            message = f"malformed: {response[:20]}"
            raise FlowMalformed(message) from error

    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(10):
            response = await cache.get(number, lambda number=number: fail(number), lambda _: 60.0)
            assert isinstance(response.error, FlowMalformed)
        await asyncio.sleep(0.05)  # the thread of the last load ends
        assert tracemalloc.get_traced_memory()[0] - before < MIB
    finally:
        tracemalloc.stop()


async def test_expired_responses_are_removed() -> None:
    """A response that nobody requests any more is removed a while after it has expired."""
    clock = Clock()
    cache = ResponseCache(clock)
    for number in range(10):
        await cache.get(number, lambda: "x" * MIB, lambda _: 60.0)
    assert cache.size > 10 * MIB
    clock.now += 60 + MAX_STALE_SECONDS
    await cache.get("other", lambda: "small", lambda _: 60.0)
    assert cache.size < MIB
