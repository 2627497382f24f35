"""Tests of what belongs to one event loop: values, and hooks, which are looked up once for all callers."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from contextlib import suppress
from typing import Any
from weakref import ref

import pytest
from airflow.providers.common.compat.connection import get_async_connection

from airflow_provider_flows import base_hook
from airflow_provider_flows.core.exceptions import FlowAuthError, FlowError, FlowInputError
from airflow_provider_flows.hooks import FlowsHook, GenerioHook
from airflow_provider_flows.triggerer.per_loop import HOOK_TTL_SECONDS, PerLoop, get_cached_hook
from tests.support.flow_server import StubFlowServer
from tests.support.triggers import (
    age_hook_cache,
    collect_errors,
    error_text,
    run_trigger,
    wait_for_condition,
)


async def test_each_loop_has_its_own_value() -> None:
    """A loop gets the same value each time, another loop another one; a value is freed with its loop."""
    values: PerLoop[list[str]] = PerLoop(list)
    values.get().append("own")

    async def get_on_other_loop() -> list[str]:
        return values.get()

    assert values.get() == ["own"]
    assert await asyncio.to_thread(lambda: asyncio.run(get_on_other_loop())) == []
    gc.collect()
    assert len(values._values) == 1  # the other loop is gone


async def test_connection_is_looked_up_once_for_all(flow_server: StubFlowServer) -> None:
    """All callers get the same hook while a lookup is fresh, also while it is in progress."""
    hooks = await asyncio.gather(*(get_cached_hook("flows_default") for _ in range(50)))
    assert {id(hook) for hook in [*hooks, await get_cached_hook("flows_default")]} == {id(hooks[0])}
    assert isinstance(hooks[0], GenerioHook)
    assert hooks[0].settings.base_url == flow_server.url


@pytest.mark.usefixtures("flow_server")
async def test_old_hook_is_looked_up_again() -> None:
    """A hook is looked up again after a minute, and not before."""
    first = await get_cached_hook("flows_default")
    age_hook_cache(seconds=HOOK_TTL_SECONDS - 5)
    assert await get_cached_hook("flows_default") is first
    age_hook_cache(seconds=10)
    assert await get_cached_hook("flows_default") is not first


@pytest.mark.usefixtures("flow_server")
async def test_rejected_hook_is_looked_up_again_at_once() -> None:
    """After a rejection the lookup begins later than the rejection, however young the last one is."""
    first = await get_cached_hook("flows_default")
    second = await get_cached_hook("flows_default", stale=first)
    assert second is not first
    together = await asyncio.gather(*(get_cached_hook("flows_default", stale=second) for _ in range(20)))
    assert {id(hook) for hook in together} == {id(together[0])}
    assert together[0] is not second


async def test_lookup_in_progress_is_too_old_for_a_rejection(
    flow_server: StubFlowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lookup that began before a key was replaced and rejected does not serve the old key again."""
    rejected = await get_cached_hook("flows_default")
    may_end, read_keys = asyncio.Event(), list[str]()

    async def read_slowly(conn_id: str, hook_class: type[FlowsHook]) -> Any:
        connection = await get_async_connection(conn_id, hook_class)
        read_keys.append(connection.password)
        await may_end.wait()
        return connection

    monkeypatch.setattr(base_hook, "get_async_connection", read_slowly)  # Airflow's
    early = asyncio.create_task(get_cached_hook("flows_default", stale=rejected))
    assert await wait_for_condition(lambda: read_keys)
    flow_server.connect(monkeypatch, key="new")
    late = [asyncio.create_task(get_cached_hook("flows_default", stale=rejected)) for _ in range(5)]
    await asyncio.sleep(0.05)
    may_end.set()

    assert (await early).settings == rejected.settings
    assert {hook.connection.password for hook in await asyncio.gather(*late)} == {"new"}
    assert read_keys == ["key", "new"]


