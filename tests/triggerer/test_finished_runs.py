"""Tests of FlowRunFinishedTrigger: one event for each run, whatever service, store and triggerer do."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import time
from contextlib import AsyncExitStack
from datetime import timedelta
from email.utils import formatdate
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from airflow.models.trigger import Trigger
from airflow.sdk import Asset
from airflow.triggers.base import BaseEventTrigger

from airflow_provider_flows import triggers
from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.emulator import Emulator, Plan
from airflow_provider_flows.triggerer.watcher_state import WatcherState
from airflow_provider_flows.triggers import FlowRunFinishedTrigger
from tests.core.polling.test_finished_runs import UNREADABLE_CURSORS
from tests.support.asset_watchers import POLL_SECONDS, BlockingStore, FileStore, run_watcher
from tests.support.flow_server import ApiResponse as Answer
from tests.support.flow_server import StubFlowServer, StubRun
from tests.support.modes import FLOW, start_external_run
from tests.support.triggers import age_hook_cache, wait_for_condition, wait_for_idle_loop
from tests.support.versions import needs

QUIET_SECONDS = 0.35  # in which a watcher polls two or three times


@pytest.fixture(autouse=True)
def _list_of_all_runs(flow_server: StubFlowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """List all runs, also finished ones, to a connection without retries."""
    flow_server.connect(monkeypatch, retries=0)
    flow_server.list_response = lambda _: Answer(
        {"flows": [flow_server.row(key) for key in list(flow_server.runs)]}
    )


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    """Return a store that outlives its triggers."""
    return FileStore(tmp_path / "store.json")


def finish_runs(flow_server: StubFlowServer, *ids: str, ago: float = 0.0, **more: Any) -> None:
    """Finish runs, each after one second, so many seconds ago."""
    flow_server.runs.update({key: StubRun(time.time() - ago - 1, 1, **more) for key in ids})


async def wait_for_lists(flow_server: StubFlowServer, lists: int = 2) -> None:
    """Wait until so many more lists were asked for."""
    before = len(flow_server.list_requests())
    assert await wait_for_condition(lambda: len(flow_server.list_requests()) >= before + lists)


# What Airflow stores ----------------------------------------------------------------------------------


def test_signature_is_that_of_the_design() -> None:
    """It takes connection, flow, states and interval, and can be imported from where the other trigger is."""
    taken = list(inspect.signature(FlowRunFinishedTrigger).parameters)
    assert taken[:4] == ["flows_conn_id", "flow", "states", "poll_interval"]
    assert issubclass(triggers.FlowRunFinishedTrigger, BaseEventTrigger)


def test_trigger_survives_airflows_database() -> None:
    """Stored and loaded again it is the same watcher, by class path and by Airflow's hash."""
    given = FlowRunFinishedTrigger("other", ["b", "a"], ("failed", "completed"), timedelta(minutes=2))
    row = Trigger.from_object(given)
    read = Trigger(classpath=row.classpath, kwargs={})
    read.encrypted_kwargs = row.encrypted_kwargs
    again = FlowRunFinishedTrigger(**read.kwargs)

    assert row.classpath == "airflow_provider_flows.triggers.FlowRunFinishedTrigger"
    assert again.serialize() == given.serialize()
    assert BaseEventTrigger.hash(row.classpath, read.kwargs) == BaseEventTrigger.hash(*given.serialize())
    assert given.serialize()[1] == {
        "flows_conn_id": "other",
        "flow": ["a", "b"],
        "states": ["completed", "failed"],
        "poll_interval": 120.0,
    }


