"""Tests of lists that replace polls: they save requests, and a bad list neither loses nor delays a run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest

from tests.support.fixtures import disable_event_delay
from tests.support.flow_server import ApiRequest, ApiResponse, StubFlowServer
from tests.support.triggers import run_trigger, run_triggers, wait_for_condition

Answer = Callable[[StubFlowServer, ApiRequest], ApiResponse]


def rows(station: StubFlowServer) -> list[dict[str, Any]]:
    """Give the rows of the runs that are running."""
    return [station.row(key) for key in station.running_ids()]


def others(how_many: int) -> list[dict[str, Any]]:
    """Give rows of runs that nobody here waits for."""
    return [{"flow_id": f"other{number}", "state": "running", "progress": 0.5} for number in range(how_many)]


def without(name: str) -> Answer:
    """Leave one field out of all rows, as a list may that selects fields."""
    return lambda station, _: ApiResponse(
        [{key: value for key, value in row.items() if key != name} for row in rows(station)]
    )


def saying(word: str) -> Answer:
    """Say this state of every run, whatever it is."""
    return lambda station, _: ApiResponse(
        {"flows": [{**station.row(key), "state": word} for key in list(station.runs)]}
    )


def by_address(station: StubFlowServer, asked: ApiRequest) -> ApiResponse:
    """Give the list in pages of ten, each with the next one's address."""
    page = int(asked.query.get("p", "0"))
    found = others(15) + rows(station)
    more = {"next": f"/flows?filter_by=running&p={page + 1}"} if len(found) > 10 * page + 10 else {}
    return ApiResponse({"flows": found[10 * page : 10 * page + 10], **more})


def by_offset(station: StubFlowServer, asked: ApiRequest) -> ApiResponse:
    """Give the list in pages of ten, by offset and total."""
    begin, found = int(asked.query.get("offset", "0")), others(15) + rows(station)
    return ApiResponse({"flows": found[begin : begin + 10], "total": len(found)})


GOOD: dict[str, Answer] = {
    "plain": lambda station, _: ApiResponse({"flows": rows(station)}),
    "array": lambda station, _: ApiResponse(rows(station)),
    "twice": lambda station, _: ApiResponse({"flows": rows(station) * 2}),
    "all states": lambda station, _: ApiResponse({"flows": [station.row(key) for key in list(station.runs)]}),
    "by address": by_address,
    "by offset": by_offset,
    "slow": lambda station, _: ApiResponse({"flows": rows(station)}, delay=0.3),
}
BAD: dict[str, Answer] = {
    "404": lambda *_: ApiResponse({"detail": "Not found"}, 404),
    "500": lambda *_: ApiResponse(b"Internal Server Error", 500),
    "page": lambda *_: ApiResponse(b"<html>Welcome</html>"),
    "cut": lambda *_: ApiResponse(b'{"flows": [{"flow_id": "r0", "sta'),
    "no list": lambda *_: ApiResponse({"message": "ok"}),
    "nobody": lambda *_: ApiResponse({"flows": []}),
    "ten": lambda station, _: ApiResponse({"flows": rows(station)[:10]}),
    "huge": lambda *_: ApiResponse({"flows": others(20_000)}),
    "no state": without("state"),
    "no id": without("flow_id"),
    "all completed": saying("completed"),
    "all failed": saying("failed"),
    "all strange": saying("polishing"),
    "numbers": lambda *_: ApiResponse([1, None, "x", [], {"flow_id": {}, "state": 7}]),
}


