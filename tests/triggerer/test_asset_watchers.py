"""Tests of what asset watchers share and save: incomplete lists, failing services, and their stores."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import Asset

from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.triggerer.asset_watchers import WatcherState
from airflow_provider_flows.triggers import FlowRunTrigger
from tests.core.polling.test_finished_runs import UNREADABLE_CURSORS
from tests.support.asset_watchers import (
    POLL_SECONDS,
    QUIET_SECONDS,
    BlockingStore,
    FileStore,
    finish_runs,
    run_watcher,
    wait_for_lists,
)
from tests.support.flow_server import ApiResponse, StubFlowServer, StubRun
from tests.support.modes import start_external_run
from tests.support.triggers import age_hook_cache, wait_for_condition, wait_for_idle_loop
from tests.support.versions import needs

pytestmark = pytest.mark.usefixtures("list_all_runs")


async def test_watchers_share_one_list(flow_server: StubFlowServer, tmp_path: Path) -> None:
    """Watchers of different flows and states share one list an interval, and each emits what it matches."""
    arguments_of_watchers: list[dict[str, Any]] = [
        {},
        {"flow": "chairs"},
        {"flow": ["chairs", "tables"], "states": ["failed", "aborted"]},
        {"states": ["completed", "failed", "aborted"]},
    ]
    flow_server.run_response = lambda key, _: ApiResponse(flow_server.row(key))
    flows = {"a": "chairs", "b": "tables", "c": "chairs", "d": "tables"}
    flow_server.list_response = lambda _: ApiResponse(
        [{**flow_server.row(key), "template": flows[key]} for key in list(flow_server.runs)]
    )
    interval = 0.4
    async with AsyncExitStack() as stack:
        watchers = []
        started_at = time.monotonic()
        for number, arguments in enumerate(arguments_of_watchers):
            asset_store = FileStore(tmp_path / f"{number}.json")
            watchers.append(
                await stack.enter_async_context(run_watcher(asset_store, poll_interval=interval, **arguments))
            )
            await asyncio.sleep(0.05)
            assert await wait_for_condition(asset_store.content)
        finish_runs(flow_server, "a", "b")
        finish_runs(flow_server, "c", end="failed")
        finish_runs(flow_server, "d", end="aborted")
        for watcher, ids in zip(watchers, ("ab", "a", "cd", "abcd"), strict=True):
            assert await watcher.wait_for_events(*ids)
        intervals = (time.monotonic() - started_at) / interval

    assert len(flow_server.list_requests()) <= intervals / 0.9 + 1
    assert flow_server.poll_requests() == []


async def test_resumed_watcher_emits_what_it_missed(flow_server: StubFlowServer, tmp_path: Path) -> None:
    """A watcher that returns while others run emits what it missed, from an earlier list."""
    resumed_store = FileStore(tmp_path / "resumed.json")
    async with run_watcher(resumed_store):
        assert await wait_for_condition(resumed_store.content)
    async with run_watcher(FileStore(tmp_path / "steady.json"), poll_interval=30, states="failed"):
        await wait_for_lists(flow_server, 1)
        finish_runs(flow_server, "old", ago=5)
        before = len(flow_server.list_requests())
        async with run_watcher(resumed_store, poll_interval=0.2) as watcher:
            assert await watcher.wait_for_events("old")
        assert len(flow_server.list_requests()) > before


@pytest.mark.parametrize(
    "missing_fields", ["state", "finished_at", "template", "state finished_at template created_at progress"]
)
async def test_runs_with_incomplete_rows_are_polled_once(
    flow_server: StubFlowServer, asset_store: FileStore, missing_fields: str
) -> None:
    """Where a list lacks state, end or flow, each run is polled, and a final one never again."""

    def row(key: str) -> dict[str, Any]:
        return {
            name: value for name, value in flow_server.row(key).items() if name not in missing_fields.split()
        }

    flow_server.list_response = lambda _: ApiResponse([row(key) for key in list(flow_server.runs)])
    finish_runs(flow_server, "before", ago=10)
    async with run_watcher(asset_store, flow="t") as watcher:
        assert await wait_for_condition(asset_store.content)
        finish_runs(flow_server, "one")
        assert await watcher.wait_for_events("one")
        await wait_for_lists(flow_server, 3)

    assert len(flow_server.poll_requests(["before"])) == len(flow_server.poll_requests(["one"])) == 1


async def test_polls_per_list_are_bounded(flow_server: StubFlowServer, asset_store: FileStore) -> None:
    """A list of ids alone causes at most twenty polls a list, and all runs are polled in time."""
    flow_server.list_response = lambda _: ApiResponse([{"flow_id": key} for key in list(flow_server.runs)])
    finish_runs(flow_server, *(f"old{number}" for number in range(50)), ago=10)
    async with run_watcher(asset_store) as watcher:
        assert await wait_for_condition(lambda: len(flow_server.poll_requests()) >= 50)
        finish_runs(flow_server, "new")
        assert await watcher.wait_for_events("new")

    times = [request.at for request in flow_server.list_requests()] + [time.time()]
    polls = [request.at for request in flow_server.poll_requests()]
    assert max(sum(start < poll < end for poll in polls) for start, end in pairwise(times)) == 20
    assert watcher.ids == ["new"]


async def test_vanished_active_run_is_polled(flow_server: StubFlowServer, asset_store: FileStore) -> None:
    """An active run that newer ones have displaced from the list is polled until its end."""
    listed = ["slow"]
    flow_server.list_response = lambda _: ApiResponse([flow_server.row(key) for key in listed])
    flow_server.runs["slow"] = StubRun(time.time() - 60, 61)
    async with run_watcher(asset_store) as watcher:
        await wait_for_lists(flow_server)
        finish_runs(flow_server, "newer")
        listed[:] = ["newer"]
        assert await watcher.wait_for_events("newer", "slow")


async def test_vanished_run_without_a_state_is_polled(
    flow_server: StubFlowServer, asset_store: FileStore
) -> None:
    """Where lists lack the state, a run that a poll found active is polled until its end as well."""
    listed = ["slow"]
    flow_server.list_response = lambda _: ApiResponse([{"flow_id": key} for key in listed])
    flow_server.runs["slow"] = StubRun(time.time() - 60, 61)
    async with run_watcher(asset_store) as watcher:
        assert await wait_for_condition(lambda: flow_server.poll_requests(["slow"]))
        await wait_for_lists(flow_server)
        listed.clear()
        assert await watcher.wait_for_events("slow")


async def test_failed_poll_of_one_run_is_retried(flow_server: StubFlowServer, asset_store: FileStore) -> None:
    """A failed poll of one run does not delay other events and is retried; a deleted run is forgotten."""
    listed = ["slow", "deleted"]
    flow_server.list_response = lambda _: ApiResponse([flow_server.row(key) for key in listed])
    flow_server.runs.update({key: StubRun(time.time() - 60, 61) for key in listed})
    async with run_watcher(asset_store) as watcher:
        await wait_for_lists(flow_server)
        finish_runs(flow_server, "newer")
        del flow_server.runs["deleted"]
        working, flow_server.run_response = (
            flow_server.run_response,
            lambda *_: ApiResponse({"detail": "Oh no"}, 500),
        )
        listed[:] = ["newer"]
        assert await watcher.wait_for_events("newer")
        await wait_for_lists(flow_server, 3)
        flow_server.run_response = working
        assert await watcher.wait_for_events("newer", "slow")
        await wait_for_lists(flow_server, 3)

    assert len(flow_server.poll_requests(["deleted"])) == 1


async def test_paged_and_projected_lists_are_complete(
    flow_emulator: Emulator, asset_store: FileStore
) -> None:
    """Whatever the service means by `filter_by`, and however it pages, each of many runs emits one event."""
    flow_emulator.switches.update(
        {"filter_by": "fields_only", "paging": "offset", "page_size": 3, "timestamps": "naive"}
    )
    flow_emulator.run_seconds = 0.05
    async with run_watcher(asset_store) as watcher:
        assert await wait_for_condition(asset_store.content)
        ids = [start_external_run(flow_emulator) for _ in range(10)]
        assert await watcher.wait_for_events(*ids)


async def test_failing_service_ends_no_watcher(
    flow_server: StubFlowServer, asset_store: FileStore, caplog: pytest.LogCaptureFixture
) -> None:
    """A failing service is polled less and less often; the log has one line at the start, one at the end."""
    caplog.set_level(logging.INFO, "airflow_provider_flows")
    working = flow_server.list_response
    async with run_watcher(asset_store, poll_interval=0.05) as watcher:
        assert await wait_for_condition(asset_store.content)
        flow_server.list_response = lambda _: ApiResponse({"detail": "Oh no"}, 500)
        before = len(flow_server.list_requests())
        finish_runs(flow_server, "during")
        await asyncio.sleep(1.2)
        tries = len(flow_server.list_requests()) - before
        flow_server.list_response = working
        assert await watcher.wait_for_events("during")
        assert await wait_for_condition(lambda: "can be listed again" in caplog.text)

    assert tries <= 6  # 24 without backoff
    assert caplog.text.count("cannot be listed") == caplog.text.count("can be listed again") == 1
    assert "HTTP 500" in caplog.text


async def test_changed_key_is_loaded(
    flow_server: StubFlowServer,
    asset_store: FileStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A rejected key makes the feed reload the connection; no key is in the log."""
    async with run_watcher(asset_store) as watcher:
        assert await wait_for_condition(asset_store.content)
        age_hook_cache()
        flow_server.connect(monkeypatch, key="the-new-key", retries=0)
        flow_server.keys = {"the-new-key"}
        finish_runs(flow_server, "one")
        assert await watcher.wait_for_events("one")
    assert "cannot be listed" not in caplog.text
    assert "the-new-key" not in caplog.text


