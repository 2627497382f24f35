"""Tests of kills and time-outs in the moments in which a try does not know its flow run yet, or knows another one's.

The operator is run as a worker runs it, with a task instance that answers as Airflow's does; whole Airflows are in tests/system/chaos.
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
from airflow_provider_flows.core.start import RunRecord, cancel
from airflow_provider_flows.decorators import FlowDecoratedOperator
from airflow_provider_flows.emulator import Emulator, Fault
from airflow_provider_flows.hooks import GenerioHook
from airflow_provider_flows.links import RUN_LINK_KEY
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.services.generio.api import Generio
from airflow_provider_flows.storage.atomic_file import CancelledWriteError
from airflow_provider_flows.worker.task_state import RECORD_KEY
from tests.support.task_instances import Store, context
from tests.support.tries import CHAIR_ARGUMENTS
from tests.support.versions import TaskDeferralError, needs


@contextmanager
def alarm(
    seconds: float, rings: Callable[[], None], since: Callable[[], Any] = lambda: True
) -> Iterator[None]:
    """Interrupt what goes on, as Airflow does for SIGTERM and execution_timeout, so long after a moment."""
    before = signal.signal(signal.SIGUSR1, lambda *_: rings())  # pytest-timeout has SIGALRM

    over = Event()

    def ring_then() -> None:
        while not since() and not over.wait(0.01):
            pass
        if not over.wait(seconds):
            os.kill(os.getpid(), signal.SIGUSR1)

    thread = Thread(target=ring_then)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)


def ring() -> None:
    """Raise what Airflow raises when execution_timeout is over."""
    raise AirflowTaskTimeout("execution_timeout")


pytestmark = pytest.mark.emulator(run_seconds=3600, abort="instant", retries=0)


def states(emulator: Emulator) -> list[str]:
    """Give the states of all runs."""
    return [str(run.state) for run in emulator.runs.values()]


def kept(order: Any, lineage: int) -> Store:
    """Start a run and give the store that its try leaves behind."""
    found: list[Any] = []
    GenerioHook("generio_default").start(
        order, record=RunRecord(order.fingerprint, lineage), save=found.append
    )
    return Store({RECORD_KEY: found[-1].to_dict()})


def test_kill_while_the_run_is_being_made_starts_nothing(emulator: Emulator) -> None:
    """A task that is marked while POST /flows is under way deletes the run that was made, and starts none."""
    emulator.add_fault(Fault("POST", "/flows", delay=1.5))
    operator = RunFlowOperator(task_id="t", **CHAIR_ARGUMENTS, timeout=20)
    with alarm(0.7, operator.on_kill), pytest.raises(FlowError, match="was killed while"):
        operator.execute(context(Store()))
    assert (emulator.started_count, states(emulator)) == (0, [])


def test_kill_during_the_pick_up_stops_the_earlier_run(emulator: Emulator) -> None:
    """A retry that is marked before it has looked at the run of the try before it stops that run."""
    operator = RunFlowOperator(task_id="t", **CHAIR_ARGUMENTS, timeout=20)
    order = GenerioHook("generio_default").build_request(
        CHAIR_ARGUMENTS["flow"], CHAIR_ARGUMENTS["inputs"], CHAIR_ARGUMENTS["parameters"], None
    )
    store = kept(order, 3)
    emulator.add_fault(Fault("GET", "/flows/*", delay=1.5))

    def killed() -> None:
        operator.on_kill()
        raise KeyboardInterrupt

    with alarm(0.7, killed), pytest.raises(KeyboardInterrupt):
        operator.execute(context(store, 2, 3))
    assert states(emulator) == ["aborted"]


def test_kill_during_a_download_writes_nothing_more(emulator: Emulator, tmp_path: Path) -> None:
    """Airflow only tells a task of its kill, and lets it work on for a while: what comes in then is not written."""
    emulator.run_seconds = 0
    emulator.add_fault(Fault("GET", "*/outputs/*", delay=1.5))
    operator = RunFlowOperator(task_id="t", **CHAIR_ARGUMENTS, poll_interval=0.1, output_path=str(tmp_path))

    def fetches() -> bool:
        return any("/outputs/" in asked.path for asked in emulator.requests)

    with alarm(0.3, operator.on_kill, fetches), pytest.raises(CancelledWriteError):
        operator.execute(context(Store()))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("ended", [True, False])
def test_retry_without_its_inputs_goes_on_with_the_paid_run(
    emulator: Emulator, tmp_path: Path, *, ended: bool
) -> None:
    """A retry whose input is gone goes on with the run that was started; where that was aborted it says what is missing."""
    image = tmp_path / "chair.png"
    image.write_bytes((Path(__file__).parents[2] / "example_dags" / "images" / "chair.png").read_bytes())
    flow: dict[str, Any] = {"flow": "model_generate_fromimage", "inputs": [image], "poll_interval": 0.1}
    store = kept(GenerioHook("generio_default").build_request(flow["flow"], [image], None, None), 3)
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
    """An eviction while POST /flows is under way, of a task that goes on for Airflow, disturbs nothing."""
    emulator.run_seconds = 0
    emulator.add_fault(Fault("POST", "/flows", delay=1.0))
    operator = RunFlowOperator(task_id="t", **CHAIR_ARGUMENTS, poll_interval=0.1)
    with alarm(0.5, operator.on_kill):
        assert operator.execute(context(Store(), state="running"))["state"] == "completed"
    assert emulator.started_count == 1


@pytest.mark.parametrize("max_tries", [1, 4])
def test_time_that_is_over_while_another_order_is_looked_at(emulator: Emulator, max_tries: int) -> None:
    """execution_timeout during the look at the run from before a Clear is no reason to take that run for this task's."""
    emulator.run_seconds = 0
    order = GenerioHook("generio_default").build_request(
        CHAIR_ARGUMENTS["flow"], "Something else", CHAIR_ARGUMENTS["parameters"], None
    )
    store = kept(order, 0)
    time.sleep(0.2)
    emulator.add_fault(Fault("GET", "/flows/*", delay=3))
    with alarm(0.7, ring), pytest.raises(AirflowTaskTimeout):
        RunFlowOperator(task_id="t", **CHAIR_ARGUMENTS, timeout=20).execute(context(store, 2, max_tries))
    assert emulator.started_count == 1