@pytest.mark.usefixtures("flow_server")
async def test_first_caller_may_be_cancelled() -> None:
    """A lookup continues for the other callers when the first one is cancelled."""
    tasks = [asyncio.create_task(get_cached_hook("flows_default")) for _ in range(3)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    assert await tasks[1] is await tasks[2]


async def test_failed_lookup_is_not_cached(
    flow_server: StubFlowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing connection, or one of another type, is an error, and is looked up again next time."""
    monkeypatch.setenv("AIRFLOW_CONN_FIXED", '{"conn_type": "http", "host": "x"}')
    with pytest.raises(FlowInputError, match="'fixed' has type 'http'"):
        await get_cached_hook("fixed")
    flow_server.connect(monkeypatch, "fixed")
    assert (await get_cached_hook("fixed")).flows_conn_id == "fixed"


@pytest.mark.usefixtures("flow_server")
async def test_each_event_loop_has_its_own_hooks() -> None:
    """A hook of one event loop is not used on another."""
    own_hook = await get_cached_hook("flows_default")
    assert await asyncio.to_thread(lambda: asyncio.run(get_cached_hook("flows_default"))) is not own_hook


async def rotate_key(flow_server: StubFlowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the key at the server and in Airflow, after a few requests; the cached hooks are not new."""
    assert await wait_for_condition(lambda: len(flow_server.requests) > 3)
    flow_server.keys = {"new"}
    flow_server.connect(monkeypatch, key="new")


async def test_rotated_key_ends_no_wait(
    flow_server: StubFlowServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """When a key is rotated all waits continue with the new one, and each logs it once."""
    caplog.set_level(logging.INFO)
    ids = flow_server.create_runs(20, 2.5)
    runs = asyncio.gather(*(run_trigger(key) for key in ids))
    await rotate_key(flow_server, monkeypatch)

    assert [run.flow_run_id for run in await runs if run.is_completed] == ids
    assert {request.key for request in flow_server.requests} == {"key", "new"}


async def test_rejected_key_ends_each_wait(flow_server: StubFlowServer) -> None:
    """When the only key is rejected, each wait ends in an error that names the connection once."""
    tasks = asyncio.gather(
        *(run_trigger(key) for key in flow_server.create_runs(15, 60)), return_exceptions=True
    )
    assert await wait_for_condition(lambda: len(flow_server.requests) > 3)
    flow_server.keys = set()

    for error in await tasks:
        message = error_text(error, FlowAuthError)
        assert message.count("Connection 'flows_default'") == 1
        assert "check the connection's password" in message


async def test_wrong_key_from_the_start(flow_server: StubFlowServer) -> None:
    """A key that was never valid ends each wait after a few polls and a second lookup."""
    flow_server.keys = set()
    errors = await collect_errors(flow_server.create_runs(3, 60))
    assert all("Connection 'flows_default'" in error_text(error, FlowAuthError) for error in errors)


async def test_rotated_key_reaches_waits_with_older_hooks(
    flow_server: StubFlowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a wait with a hook from before the last lookup gets the new key."""
    (first, second) = flow_server.create_runs(2, 4.0)
    older = asyncio.create_task(run_trigger(first))
    assert await wait_for_condition(lambda: flow_server.requests)
    age_hook_cache(seconds=HOOK_TTL_SECONDS + 1)
    newer = asyncio.create_task(
        run_trigger(second, poll_intervals=(0.3, 0.3))
    )  # it looks the connection up again, with the old key
    await asyncio.sleep(0.7)
    await rotate_key(flow_server, monkeypatch)

    assert (await older).is_completed
    assert (await newer).is_completed


async def test_key_may_be_rotated_twice(flow_server: StubFlowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait survives one change of the key after another."""
    runs = asyncio.gather(*(run_trigger(key) for key in flow_server.create_runs(5, 2.5)))
    await rotate_key(flow_server, monkeypatch)
    assert await wait_for_condition(lambda: flow_server.requests[-1].key == "new")
    await asyncio.sleep(0.3)
    flow_server.keys = {"newer"}
    flow_server.connect(monkeypatch, key="newer")
    assert all(run.is_completed for run in await runs)


async def test_deleted_connection_ends_the_wait(
    flow_server: StubFlowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rejected key of a connection that was deleted ends the wait with an error event."""
    task = asyncio.create_task(run_trigger(flow_server.create_runs(1, 60)[0]))
    assert await wait_for_condition(lambda: flow_server.requests)
    flow_server.keys = set()
    monkeypatch.delenv("AIRFLOW_CONN_FLOWS_DEFAULT")
    assert "AIRFLOW_CONN_FLOWS_DEFAULT" not in os.environ
    with pytest.raises(FlowError, match="flows_default"):
        await task


@pytest.mark.usefixtures("flow_server")
@pytest.mark.parametrize("conn_id", ["flows_default", "missing"])
def test_event_loop_is_freed_after_a_lookup(conn_id: str) -> None:
    """A loop on which a connection was looked up, even without success, can be collected."""

    async def look_up() -> ref[asyncio.AbstractEventLoop]:
        with suppress(Exception):
            await asyncio.gather(*(get_cached_hook(conn_id) for _ in range(3)))
        return ref(asyncio.get_running_loop())

    loop, _ = asyncio.run(look_up()), asyncio.run(look_up())  # asgiref, in Airflow, holds the latest one
    gc.collect()
    assert loop() is None
