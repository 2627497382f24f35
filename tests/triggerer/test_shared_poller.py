"""Tests of the shared poller: which triggers share it, that it ends, that triggers do not affect others."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import time
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path

import pytest

from airflow_provider_flows.core.exceptions import FlowInputError, FlowNotFound
from airflow_provider_flows.core.flow_run import FlowRun
from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.hooks import FlowsHook
from airflow_provider_flows.triggerer.shared_poller import MAX_CONCURRENT_POLLS, SharedPoller
from tests.support.fixtures import disable_event_delay
from tests.support.flow_server import ApiResponse, StubFlowServer
from tests.support.modes import start_external_run
from tests.support.triggers import (
    error_text,
    run_trigger,
    run_triggers,
    wait_for_condition,
    wait_for_idle_loop,
    wait_in_poller,
)


async def test_many_triggers_share_few_connections(flow_server: StubFlowServer) -> None:
    """At most 32 requests are in progress, over as many connections of one session."""
    flow_server.list_response = lambda _: ApiResponse({}, 404)
    flow_server.run_response = lambda key, _: ApiResponse(flow_server.row(key), delay=0.1)
    ids = flow_server.create_runs(100, 0.6)

    runs = await run_triggers(ids)

    assert [run.flow_run_id for run in runs if run.is_completed] == ids
    assert 8 < flow_server.max_in_flight <= MAX_CONCURRENT_POLLS
    assert len(flow_server.peers) <= MAX_CONCURRENT_POLLS


async def test_poller_is_shared_by_equal_connections(
    flow_server: StubFlowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections with equal settings share a poller; another key, setting or event loop has its own."""
    flow_server.connect(monkeypatch, "same")
    flow_server.connect(monkeypatch, "other_key", "k3y")
    flow_server.connect(monkeypatch, "other_setting", max_requests_per_second=50)
    names = ("flows_default", "same", "other_key", "other_setting")
    hooks = [await FlowsHook.aget_hook(name) for name in names]

    poller, same, *others = [SharedPoller.for_hook(hook) for hook in hooks]
    on_other_loop = await asyncio.to_thread(lambda: asyncio.run(_get_poller(hooks[0])))

    assert poller is same
    assert SharedPoller.for_hook(hooks[0]) is poller
    assert len({id(each) for each in (poller, *others, on_other_loop)}) == 4


async def _get_poller(hook: FlowsHook) -> SharedPoller:
    return SharedPoller.for_hook(hook)


