"""Tests of kills and timeouts while a try does not have its flow run yet, or has another one's record.

The operator runs as in a worker, with a stub of Airflow's task instance; complete Airflows run in
tests/system/chaos.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowTaskTimeout

from airflow_provider_flows.core.exceptions import FlowError
from airflow_provider_flows.core.start_or_resume import STAMP_KEY, add_stamp
from airflow_provider_flows.decorators import FlowDecoratedOperator
from airflow_provider_flows.emulator import Emulator, Fault
from airflow_provider_flows.hooks import GenerioHook
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.services.generio.api import Generio
from airflow_provider_flows.storage.atomic_file import CancelledWriteError
from airflow_provider_flows.worker.run_tracking import STAMPED_ATTRIBUTES
from tests.support.modes import FLOW
from tests.support.task_instances import Store, context
from tests.support.tries import CHAIR_ARGUMENTS, create_retry, run_states, start_earlier_run


@contextmanager
def interrupt_after(
    seconds: float, on_interrupt: Callable[[], None], since: Callable[[], Any] = lambda: True
) -> Iterator[None]:
    """Interrupt the main thread, as Airflow does for SIGTERM and execution_timeout."""
    previous = signal.signal(signal.SIGUSR1, lambda *_: on_interrupt())  # pytest-timeout has SIGALRM

    has_ended = Event()

    def interrupt() -> None:
        while not since() and not has_ended.wait(0.01):
            pass
        if not has_ended.wait(seconds):
            os.kill(os.getpid(), signal.SIGUSR1)

    thread = Thread(target=interrupt)
    thread.start()
    try:
        yield
    finally:
        has_ended.set()
        thread.join()
        signal.signal(signal.SIGUSR1, previous)


def raise_task_timeout() -> None:
    """Raise Airflow's error after an execution_timeout."""
    raise AirflowTaskTimeout("execution_timeout")


pytestmark = pytest.mark.emulator(run_seconds=3600, abort="instant", retries=0)


def test_kill_during_creation_starts_no_run(emulator: Emulator) -> None:
    """A task that is marked during POST /flows deletes the created run, and starts none."""
    emulator.add_fault(Fault("POST", "/flows", delay=1.5))
    operator = RunFlowOperator(task_id="t", **CHAIR_ARGUMENTS, timeout=20)
    with (
        interrupt_after(0.7, operator.on_kill),
        pytest.raises(FlowError, match="was killed during the start of flow"),
    ):
        operator.execute(context(Store()))
    assert (emulator.started_count, run_states(emulator)) == (0, [])


def test_kill_during_resume_aborts_the_earlier_run(emulator: Emulator) -> None:
    """A retry that is marked before it has polled the earlier try's run aborts that run."""
    operator = RunFlowOperator(task_id="t", **CHAIR_ARGUMENTS, timeout=20)
    run_request = GenerioHook("generio_default").build_request(
        CHAIR_ARGUMENTS["flow"], CHAIR_ARGUMENTS["inputs"], CHAIR_ARGUMENTS["parameters"], None
    )
    store = start_earlier_run(run_request, 3)
    emulator.add_fault(Fault("GET", "/flows/*", delay=1.5))

    def kill() -> None:
        operator.on_kill()
        raise KeyboardInterrupt

    with interrupt_after(0.7, kill), pytest.raises(KeyboardInterrupt):
        operator.execute(context(store, 2, 3))
    assert run_states(emulator) == ["aborted"]


def test_kill_during_download_cancels_writes(emulator: Emulator, tmp_path: Path) -> None:
    """A killed process continues for a while; what it receives then is not written."""
    emulator.run_seconds = 0
    emulator.add_fault(Fault("GET", "*/outputs/*", delay=1.5))
    operator = RunFlowOperator(task_id="t", **CHAIR_ARGUMENTS, poll_interval=0.1, output_path=str(tmp_path))

    def is_fetching() -> bool:
        return any("/outputs/" in sent.path for sent in emulator.requests)

    with interrupt_after(0.3, operator.on_kill, is_fetching), pytest.raises(CancelledWriteError):
        operator.execute(context(Store()))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_eviction_during_start_does_not_affect_the_run(emulator: Emulator) -> None:
    """An eviction during POST /flows, of a task that continues in Airflow, changes nothing."""
    emulator.run_seconds = 0
    emulator.add_fault(Fault("POST", "/flows", delay=1.0))
    operator = RunFlowOperator(task_id="t", **CHAIR_ARGUMENTS, poll_interval=0.1)
    with interrupt_after(0.5, operator.on_kill):
        assert operator.execute(context(Store(), state="running"))["state"] == "completed"
    assert emulator.started_count == 1