def test_last_try_that_the_service_ends_leaves_no_run_going(emulator: Emulator) -> None:
    """When answers of the service end the last try, the run is stopped, for nobody waits for it any more."""
    emulator.add_fault(Fault("GET", "/flows/*", status=402, times=3))
    operator = RunFlowOperator(task_id="t", **CHAIR_ARGUMENTS, poll_interval=0.1, max_poll_interval=0.2)
    with pytest.raises(FlowServiceError):
        operator.execute(context(Store()))
    assert states(emulator) == ["aborted"]


def test_a_try_that_the_service_ends_leaves_the_run_to_the_next(emulator: Emulator) -> None:
    """While another try is left, it goes on with the run."""
    emulator.add_fault(Fault("GET", "/flows/*", status=402, times=3))
    operator = RunFlowOperator(task_id="t", **CHAIR_ARGUMENTS, poll_interval=0.1, max_poll_interval=0.2)
    with pytest.raises(FlowServiceError):
        operator.execute(context(Store(), 1, 2))
    assert "aborted" not in states(emulator)


@pytest.mark.parametrize("status", [503, 404])
def test_stop_from_a_triggerer_gets_over_one_odd_answer(flow_emulator: Emulator, status: int) -> None:
    """One 503, or one answer that the run is not known, does not leave a run going that a triggerer was to stop."""
    flow_emulator.run_seconds = 3600
    flow_emulator.switches.abort = "instant"
    hook = GenerioHook("generio_default")
    run = hook.start(CHAIR_ARGUMENTS["flow"], CHAIR_ARGUMENTS["inputs"], CHAIR_ARGUMENTS["parameters"])
    flow_emulator.add_fault(Fault("GET", "/flows/*", status=status))
    asyncio.run(hook.arun(cancel(hook.service, run.flow_run_id)))
    assert states(flow_emulator) == ["aborted"]


