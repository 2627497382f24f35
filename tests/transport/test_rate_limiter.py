"""Tests of the rate limiter: when it admits requests, and how it reacts to rate-limited responses."""

from __future__ import annotations

import itertools

import pytest

from airflow_provider_flows.core.polling.schedule import MAX_RETRY_AFTER_SECONDS
from airflow_provider_flows.transport.rate_limiter import (
    DEFAULT_RETRY_AFTER_SECONDS,
    INITIAL_INTERVAL_SECONDS,
    RateLimiter,
)
from tests.support.scripted_transport import NOON


def test_limiter_without_limit_admits_every_request() -> None:
    """Without a limit no request is delayed, and a response that is not rate-limited changes nothing."""
    limiter = RateLimiter()
    assert [limiter.try_acquire(NOON) for _ in range(100)] == [0.0] * 100
    assert not any(limiter.record_response(status, None, NOON) for status in (200, 404, 500, 502, 503))
    assert limiter.try_acquire(NOON) == 0


@pytest.mark.parametrize(
    ("status", "retry_after", "pause"),
    [(429, 30.0, 30.0), (503, 30.0, 30.0), (429, None, DEFAULT_RETRY_AFTER_SECONDS)],
)
def test_rate_limited_response_pauses_requests(status: int, retry_after: float | None, pause: float) -> None:
    """A 429, and a 503 with Retry-After, pauses requests for that long; late responses do not end it."""
    limiter = RateLimiter()
    assert limiter.try_acquire(NOON) == 0
    assert limiter.record_response(status, retry_after, NOON)
    assert not limiter.record_response(status, retry_after, NOON)
    assert not limiter.record_response(200, None, NOON + 1)
    assert limiter.try_acquire(NOON + 1) == pause - 1
    assert limiter.try_acquire(NOON + pause) == 0


def test_pause_is_at_most_an_hour() -> None:
    """A longer Retry-After pauses for an hour; a shorter one that arrives later does not end the pause."""
    limiter = RateLimiter()
    limiter.record_response(429, 1e9, NOON)
    limiter.record_response(429, 1.0, NOON)
    assert limiter.try_acquire(NOON) == MAX_RETRY_AFTER_SECONDS


def admitted_times(limiter: RateLimiter, now: float, until: float, status: int = 200) -> list[float]:
    """Send as many requests as the limiter admits, each with a response at once, and return their times."""
    times = []
    while now < until:
        delay = limiter.try_acquire(now)
        if not delay:
            times.append(now)
            limiter.record_response(status, None, now)
        now += delay or 0.0001
    return times


def test_rate_rises_gradually_after_a_pause() -> None:
    """After a pause requests are far apart at first, and each success halves the distance."""
    limiter = RateLimiter()
    limiter.record_response(429, 10.0, NOON)
    times = admitted_times(limiter, NOON, NOON + 15)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert times[0] == pytest.approx(NOON + 10)
    assert gaps[0] == pytest.approx(INITIAL_INTERVAL_SECONDS, rel=0.01)
    assert gaps[:5] == sorted(gaps[:5], reverse=True)
    assert gaps[4] < INITIAL_INTERVAL_SECONDS / 10
    assert limiter.try_acquire(NOON + 99) == limiter.try_acquire(NOON + 99) == 0


def test_next_rate_limited_response_pauses_again() -> None:
    """A rate-limited response while the rate rises starts another pause and another gradual rise."""
    limiter = RateLimiter()
    limiter.record_response(429, 1.0, NOON)
    admitted_times(limiter, NOON, NOON + 3)
    assert limiter.record_response(429, 1.0, NOON + 3)
    assert limiter.try_acquire(NOON + 3) == 1
    assert limiter.try_acquire(NOON + 4) == 0
    assert limiter.try_acquire(NOON + 4) == INITIAL_INTERVAL_SECONDS


def test_limit_per_second_holds() -> None:
    """With a limit of requests a second no more are admitted, before and after a pause."""
    limiter = RateLimiter(per_second=50)
    assert 480 <= len(admitted_times(limiter, NOON, NOON + 10)) <= 501
    limiter.record_response(429, 1.0, NOON + 10)
    admitted_times(limiter, NOON + 10, NOON + 15)
    assert 480 <= len(admitted_times(limiter, NOON + 20, NOON + 30)) <= 501
    slow = RateLimiter(per_second=0.1)
    slow.record_response(429, 1.0, NOON)
    times = admitted_times(slow, NOON, NOON + 60)
    assert min(later - earlier for earlier, later in itertools.pairwise(times)) >= 10
