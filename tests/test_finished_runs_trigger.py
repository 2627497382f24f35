"""Tests of FlowRunFinishedTrigger: its arguments, and one event for each run."""

from __future__ import annotations

import asyncio
import inspect
import json
import time
from datetime import timedelta
from email.utils import formatdate
from typing import Any

import pytest
from airflow.models.trigger import Trigger
from airflow.triggers.base import BaseEventTrigger

from airflow_provider_flows import triggers
from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.emulator import Emulator, Plan
from airflow_provider_flows.triggers import FlowRunFinishedTrigger
from tests.support.asset_watchers import (
    POLL_SECONDS,
    QUIET_SECONDS,
    FileStore,
    finish_runs,
    run_watcher,
    wait_for_lists,
)
from tests.support.flow_server import ApiResponse, StubFlowServer, StubRun
from tests.support.modes import FLOW, start_external_run
from tests.support.triggers import wait_for_condition, wait_for_idle_loop

pytestmark = pytest.mark.usefixtures("list_all_runs")


def test_signature_is_stable() -> None:
    """It takes connection, flow, states and interval, and is imported from `triggers`."""
    names = list(inspect.signature(FlowRunFinishedTrigger).parameters)
    assert names[:4] == ["flows_conn_id", "flow", "states", "poll_interval"]
    assert issubclass(triggers.FlowRunFinishedTrigger, BaseEventTrigger)


def test_trigger_is_restored_from_airflows_database() -> None:
    """Stored and loaded again it is the same watcher, by class path and by Airflow's hash."""
    original = FlowRunFinishedTrigger("other", ["b", "a"], ("failed", "completed"), timedelta(minutes=2))
    row = Trigger.from_object(original)
    loaded = Trigger(classpath=row.classpath, kwargs={})
    loaded.encrypted_kwargs = row.encrypted_kwargs
    restored = FlowRunFinishedTrigger(**loaded.kwargs)

    assert row.classpath == "airflow_provider_flows.triggers.FlowRunFinishedTrigger"
    assert restored.serialize() == original.serialize()
    assert BaseEventTrigger.hash(row.classpath, loaded.kwargs) == BaseEventTrigger.hash(*original.serialize())
    assert original.serialize()[1] == {
        "flows_conn_id": "other",
        "flow": ["a", "b"],
        "states": ["completed", "failed"],
        "poll_interval": 120.0,
        "is_stored": True,
    }


def test_equivalent_arguments_are_one_watcher() -> None:
    """One name, a list of it, another order and stored arguments all mean the same watcher to Airflow."""
    one = FlowRunFinishedTrigger(flow="a", states="completed", poll_interval=60).serialize()
    assert (
        one
        == FlowRunFinishedTrigger(
            flow=[" a "], states=["completed"] * 2, poll_interval=60.0, is_stored=True, of_later=1
        ).serialize()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"states": "running"}, "states must be among completed, failed, aborted"),
        ({"states": []}, "states must be a non-empty string"),
        ({"flow": ""}, "flow must be a non-empty string"),
        ({"flow": [7]}, "flow must be a non-empty string"),
        ({"poll_interval": 0}, "poll_interval must be a positive number of seconds"),
        ({"poll_interval": "often"}, "poll_interval must be a positive number of seconds"),
    ],
)
def test_invalid_arguments_are_rejected(arguments: dict[str, Any], message: str) -> None:
    """An invalid argument is an error when the DAG file is parsed."""
    with pytest.raises(FlowInputError, match=message):
        FlowRunFinishedTrigger(**arguments)


async def test_external_runs_emit_events(flow_emulator: Emulator, asset_store: FileStore) -> None:
    """Earlier runs emit nothing; a run that anyone starts later emits one event, with all its fields."""
    flow_emulator.run_seconds = 0.05
    start_external_run(flow_emulator)
    await asyncio.sleep(0.1)
    async with run_watcher(asset_store) as watcher:
        assert await wait_for_condition(asset_store.content)
        flow_run_id = start_external_run(flow_emulator)
        assert await watcher.wait_for_events(flow_run_id)
        await asyncio.sleep(QUIET_SECONDS)

    (event,) = watcher.events
    times = {name: event.pop(name) for name in ("created_at", "started_at", "finished_at")}
    assert event == {
        "flow_run_id": flow_run_id,
        "flow": FLOW,
        "service": "generio",
        "state": "completed",
        "progress": 1.0,
        "duration": 0.05,
        "error": None,
    }
    assert list(times.values()) == sorted(times.values())
    assert all(timestamp.endswith("+00:00") for timestamp in times.values())


async def test_restarted_trigger_loses_and_repeats_no_event(
    flow_server: StubFlowServer, asset_store: FileStore
) -> None:
    """A new trigger with the same store emits what ended in between, and nothing that was emitted before."""
    finish_runs(flow_server, "before")
    async with run_watcher(asset_store) as first:
        assert await wait_for_condition(asset_store.content)
        finish_runs(flow_server, "one")
        assert await first.wait_for_events("one")
        assert await wait_for_condition(lambda: asset_store.writes == 2)
    finish_runs(flow_server, "between")

    async with run_watcher(asset_store) as second:
        finish_runs(flow_server, "then")
        assert await second.wait_for_events("between", "then")
        assert await wait_for_condition(lambda: asset_store.writes == 3)
    async with run_watcher(asset_store) as third:
        await wait_for_lists(flow_server, 3)

    assert third.ids == []
    assert await wait_for_idle_loop()


