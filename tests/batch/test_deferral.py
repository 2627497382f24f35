"""Tests of deferrable batches: what the worker and the trigger do in turn, and a real DAG run."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.models.taskinstance import TaskInstance
from airflow.providers.common.compat.sdk import DAG, Asset, AssetAlias, TaskDeferred
from airflow.triggers.base import TriggerEvent
from airflow.utils.session import create_session
from sqlalchemy import select

from airflow_provider_flows.core.exceptions import FlowQuotaExceeded
from airflow_provider_flows.emulator import Emulator, Fault, Plan
from airflow_provider_flows.triggers import FlowBatchTrigger
from tests.support.airflow_run import run_dag
from tests.support.batches import (
    count_paid_runs,
    create_batch,
    create_items,
    get_max_active,
    read_manifest_states,
)
from tests.support.kills import StubSupervisor, kill_all, run_until_killed, task_instance
from tests.support.task_instances import Store, context
from tests.support.triggers import wait_for_condition
from tests.support.versions import needs

pytestmark = pytest.mark.emulator(run_seconds=0.5, abort="instant", retries=0)


async def get_event(deferred: TaskDeferred) -> Any:
    """Run the trigger of a deferral, as Airflow stores it, to its event."""
    assert deferred.method_name == "execute_complete"
    path, arguments = deferred.trigger.serialize()
    assert path == "airflow_provider_flows.triggers.FlowBatchTrigger"
    event: TriggerEvent = await anext(FlowBatchTrigger(**arguments).run())
    return event.payload


def run_with_deferrals(output_path: Path, items: Any, store: Store, **arguments: Any) -> tuple[Any, int]:
    """Run a deferrable batch, each part with a new operator, and return its result and the deferrals."""
    deferrals, event = 0, None
    while True:
        operator = create_batch(output_path, items, deferrable=True, **arguments)
        try:
            if deferrals:
                return operator.execute_complete(context(store, 1, 3), event), deferrals
            return operator.execute(context(store, 1, 3)), deferrals
        except TaskDeferred as deferred:
            event, deferrals = asyncio.run(get_event(deferred)), deferrals + 1


def test_worker_and_trigger_take_turns(emulator: Emulator, tmp_path: Path) -> None:
    """A deferrable batch runs each item once, at most `max_active_runs` at a time, with few deferrals."""
    result, deferrals = run_with_deferrals(tmp_path, create_items(12), Store(), max_active_runs=4)
    assert (result["completed"], result["total"]) == (12, 12)
    assert set(count_paid_runs(emulator).values()) == {1}
    assert get_max_active(emulator) <= 4
    assert 3 <= deferrals <= 8
    assert set(read_manifest_states(tmp_path).values()) == {"completed"}


def test_quota_that_is_used_up_for_a_moment(emulator: Emulator, tmp_path: Path) -> None:
    """After a 402 no later part of the try starts a flow run, even if the account has a quota again."""
    emulator.run_seconds = 1
    emulator.add_fault(Fault("POST", "/flows", skip=3, times=1, status=402))
    with pytest.raises(FlowQuotaExceeded, match="402"):
        run_with_deferrals(tmp_path, create_items(12), Store(), max_active_runs=4)
    states = Counter(read_manifest_states(tmp_path).values())
    assert states == {"completed": len(emulator.paid_runs), "skipped": 12 - len(emulator.paid_runs)}
    assert {run.state for run in emulator.paid_runs} == {"completed"}


def test_failures_over_several_parts(emulator: Emulator, tmp_path: Path) -> None:
    """Retries of items and failures count over all parts of a try."""
    emulator.add_plan(Plan("failed", times=3))
    items = [*create_items(4), {"key": "bad", "inputs": "Chair", "parameters": {"quality": "odd"}}]
    arguments: dict[str, Any] = {"max_active_runs": 1, "item_retries": 1, "min_success_ratio": 0}
    result, _ = run_with_deferrals(tmp_path, items, Store(), validate="skip", **arguments)
    assert (result["total"], result["completed"], result["failed"]) == (5, 3, 2)
    assert count_paid_runs(emulator) == {"item-1": 2, "item-2": 2, "item-3": 1, "item-4": 1}
    assert [*read_manifest_states(tmp_path).values()] == ["failed", *["completed"] * 3, "invalid"]


def test_run_that_takes_too_long_is_aborted_after_a_deferral(emulator: Emulator, tmp_path: Path) -> None:
    """The trigger ends at the first deadline, and the worker aborts the run."""
    emulator.run_seconds = 3600
    result, _ = run_with_deferrals(tmp_path, create_items(2), Store(), timeout=1.5, min_success_ratio=0)
    assert result["failed"] == 2
    assert {run.state for run in emulator.paid_runs} == {"aborted"}


def test_event_with_an_error_lets_the_worker_poll(emulator: Emulator, tmp_path: Path) -> None:
    """If the triggerer's connection is unusable too often, the worker waits itself."""
    store = Store()
    with pytest.raises(TaskDeferred):
        create_batch(tmp_path, create_items(2), deferrable=True).execute(context(store, 1, 3))
    event = {"error": "There is no such connection", "rejections": 3}
    operator = create_batch(tmp_path, create_items(2), deferrable=True)
    assert operator.execute_complete(context(store, 1, 3), event)["completed"] == 2
    assert emulator.started_count == 2


