"""Tests of kills and timeouts while a try does not have its flow run yet, or has another one's record.

The operator runs as in a worker, with a stub of Airflow's task instance; complete Airflows run in
tests/system/chaos.
"""

from __future__ import annotations

import asyncio
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

from airflow_provider_flows.core.exceptions import FlowError, FlowInputError, FlowServiceError
from airflow_provider_flows.core.start_or_resume import RunRecord, abort_run
from airflow_provider_flows.decorators import FlowDecoratedOperator
from airflow_provider_flows.emulator import Emulator, Fault
from airflow_provider_flows.hooks import GenerioHook
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.services.generio.api import Generio
from airflow_provider_flows.storage.atomic_file import CancelledWriteError
from airflow_provider_flows.worker.run_tracking import RUN_LINK_KEY
from airflow_provider_flows.worker.task_state import RECORD_KEY
from tests.support.task_instances import Store, context
from tests.support.tries import CHAIR_ARGUMENTS
from tests.support.versions import TaskDeferralError, needs


@contextmanager
def interrupt_after(
    seconds: float, on_interrupt: Callable[[], None], since: Callable[[], Any] = lambda: True
) -> Iterator[None]:
    """Interrupt the main thread, as Airflow does for SIGTERM and execution_timeout."""
    before = signal.signal(signal.SIGUSR1, lambda *_: on_interrupt())  # pytest-timeout has SIGALRM

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
        signal.signal(signal.SIGUSR1, before)


def raise_task_timeout() -> None:
    """Raise Airflow's error after an execution_timeout."""
    raise AirflowTaskTimeout("execution_timeout")


pytestmark = pytest.mark.emulator(run_seconds=3600, abort="instant", retries=0)


def states(emulator: Emulator) -> list[str]:
    """Return the states of all runs."""
    return [str(run.state) for run in emulator.runs.values()]


def start_earlier_run(run_request: Any, generation: int) -> Store:
    """Start a run, and return the store that its try leaves behind."""
    found: list[Any] = []
    GenerioHook("generio_default").start_from_request(
        run_request, record=RunRecord(run_request.fingerprint, generation), save=found.append
    )
    return Store({RECORD_KEY: found[-1].to_dict()})


def test_kill_while_the_run_is_being_made_starts_nothing(emulator: Emulator) -> None:
    """A task that is marked during POST /flows deletes the created run, and starts none."""
    emulator.add_fault(Fault("POST", "/flows", delay=1.5))
    operator = RunFlowOperator(task_id="t", **CHAIR_ARGUMENTS, timeout=20)
    with (
        interrupt_after(0.7, operator.on_kill),
        pytest.raises(FlowError, match="was killed during the start of flow"),
    ):
        operator.execute(context(Store()))
    assert (emulator.started_count, states(emulator)) == (0, [])


def test_kill_during_the_pick_up_stops_the_earlier_run(emulator: Emulator) -> None:
    """A retry that is marked before it has polled the earlier try's run aborts that run."""
    operator = RunFlowOperator(task_id="t", **CHAIR_ARGUMENTS, timeout=20)
    run_request = GenerioHook("generio_default").build_request(
        CHAIR_ARGUMENTS["flow"], CHAIR_ARGUMENTS["inputs"], CHAIR_ARGUMENTS["parameters"], None
    )
    store = start_earlier_run(run_request, 3)
    emulator.add_fault(Fault("GET", "/flows/*", delay=1.5))

    def killed() -> None:
        operator.on_kill()
        raise KeyboardInterrupt

    with interrupt_after(0.7, killed), pytest.raises(KeyboardInterrupt):
        operator.execute(context(store, 2, 3))
    assert states(emulator) == ["aborted"]


def test_kill_during_a_download_writes_nothing_more(emulator: Emulator, tmp_path: Path) -> None:
    """A killed process continues for a while; what it receives then is not written."""
    emulator.run_seconds = 0
    emulator.add_fault(Fault("GET", "*/outputs/*", delay=1.5))
    operator = RunFlowOperator(task_id="t", **CHAIR_ARGUMENTS, poll_interval=0.1, output_path=str(tmp_path))

    def is_fetching() -> bool:
        return any("/outputs/" in sent.path for sent in emulator.requests)

    with interrupt_after(0.3, operator.on_kill, is_fetching), pytest.raises(CancelledWriteError):
        operator.execute(context(Store()))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("ended", [True, False])