async def test_cursor_is_saved_after_the_events(flow_server: StubFlowServer, asset_store: FileStore) -> None:
    """A triggerer that dies between an event and the save emits it again: at least once."""
    async with run_watcher(asset_store) as first:
        assert await wait_for_condition(asset_store.content)
        finish_runs(flow_server, "one")
        asset_store.broken = True
        assert await first.wait_for_events("one")
        await wait_for_lists(flow_server, 3)
    assert first.ids == ["one"]  # a running trigger needs no store for that
    asset_store.broken = False

    async with run_watcher(asset_store) as second:
        assert await second.wait_for_events("one")


async def test_short_interval_saves_no_earlier(flow_server: StubFlowServer, asset_store: FileStore) -> None:
    """Also with a short interval no event is saved before Airflow has it, and none is delayed."""
    assert FlowRunFinishedTrigger.save_delay == 5.0
    save_delay = 1.5
    async with run_watcher(asset_store, save_delay=save_delay) as watcher:
        assert await wait_for_condition(asset_store.content)
        emitted_at: list[float] = []
        for name in ("one", "two"):
            finish_runs(flow_server, name)
            assert await wait_for_condition(lambda name=name: name in watcher.ids)
            emitted_at.append(time.monotonic())
        for name, at in zip(("one", "two"), emitted_at, strict=True):
            assert await wait_for_condition(lambda name=name: name in saved_ids(asset_store), max_seconds=10)
            assert time.monotonic() - at > save_delay / 2  # by the interval it would be a tenth of a second


def saved_ids(asset_store: FileStore) -> set[str]:
    """Return the ids that are saved as emitted."""
    return {key for cursor in asset_store.content().values() for key in cursor["ends"]}


@pytest.mark.parametrize("ahead", [-3600, 3600])
async def test_first_list_uses_the_services_clock(
    flow_server: StubFlowServer, asset_store: FileStore, ahead: int
) -> None:
    """Where the first list has no end times, a wrong local clock loses no run and emits no earlier one."""

    def row(key: str) -> dict[str, Any]:
        moved = {name: at + ahead for name, at in flow_server.row(key).items() if name.endswith("_at")}
        return {**flow_server.row(key), **moved}

    def listing(rows: list[dict[str, Any]]) -> ApiResponse:
        return ApiResponse(rows, headers={"Date": formatdate(time.time() + ahead, usegmt=True)})

    finish_runs(flow_server, "before", ago=100)
    flow_server.list_response = lambda _: listing([{"flow_id": "before"}])
    flow_server.run_response = lambda *_: ApiResponse({"detail": "Oh no"}, 500)
    async with run_watcher(asset_store) as watcher:
        assert await wait_for_condition(asset_store.content)
        finish_runs(flow_server, "new")
        flow_server.list_response = lambda _: listing([row(key) for key in list(flow_server.runs)])
        assert await watcher.wait_for_events("new")
        await wait_for_lists(flow_server, 3)
    assert watcher.ids == ["new"]


@pytest.mark.parametrize("zero", ["Thu, 01 Jan 1970 00:00:00 GMT", "Mon, 01 Jan 0001 00:00:00 GMT"])
async def test_clock_that_was_never_set_emits_no_earlier_run(
    flow_server: StubFlowServer, asset_store: FileStore, zero: str
) -> None:
    """A Date header with a zero time is none: runs that ended before the first list emit no events."""
    finish_runs(flow_server, "before", ago=100)
    flow_server.list_response = lambda _: ApiResponse([{"flow_id": "before"}], headers={"Date": zero})
    flow_server.run_response = lambda *_: ApiResponse({"detail": "Oh no"}, 500)
    async with run_watcher(asset_store) as watcher:
        assert await wait_for_condition(asset_store.content)
        finish_runs(flow_server, "new", ago=-1)
        flow_server.list_response = lambda _: ApiResponse(
            [flow_server.row(key) for key in list(flow_server.runs)], headers={"Date": zero}
        )
        assert await watcher.wait_for_events("new")
        await wait_for_lists(flow_server, 3)
    assert watcher.ids == ["new"]


async def test_long_run_is_not_missed(flow_server: StubFlowServer, asset_store: FileStore) -> None:
    """A run that started before all others, and ends after them, emits its event."""
    flow_server.runs["slow"] = StubRun(time.time() - 86_400, 86_401)
    finish_runs(flow_server, "before")
    async with run_watcher(asset_store) as watcher:
        assert await wait_for_condition(asset_store.content)
        finish_runs(flow_server, "quick")
        assert await watcher.wait_for_events("quick", "slow")