@pytest.mark.parametrize("max_tries", [1, 4])
def test_execution_timeout_during_poll_of_other_request_is_raised(emulator: Emulator, max_tries: int) -> None:
    """An execution_timeout while the run from before a Clear is polled does not resume that run."""
    emulator.run_seconds = 0
    run_request = GenerioHook("generio_default").build_request(
        CHAIR_ARGUMENTS["flow"], "Something else", CHAIR_ARGUMENTS["parameters"], None
    )
    store = start_earlier_run(run_request, 0)
    time.sleep(0.2)
    emulator.add_fault(Fault("GET", "/flows/*", delay=3))
    with interrupt_after(0.7, raise_task_timeout), pytest.raises(AirflowTaskTimeout):
        RunFlowOperator(task_id="t", **CHAIR_ARGUMENTS, timeout=20).execute(context(store, 2, max_tries))
    assert emulator.started_count == 1


def test_kill_during_function_aborts_the_earlier_run(emulator: Emulator) -> None:
    """A retry that is marked while its function runs aborts the run of the earlier try."""
    _, store = create_retry()
    operators: list[FlowDecoratedOperator] = []

    def call() -> str:
        operators[0].on_kill()
        raise KeyboardInterrupt

    operators.append(
        FlowDecoratedOperator(
            task_id="t", python_callable=call, op_args=(), op_kwargs={}, flow=CHAIR_ARGUMENTS["flow"]
        )
    )
    with pytest.raises(KeyboardInterrupt):
        operators[0].execute(context(store, 2, 3))
    assert run_states(emulator) == ["aborted"]


class OneRequestService(Generio):
    """A service that creates and starts a run in one request, and can return it later."""

    staged_start = False


class OneRequestHook(GenerioHook):
    """The hook of that service."""

    def create_service(self, extra: Mapping[str, Any]) -> OneRequestService:  # noqa: ARG002  # it has no options
        """Return the service."""
        return OneRequestService()


class OneRequestOperator(RunFlowOperator):
    """The operator with that hook."""

    def _get_hook(self, conn_id: str) -> OneRequestHook:  # noqa: ARG002  # there is one
        return OneRequestHook("generio_default")


def test_kill_aborts_run_of_service_without_staged_start(emulator: Emulator) -> None:
    """A kill also aborts a run that was created and started in one request."""
    operator = OneRequestOperator(task_id="t", **CHAIR_ARGUMENTS, poll_interval=0.1, timeout=20)

    def kill() -> None:
        operator.on_kill()
        raise KeyboardInterrupt

    def is_waiting() -> bool:
        return any(
            sent.method == "GET" and sent.path.count("/") == 2 for sent in emulator.requests if emulator.runs
        )

    with interrupt_after(0.2, kill, is_waiting), pytest.raises(KeyboardInterrupt):
        operator.execute(context(Store()))
    assert run_states(emulator) == ["aborted"]


def test_retry_without_record_deletes_the_run_that_a_killed_first_try_created(emulator: Emulator) -> None:
    """A first try that was killed before it could save an id leaves no created run behind."""
    own = context(Store(), 1, 3)
    stamp = {name: getattr(own["ti"], name) for name in STAMPED_ATTRIBUTES}
    service = GenerioHook("generio_default")
    for task_id in ("t", "another_task"):
        lost = add_stamp(None, {**stamp, "task_id": task_id, "token": "lost"})
        service.run(service.service.create(FLOW, CHAIR_ARGUMENTS["parameters"], lost))
    operator = RunFlowOperator(task_id="t", **CHAIR_ARGUMENTS, wait_for_completion=False)
    operator.execute(context(Store(), 2, 3))
    stamps = [run.additional[STAMP_KEY]["task_id"] for run in emulator.runs.values()]
    assert stamps == ["another_task", "t"]
    assert emulator.started_count == 1