def test_spellings_of_one_watcher_are_one() -> None:
    """One name, a list of it, another order and unknown arguments all mean the same watcher to Airflow."""
    one = FlowRunFinishedTrigger(flow="a", states="completed", poll_interval=60).serialize()
    assert (
        one
        == FlowRunFinishedTrigger(
            flow=[" a "], states=["completed"] * 2, poll_interval=60.0, of_later=1
        ).serialize()
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"states": "running"}, "states must be among completed, failed, aborted"),
        ({"states": []}, "states must be a non-empty string"),
        ({"flow": ""}, "flow must be a non-empty string"),
        ({"flow": [7]}, "flow must be a non-empty string"),
        ({"poll_interval": 0}, "poll_interval must be more than 0"),
        ({"poll_interval": "often"}, "poll_interval must be a non-negative number of seconds"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], words: str) -> None:
    """An argument that cannot be meant is an error when the DAG file is read."""
    with pytest.raises(FlowInputError, match=words):
        FlowRunFinishedTrigger(**arguments)


# One event for each run -------------------------------------------------------------------------------------


async def test_runs_of_anybody_are_told(flow_emulator: Emulator, store: FileStore) -> None:
    """Earlier runs emit nothing; a run that anyone starts later emits one event, with all its fields."""
    flow_emulator.run_seconds = 0.05
    start_external_run(flow_emulator)
    await asyncio.sleep(0.1)
    async with run_watcher(store) as watcher:
        assert await wait_for_condition(store.content)
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
    assert all(moment.endswith("+00:00") for moment in times.values())


async def test_restart_loses_nothing_and_repeats_nothing(
    flow_server: StubFlowServer, store: FileStore
) -> None:
    """A new trigger with the same store goes on: what ended in between is told, what was told is not."""
    finish_runs(flow_server, "before")
    async with run_watcher(store) as first:
        assert await wait_for_condition(store.content)
        finish_runs(flow_server, "one")
        assert await first.wait_for_events("one")
        assert await wait_for_condition(lambda: store.writes == 2)
    finish_runs(flow_server, "between")

    async with run_watcher(store) as second:
        finish_runs(flow_server, "then")
        assert await second.wait_for_events("between", "then")
        assert await wait_for_condition(lambda: store.writes == 3)
    async with run_watcher(store) as third:
        await wait_for_lists(flow_server, 3)

    assert third.ids == []
    assert await wait_for_idle_loop()


async def test_memory_is_written_after_the_events(flow_server: StubFlowServer, store: FileStore) -> None:
    """A triggerer that dies between an event and the save emits it again: at least once."""
    async with run_watcher(store) as first:
        assert await wait_for_condition(store.content)
        finish_runs(flow_server, "one")
        store.broken = True
        assert await first.wait_for_events("one")
        await wait_for_lists(flow_server, 3)
    assert first.ids == ["one"]  # as long as it lives it knows without a store
    store.broken = False

    async with run_watcher(store) as second:
        assert await second.wait_for_events("one")


async def test_short_interval_remembers_no_earlier(flow_server: StubFlowServer, store: FileStore) -> None:
    """Also with a short interval no event is saved before Airflow has it, and none is delayed."""
    assert FlowRunFinishedTrigger.save_delay == 5.0
    lasts = 1.5
    async with run_watcher(store, save_delay=lasts) as watcher:
        assert await wait_for_condition(store.content)
        told: list[float] = []
        for name in ("one", "two"):
            finish_runs(flow_server, name)
            assert await wait_for_condition(lambda name=name: name in watcher.ids)
            told.append(time.monotonic())
        for name, at in zip(("one", "two"), told, strict=True):
            assert await wait_for_condition(lambda name=name: name in saved_ids(store), max_seconds=10)
            assert time.monotonic() - at > lasts / 2  # by the interval it would be a tenth of a second


def saved_ids(store: FileStore) -> set[str]:
    """Return the ids that are remembered as told."""
    return {key for memory in store.content().values() for key in memory["ends"]}


