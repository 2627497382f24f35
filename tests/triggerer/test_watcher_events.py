"""Tests of a watcher's events: one for all runs that a poll found, and one for an asset in each turn."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_flows.core.polling import finished_runs
from airflow_provider_flows.triggers import FlowRunFinishedTrigger
from tests.support.asset_watchers import POLL_SECONDS, FileStore, Watcher, run_watcher
from tests.support.flow_server import ApiResponse, StubFlowServer, StubRun
from tests.support.triggers import wait_for_condition

pytestmark = pytest.mark.usefixtures("list_all_runs")

LONG = 0.8  # seconds between two events, of several polls


def finish_burst(flow_server: StubFlowServer, size: int, prefix: str = "r", **more: Any) -> list[str]:
    """Finish so many runs at once, a little apart by the service's clock, and return their ids in order."""
    now = time.time()
    ids = [f"{prefix}{number:03}" for number in range(size)]
    flow_server.runs.update(
        {key: StubRun(now - 2 + number / 1000, 1, **more) for number, key in enumerate(ids)}
    )
    return ids


def sizes(watcher: Watcher) -> list[int]:
    """Return the number of runs of each event."""
    return [len(payload["runs"]) for payload in watcher.payloads]


@pytest.mark.parametrize("size", [1, 8, 200])
async def test_one_event_has_all_runs_of_a_poll(
    flow_server: StubFlowServer, asset_store: FileStore, size: int
) -> None:
    """All runs that a poll found are in one event, in the order of their ends, each once."""
    async with run_watcher(asset_store) as watcher:
        assert await wait_for_condition(asset_store.content)
        ids = finish_burst(flow_server, size)
        assert await watcher.wait_for_events(*ids)
    (payload,) = watcher.payloads
    assert sorted(payload) == ["flow_run_ids", "runs"]
    assert payload["flow_run_ids"] == [run["flow_run_id"] for run in payload["runs"]] == ids


async def test_next_event_comes_after_the_schedulers_turn(
    flow_server: StubFlowServer, asset_store: FileStore
) -> None:
    """Runs that finish in the turn of an event are in the next event, however many polls find them."""
    async with run_watcher(asset_store, event_interval=LONG) as watcher:
        assert await wait_for_condition(asset_store.content)
        expected, emitted_at, started_at = list[str](), list[float](), time.monotonic()
        for number in range(12):
            expected += finish_burst(flow_server, 1, prefix=f"n{number}-")
            await asyncio.sleep(POLL_SECONDS * 1.5)
            emitted_at += [time.monotonic()] * (len(watcher.payloads) - len(emitted_at))
        assert await watcher.wait_for_events(*expected)
    assert len(watcher.payloads) <= (time.monotonic() - started_at) / LONG + 1
    assert all(later - earlier > LONG / 2 for earlier, later in pairwise(emitted_at))


def test_turn_lasts_ten_seconds_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler's turn is longer if its loop sleeps for longer."""
    assert FlowRunFinishedTrigger().event_interval == 10.0
    monkeypatch.setenv("AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME", "3")
    assert FlowRunFinishedTrigger().event_interval == 20.0


async def test_first_event_of_a_triggerer_waits_for_a_turn(
    flow_server: StubFlowServer, asset_store: FileStore
) -> None:
    """A new triggerer does not emit within the turn of an event that its predecessor may have emitted."""
    async with run_watcher(asset_store):
        assert await wait_for_condition(asset_store.content)
    ids = finish_burst(flow_server, 2)
    started_at = time.monotonic()
    async with run_watcher(asset_store, event_interval=LONG, asset="another process") as watcher:
        assert await watcher.wait_for_events(*ids)
    assert time.monotonic() - started_at >= LONG


async def test_watchers_of_one_asset_share_its_turns(flow_server: StubFlowServer, tmp_path: Path) -> None:
    """Two triggers with the same asset emit one after the other; a trigger of another asset does not wait."""
    emitted_at: dict[str, float] = {}
    async with AsyncExitStack() as stack:
        watchers: dict[str, Watcher] = {}
        for name, asset in {"one": "models", "two": "models", "other": "other"}.items():
            store = FileStore(tmp_path / name)
            watchers[name] = await stack.enter_async_context(
                run_watcher(
                    store,
                    asset=asset,
                    event_interval=LONG,
                    states=["completed", *["failed"] * (name == "two")],
                )
            )
            assert await wait_for_condition(store.content)
        await asyncio.sleep(LONG)
        ids = finish_burst(flow_server, 3)
        for _ in range(200):
            for name, watcher in watchers.items():
                if watcher.payloads:
                    emitted_at.setdefault(name, time.monotonic())
            await asyncio.sleep(0.01)
        assert all(watcher.ids == ids for watcher in watchers.values())
    assert abs(emitted_at["one"] - emitted_at["two"]) > LONG / 2
    assert emitted_at["other"] - min(emitted_at.values()) < LONG / 2


@pytest.mark.parametrize(("bound", "maximum"), [("MAX_EVENT_RUNS", 3), ("MAX_EVENT_CHARACTERS", 2000)])
async def test_events_are_bounded(
    flow_server: StubFlowServer,
    asset_store: FileStore,
    monkeypatch: pytest.MonkeyPatch,
    bound: str,
    maximum: int,
) -> None:
    """What does not fit in one event comes in the next ones, each after a turn, the earliest ends first."""
    monkeypatch.setattr(finished_runs, bound, maximum)
    flow_server.list_response = lambda _: ApiResponse(
        [{**flow_server.row(key), "template": "t" * 256} for key in [*flow_server.runs]]
    )
    async with run_watcher(asset_store, event_interval=LONG / 2) as watcher:
        assert await wait_for_condition(asset_store.content)
        started_at = time.monotonic()
        ids = finish_burst(flow_server, 8)
        assert await watcher.wait_for_events(*ids)
        assert time.monotonic() - started_at > 2 * LONG / 2
    assert watcher.ids == ids
    assert sizes(watcher) == [3, 3, 2]
    assert all(len(json.dumps(payload)) <= 2000 for payload in watcher.payloads)


def test_bounds_leave_room_for_any_burst() -> None:
    """An event has room for hundreds of runs, and is small enough for Airflow's database and its pages."""
    assert finished_runs.MAX_EVENT_RUNS >= 200
    assert finished_runs.MAX_EVENT_CHARACTERS <= 1024 * 1024


@pytest.mark.parametrize("is_saved", [False, True])
async def test_triggerer_killed_between_two_events_loses_no_run(
    flow_server: StubFlowServer, asset_store: FileStore, monkeypatch: pytest.MonkeyPatch, *, is_saved: bool
) -> None:
    """A triggerer that dies in the middle of a burst loses no run; what was saved is not repeated."""
    monkeypatch.setattr(finished_runs, "MAX_EVENT_RUNS", 3)
    save_delay = POLL_SECONDS if is_saved else 60.0
    async with run_watcher(asset_store):
        assert await wait_for_condition(asset_store.content)
    ids = finish_burst(flow_server, 8)
    async with run_watcher(asset_store, save_delay=save_delay, event_interval=LONG, asset="before") as first:
        assert await wait_for_condition(lambda: first.payloads)
        assert await wait_for_condition(lambda: asset_store.writes == 1 + is_saved)
    assert first.ids == ids[:3]

    async with run_watcher(asset_store, asset="after") as second:
        assert await second.wait_for_events(*ids[3 * is_saved :])