async def test_service_without_lists_is_logged_once(
    flow_emulator: Emulator,  # noqa: ARG001  # it sets the connection
    asset_store: FileStore,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """PromptChainer lists no runs: one line is logged, and the watcher does not end."""
    async with run_watcher(asset_store, flows_conn_id="promptchainer_default") as watcher:
        assert await wait_for_condition(lambda: "cannot list flow runs" in caplog.text)
        await asyncio.sleep(QUIET_SECONDS)
    assert watcher.events == []
    assert caplog.text.count("cannot list flow runs") == 1
    assert await wait_for_idle_loop()


async def test_max_requests_per_second_includes_lists(
    flow_server: StubFlowServer, asset_store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`max_requests_per_second` limits lists, polls and waits of a connection together."""
    flow_server.connect(monkeypatch, retries=0, max_requests_per_second=10)
    flow_server.list_response = lambda _: ApiResponse([{"flow_id": key} for key in list(flow_server.runs)])
    finish_runs(flow_server, *(f"old{number}" for number in range(8)))
    flow_server.create_runs(1, 60, prefix="waiting")
    wait = asyncio.create_task(anext(FlowRunTrigger("flows_default", "waiting0", 0.05, 0.05).run()))
    async with run_watcher(asset_store, poll_interval=0.05):
        await asyncio.sleep(1.5)
    wait.cancel()

    times = sorted(request.at for request in flow_server.requests)
    assert flow_server.poll_requests(["waiting0"])
    assert flow_server.list_requests()
    assert len(times) <= 10 * (times[-1] - times[0]) + 2


async def test_blocking_store_is_used_in_a_thread(flow_server: StubFlowServer) -> None:
    """The store of Airflow 3.3.0, whose methods block, works as well."""
    asset_store: Any = BlockingStore()
    async with run_watcher(asset_store) as first:
        assert await wait_for_condition(lambda: asset_store.values)
        finish_runs(flow_server, "one")
        assert await first.wait_for_events("one")
        assert await wait_for_condition(lambda: "one" in next(iter(asset_store.values.values()))["ends"])
    async with run_watcher(asset_store) as second:
        await wait_for_lists(flow_server, 3)
    assert second.ids == []


async def test_watcher_waits_for_a_failing_store(
    flow_server: StubFlowServer, asset_store: FileStore, caplog: pytest.LogCaptureFixture
) -> None:
    """While the store cannot be read the watcher emits nothing, so nothing is lost; one line is logged."""
    async with run_watcher(asset_store):
        assert await wait_for_condition(asset_store.content)
    finish_runs(flow_server, "between")
    asset_store.broken = True
    async with run_watcher(asset_store) as second:
        await asyncio.sleep(QUIET_SECONDS)
        assert second.ids == []
        asset_store.broken = False
        assert await second.wait_for_events("between")
    assert caplog.text.count("could not be read") == 1


@needs("asset state store")
def test_shared_trigger_has_the_store_of_each_asset() -> None:
    """Airflow merges equal triggers and gives them a store for several assets, in the private attribute."""
    from airflow.sdk.execution_time.context import AssetStateStoreAccessors

    one, other = Asset("x-flows://one"), Asset("x-flows://other")
    both = AssetStateStoreAccessors(inlets=[one, other])

    assert WatcherState(both, "key")._stores == [both[one], both[other]]


async def test_latest_of_several_cursors_is_used(tmp_path: Path, flow_server: StubFlowServer) -> None:
    """A store without state, of an asset that was added later, does not repeat events."""
    stores = {name: FileStore(tmp_path / name) for name in ("one", "other")}

    class Both:
        _by_name = stores

    async with run_watcher(Both()) as first:
        assert await wait_for_condition(stores["other"].content)
        finish_runs(flow_server, "emitted")
        assert await first.wait_for_events("emitted")
        assert await wait_for_condition(lambda: stores["other"].writes == 2)
    assert stores["one"].content() == stores["other"].content()
    (tmp_path / "one").unlink()

    async with run_watcher(Both()) as second:
        await wait_for_lists(flow_server, 3)
    assert second.ids == []


async def test_unreadable_cursors_are_ignored() -> None:
    """Foreign content of one asset's store is ignored in favour of another's, or of none."""
    stores = {f"{number}": BlockingStore() for number in range(len(UNREADABLE_CURSORS))}
    for asset_store, value in zip(stores.values(), UNREADABLE_CURSORS, strict=True):
        asset_store.values["key"] = value

    class All:
        _by_name = stores

    assert await WatcherState(All(), "key").load(POLL_SECONDS) is None
    stores["1"].values["key"] = {"emitted_until": 1.0, "ends": {}}
    assert await WatcherState(All(), "key").load(POLL_SECONDS) == {"emitted_until": 1.0, "ends": {}}


async def test_watcher_without_a_store_repeats_no_event(
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
