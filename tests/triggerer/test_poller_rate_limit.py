"""Tests of what the waits of one connection share in trouble: a service's brakes, and that deadlines hold all the same.

What the gate does without a network is in test_watch_parts.py.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Iterator

import pytest

from airflow_provider_flows.core.exceptions import FlowTimeout
from airflow_provider_flows.core.rate_limiter import CLOSED_SECONDS
from airflow_provider_flows.triggerer.shared_poller import GRACE, MOST_AT_ONCE
from tests.support.flow_station import Asked, FlowStation, Told
from tests.support.watching import all_ended, ended, errors_of, hurry, only, until

HOUR = "3600"


@pytest.fixture
def station(monkeypatch: pytest.MonkeyPatch) -> Iterator[FlowStation]:
    """Give a server without a list, with the connection `flows_default` to it."""
    hurry(monkeypatch)
    with FlowStation() as station:
        station.listing = lambda _: Told({}, 404)
        station.connect(monkeypatch)
        yield station


def refusing_once(station: FlowStation, status: int, **headers: str) -> list[float]:
    """Let the twentieth look be refused, and give the list in which the moment will stand."""
    told: list[float] = []

    def look(key: str, _: Asked) -> Told:
        if len(station.looks()) < 20 or told:
            return Told(station.row(key))
        told.append(time.time())
        return Told(
            {"detail": "slow down"},
            status,
            {name.replace("_", "-"): value for name, value in headers.items()},
        )

    station.look = look
    return told


@pytest.mark.parametrize("status", [429, 503])
async def test_one_refusal_brakes_everybody_once(station: FlowStation, status: int) -> None:
    """After one Retry-After nobody asks for that long, but for what was under way; then requests begin again, slowly at first."""
    refused = refusing_once(station, status, Retry_After="2")

    runs = await all_ended(station.make(50, 3.0))

    assert all(run.completed for run in runs)
    (moment,) = refused
    times = [asked.at for asked in station.asked]
    assert not [at for at in times if moment + 1 < at < moment + 2]
    assert len([at for at in times if moment < at < moment + 1]) <= MOST_AT_ONCE
    after = [at for at in times if at >= moment + 2][:12]
    gaps = [later - earlier for earlier, later in itertools.pairwise(after)]
    assert gaps[0] > 0.3
    assert statistics.median(gaps[5:]) < gaps[0]


async def test_503_without_a_time_brakes_nobody_else(station: FlowStation) -> None:
    """A 503 that names no time is the trouble of one run: the others are looked at as before."""
    (moment,) = [refusing_once(station, 503)]

    assert all(run.completed for run in await all_ended(station.make(30, 1.5)))

    times = [asked.at for asked in station.asked if asked.at > moment[0]]
    assert len(times) >= 30
    assert max(later - earlier for earlier, later in itertools.pairwise(times)) < CLOSED_SECONDS / 2


async def test_429_without_a_time_brakes_for_a_while(station: FlowStation) -> None:
    """A 429 that names no time stops all requests for some seconds."""
    refused = refusing_once(station, 429)
    tasks = [asyncio.create_task(ended(key)) for key in station.make(30, 60)]
    assert await until(lambda: refused)
    await asyncio.sleep(2.5)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert not [asked for asked in station.asked if refused[0] + 1 < asked.at < refused[0] + 2.5]


async def test_most_requests_per_second(station: FlowStation, monkeypatch: pytest.MonkeyPatch) -> None:
    """`max_requests_per_second` of the connection bounds all its requests, however many wait."""
    station.connect(monkeypatch, "bounded", max_requests_per_second=20)
    began = time.time()

    assert all(run.completed for run in await all_ended(station.make(30, 0.5), conn_id="bounded"))

    asked = [one.at for one in station.asked]
    assert len(asked) >= 30
    assert len(asked) <= 20 * (time.time() - began) * 1.2 + 2
    assert max(sum(at <= other < at + 0.5 for other in asked) for at in asked) <= 16


async def test_deadline_holds_whatever_the_service_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a gate that is closed for an hour, and before a server that never answers, a wait ends at its deadline."""
    hurry(monkeypatch)
    with FlowStation() as closed, FlowStation() as mute:
        closed.look = lambda *_: Told({}, 429, {"Retry-After": HOUR})
        mute.look = lambda *_: Told({}, delay=3600)
        stations = {"closed": closed, "mute": mute}
        for name, station in stations.items():
            station.listing = lambda _: Told({}, 404)
            station.connect(monkeypatch, name)
            station.make(40, 60)
        deadline = time.time() + 1

        errors = await asyncio.gather(
            *(errors_of(station.runs, deadline=deadline, conn_id=name) for name, station in stations.items())
        )

        assert deadline <= time.time() < deadline + GRACE + 3
        assert all("never seen" in only(error, FlowTimeout) for error in itertools.chain(*errors))
        assert len(closed.looks()) <= MOST_AT_ONCE


async def test_deadline_of_one_is_not_that_of_others(station: FlowStation) -> None:
    """A wait that ends at its deadline leaves those with later ones alone."""
    (first, second) = station.make(2, 1.0)
    late = asyncio.create_task(ended(second, time.time() + 30))
    assert await until(lambda: station.asked)

    (error,) = await errors_of([first], deadline=time.time() + 0.2)

    assert "last seen running" in only(error, FlowTimeout) or "never seen" in only(error, FlowTimeout)
    assert (await late).completed
