"""Tests of the cache of service responses that all users of an API server process share."""

from __future__ import annotations

import asyncio
from threading import Event

import pytest

from airflow_provider_flows.core.exceptions import FlowRateLimited, FlowUnreachable
from airflow_provider_flows.plugin.cache import (
    MAX_ERROR_TTL_SECONDS,
    MAX_SERVICE_THREADS,
    MIN_ERROR_TTL_SECONDS,
    STILL_WAITING,
    CachedResponse,
    ResponseCache,
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
    """Files are downloaded in a thread pool of their own."""
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