def test_retry_without_its_inputs_goes_on_with_the_paid_run(
    emulator: Emulator, tmp_path: Path, *, ended: bool
) -> None:
    """A retry whose input file is gone resumes the run; if the run was aborted, the error names the input."""
    image = tmp_path / "chair.png"
    image.write_bytes((Path(__file__).parents[2] / "example_dags" / "images" / "chair.png").read_bytes())
    flow: dict[str, Any] = {"flow": "model_generate_fromimage", "inputs": [image], "poll_interval": 0.1}
    store = start_earlier_run(
        GenerioHook("generio_default").build_request(flow["flow"], [image], None, None), 3
    )
    run_id = store[RECORD_KEY]["flow_run_id"]
    image.unlink()
    operator = RunFlowOperator(task_id="t", **flow)
    if ended:
        emulator.advance(4000)
        told = operator.execute(context(store, 2, 3))
        assert (told["flow_run_id"], told["state"]) == (run_id, "completed")
    else:
        GenerioHook("generio_default").abort(run_id)
        with pytest.raises(FlowInputError, match=r"inputs\[0\] names a file that cannot be read"):
            operator.execute(context(store, 2, 3))
    assert emulator.started_count == 1


def test_kill_that_is_none_leaves_the_start_alone(emulator: Emulator) -> None:
    """An eviction during POST /flows, of a task that continues in Airflow, changes nothing."""
    emulator.run_seconds = 0
    emulator.add_fault(Fault("POST", "/flows", delay=1.0))
    operator = RunFlowOperator(task_id="t", **CHAIR_ARGUMENTS, poll_interval=0.1)
    with interrupt_after(0.5, operator.on_kill):
        assert operator.execute(context(Store(), state="running"))["state"] == "completed"
    assert emulator.started_count == 1


@pytest.mark.parametrize("max_tries", [1, 4])
def test_time_that_is_over_while_another_order_is_looked_at(emulator: Emulator, max_tries: int) -> None:
    """An execution_timeout during the poll of a run from before a Clear does not take over that run."""
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


def test_last_try_that_the_service_ends_leaves_no_run_going(emulator: Emulator) -> None:
    """If the service's responses end the last try, the run is aborted."""
    emulator.add_fault(Fault("GET", "/flows/*", status=402, times=3))
    operator = RunFlowOperator(task_id="t", **CHAIR_ARGUMENTS, poll_interval=0.1, max_poll_interval=0.2)
    with pytest.raises(FlowServiceError):
        operator.execute(context(Store()))
    assert states(emulator) == ["aborted"]


def test_a_try_that_the_service_ends_leaves_the_run_to_the_next(emulator: Emulator) -> None:
    """If a retry is left, the run is left to it."""
    emulator.add_fault(Fault("GET", "/flows/*", status=402, times=3))
    operator = RunFlowOperator(task_id="t", **CHAIR_ARGUMENTS, poll_interval=0.1, max_poll_interval=0.2)
    with pytest.raises(FlowServiceError):
        operator.execute(context(Store(), 1, 2))
    assert "aborted" not in states(emulator)


@pytest.mark.parametrize("status", [503, 404])
def test_stop_from_a_triggerer_gets_over_one_odd_answer(flow_emulator: Emulator, status: int) -> None:
    """A single 503 or 404 does not keep a triggerer from aborting a run."""
    flow_emulator.run_seconds = 3600
    flow_emulator.switches.abort = "instant"
    hook = GenerioHook("generio_default")
    run = hook.start(CHAIR_ARGUMENTS["flow"], CHAIR_ARGUMENTS["inputs"], CHAIR_ARGUMENTS["parameters"])
    flow_emulator.add_fault(Fault("GET", "/flows/*", status=status))
    asyncio.run(hook.arun(abort_run(hook.service, run.flow_run_id)))
    assert states(flow_emulator) == ["aborted"]