async def test_run_that_ends_during_the_first_list_is_not_missed(
    flow_server: StubFlowServer, asset_store: FileStore
) -> None:
    """A run that the first list shows active next to one that ended later emits its event."""
    finish_runs(flow_server, "other")
    now = time.time()
    flow_server.runs.update({"early": StubRun(now - 60, 55), "before": StubRun(now - 60, 50)})
    outdated_row = {"flow_id": "early", "state": "running", "template": "t", "started_at": now - 60}
    flow_server.list_response = lambda _: ApiResponse(
        [flow_server.row("other"), flow_server.row("before"), outdated_row]
    )
    async with run_watcher(asset_store) as watcher:
        assert await wait_for_condition(asset_store.content)
        flow_server.list_response = lambda _: ApiResponse(
            [flow_server.row(key) for key in list(flow_server.runs)]
        )
        assert await watcher.wait_for_events("early")
        await wait_for_lists(flow_server, 3)
    assert watcher.ids == ["early"]


async def test_run_without_an_end_time_is_not_missed(
    flow_server: StubFlowServer, asset_store: FileStore
) -> None:
    """A long run that never reports its end emits one event when it is found to have finished."""

    def row(key: str) -> dict[str, Any]:
        return {name: value for name, value in flow_server.row(key).items() if name != "finished_at"}

    flow_server.list_response = lambda _: ApiResponse(
        [row(key) if key != "other" else flow_server.row(key) for key in list(flow_server.runs)]
    )
    flow_server.run_response = lambda key, _: ApiResponse(row(key))
    flow_server.runs["slow"] = StubRun(time.time() - 86_400, 86_401)
    finish_runs(flow_server, "old", ago=86_400 * 2)
    finish_runs(flow_server, "other")
    async with run_watcher(asset_store) as watcher:
        assert await wait_for_condition(asset_store.content)
        assert await watcher.wait_for_events("slow")
        assert await wait_for_condition(lambda: asset_store.writes == 2)
    assert watcher.events[0]["finished_at"] is None
    async with run_watcher(asset_store) as second:
        await wait_for_lists(flow_server, 3)
    assert second.ids == []


async def test_run_that_is_listed_late_is_not_missed(
    flow_server: StubFlowServer, asset_store: FileStore
) -> None:
    """A run that is first listed after one that ended later emits its event nevertheless."""
    finish_runs(flow_server, "before", ago=100)
    async with run_watcher(asset_store) as watcher:
        assert await wait_for_condition(asset_store.content)
        finish_runs(flow_server, "early")
        assert await watcher.wait_for_events("early")
        finish_runs(flow_server, "late", ago=50)
        assert await watcher.wait_for_events("early", "late")


async def test_event_of_a_failed_run_has_its_error(flow_emulator: Emulator, asset_store: FileStore) -> None:
    """A watcher of failed runs emits events for those only, with the service's error."""
    flow_emulator.run_seconds = 0.05
    async with run_watcher(asset_store, states="failed", flow=FLOW) as watcher:
        assert await wait_for_condition(asset_store.content)
        start_external_run(flow_emulator)
        flow_emulator.add_plan(Plan(outcome="failed", error="The mesh has no faces"))
        failed = start_external_run(flow_emulator)
        assert await watcher.wait_for_events(failed)
        await asyncio.sleep(QUIET_SECONDS)

    (event,) = watcher.events
    assert (event["state"], event["error"]) == ("failed", "The mesh has no faces")


async def test_events_from_oversized_responses_are_bounded(
    flow_server: StubFlowServer, asset_store: FileStore
) -> None:
    """Absurd ids, dates and texts neither end the watcher nor fill Airflow's database."""
    rows: list[Any] = []
    flow_server.list_response = lambda _: ApiResponse(json.dumps(rows).encode())
    async with run_watcher(asset_store, states=["completed", "failed"]) as watcher:
        assert await wait_for_condition(asset_store.content)
        far = {"flow_id": "far", "state": "completed", "template": "t", "finished_at": "9999-01-01T00:00:00Z"}
        long = {
            "flow_id": "long",
            "state": "failed",
            "template": "t" * 10_000,
            "error": "e" * 10_000,
            "finished_at": time.time(),
        }
        rows += [far, long, {**long, "flow_id": "i" * 10_000}, 7, None, {"state": "completed"}]
        assert await watcher.wait_for_events("far", "long")
        rows.append({**far, "flow_id": "then", "finished_at": time.time()})
        assert await watcher.wait_for_events("far", "long", "then")
    assert all(len(json.dumps(event)) < 3000 for event in watcher.events)


def test_poll_interval_does_not_change_the_saved_state() -> None:
    """A watcher with another interval continues with the same cursor, one with another filter has its own."""
    keys = {FlowRunFinishedTrigger(**arguments)._key() for arguments in ({}, {"poll_interval": POLL_SECONDS})}
    assert len(keys) == 1
    others = ({"flow": "a"}, {"flow": "b"}, {"states": "failed"}, {"flows_conn_id": "other"})
    assert len(keys | {FlowRunFinishedTrigger(**arguments)._key() for arguments in others}) == 5
