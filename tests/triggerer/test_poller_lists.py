"""Tests of one list instead of many looks: that it saves looks, and that no list, however bad, loses or delays a run.

When a list pays, by itself, is in test_watch_parts.py; whose fault a bad list is does not matter here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest

from tests.support.flow_station import Asked, FlowStation, Told
from tests.support.watching import all_ended, ended, hurry, until

Answer = Callable[[FlowStation, Asked], Told]


@pytest.fixture
def station(monkeypatch: pytest.MonkeyPatch) -> Iterator[FlowStation]:
    """Give a server, with the connection `flows_default` to it."""
    hurry(monkeypatch)
    with FlowStation() as station:
        station.connect(monkeypatch)
        yield station


def rows(station: FlowStation) -> list[dict[str, Any]]:
    """Give the rows of the runs that are running."""
    return [station.row(key) for key in station.running()]


def others(how_many: int) -> list[dict[str, Any]]:
    """Give rows of runs that nobody here waits for."""
    return [{"flow_id": f"other{number}", "state": "running", "progress": 0.5} for number in range(how_many)]


def without(name: str) -> Answer:
    """Leave one field out of all rows, as a list may that selects fields."""
    return lambda station, _: Told(
        [{key: value for key, value in row.items() if key != name} for row in rows(station)]
    )


def saying(word: str) -> Answer:
    """Say this state of every run, whatever it is."""
    return lambda station, _: Told(
        {"flows": [{**station.row(key), "state": word} for key in list(station.runs)]}
    )


def by_address(station: FlowStation, asked: Asked) -> Told:
    """Give the list in pages of ten, each with the next one's address."""
    page = int(asked.query.get("p", "0"))
    found = others(15) + rows(station)
    more = {"next": f"/flows?filter_by=running&p={page + 1}"} if len(found) > 10 * page + 10 else {}
    return Told({"flows": found[10 * page : 10 * page + 10], **more})


def by_offset(station: FlowStation, asked: Asked) -> Told:
    """Give the list in pages of ten, by offset and total."""
    begin, found = int(asked.query.get("offset", "0")), others(15) + rows(station)
    return Told({"flows": found[begin : begin + 10], "total": len(found)})


GOOD: dict[str, Answer] = {
    "plain": lambda station, _: Told({"flows": rows(station)}),
    "array": lambda station, _: Told(rows(station)),
    "twice": lambda station, _: Told({"flows": rows(station) * 2}),
    "all states": lambda station, _: Told({"flows": [station.row(key) for key in list(station.runs)]}),
    "by address": by_address,
    "by offset": by_offset,
    "slow": lambda station, _: Told({"flows": rows(station)}, delay=0.3),
}
BAD: dict[str, Answer] = {
    "404": lambda *_: Told({"detail": "Not found"}, 404),
    "500": lambda *_: Told(b"Internal Server Error", 500),
    "page": lambda *_: Told(b"<html>Welcome</html>"),
    "cut": lambda *_: Told(b'{"flows": [{"flow_id": "r0", "sta'),
    "no list": lambda *_: Told({"message": "ok"}),
    "nobody": lambda *_: Told({"flows": []}),
    "ten": lambda station, _: Told({"flows": rows(station)[:10]}),
    "huge": lambda *_: Told({"flows": others(20_000)}),
    "no state": without("state"),
    "no id": without("flow_id"),
    "all completed": saying("completed"),
    "all failed": saying("failed"),
    "all strange": saying("polishing"),
    "numbers": lambda *_: Told([1, None, "x", [], {"flow_id": {}, "state": 7}]),
}


