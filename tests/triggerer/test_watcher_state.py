"""Tests of the saved state of asset watchers: several stores, stores that block or fail, and no store."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import Asset

from airflow_provider_flows.triggerer.watcher_state import WatcherState
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
from tests.support.flow_server import StubFlowServer
from tests.support.triggers import wait_for_condition
from tests.support.versions import needs

pytestmark = pytest.mark.usefixtures("list_all_runs")


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