@pytest.mark.parametrize("ahead", [-3600, 3600])
async def test_services_own_clock_says_what_was_before(
    flow_server: StubFlowServer, store: FileStore, ahead: int
) -> None:
    """Where the first list has no end times, a wrong local clock loses no run and emits no earlier one."""

    def row(key: str) -> dict[str, Any]:
        moved = {name: at + ahead for name, at in flow_server.row(key).items() if name.endswith("_at")}
        return {**flow_server.row(key), **moved}

    def listing(rows: list[dict[str, Any]]) -> Answer:
        return Answer(rows, headers={"Date": formatdate(time.time() + ahead, usegmt=True)})

    finish_runs(flow_server, "before", ago=100)
    flow_server.list_response = lambda _: listing([{"flow_id": "before"}])
    flow_server.run_response = lambda *_: Answer({"detail": "Oh no"}, 500)
    async with run_watcher(store) as watcher:
        assert await wait_for_condition(store.content)
        finish_runs(flow_server, "new")
        flow_server.list_response = lambda _: listing([row(key) for key in list(flow_server.runs)])
        assert await watcher.wait_for_events("new")
        await wait_for_lists(flow_server, 3)
    assert watcher.ids == ["new"]


async def test_run_that_took_long_is_not_missed(flow_server: StubFlowServer, store: FileStore) -> None:
    """A run that began before all others, and ends after them, is told."""
    flow_server.runs["slow"] = StubRun(time.time() - 86_400, 86_401)
    finish_runs(flow_server, "before")
    async with run_watcher(store) as watcher:
        assert await wait_for_condition(store.content)
        finish_runs(flow_server, "quick")
        assert await watcher.wait_for_events("quick", "slow")


async def test_run_that_ended_while_the_first_list_was_made_is_not_missed(
    flow_server: StubFlowServer, store: FileStore
) -> None:
    """A run that the first list shows active next to one that ended later emits its event."""
    finish_runs(flow_server, "other")
    now = time.time()
    flow_server.runs.update({"early": StubRun(now - 60, 55), "before": StubRun(now - 60, 50)})
    late = {"flow_id": "early", "state": "running", "template": "t", "started_at": now - 60}
    flow_server.list_response = lambda _: Answer([flow_server.row("other"), flow_server.row("before"), late])
    async with run_watcher(store) as watcher:
        assert await wait_for_condition(store.content)
        flow_server.list_response = lambda _: Answer([flow_server.row(key) for key in list(flow_server.runs)])
        assert await watcher.wait_for_events("early")
        await wait_for_lists(flow_server, 3)
    assert watcher.ids == ["early"]


async def test_run_that_does_not_tell_its_end_is_not_missed(
    flow_server: StubFlowServer, store: FileStore
) -> None:
    """A long run that never reports its end emits one event when it is found to have finished."""

    def row(key: str) -> dict[str, Any]:
        return {name: value for name, value in flow_server.row(key).items() if name != "finished_at"}

    flow_server.list_response = lambda _: Answer(
        [row(key) if key != "other" else flow_server.row(key) for key in list(flow_server.runs)]
    )
    flow_server.run_response = lambda key, _: Answer(row(key))
    flow_server.runs["slow"] = StubRun(time.time() - 86_400, 86_401)
    finish_runs(flow_server, "old", ago=86_400 * 2)
    finish_runs(flow_server, "other")
    async with run_watcher(store) as watcher:
        assert await wait_for_condition(store.content)
        assert await watcher.wait_for_events("slow")
        assert await wait_for_condition(lambda: store.writes == 2)
    assert watcher.events[0]["finished_at"] is None
    async with run_watcher(store) as second:
        await wait_for_lists(flow_server, 3)
    assert second.ids == []


async def test_run_that_the_list_shows_late_is_not_missed(
    flow_server: StubFlowServer, store: FileStore
) -> None:
    """A run that is on the list only after one that ended later is told all the same."""
    finish_runs(flow_server, "before", ago=100)
    async with run_watcher(store) as watcher:
        assert await wait_for_condition(store.content)
        finish_runs(flow_server, "early")
        assert await watcher.wait_for_events("early")
        finish_runs(flow_server, "late", ago=50)
        assert await watcher.wait_for_events("early", "late")