@pytest.mark.parametrize("kind", ["good", "bad"])
async def test_every_run_ends_right_whatever_the_list_says(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Each wait ends when its run does, by a look at the run itself; a list that is of no use is not asked for again soon."""
    hurry(monkeypatch)
    answers = {"good": GOOD, "bad": BAD}[kind]
    with ExitStack() as stack:
        stations = {how: stack.enter_context(FlowStation()) for how in answers}
        for number, (how, station) in enumerate(stations.items()):
            station.listing = partial(answers[how], station)
            station.connect(monkeypatch, f"list_{number}")
            station.make(15, 1.0, "early")
            station.make(15, 1.6, "late", end="failed")

        told = await asyncio.gather(
            *(
                all_ended(station.runs, conn_id=f"list_{number}")
                for number, station in enumerate(stations.values())
            )
        )

        for (how, station), runs in zip(stations.items(), told, strict=True):
            assert [(run.flow_run_id, run.state.value) for run in runs] == [
                (key, run.end) for key, run in station.runs.items()
            ]
            assert all(station.looks([key])[-1].at >= run.over for key, run in station.runs.items()), how
            assert kind == "good" or len(station.lists()) <= 5, how


async def test_one_list_stands_for_many_looks(station: FlowStation) -> None:
    """Runs that are due together are asked about with one list, again and again; few of them are looked at before their end."""
    ids = station.make(60, 2.0)
    assert all(run.completed for run in await all_ended(ids))
    assert len(station.lists()) > 3
    assert len(station.looks()) < 2.2 * len(ids)


@pytest.mark.parametrize(("how_many", "listed"), [(10, True), (9, False)])
async def test_ten_are_worth_a_list(station: FlowStation, how_many: int, listed: bool) -> None:  # noqa: FBT001
    """From ten runs on that are due together a list is asked for, below that never."""
    assert all(run.completed for run in await all_ended(station.make(how_many, 1.5)))
    assert bool(station.lists()) is listed


async def test_run_that_is_not_running_yet_is_not_lost(station: FlowStation) -> None:
    """Runs that are starting, so that a list of running ones leaves them out, are looked at by themselves until they run."""
    ids = station.make(15, 1.5)
    station.look = lambda key, asked: Told(
        {**station.row(key), **({"state": "starting"} if asked.at < station.runs[key].began + 0.8 else {})}
    )
    station.listing = lambda asked: Told(
        {"flows": rows(station) if asked.at > station.runs["r0"].began + 0.8 else []}
    )
    assert all(run.completed for run in await all_ended(ids))


async def test_who_comes_while_a_list_is_under_way_is_told_by_it(station: FlowStation) -> None:
    """Runs whose waits begin while a list is read are no less in it: they are looked at by lists from then on."""
    station.listing = lambda _: Told({"flows": rows(station)}, delay=0.8)
    early, late = station.make(15, 3.0, "early"), station.make(15, 3.0, "late")
    first = asyncio.gather(*(ended(key) for key in early))
    assert await until(station.lists)

    assert all(run.completed for run in [*await all_ended(late), *await first])

    assert len(station.looks(late)) < 4 * len(late)


async def test_list_that_hangs_is_given_up(station: FlowStation) -> None:
    """A list that does not come is given up after some seconds, then the runs are looked at one by one."""
    station.listing = lambda _: Told([], delay=3600)
    ids = station.make(12, 0.2)
    in_time = asyncio.gather(*(ended(key, time.time() + 1) for key in ids), return_exceptions=True)
    assert all(run.completed for run in await all_ended(ids))
    assert len(station.lists()) == 1
    lost = [one for one in await in_time if isinstance(one, BaseException)]
    assert not lost, (
        f"{len(lost)} waits missed the end of runs that were over long before the deadline: {lost[0]}"
    )


async def test_list_that_is_behind_delays_nobody_for_ever(station: FlowStation) -> None:
    """A list that goes on calling runs running that are over, as a cache may, does not keep their waits from ending."""
    frozen = [{"flow_id": f"r{number}", "state": "running", "progress": 0.0} for number in range(15)]
    station.listing = lambda _: Told({"flows": frozen})
    async with asyncio.timeout(6):
        assert all(run.completed for run in await all_ended(station.make(15, 0.5)))


@pytest.mark.parametrize("status", [429, 503])
async def test_refused_list_does_not_become_many_looks(station: FlowStation, status: int) -> None:
    """A service that asks for fewer requests when the list is asked for does not get one for each run instead."""
    refused: list[float] = []

    def listing(asked: Asked) -> Told:
        if not refused:
            refused.append(asked.at)
            return Told({"detail": "slow down"}, status, {"Retry-After": "1"})
        return Told({"flows": rows(station)})

    station.listing = listing
    ids = station.make(60, 60.0)
    tasks = [asyncio.create_task(ended(key)) for key in ids]
    assert await until(lambda: refused)
    await asyncio.sleep(2.5)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    assert len(station.looks()) <= len(ids) / 2
    assert len(station.lists()) > 1


async def test_list_in_many_pages_does_not_cost_more_than_looks(station: FlowStation) -> None:
    """Where the account has so many runs that its list takes more requests than looks would, looks are made."""

    def listing(asked: Asked) -> Told:
        begin, found = int(asked.query.get("offset", "0")), others(400) + rows(station)
        return Told({"flows": found[begin : begin + 10], "total": len(found)})

    station.listing = listing
    ids = station.make(12, 2.5)
    assert all(run.completed for run in await all_ended(ids))
    assert len(station.lists()) < 100  # two whole lists; looks alone would be some 250


async def test_list_without_end_is_left(station: FlowStation) -> None:
    """A list that names a next page for ever, each with new rows, is not read for ever."""

    def listing(asked: Asked) -> Told:
        page = int(asked.query.get("p", "0"))
        return Told({"flows": [{"flow_id": f"o{page}", "state": "running"}], "next": f"/flows?p={page + 1}"})

    station.listing = listing
    async with asyncio.timeout(30):
        assert all(run.completed for run in await all_ended(station.make(15, 1.0)))
    assert len(station.lists()) < 1000


async def test_list_leaves_the_loop_its_turns(station: FlowStation) -> None:
    """A list with thousands of rows, most of them of others, does not keep the loop from everything else for long."""
    station.listing = lambda _: Told({"flows": others(20_000) + rows(station)})
    gaps, last, over = [0.0], time.monotonic(), False

    async def tick() -> None:
        nonlocal last
        while not over:
            await asyncio.sleep(0.005)
            last, gap = time.monotonic(), time.monotonic() - last
            gaps.append(gap)

    ticker = asyncio.create_task(tick())
    await all_ended(station.make(30, 1.0))
    over = True
    await ticker
    assert max(gaps) < 0.5