def test_without_a_store_the_worker_waits(emulator: Emulator, tmp_path: Path) -> None:
    """A batch that cannot save its records is not deferred."""
    operator = create_batch(tmp_path, create_items(2), deferrable=True)
    no_store = {**context(Store()), "task_state_store": None}
    assert operator.execute(no_store)["completed"] == 2
    assert emulator.started_count == 2


@needs("on_kill of triggers")
async def test_killed_trigger_aborts_all_runs(
    emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deferred batch whose task is marked aborts all its active runs."""
    emulator.run_seconds = 3600
    operator = create_batch(tmp_path, create_items(20), deferrable=True)
    with pytest.raises(TaskDeferred) as caught:
        await asyncio.to_thread(operator.execute, context(Store(), 1, 3))
    trigger: Any = caught.value.trigger
    trigger.task_instance = task_instance("t")
    supervisor = StubSupervisor().install(monkeypatch)
    task = asyncio.create_task(run_until_killed(trigger))
    assert await wait_for_condition(lambda: supervisor.messages, 30)
    supervisor.set_state([trigger.task_instance], "failed")
    await kill_all([task])
    assert {run.state for run in emulator.paid_runs} == {"aborted"}
    assert len(emulator.paid_runs) == 20


@needs("retry policies")
@pytest.mark.parametrize("deferrable", [False, True])
def test_airflow_does_not_retry_a_used_up_quota(
    emulator: Emulator, tmp_path: Path, *, deferrable: bool
) -> None:
    """402 in the middle of a batch fails its task in the first try, after the active runs have ended."""

    def use_up(_: Any) -> None:
        if emulator.started_count == 2:
            emulator.switches.quota = 402

    emulator.set_request_listener(use_up)
    with DAG(f"batch_quota_{deferrable}", schedule=None) as dag:
        arguments: dict[str, Any] = {"retries": 2, "retry_delay": timedelta(0), "deferrable": deferrable}
        create_batch(tmp_path, create_items(4), max_active_runs=2, **arguments)
    result = run_dag(dag)
    assert type(result.errors["t"]) is FlowQuotaExceeded, result.log
    with create_session() as session:
        tries = session.scalar(select(TaskInstance.try_number).where(TaskInstance.run_id == result.run_id))
    assert tries == 1
    assert {run.state for run in emulator.paid_runs} == {"completed"}
    states = sorted(read_manifest_states(tmp_path).values())
    assert states == ["completed", "completed", "skipped", "skipped"]
    names = {"manifest": "manifest.jsonl", "failed_items": "failed.jsonl"}
    assert {
        key: Path(result.xcoms["t"][key]).name for key in names
    } == names  # also of a batch that has failed


def read_events(run_id: str) -> list[dict[str, Any]]:
    """Return the extra of each asset event of a DAG run."""
    from airflow.models.asset import AssetEvent

    with create_session() as session:
        events = session.scalars(select(AssetEvent).where(AssetEvent.source_run_id == run_id))
        return [dict(event.extra) for event in events]


@needs("task state store")
@pytest.mark.parametrize("deferrable", [False, True])
def test_dag_run(emulator: Emulator, tmp_path: Path, *, deferrable: bool) -> None:
    """In a real DAG run, both modes return the same small dict, and a downstream task gets it."""
    with DAG(f"batch_{deferrable}", schedule=None) as dag:
        outlets = [Asset("models"), AssetAlias("manifests")]
        create_batch(tmp_path, create_items(6), max_active_runs=3, deferrable=deferrable, outlets=outlets)
    result = run_dag(dag)
    assert result.states == {"t": "success"}, result.log
    returned = result.xcoms["t"]["return_value"]
    assert (returned["completed"], returned["service"]) == (6, "generio")
    events = read_events(result.run_id)
    assert [event["completed"] for event in events] == [6, 6]
    assert {event["manifest"] for event in events} == {returned["manifest"]}
    assert set(count_paid_runs(emulator).values()) == {1}