async def test_without_a_store_it_remembers_while_it_lives(
    flow_server: StubFlowServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a store (before Airflow 3.3) a trigger emits each run once, and logs once what is missing."""
    async with run_watcher(None) as watcher:
        await wait_for_lists(flow_server)
        finish_runs(flow_server, "one")
        assert await watcher.wait_for_events("one")
        finish_runs(flow_server, "two")
        assert await watcher.wait_for_events("one", "two")
    assert caplog.text.count("The asset state store requires Airflow") == 1


async def test_store_that_blocks_is_asked_in_a_thread(flow_server: StubFlowServer) -> None:
    """The store of Airflow 3.3.0, which only blocks, serves as well."""
    store: Any = BlockingStore()
    async with run_watcher(store) as first:
        assert await wait_for_condition(lambda: store.values)
        finish_runs(flow_server, "one")
        assert await first.wait_for_events("one")
        assert await wait_for_condition(lambda: "one" in next(iter(store.values.values()))["ends"])
    async with run_watcher(store) as second:
        await wait_for_lists(flow_server, 3)
    assert second.ids == []


async def test_store_that_cannot_be_asked_is_waited_for(
    flow_server: StubFlowServer, store: FileStore, caplog: pytest.LogCaptureFixture
) -> None:
    """While the store cannot be read nothing begins anew, so nothing is lost; the log says so once."""
    async with run_watcher(store):
        assert await wait_for_condition(store.content)
    finish_runs(flow_server, "between")
    store.broken = True
    async with run_watcher(store) as second:
        await asyncio.sleep(QUIET_SECONDS)
        assert second.ids == []
        store.broken = False
        assert await second.wait_for_events("between")
    assert caplog.text.count("could not be read") == 1


@needs("asset state store")
def test_trigger_that_assets_share_is_remembered_with_each() -> None:
    """Airflow merges equal triggers and gives them a store for several assets, in the private attribute."""
    from airflow.sdk.execution_time.context import AssetStateStoreAccessors

    one, other = Asset("x-flows://one"), Asset("x-flows://other")
    both = AssetStateStoreAccessors(inlets=[one, other])

    assert WatcherState(both, "key")._stores == [both[one], both[other]]


async def test_the_fuller_of_several_memories_counts(tmp_path: Path, flow_server: StubFlowServer) -> None:
    """A store without state, of an asset that was added later, does not repeat events."""
    parts = {name: FileStore(tmp_path / name) for name in ("one", "other")}

    class Both:
        _by_name = parts

    async with run_watcher(Both()) as first:
        assert await wait_for_condition(parts["other"].content)
        finish_runs(flow_server, "told")
        assert await first.wait_for_events("told")
        assert await wait_for_condition(lambda: parts["other"].writes == 2)
    assert parts["one"].content() == parts["other"].content()
    (tmp_path / "one").unlink()

    async with run_watcher(Both()) as second:
        await wait_for_lists(flow_server, 3)
    assert second.ids == []


async def test_store_with_nonsense_ends_no_watcher() -> None:
    """Foreign content of one asset's store is ignored in favour of another's, or of none."""
    stores = {f"{number}": BlockingStore() for number in range(len(UNREADABLE_CURSORS))}
    for store, value in zip(stores.values(), UNREADABLE_CURSORS, strict=True):
        store.values["key"] = value

    class All:
        _by_name = stores

    assert await WatcherState(All(), "key").load(POLL_SECONDS) is None
    stores["1"].values["key"] = {"emitted_until": 1.0, "ends": {}}
    assert await WatcherState(All(), "key").load(POLL_SECONDS) == {"emitted_until": 1.0, "ends": {}}


def test_argument_that_nobody_knows_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """A misspelt argument is in the log; it is no error, for it may be a later version's."""
    FlowRunFinishedTrigger(state="failed")
    assert "unknown arguments: 'state'" in caplog.text


# Which runs it emits ----------------------------------------------------------------------------------------


async def test_watchers_share_one_list(flow_server: StubFlowServer, tmp_path: Path) -> None:
    """Watchers of different flows and states share one list an interval, and each emits what it matches."""
    wanted: list[dict[str, Any]] = [
        {},
        {"flow": "chairs"},
        {"flow": ["chairs", "tables"], "states": ["failed", "aborted"]},
        {"states": ["completed", "failed", "aborted"]},
    ]
    flow_server.run_response = lambda key, _: Answer(flow_server.row(key))
    flows = {"a": "chairs", "b": "tables", "c": "chairs", "d": "tables"}
    flow_server.list_response = lambda _: Answer(
        [{**flow_server.row(key), "template": flows[key]} for key in list(flow_server.runs)]
    )
    interval = 0.4
    async with AsyncExitStack() as stack:
        watchers = []
        began = time.monotonic()
        for number, arguments in enumerate(wanted):
            store = FileStore(tmp_path / f"{number}.json")
            watchers.append(
                await stack.enter_async_context(run_watcher(store, poll_interval=interval, **arguments))
            )
            await asyncio.sleep(0.05)
            assert await wait_for_condition(store.content)
        finish_runs(flow_server, "a", "b")
        finish_runs(flow_server, "c", end="failed")
        finish_runs(flow_server, "d", end="aborted")
        for watcher, ids in zip(watchers, ("ab", "a", "cd", "abcd"), strict=True):
            assert await watcher.wait_for_events(*ids)
        intervals = (time.monotonic() - began) / interval

    assert len(flow_server.list_requests()) <= intervals / 0.9 + 1
    assert flow_server.poll_requests() == []


async def test_failed_run_is_told_with_its_reason(flow_emulator: Emulator, store: FileStore) -> None:
    """A watcher of failed runs tells of them, with what the service says, and of no other."""
    flow_emulator.run_seconds = 0.05
    async with run_watcher(store, states="failed", flow=FLOW) as watcher:
        assert await wait_for_condition(store.content)
        start_external_run(flow_emulator)
        flow_emulator.add_plan(Plan(outcome="failed", error="The mesh has no faces"))
        failed = start_external_run(flow_emulator)
        assert await watcher.wait_for_events(failed)
        await asyncio.sleep(QUIET_SECONDS)

    (event,) = watcher.events
    assert (event["state"], event["error"]) == ("failed", "The mesh has no faces")


async def test_late_watcher_misses_nothing(flow_server: StubFlowServer, tmp_path: Path) -> None:
    """A watcher that returns while others run emits what it missed, from an earlier list."""
    late = FileStore(tmp_path / "late.json")
    async with run_watcher(late):
        assert await wait_for_condition(late.content)
    async with run_watcher(FileStore(tmp_path / "steady.json"), poll_interval=30, states="failed"):
        await wait_for_lists(flow_server, 1)
        finish_runs(flow_server, "old", ago=5)
        before = len(flow_server.list_requests())
        async with run_watcher(late, poll_interval=0.2) as watcher:
            assert await watcher.wait_for_events("old")
        assert len(flow_server.list_requests()) > before


# Incomplete lists ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "left_out", ["state", "finished_at", "template", "state finished_at template created_at progress"]
)
async def test_rows_that_tell_too_little_are_read(
    flow_server: StubFlowServer, store: FileStore, left_out: str
) -> None:
    """Where a list lacks state, end or flow, each run is polled, and a final one never again."""

    def row(key: str) -> dict[str, Any]:
        return {name: value for name, value in flow_server.row(key).items() if name not in left_out.split()}

    flow_server.list_response = lambda _: Answer([row(key) for key in list(flow_server.runs)])
    finish_runs(flow_server, "before", ago=10)
    async with run_watcher(store, flow="t") as watcher:
        assert await wait_for_condition(store.content)
        finish_runs(flow_server, "one")
        assert await watcher.wait_for_events("one")
        await wait_for_lists(flow_server, 3)

    assert len(flow_server.poll_requests(["before"])) == len(flow_server.poll_requests(["one"])) == 1