def retried(**given: Any) -> tuple[RunFlowOperator, Store]:
    """Give the operator of a retry, and the store with the run that the try before it left under way."""
    order = GenerioHook("generio_default").build_request(
        CHAIR_ARGUMENTS["flow"], CHAIR_ARGUMENTS["inputs"], CHAIR_ARGUMENTS["parameters"], None
    )
    return RunFlowOperator(task_id="t", **{**CHAIR_ARGUMENTS, "poll_interval": 0.1, **given}), kept(order, 3)


@pytest.mark.parametrize("try_number", [pytest.param(2, marks=needs("retry policies")), 4])
def test_retry_that_cannot_write_stops_the_earlier_run(emulator: Emulator, try_number: int) -> None:
    """Where nothing can be written any more no try follows, and nobody waits for the run that is under way."""
    operator, store = retried(output_path="file:///proc/none")
    told = context(store, try_number, 3) | {"task": operator}
    with pytest.raises(FlowInputError, match="cannot be written"):
        operator.execute(told)
    assert states(emulator) == ["aborted"]


@pytest.mark.parametrize(("try_number", "then"), [(2, "starting"), (4, "aborted")])
def test_trigger_that_failed_leaves_no_run(emulator: Emulator, try_number: int, then: str) -> None:
    """Airflow does not resume a task whose trigger failed itself: the next try goes on with the run, the last one stops it."""
    operator, store = retried(deferrable=True)
    told = context(store, try_number, 3) | {"task": operator}
    with pytest.raises(TaskDeferralError):
        operator.resume_execution("__fail__", {"error": "Trigger failure"}, told)
    assert states(emulator) == [then]


def test_kill_before_the_pick_up_stops_the_earlier_run(emulator: Emulator) -> None:
    """A retry that is marked while its function works, or its inputs are read, stops the run of the try before it."""
    _, store = retried()
    killed: list[FlowDecoratedOperator] = []

    def words() -> str:
        killed[0].on_kill()
        raise KeyboardInterrupt

    killed.append(
        FlowDecoratedOperator(
            task_id="t", python_callable=words, op_args=(), op_kwargs={}, flow=CHAIR_ARGUMENTS["flow"]
        )
    )
    with pytest.raises(KeyboardInterrupt):
        killed[0].execute(context(store, 2, 3))
    assert states(emulator) == ["aborted"]


class AtOnce(Generio):
    """A service that makes and starts a run in one request, and can be asked for it afterwards."""

    staged_start = False


class AtOnceHook(GenerioHook):
    """Its hook."""

    def create_service(self, extra: Mapping[str, Any]) -> AtOnce:  # noqa: ARG002  # it has no options
        """Make the service."""
        return AtOnce()


class AtOnceOperator(RunFlowOperator):
    """The operator at that service."""

    def _hook(self, conn_id: str | None = None) -> AtOnceHook:  # noqa: ARG002  # there is one
        return AtOnceHook("generio_default")


def test_kill_stops_the_run_of_a_service_without_steps(emulator: Emulator) -> None:
    """What counts is whether the service can be asked for the run, not in how many requests it is started."""
    operator = AtOnceOperator(task_id="t", **CHAIR_ARGUMENTS, poll_interval=0.1, timeout=20)

    def killed() -> None:
        operator.on_kill()
        raise KeyboardInterrupt

    def waits() -> bool:
        return any(
            asked.method == "GET" and asked.path.count("/") == 2
            for asked in emulator.requests
            if emulator.runs
        )

    with alarm(0.2, killed, waits), pytest.raises(KeyboardInterrupt):
        operator.execute(context(Store()))
    assert states(emulator) == ["aborted"]


def test_link_that_cannot_be_pushed_costs_no_run(
    emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """An XCom backend that refuses the link of a run that is under way does not end its task."""
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