async def test_broken_connection_affects_no_other(
    flow_server: StubFlowServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A connection whose CA bundle is deleted during a wait does not affect other connections."""
    bundle = tmp_path / "ca.pem"
    bundle.write_text("-----BEGIN CERTIFICATE-----\n")  # over http it is only looked at
    flow_server.connect(monkeypatch, "bundled", ca_bundle=str(bundle))
    (first, second) = flow_server.create_runs(2, 0.5)
    bundled = asyncio.create_task(run_trigger(first, conn_id="bundled"))
    assert await wait_for_condition(lambda: flow_server.requests)
    bundle.unlink()

    assert (await run_trigger(second)).is_completed
    assert (await bundled).is_completed


async def test_poller_ends_with_its_last_wait(flow_server: StubFlowServer) -> None:
    """After the last wait no task and no connection is left, and the next wait gets a new poller."""
    for prefix in ("a", "b"):
        assert all(run.is_completed for run in await run_triggers(flow_server.create_runs(20, 0.2, prefix)))
        assert await wait_for_idle_loop()
        assert await wait_for_condition(lambda: flow_server.open_connections == 0)
    gc.collect()  # a session that was not closed would warn now


async def test_closed_event_loop_is_freed(flow_server: StubFlowServer) -> None:
    """A closed event loop can be collected, with the keys that were used on it."""
    flow_server.create_runs(1, 0.1)

    loops: list[asyncio.AbstractEventLoop] = []

    async def run_one_trigger() -> None:
        await run_trigger("r0")
        loops.append(asyncio.get_running_loop())

    await asyncio.to_thread(lambda: asyncio.run(run_one_trigger()))
    gc.collect()
    assert not [
        referrer for referrer in gc.get_referrers(loops[0]) if isinstance(referrer, asyncio.Future)
    ]  # a task is one


async def test_waits_that_come_and_go_do_not_affect_others(flow_server: StubFlowServer) -> None:
    """Waits that start and are cancelled at any time do not affect the results of others."""
    flow_server.create_runs(1, 0.0, "over")
    flow_server.create_runs(1, 60.0, "long")
    hook = await FlowsHook.aget_hook("flows_default")
    done: list[FlowRun] = []

    async def come_and_go(chance: random.Random) -> None:
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            with suppress(TimeoutError):
                async with asyncio.timeout(chance.random() * 0.05):
                    await wait_in_poller(hook, "long0")
            async with asyncio.timeout(10):
                done.append(await wait_in_poller(hook, "over0"))
            await asyncio.sleep(chance.choice((0, 0, 0.001, 0.01)))

    await asyncio.gather(*(come_and_go(random.Random(seed)) for seed in range(5)))

    assert len(done) >= 5
    assert all(run.is_completed for run in done)
    assert await wait_for_idle_loop()
    assert await wait_for_condition(lambda: flow_server.open_connections == 0)


async def test_wait_that_starts_as_the_poller_ends_works(flow_server: StubFlowServer) -> None:
    """A wait that starts while the poller ends, a few turns of the loop earlier or later, works."""
    flow_server.create_runs(1, 0.0)
    hook = await FlowsHook.aget_hook("flows_default")
    for turns in (*range(20), *range(20)):
        async with asyncio.timeout(10):
            assert (await wait_in_poller(hook, "r0")).is_completed
        for _ in range(turns):
            await asyncio.sleep(0)
    assert await wait_for_idle_loop()


async def test_poller_ends_despite_hanging_requests(flow_server: StubFlowServer) -> None:
    """When all waits are cancelled the poller ends, however many polls hang or are queued."""
    flow_server.run_response = lambda *_: ApiResponse({}, delay=3600)
    flow_server.list_response = lambda _: ApiResponse({}, 404)
    tasks = [
        asyncio.create_task(run_trigger(key)) for key in flow_server.create_runs(3 * MAX_CONCURRENT_POLLS, 60)
    ]
    assert await wait_for_condition(lambda: len(flow_server.poll_requests()) >= MAX_CONCURRENT_POLLS)

    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    assert await wait_for_idle_loop()
    assert await wait_for_condition(lambda: flow_server.open_connections == 0)


async def test_cancelled_wait_frees_its_worker(flow_server: StubFlowServer) -> None:
    """A trigger that is cancelled during a hanging request no longer occupies a worker."""
    flow_server.list_response = lambda _: ApiResponse({}, 404)
    flow_server.run_response = lambda key, _: ApiResponse(
        flow_server.row(key), delay=3600 if key.startswith("stuck") else 0
    )
    tasks = [
        asyncio.create_task(run_trigger(key))
        for key in flow_server.create_runs(MAX_CONCURRENT_POLLS, 60, "stuck")
    ]
    assert await wait_for_condition(lambda: len(flow_server.poll_requests()) >= MAX_CONCURRENT_POLLS)
    other = asyncio.create_task(run_trigger(flow_server.create_runs(1, 0.1)[0]))
    await asyncio.sleep(0.2)

    for task in tasks:
        task.cancel()

    async with asyncio.timeout(3):
        assert (await other).is_completed


async def test_cancelled_triggers_do_not_affect_others(flow_server: StubFlowServer) -> None:
    """Cancelled triggers, the first one among them, do not affect the others."""
    ids = flow_server.create_runs(40, 0.6)
    tasks = [asyncio.create_task(run_trigger(key)) for key in ids]
    assert await wait_for_condition(lambda: flow_server.requests)
    for task in tasks[::2]:
        task.cancel()

    results = await asyncio.gather(*tasks, return_exceptions=True)

    assert all(isinstance(result, asyncio.CancelledError) for result in results[::2])
    assert [
        result.flow_run_id for result in results[1::2] if isinstance(result, FlowRun) and result.is_completed
    ] == ids[1::2]


MALFORMED = [
    b"<html><body>Oops</body></html>",
    b'{"flow_id": "r0", "sta',
    [],
    "text",
    7,
    {"flow_id": ["r0"]},
    {"state": None},
    b"",
]


async def test_malformed_response_affects_one_run(flow_server: StubFlowServer) -> None:
    """Unreadable responses about one run do not end its wait and do not affect the others."""
    ids = flow_server.create_runs(5, 0.4)
    bodies = iter(MALFORMED)
    flow_server.run_response = lambda key, _: ApiResponse(
        next(bodies, flow_server.row(key)) if key == "r0" else flow_server.row(key)
    )
    started_at = time.monotonic()
    slow = asyncio.create_task(run_trigger("r0"))

    assert all(run.is_completed for run in await run_triggers(ids[1:]))
    assert time.monotonic() - started_at < 3
    assert (await slow).is_completed
    assert len(flow_server.poll_requests(["r0"])) > len(MALFORMED)


async def test_permanent_error_ends_one_wait(flow_server: StubFlowServer) -> None:
    """A run that the service does not know ends its own wait with FlowNotFound."""
    ids = flow_server.create_runs(3, 0.5)
    results = await asyncio.gather(*(run_trigger(key) for key in [*ids, "unknown"]), return_exceptions=True)
    assert error_text(results.pop(), FlowNotFound).count("Connection 'flows_default'") == 1
    assert [isinstance(result, FlowRun) and result.is_completed for result in results] == [True] * 3


TRIGGER_RUN: ContextVar[str] = ContextVar("trigger_run", default="none")


async def test_lines_are_logged_in_their_triggers_context(flow_server: StubFlowServer) -> None:
    """Lines about a run are logged in the context of its own trigger, whichever one started the poller."""
    lines: list[tuple[str, str]] = []

    async def wait(key: str) -> None:
        TRIGGER_RUN.set(key)
        await run_trigger(key)

    handler = ContextHandler(lines)
    logger = logging.getLogger("airflow_provider_flows")
    logger.addHandler(handler)
    try:
        await asyncio.gather(*(asyncio.create_task(wait(key)) for key in flow_server.create_runs(15, 0.4)))
    finally:
        logger.removeHandler(handler)

    assert {key for key, _ in lines} == {f"r{number}" for number in range(15)}
    assert all(f"flow run {key} " in line for key, line in lines)


class ContextHandler(logging.Handler):
    """Records each line with the run of the trigger in whose context it was logged."""

    def __init__(self, lines: list[tuple[str, str]]) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        """Record a line."""
        self._lines.append((TRIGGER_RUN.get(), record.getMessage()))


async def test_promptchainer_runs_cannot_be_polled(
    flow_emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trigger for a PromptChainer connection ends at once with an error that says why."""
    assert flow_emulator.url
    disable_event_delay(monkeypatch)
    with pytest.raises(
        FlowInputError, match=r"promptchainer cannot poll a flow run: its flow runs have no id"
    ):
        await run_trigger("any", conn_id="promptchainer_default")


async def test_hundreds_of_concurrent_triggers(
    flow_emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of three hundred concurrent triggers has one event, for its own run, completed."""
    disable_event_delay(monkeypatch)
    flow_emulator.run_seconds = 2
    ids = [start_external_run(flow_emulator) for _ in range(300)]

    runs = await run_triggers(ids, poll_intervals=(0.3, 0.6))

    assert [run.flow_run_id for run in runs if run.is_completed] == ids
    assert await wait_for_idle_loop()


async def test_wait_past_its_deadline_polls_once(flow_server: StubFlowServer) -> None:
    """A wait whose deadline has passed still polls once, and returns the run if it is final."""
    flow_server.create_runs(1, 0.0)
    assert (
        await wait_in_poller(await FlowsHook.aget_hook("flows_default"), "r0", time.time() - 10)
    ).is_completed
    assert len(flow_server.requests) == 1
