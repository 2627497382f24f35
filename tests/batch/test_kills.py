"""Tests of batches that are killed or time out: all active runs are aborted, or left to the next try."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowTaskTimeout

from airflow_provider_flows.core.exceptions import FlowError
from airflow_provider_flows.emulator import Emulator, Fault
from airflow_provider_flows.operators import RunFlowBatchOperator
from tests.support.batches import create_batch, create_items, run_try
from tests.support.task_instances import Store, context

pytestmark = pytest.mark.emulator(run_seconds=3600, abort="instant", retries=0)

MANY = 500


@contextmanager
def interrupt_when(
    emulator: Emulator, is_due: Callable[[Any], bool], on_interrupt: Callable[[], object]
) -> Iterator[None]:
    """Interrupt the main thread by a signal, as Airflow does, once when a request is due."""

    def on_request(request: Any) -> None:
        if is_due(request):
            emulator.set_request_listener(None)
            os.kill(os.getpid(), signal.SIGUSR1)

    previous = signal.signal(signal.SIGUSR1, lambda *_: on_interrupt())
    emulator.set_request_listener(on_request)
    try:
        yield
    finally:
        emulator.set_request_listener(None)
        signal.signal(signal.SIGUSR1, previous)


def raise_task_timeout() -> None:
    """Raise Airflow's error after an execution_timeout."""
    raise AirflowTaskTimeout("execution_timeout")


def get_states(emulator: Emulator) -> Counter[str]:
    """Return how many runs are in each state."""
    return Counter(str(run.state) for run in emulator.runs.values())


def kill_when(
    emulator: Emulator, operator: RunFlowBatchOperator, is_due: Callable[[Any], bool], state: str = "failed"
) -> float:
    """Run a batch whose task is killed when a request is due, and return the seconds of its `on_kill`."""
    seconds: list[float] = []

    def kill() -> None:
        started_at = time.monotonic()
        operator.on_kill()
        seconds.append(time.monotonic() - started_at)

    with interrupt_when(emulator, is_due, kill), pytest.raises(FlowError, match="cancelled"):
        operator.execute(context(Store(), 1, 3, state))
    return seconds[0]


@pytest.mark.timeout(180)
def test_500_active_runs_are_aborted(emulator: Emulator, tmp_path: Path) -> None:
    """A task that is marked as failed aborts 500 active runs within 30 s."""
    operator = create_batch(tmp_path, create_items(MANY), max_active_runs=MANY, poll_interval=30)
    seconds = kill_when(emulator, operator, lambda _: emulator.started_count == MANY)
    assert seconds < 30
    assert get_states(emulator) == {"aborted": MANY}


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_kill_while_runs_are_started(emulator: Emulator, tmp_path: Path, method: str) -> None:
    """A kill in the middle of starts leaves no run active, and none created."""
    emulator.add_fault(Fault(method, "/flows*", skip=6, times=None, delay=0.3))
    operator = create_batch(tmp_path, create_items(40), max_active_runs=40)
    kill_when(emulator, operator, lambda _: emulator.started_count >= 5)
    assert get_states(emulator).keys() <= {"aborted"}


def test_eviction_leaves_the_batch_alone(emulator: Emulator, tmp_path: Path) -> None:
    """A task that is not finished in Airflow continues."""
    emulator.run_seconds = 0.5
    operator = create_batch(tmp_path, create_items(4))
    with interrupt_when(emulator, lambda _: emulator.started_count == 2, operator.on_kill):
        result = operator.execute(context(Store(), 1, 3, "running"))
    assert result["completed"] == 4
    assert emulator.started_count == 4


@pytest.mark.parametrize(("max_tries", "state"), [(0, "aborted"), (3, "running")])
def test_execution_timeout(emulator: Emulator, tmp_path: Path, max_tries: int, state: str) -> None:
    """After an execution_timeout the active runs are left to the next try; without one they are aborted."""
    store, operator = Store(), create_batch(tmp_path, create_items(6))
    is_due = lambda _: emulator.started_count == 6  # noqa: E731
    with interrupt_when(emulator, is_due, raise_task_timeout), pytest.raises(AirflowTaskTimeout):
        run_try(operator, store, 1, max_tries)
    emulator.advance(600)
    assert get_states(emulator) == {state: 6}
    if max_tries:
        emulator.advance(3600)
        assert run_try(create_batch(tmp_path, create_items(6)), store, 2, max_tries)["completed"] == 6
        assert emulator.started_count == 6


def test_run_that_takes_too_long_is_aborted(emulator: Emulator, tmp_path: Path) -> None:
    """`timeout` is that of one flow run; the others are not affected."""
    operator = create_batch(tmp_path, create_items(2), timeout=1.0, min_success_ratio=0)
    result = run_try(operator)
    assert (result["completed"], result["failed"]) == (0, 2)
    assert get_states(emulator) == {"aborted": 2}


def test_abort_on_kill_false(emulator: Emulator, tmp_path: Path) -> None:
    """With abort_on_kill=False the active runs continue."""
    operator = create_batch(tmp_path, create_items(3), abort_on_kill=False)
    kill_when(emulator, operator, lambda _: emulator.started_count == 3)
    emulator.advance(600)
    assert get_states(emulator) == {"running": 3}