async def test_looks_are_bounded(flow_server: StubFlowServer, store: FileStore) -> None:
    """A list of ids alone causes at most twenty polls a list, and all runs are polled in time."""
    flow_server.list_response = lambda _: Answer([{"flow_id": key} for key in list(flow_server.runs)])
    finish_runs(flow_server, *(f"old{number}" for number in range(50)), ago=10)
    async with run_watcher(store) as watcher:
        assert await wait_for_condition(lambda: len(flow_server.poll_requests()) >= 50)
        finish_runs(flow_server, "new")
        assert await watcher.wait_for_events("new")

    moments = [asked.at for asked in flow_server.list_requests()] + [time.time()]
    assert (
        max(
            sum(begin < look.at < end for look in flow_server.poll_requests())
            for begin, end in pairwise(moments)
        )
        == 20
    )
    assert watcher.ids == ["new"]


async def test_run_that_left_the_list_is_looked_at(flow_server: StubFlowServer, store: FileStore) -> None:
    """An active run that has left the list because of newer ones is polled until its end."""
    shown = ["slow"]
    flow_server.list_response = lambda _: Answer([flow_server.row(key) for key in shown])
    flow_server.runs["slow"] = StubRun(time.time() - 60, 61)
    async with run_watcher(store) as watcher:
        await wait_for_lists(flow_server)
        finish_runs(flow_server, "newer")
        shown[:] = ["newer"]
        assert await watcher.wait_for_events("newer", "slow")


