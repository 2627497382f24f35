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

ListResponse = Callable[[StubFlowServer, ApiRequest], ApiResponse]


def rows(flow_server: StubFlowServer) -> list[dict[str, Any]]:
    """Return the rows of the runs that are running."""
    return [flow_server.row(key) for key in flow_server.running_ids()]


def other_rows(count: int) -> list[dict[str, Any]]:
    """Return rows of runs that no trigger waits for."""
    return [{"flow_id": f"other{number}", "state": "running", "progress": 0.5} for number in range(count)]


def without(name: str) -> ListResponse:
    """Return a list whose rows lack one field, as in a list that selects fields."""
    return lambda flow_server, _: ApiResponse(
        [{key: value for key, value in row.items() if key != name} for row in rows(flow_server)]
    )


def with_state(state: str) -> ListResponse:
    """Return a list of all runs in which each has this state."""
    return lambda flow_server, _: ApiResponse(
        {"flows": [{**flow_server.row(key), "state": state} for key in list(flow_server.runs)]}
    )


def by_address(flow_server: StubFlowServer, request: ApiRequest) -> ApiResponse:
    """Return the list in pages of ten, each with the next one's address."""
    page = int(request.query.get("p", "0"))
    found = other_rows(15) + rows(flow_server)
    more = {"next": f"/flows?filter_by=running&p={page + 1}"} if len(found) > 10 * page + 10 else {}
    return ApiResponse({"flows": found[10 * page : 10 * page + 10], **more})


def by_offset(flow_server: StubFlowServer, request: ApiRequest) -> ApiResponse:
    """Return the list in pages of ten, by offset and total."""
    start, found = int(request.query.get("offset", "0")), other_rows(15) + rows(flow_server)
    return ApiResponse({"flows": found[start : start + 10], "total": len(found)})


COMPLETE_LISTS: dict[str, ListResponse] = {
    "plain": lambda flow_server, _: ApiResponse({"flows": rows(flow_server)}),
    "array": lambda flow_server, _: ApiResponse(rows(flow_server)),
    "twice": lambda flow_server, _: ApiResponse({"flows": rows(flow_server) * 2}),
    "all states": lambda flow_server, _: ApiResponse(
        {"flows": [flow_server.row(key) for key in list(flow_server.runs)]}
    ),
    "by address": by_address,
    "by offset": by_offset,
    "slow": lambda flow_server, _: ApiResponse({"flows": rows(flow_server)}, delay=0.3),
}
USELESS_LISTS: dict[str, ListResponse] = {
    "404": lambda *_: ApiResponse({"detail": "Not found"}, 404),
    "500": lambda *_: ApiResponse(b"Internal Server Error", 500),
    "html": lambda *_: ApiResponse(b"<html>Welcome</html>"),
    "truncated": lambda *_: ApiResponse(b'{"flows": [{"flow_id": "r0", "sta'),
    "no list": lambda *_: ApiResponse({"message": "ok"}),
    "empty": lambda *_: ApiResponse({"flows": []}),
    "ten": lambda flow_server, _: ApiResponse({"flows": rows(flow_server)[:10]}),
    "huge": lambda *_: ApiResponse({"flows": other_rows(20_000)}),
    "no state": without("state"),
    "no id": without("flow_id"),
    "all completed": with_state("completed"),
    "all failed": with_state("failed"),
    "unknown states": with_state("polishing"),
    "numbers": lambda *_: ApiResponse([1, None, "x", [], {"flow_id": {}, "state": 7}]),
}