def create_retry(**given: Any) -> tuple[RunFlowOperator, Store]:
    """Return the operator of a retry, and the store with the earlier try's active run."""
    run_request = GenerioHook("generio_default").build_request(
        CHAIR_ARGUMENTS["flow"], CHAIR_ARGUMENTS["inputs"], CHAIR_ARGUMENTS["parameters"], None
    )
    return RunFlowOperator(
        task_id="t", **{**CHAIR_ARGUMENTS, "poll_interval": 0.1, **given}
    ), start_earlier_run(run_request, 3)


@pytest.mark.parametrize("try_number", [pytest.param(2, marks=needs("retry policies")), 4])
def test_retry_that_cannot_write_stops_the_earlier_run(emulator: Emulator, try_number: int) -> None:
    """If files cannot be written, no try follows, and the active run is aborted."""
    operator, store = create_retry(output_path="file:///proc/none")
    told = context(store, try_number, 3) | {"task": operator}
    with pytest.raises(FlowInputError, match="cannot be written"):
        operator.execute(told)
    assert states(emulator) == ["aborted"]


@pytest.mark.parametrize(("try_number", "then"), [(2, "starting"), (4, "aborted")])
def test_trigger_that_failed_leaves_no_run(emulator: Emulator, try_number: int, then: str) -> None:
    """If a trigger fails itself, the next try resumes the run, and the last try aborts it."""
    operator, store = create_retry(deferrable=True)
    told = context(store, try_number, 3) | {"task": operator}
    with pytest.raises(TaskDeferralError):
        operator.resume_execution("__fail__", {"error": "Trigger failure"}, told)
    assert states(emulator) == [then]


def test_kill_before_the_pick_up_stops_the_earlier_run(emulator: Emulator) -> None:
    """A retry that is marked while its function runs aborts the run of the earlier try."""
    _, store = create_retry()
    killed: list[FlowDecoratedOperator] = []

    def call() -> str:
        killed[0].on_kill()
        raise KeyboardInterrupt

    killed.append(
        FlowDecoratedOperator(
            task_id="t", python_callable=call, op_args=(), op_kwargs={}, flow=CHAIR_ARGUMENTS["flow"]
        )
    )
    with pytest.raises(KeyboardInterrupt):
        killed[0].execute(context(store, 2, 3))
    assert states(emulator) == ["aborted"]


class OneRequestService(Generio):
    """A service that creates and starts a run in one request, and can return it later."""

    staged_start = False


class OneRequestHook(GenerioHook):
    """Its hook."""

    def create_service(self, extra: Mapping[str, Any]) -> OneRequestService:  # noqa: ARG002  # it has no options
        """Make the service."""
        return OneRequestService()


class OneRequestOperator(RunFlowOperator):
    """The operator at that service."""

    def _get_hook(self, conn_id: str) -> OneRequestHook:  # noqa: ARG002  # there is one
        return OneRequestHook("generio_default")


def test_kill_stops_the_run_of_a_service_without_steps(emulator: Emulator) -> None:
    """A kill aborts a run that the service can return, in however many requests it was started."""
    operator = OneRequestOperator(task_id="t", **CHAIR_ARGUMENTS, poll_interval=0.1, timeout=20)

    def killed() -> None:
        operator.on_kill()
        raise KeyboardInterrupt

    def is_waiting() -> bool:
        return any(
            sent.method == "GET" and sent.path.count("/") == 2 for sent in emulator.requests if emulator.runs
        )

    with interrupt_after(0.2, killed, is_waiting), pytest.raises(KeyboardInterrupt):
        operator.execute(context(Store()))
    assert states(emulator) == ["aborted"]


def test_link_that_cannot_be_pushed_costs_no_run(
    emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """An XCom backend that rejects the run's link does not end the task."""
    emulator.run_seconds = 0
    told = context(Store())

    def push(key: str, _: Any) -> None:
        if key == RUN_LINK_KEY:
            raise RuntimeError(key)

    told["ti"].xcom_push = push
    assert (
        RunFlowOperator(task_id="t", **CHAIR_ARGUMENTS, poll_interval=0.1).execute(told)["state"]
        == "completed"
    )
    assert "The link to the flow run could not be pushed" in caplog.text