async def test_run_without_a_state_that_left_the_list_is_followed(
    flow_server: StubFlowServer, store: FileStore
) -> None:
    """Where lists tell no state, a run that a look has shown under way is followed to its end as well."""
    shown = ["slow"]
    flow_server.list_response = lambda _: Answer([{"flow_id": key} for key in shown])
    flow_server.runs["slow"] = StubRun(time.time() - 60, 61)
    async with run_watcher(store) as watcher:
        assert await wait_for_condition(lambda: flow_server.poll_requests(["slow"]))
        await wait_for_lists(flow_server)
        shown.clear()
        assert await watcher.wait_for_events("slow")


async def test_run_that_cannot_be_looked_at_is_looked_at_again(
    flow_server: StubFlowServer, store: FileStore
) -> None:
    """A failed poll of one run does not delay other events and is retried; a deleted run is forgotten."""
    shown = ["slow", "deleted"]
    flow_server.list_response = lambda _: Answer([flow_server.row(key) for key in shown])
    flow_server.runs.update({key: StubRun(time.time() - 60, 61) for key in shown})
    async with run_watcher(store) as watcher:
        await wait_for_lists(flow_server)
        finish_runs(flow_server, "newer")
        del flow_server.runs["deleted"]
        good, flow_server.run_response = flow_server.run_response, lambda *_: Answer({"detail": "Oh no"}, 500)
        shown[:] = ["newer"]
        assert await watcher.wait_for_events("newer")
        await wait_for_lists(flow_server, 3)
        flow_server.run_response = good
        assert await watcher.wait_for_events("newer", "slow")
        await wait_for_lists(flow_server, 3)

    assert len(flow_server.poll_requests(["deleted"])) == 1


async def test_pages_and_projections_of_the_emulator(flow_emulator: Emulator, store: FileStore) -> None:
    """Whatever the service means by `filter_by`, and however it pages, each of many runs is told once."""
    flow_emulator.switches.update(
        {"filter_by": "fields_only", "paging": "offset", "page_size": 3, "timestamps": "naive"}
    )
    flow_emulator.run_seconds = 0.05
    async with run_watcher(store) as watcher:
        assert await wait_for_condition(store.content)
        ids = [start_external_run(flow_emulator) for _ in range(10)]
        assert await watcher.wait_for_events(*ids)


# Errors --------------------------------------------------------------------------------------------