@pytest.mark.parametrize("kind", ["complete", "useless"])
async def test_each_wait_ends_with_its_run_for_any_list(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Each wait ends by a poll of its own when its run does; a useless list is not requested again soon."""
    disable_event_delay(monkeypatch)
    list_responses = {"complete": COMPLETE_LISTS, "useless": USELESS_LISTS}[kind]
    with ExitStack() as stack:
        flow_servers = {name: stack.enter_context(StubFlowServer()) for name in list_responses}
        for number, (name, flow_server) in enumerate(flow_servers.items()):
            flow_server.list_response = partial(list_responses[name], flow_server)
            flow_server.connect(monkeypatch, f"list_{number}")
            flow_server.create_runs(15, 1.0, "early")
            flow_server.create_runs(15, 1.6, "late", end="failed")

        results = await asyncio.gather(
            *(
                run_triggers(flow_server.runs, conn_id=f"list_{number}")
                for number, flow_server in enumerate(flow_servers.values())
            )
        )

        for (name, flow_server), runs in zip(flow_servers.items(), results, strict=True):
            assert [(run.flow_run_id, run.state.value) for run in runs] == [
                (key, run.end) for key, run in flow_server.runs.items()
            ]
            assert all(
                flow_server.poll_requests([key])[-1].at >= run.ends_at
                for key, run in flow_server.runs.items()
            ), name
            assert kind == "complete" or len(flow_server.list_requests()) <= 8, name


async def test_one_list_replaces_many_polls(flow_server: StubFlowServer) -> None:
    """Runs that are due together are polled with one list, and hardly ever one by one before their end."""
    ids = flow_server.create_runs(60, 2.0)
    assert all(run.is_completed for run in await run_triggers(ids))
    assert len(flow_server.list_requests()) > 3
    assert len(flow_server.poll_requests()) < 2.2 * len(ids)


@pytest.mark.parametrize(("count", "is_listed"), [(10, True), (9, False)])
async def test_list_is_requested_for_ten_runs(
    flow_server: StubFlowServer,
    count: int,
    is_listed: bool,
) -> None:
    """A list is requested if ten runs are due together, and never for fewer."""
    assert all(run.is_completed for run in await run_triggers(flow_server.create_runs(count, 1.5)))
    assert bool(flow_server.list_requests()) is is_listed


async def test_starting_runs_are_polled_one_by_one(flow_server: StubFlowServer) -> None:
    """Runs that are starting, and therefore not on a list of running ones, are polled one by one."""
    ids = flow_server.create_runs(15, 1.5)
    flow_server.run_response = lambda key, request: ApiResponse(
        {
            **flow_server.row(key),
            **({"state": "starting"} if request.at < flow_server.runs[key].started_at + 0.8 else {}),
        }
    )
    flow_server.list_response = lambda request: ApiResponse(
        {"flows": rows(flow_server) if request.at > flow_server.runs["r0"].started_at + 0.8 else []}
    )
    assert all(run.is_completed for run in await run_triggers(ids))


async def test_waits_that_start_during_a_list_join_the_next(flow_server: StubFlowServer) -> None:
    """Waits that start while a list is read are polled with the next lists."""
    flow_server.list_response = lambda _: ApiResponse({"flows": rows(flow_server)}, delay=0.8)
    early, late = flow_server.create_runs(15, 3.0, "early"), flow_server.create_runs(15, 3.0, "late")
    first = asyncio.gather(*(run_trigger(key) for key in early))
    assert await wait_for_condition(flow_server.list_requests)

    assert all(run.is_completed for run in [*await run_triggers(late), *await first])

    assert len(flow_server.poll_requests(late)) < 4 * len(late)


async def test_hanging_list_times_out(flow_server: StubFlowServer) -> None:
    """A list without a response times out after some seconds, then the runs are polled one by one."""
    flow_server.list_response = lambda _: ApiResponse([], delay=3600)
    ids = flow_server.create_runs(12, 0.2)
    in_time = asyncio.gather(*(run_trigger(key, time.time() + 1) for key in ids), return_exceptions=True)
    assert all(run.is_completed for run in await run_triggers(ids))
    assert len(flow_server.list_requests()) == 1
    errors = [result for result in await in_time if isinstance(result, BaseException)]
    assert not errors, (
        f"{len(errors)} waits missed the end of runs that were final long before the deadline: {errors[0]}"
    )


async def test_outdated_list_does_not_block_waits(flow_server: StubFlowServer) -> None:
    """A list that shows finished runs as running, as a cache may, does not block their waits."""
    frozen = [{"flow_id": f"r{number}", "state": "running", "progress": 0.0} for number in range(15)]
    flow_server.list_response = lambda _: ApiResponse({"flows": frozen})
    async with asyncio.timeout(6):
        assert all(run.is_completed for run in await run_triggers(flow_server.create_runs(15, 0.5)))


@pytest.mark.parametrize("status", [429, 503])
async def test_rate_limited_list_is_not_replaced_by_polls(flow_server: StubFlowServer, status: int) -> None:
    """A rate-limited list is not replaced by a poll for each run."""
    rejected_at: list[float] = []

    def listing(request: ApiRequest) -> ApiResponse:
        if not rejected_at:
            rejected_at.append(request.at)
            return ApiResponse({"detail": "slow down"}, status, {"Retry-After": "1"})
        return ApiResponse({"flows": rows(flow_server)})

    flow_server.list_response = listing
    ids = flow_server.create_runs(60, 60.0)
    tasks = [asyncio.create_task(run_trigger(key)) for key in ids]
    assert await wait_for_condition(lambda: rejected_at)
    await asyncio.sleep(2.5)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    assert len(flow_server.poll_requests()) <= len(ids) / 2
    assert len(flow_server.list_requests()) > 1


async def test_list_in_many_pages_is_not_used(flow_server: StubFlowServer) -> None:
    """Where a list takes more requests than polls would, runs are polled one by one."""

    def listing(request: ApiRequest) -> ApiResponse:
        start, found = int(request.query.get("offset", "0")), other_rows(400) + rows(flow_server)
        return ApiResponse({"flows": found[start : start + 10], "total": len(found)})

    flow_server.list_response = listing
    ids = flow_server.create_runs(12, 2.5)
    assert all(run.is_completed for run in await run_triggers(ids))
    assert len(flow_server.list_requests()) < 100  # two complete lists; polls alone would be some 250


async def test_endless_list_is_not_read_to_its_end(flow_server: StubFlowServer) -> None:
    """A list that always names a next page, each with new rows, is not read without end."""

    def listing(request: ApiRequest) -> ApiResponse:
        page = int(request.query.get("p", "0"))
        return ApiResponse(
            {"flows": [{"flow_id": f"o{page}", "state": "running"}], "next": f"/flows?p={page + 1}"}
        )

    flow_server.list_response = listing
    async with asyncio.timeout(30):
        assert all(run.is_completed for run in await run_triggers(flow_server.create_runs(15, 1.0)))
    assert len(flow_server.list_requests()) < 1000


async def test_long_list_does_not_block_the_loop(flow_server: StubFlowServer) -> None:
    """A list with thousands of rows does not block the loop for long."""
    flow_server.list_response = lambda _: ApiResponse({"flows": other_rows(20_000) + rows(flow_server)})
    gaps, last, is_done = [0.0], time.thread_time(), False

    async def tick() -> None:
        # CPU time of the loop's thread, because other processes do not change it
        nonlocal last
        while not is_done:
            await asyncio.sleep(0.005)
            last, gap = time.thread_time(), time.thread_time() - last
            gaps.append(gap)

    ticker = asyncio.create_task(tick())
    await run_triggers(flow_server.create_runs(30, 1.0))
    is_done = True
    await ticker
    assert max(gaps) < 0.5