@pytest.mark.parametrize("kind", ["good", "bad"])
async def test_every_run_ends_right_whatever_the_list_says(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Each wait ends by a poll of its own when its run does; a useless list is not requested again soon."""
    disable_event_delay(monkeypatch)
    answers = {"good": GOOD, "bad": BAD}[kind]
    with ExitStack() as stack:
        stations = {how: stack.enter_context(StubFlowServer()) for how in answers}
        for number, (how, station) in enumerate(stations.items()):
            station.list_response = partial(answers[how], station)
            station.connect(monkeypatch, f"list_{number}")
            station.create_runs(15, 1.0, "early")
            station.create_runs(15, 1.6, "late", end="failed")

        told = await asyncio.gather(
            *(
                run_triggers(station.runs, conn_id=f"list_{number}")
                for number, station in enumerate(stations.values())
            )
        )

        for (how, station), runs in zip(stations.items(), told, strict=True):
            assert [(run.flow_run_id, run.state.value) for run in runs] == [
                (key, run.end) for key, run in station.runs.items()
            ]
            assert all(
                station.poll_requests([key])[-1].at >= run.ends_at for key, run in station.runs.items()
            ), how
            assert kind == "good" or len(station.list_requests()) <= 5, how


async def test_one_list_stands_for_many_looks(station: StubFlowServer) -> None:
    """Runs that are due together are polled with one list, and hardly ever one by one before their end."""
    ids = station.create_runs(60, 2.0)
    assert all(run.is_completed for run in await run_triggers(ids))
    assert len(station.list_requests()) > 3
    assert len(station.poll_requests()) < 2.2 * len(ids)


@pytest.mark.parametrize(("how_many", "listed"), [(10, True), (9, False)])
async def test_ten_are_worth_a_list(station: StubFlowServer, how_many: int, listed: bool) -> None:  # noqa: FBT001
    """From ten runs on that are due together a list is asked for, below that never."""
    assert all(run.is_completed for run in await run_triggers(station.create_runs(how_many, 1.5)))
    assert bool(station.list_requests()) is listed


async def test_run_that_is_not_running_yet_is_not_lost(station: StubFlowServer) -> None:
    """Runs that are starting, and therefore not on a list of running ones, are polled one by one."""
    ids = station.create_runs(15, 1.5)
    station.run_response = lambda key, asked: ApiResponse(
        {
            **station.row(key),
            **({"state": "starting"} if asked.at < station.runs[key].started_at + 0.8 else {}),
        }
    )
    station.list_response = lambda asked: ApiResponse(
        {"flows": rows(station) if asked.at > station.runs["r0"].started_at + 0.8 else []}
    )
    assert all(run.is_completed for run in await run_triggers(ids))


async def test_who_comes_while_a_list_is_under_way_is_told_by_it(station: StubFlowServer) -> None:
    """Waits that start while a list is read are polled with the next lists."""
    station.list_response = lambda _: ApiResponse({"flows": rows(station)}, delay=0.8)
    early, late = station.create_runs(15, 3.0, "early"), station.create_runs(15, 3.0, "late")
    first = asyncio.gather(*(run_trigger(key) for key in early))
    assert await wait_for_condition(station.list_requests)

    assert all(run.is_completed for run in [*await run_triggers(late), *await first])

    assert len(station.poll_requests(late)) < 4 * len(late)


async def test_list_that_hangs_is_given_up(station: StubFlowServer) -> None:
    """A list that does not come is given up after some seconds, then the runs are looked at one by one."""
    station.list_response = lambda _: ApiResponse([], delay=3600)
    ids = station.create_runs(12, 0.2)
    in_time = asyncio.gather(*(run_trigger(key, time.time() + 1) for key in ids), return_exceptions=True)
    assert all(run.is_completed for run in await run_triggers(ids))
    assert len(station.list_requests()) == 1
    lost = [one for one in await in_time if isinstance(one, BaseException)]
    assert not lost, (
        f"{len(lost)} waits missed the end of runs that were over long before the deadline: {lost[0]}"
    )


async def test_list_that_is_behind_delays_nobody_for_ever(station: StubFlowServer) -> None:
    """A list that shows finished runs as running, as a cache may, does not block their waits."""
    frozen = [{"flow_id": f"r{number}", "state": "running", "progress": 0.0} for number in range(15)]
    station.list_response = lambda _: ApiResponse({"flows": frozen})
    async with asyncio.timeout(6):
        assert all(run.is_completed for run in await run_triggers(station.create_runs(15, 0.5)))


@pytest.mark.parametrize("status", [429, 503])
async def test_refused_list_does_not_become_many_looks(station: StubFlowServer, status: int) -> None:
    """A rate-limited list is not replaced by a poll for each run."""
    refused: list[float] = []

    def listing(asked: ApiRequest) -> ApiResponse:
        if not refused:
            refused.append(asked.at)
            return ApiResponse({"detail": "slow down"}, status, {"Retry-After": "1"})
        return ApiResponse({"flows": rows(station)})

    station.list_response = listing
    ids = station.create_runs(60, 60.0)
    tasks = [asyncio.create_task(run_trigger(key)) for key in ids]
    assert await wait_for_condition(lambda: refused)
    await asyncio.sleep(2.5)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    assert len(station.poll_requests()) <= len(ids) / 2
    assert len(station.list_requests()) > 1


async def test_list_in_many_pages_does_not_cost_more_than_looks(station: StubFlowServer) -> None:
    """Where a list takes more requests than polls would, runs are polled one by one."""

    def listing(asked: ApiRequest) -> ApiResponse:
        begin, found = int(asked.query.get("offset", "0")), others(400) + rows(station)
        return ApiResponse({"flows": found[begin : begin + 10], "total": len(found)})

    station.list_response = listing
    ids = station.create_runs(12, 2.5)
    assert all(run.is_completed for run in await run_triggers(ids))
    assert len(station.list_requests()) < 100  # two whole lists; looks alone would be some 250


async def test_list_without_end_is_left(station: StubFlowServer) -> None:
    """A list that names a next page for ever, each with new rows, is not read for ever."""

    def listing(asked: ApiRequest) -> ApiResponse:
        page = int(asked.query.get("p", "0"))
        return ApiResponse(
            {"flows": [{"flow_id": f"o{page}", "state": "running"}], "next": f"/flows?p={page + 1}"}
        )

    station.list_response = listing
    async with asyncio.timeout(30):
        assert all(run.is_completed for run in await run_triggers(station.create_runs(15, 1.0)))
    assert len(station.list_requests()) < 1000


async def test_list_leaves_the_loop_its_turns(station: StubFlowServer) -> None:
    """A list with thousands of rows does not block the loop for long."""
    station.list_response = lambda _: ApiResponse({"flows": others(20_000) + rows(station)})
    gaps, last, over = [0.0], time.monotonic(), False

    async def tick() -> None:
        nonlocal last
        while not over:
            await asyncio.sleep(0.005)
            last, gap = time.monotonic(), time.monotonic() - last
            gaps.append(gap)

    ticker = asyncio.create_task(tick())
    await run_triggers(station.create_runs(30, 1.0))
    over = True
    await ticker
    assert max(gaps) < 0.5