async def test_service_that_is_down_ends_nothing(
    flow_server: StubFlowServer, store: FileStore, caplog: pytest.LogCaptureFixture
) -> None:
    """A failing service is polled less and less often; the log has one line at the start, one at the end."""
    caplog.set_level(logging.INFO, "airflow_provider_flows")
    good = flow_server.list_response
    async with run_watcher(store, poll_interval=0.05) as watcher:
        assert await wait_for_condition(store.content)
        flow_server.list_response = lambda _: Answer({"detail": "Oh no"}, 500)
        before = len(flow_server.list_requests())
        finish_runs(flow_server, "meanwhile")
        await asyncio.sleep(1.2)
        tries = len(flow_server.list_requests()) - before
        flow_server.list_response = good
        assert await watcher.wait_for_events("meanwhile")
        assert await wait_for_condition(lambda: "can be listed again" in caplog.text)

    assert tries <= 6  # 24 without patience
    assert caplog.text.count("cannot be listed") == caplog.text.count("can be listed again") == 1
    assert "HTTP 500" in caplog.text


async def test_key_that_was_changed_is_read_anew(
    flow_server: StubFlowServer,
    store: FileStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A rejected key makes the feed reload the connection; no key is in the log."""
    async with run_watcher(store) as watcher:
        assert await wait_for_condition(store.content)
        age_hook_cache()
        flow_server.connect(monkeypatch, key="the-new-key", retries=0)
        flow_server.keys = {"the-new-key"}
        finish_runs(flow_server, "one")
        assert await watcher.wait_for_events("one")
    assert "cannot be listed" not in caplog.text
    assert "the-new-key" not in caplog.text


async def test_service_that_lists_nothing_is_an_error_in_the_log(
    flow_emulator: Emulator,  # noqa: ARG001  # it sets the connection
    store: FileStore,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """PromptChainer lists no runs: the log says so once, and the watcher does not end."""
    async with run_watcher(store, flows_conn_id="promptchainer_default") as watcher:
        assert await wait_for_condition(lambda: "cannot list flow runs" in caplog.text)
        await asyncio.sleep(QUIET_SECONDS)
    assert watcher.events == []
    assert caplog.text.count("cannot list flow runs") == 1
    assert await wait_for_idle_loop()


async def test_bound_on_requests_holds_for_lists_too(
    flow_server: StubFlowServer, store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`max_requests_per_second` limits lists, polls and waits of a connection together."""
    flow_server.connect(monkeypatch, retries=0, max_requests_per_second=10)
    flow_server.list_response = lambda _: Answer([{"flow_id": key} for key in list(flow_server.runs)])
    finish_runs(flow_server, *(f"old{number}" for number in range(8)))
    flow_server.create_runs(1, 60, prefix="waited")
    wait = asyncio.create_task(anext(triggers.FlowRunTrigger("flows_default", "waited0", 0.05, 0.05).run()))
    async with run_watcher(store, poll_interval=0.05):
        await asyncio.sleep(1.5)
    wait.cancel()

    moments = sorted(asked.at for asked in flow_server.requests)
    assert flow_server.poll_requests(["waited0"])
    assert flow_server.list_requests()
    assert len(moments) <= 10 * (moments[-1] - moments[0]) + 2


async def test_untrusted_answers_stay_small(flow_server: StubFlowServer, store: FileStore) -> None:
    """Absurd ids, dates and texts neither end the watcher nor fill Airflow's database."""
    rows: list[Any] = []
    flow_server.list_response = lambda _: Answer(json.dumps(rows).encode())
    async with run_watcher(store, states=["completed", "failed"]) as watcher:
        assert await wait_for_condition(store.content)
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


def test_poll_interval_is_none_of_its_identity() -> None:
    """Another interval goes on with the same memory, another filter begins one of its own."""
    keys = {FlowRunFinishedTrigger(**arguments)._key() for arguments in ({}, {"poll_interval": POLL_SECONDS})}
    assert len(keys) == 1
    others = ({"flow": "a"}, {"flow": "b"}, {"states": "failed"}, {"flows_conn_id": "other"})
    assert len(keys | {FlowRunFinishedTrigger(**arguments)._key() for arguments in others}) == 5
