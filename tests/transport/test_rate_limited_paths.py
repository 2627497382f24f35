"""Tests of `max_requests_per_second` on each path by which a process sends requests to a service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_flows.batch.trigger import FlowBatchTrigger
from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.hooks import FlowsHook
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.plugin.abort_queue import ABORT_QUEUE
from airflow_provider_flows.transport.rate_limiter import SHARED_RATE_LIMITERS
from airflow_provider_flows.triggerer.kill_check import abort_killed_runs
from tests.support.account_limits import set_extra
from tests.support.batches import create_batch, create_items, run_try
from tests.support.commands import call
from tests.support.modes import FLOW, start_external_run
from tests.support.task_instances import Store, context
from tests.support.triggers import wait_for_condition

pytestmark = pytest.mark.emulator(run_seconds=0, abort="instant", retries=0)

PER_SECOND = 20
SMALL = {"quality": "low"}


def run_task(_: Emulator, output_path: Path) -> None:
    """Run a task with several files, which are downloaded in several threads."""
    prompts = [f"Chair {number}" for number in range(6)]
    arguments: dict[str, Any] = {"flow": FLOW, "inputs": prompts, "parameters": SMALL, "poll_interval": 0.1}
    operator = RunFlowOperator(task_id="t", output_path=str(output_path), deferrable=False, **arguments)
    operator.execute(context(Store()))
    assert len([*output_path.rglob("*.glb")]) == 6


def run_batch(_: Emulator, output_path: Path) -> None:
    """Run a batch: starts and polls on an event loop, downloads in threads."""
    assert run_try(create_batch(output_path, create_items(4)))["completed"] == 4


def run_command(_: Emulator, output_path: Path) -> None:
    """Run a command that starts a run and stores its files."""
    words = ["flows", "run", FLOW, "--conn-id", "generio_default", "--output-path", str(output_path)]
    inputs = [word for number in range(4) for word in ("-i", f"Chair {number}")]
    assert call([*words, *inputs, "--param", "quality=low"]) == 0


def kill_worker(emulator: Emulator, _: Path) -> None:
    """Abort runs as killed tasks do in their workers, each with a hook of its own."""
    for flow_run_id in start_runs(emulator, 4):
        assert FlowsHook.get_hook("generio_default").abort(flow_run_id)


def kill_triggers(emulator: Emulator, _: Path) -> None:
    """Abort runs as killed triggers do."""
    ids, hook = start_runs(emulator, 6), FlowsHook.get_hook("generio_default")
    assert asyncio.run(abort_killed_runs(hook, ids)) == 6


def wait_in_triggerer(emulator: Emulator, _: Path) -> None:
    """Wait for runs in a triggerer."""
    ids = start_runs(emulator, 8)
    emulator.advance(3600)
    trigger = FlowBatchTrigger("generio_default", ids, len(ids), 0.1, 0.2)
    assert asyncio.run(anext(trigger.run())).payload["final_run_ids"] == sorted(ids)  # type: ignore[arg-type]


def abort_in_listener(emulator: Emulator, _: Path) -> None:
    """Abort runs as the listener does in the API server."""
    ids = start_runs(emulator, 6)
    for flow_run_id in ids:
        ABORT_QUEUE.submit("generio_default", flow_run_id)
    assert asyncio.run(
        wait_for_condition(lambda: all(emulator.runs[one].state == "aborted" for one in ids), 60.0)
    )


def poll_from_loops_and_threads(emulator: Emulator, _: Path) -> None:
    """Poll from two event loops and two threads at the same time."""
    (flow_run_id,) = start_runs(emulator, 1)

    async def poll() -> None:
        hook = FlowsHook.get_hook("generio_default")
        for _ in range(4):
            await hook.arun(hook.service.get_run(flow_run_id))

    def poll_blocking() -> None:
        hook = FlowsHook.get_hook("generio_default")
        for _ in range(4):
            hook.get_run(flow_run_id)

    async def poll_all() -> None:
        loops = [asyncio.to_thread(asyncio.run, poll()) for _ in range(2)]
        await asyncio.gather(*loops, *(asyncio.to_thread(poll_blocking) for _ in range(2)))

    asyncio.run(poll_all())


def start_runs(emulator: Emulator, count: int) -> list[str]:
    """Start flow runs as another client does, without the connection's rate limiter."""
    emulator.run_seconds = 3600
    ids = [start_external_run(emulator) for _ in range(count)]
    emulator._state.request_log.clear()
    return ids


PATHS: dict[str, tuple[Callable[[Emulator, Path], None], int]] = {
    "worker, with downloads": (run_task, 14),
    "batch": (run_batch, 20),
    "command": (run_command, 12),
    "killed workers": (kill_worker, 8),
    "killed triggers": (kill_triggers, 12),
    "triggerer": (wait_in_triggerer, 8),
    "listener": (abort_in_listener, 12),
    "several loops and threads": (poll_from_loops_and_threads, 16),
}


@pytest.mark.parametrize("path", PATHS)
def test_the_rate_of_each_path(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: str
) -> None:
    """By the emulator's own log, no path sends requests faster than the connection allows."""
    set_extra(emulator, monkeypatch, max_requests_per_second=PER_SECOND)
    send, min_requests = PATHS[path]
    send(emulator, tmp_path)
    times = sorted(request.at for request in emulator.requests)
    assert len(times) >= min_requests
    assert times[-1] - times[0] >= 0.85 * (len(times) - 1) / PER_SECOND
    # a slow process may delay a request, so that the next one follows sooner
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert sum(gap < 0.5 / PER_SECOND for gap in gaps) <= len(gaps) / 3
    assert len(SHARED_RATE_LIMITERS._limiters) == 1
