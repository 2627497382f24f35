"""Tests of the limits of an account where flow runs are started: in tasks, in batches, by commands."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_provider_flows.core.exceptions import FlowInputError, FlowQuotaExceeded, FlowTimeout
from airflow_provider_flows.emulator import Emulator, Fault
from airflow_provider_flows.hooks import FlowsHook, GenerioHook
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.retry_policy import FlowsRetryPolicy
from airflow_provider_flows.storage import quota_marker
from airflow_provider_flows.triggers import FlowBatchTrigger, FlowStartTrigger
from tests.support.account_limits import count_lists, set_extra, shorten_waits
from tests.support.airflow_run import capture_log
from tests.support.batches import (
    count_paid_runs,
    create_batch,
    create_chain_batch,
    create_chain_items,
    create_items,
    get_max_active,
    read_manifest_states,
    run_try,
)
from tests.support.modes import FLOW, start_external_run
from tests.support.task_instances import Store, context
from tests.support.tries import CHAIR_ARGUMENTS, create_retry

pytestmark = pytest.mark.emulator(run_seconds=0.5, abort="instant", retries=0)


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_waits(monkeypatch)


def create_operator(**arguments: Any) -> RunFlowOperator:
    """Return an operator with short intervals."""
    defaults = {"poll_interval": 0.1, "max_poll_interval": 0.2, "deferrable": False}
    return RunFlowOperator(task_id="t", **{**CHAIR_ARGUMENTS, **defaults, **arguments})


def finish_after_lists(emulator: Emulator, count: int) -> None:
    """Let the active flow runs end when the emulator gets so many requests for a list."""
    before = count_lists(emulator)

    def on_request(_: Any) -> None:
        if count_lists(emulator) >= before + count:
            emulator.set_request_listener(None)
            emulator.advance(7200)

    emulator.set_request_listener(on_request)


def start_long_run(emulator: Emulator) -> None:
    """Start a flow run as another client of the account does; runs after it are short."""
    emulator.run_seconds = 3600
    start_external_run(emulator)
    emulator.run_seconds = 0.2


def test_a_worker_waits_for_the_runs_of_others(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is created while the account has too many active runs; then the task starts its own, once."""
    set_extra(emulator, monkeypatch, max_active_runs=1)
    start_long_run(emulator)
    finish_after_lists(emulator, 3)
    with capture_log() as lines:
        result = create_operator().execute(context(Store()))
    assert result["state"] == "completed"
    assert emulator.started_count == 2
    assert get_max_active(emulator) == 1
    assert "\n".join(lines).count("max_active_runs (1) active flow runs at generio; waiting") == 1


def test_a_worker_waits_until_the_deadline(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its deadline the task fails; no flow run was created."""
    set_extra(emulator, monkeypatch, max_active_runs=1)
    start_long_run(emulator)
    started_at = time.monotonic()
    with pytest.raises(FlowTimeout, match=r"not started before its timeout.* max_active_runs \(1\)"):
        create_operator(timeout=0.7).execute(context(Store()))
    assert time.monotonic() - started_at >= 0.7
    assert len(emulator.runs) == 1


def test_a_resumed_run_does_not_wait(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A retry resumes its run although the account has too many, and counts nothing."""
    operator, store = create_retry(deferrable=False)
    set_extra(emulator, monkeypatch, max_active_runs=1, max_runs_per_day=1)
    assert operator.execute(context(store, 2, 3))["state"] == "completed"
    assert emulator.started_count == 1
    assert count_lists(emulator) == 0


def get_event(deferred: TaskDeferred, kind: type[Any]) -> Any:
    """Run the trigger of a deferral, as Airflow stores it, to its event."""
    path, arguments = deferred.trigger.serialize()
    assert path == f"airflow_provider_flows.triggers.{kind.__name__}"

    async def run() -> Any:
        return (await anext(kind(**arguments).run())).payload

    return asyncio.run(run())


def test_a_deferrable_task_waits_in_the_triggerer(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task is deferred before it starts anything; its deadline is that of the first start."""
    set_extra(emulator, monkeypatch, max_active_runs=1)
    start_long_run(emulator)
    store, before = Store(), time.time()
    with pytest.raises(TaskDeferred) as caught:
        create_operator(deferrable=True, timeout=600).execute(context(store))
    assert caught.value.method_name == "start_after_wait"
    assert caught.value.timeout is not None
    assert len(emulator.runs) == 1
    finish_after_lists(emulator, 2)
    event = get_event(caught.value, FlowStartTrigger)
    assert before + 600 <= event["start_deadline"] <= time.time() + 600
    result = create_operator(timeout=600).start_after_wait(context(store), event)
    assert result["state"] == "completed"
    assert emulator.started_count == 2
    assert time.time() < before + 10  # the reservation of the trigger is not the worker's
    with pytest.raises(FlowTimeout, match="timeout had already passed"):
        create_operator(timeout=600).start_after_wait(context(Store()), {"start_deadline": before})


def test_triggers_do_not_resume_more_tasks_than_may_start(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many triggers in one triggerer, as many end as runs may be started, with few lists."""
    set_extra(emulator, monkeypatch, max_active_runs=2)

    async def run_triggers() -> int:
        deadline = time.time() + 1.5
        triggers = [FlowStartTrigger("generio_default", FLOW, deadline) for _ in range(8)]
        tasks = [asyncio.create_task(anext(trigger.run())) for trigger in triggers]  # type: ignore[arg-type]
        done, pending = await asyncio.wait(tasks, timeout=1.0)
        for task in pending:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return len(done)

    assert asyncio.run(run_triggers()) == 2
    assert 1 <= count_lists(emulator) < 25


@pytest.mark.parametrize("deferrable", [False, True])
def test_runs_of_a_day(emulator: Emulator, monkeypatch: pytest.MonkeyPatch, *, deferrable: bool) -> None:
    """Beyond the runs of a day a task fails before it sends anything, and is not retried."""
    set_extra(emulator, monkeypatch, max_runs_per_day=2)
    for _ in range(2):
        start_external_run(emulator)
    with pytest.raises(FlowQuotaExceeded, match=r"2 within the last 24 hours.*'flows_default'") as caught:
        create_operator(deferrable=deferrable).execute(context(Store()))
    assert len(emulator.runs) == 2
    assert not quota_marker.FOLDER.exists() or not [*quota_marker.FOLDER.iterdir()]
    policy_context: Any = {"ti": None}
    assert FlowsRetryPolicy().evaluate(caught.value, 1, 3, policy_context).action.value == "fail"


def test_a_service_without_a_list_gets_one_warning(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """PromptChainer does not list its runs, so the limits have no effect, which is logged once."""
    set_extra(emulator, monkeypatch, max_active_runs=1)
    emulator.run_seconds = 0
    result = run_try(create_chain_batch(tmp_path, create_chain_items(3), max_active_runs=3))
    assert result["completed"] == 3
    assert caplog.text.count("have no effect: promptchainer does not list its flow runs") == 1


def test_an_account_that_cannot_be_counted_starts_nothing(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the list fails, so does the task; nothing was created, and a retry counts again."""
    set_extra(emulator, monkeypatch, max_active_runs=1)
    emulator.add_fault(Fault("GET", "/flows", times=1, status=500))
    with pytest.raises(Exception, match="500"):
        create_operator().execute(context(Store()))
    assert not emulator.runs
    assert create_operator().execute(context(Store()))["state"] == "completed"


@pytest.mark.parametrize("name", ["max_active_runs", "max_runs_per_day"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "many", True])
def test_invalid_limits(emulator: Emulator, monkeypatch: pytest.MonkeyPatch, name: str, value: Any) -> None:
    """A limit that is no positive integer is an error that names the field."""
    set_extra(emulator, monkeypatch, **{name: value})
    with pytest.raises(FlowInputError, match=f"{name} in the extra of connection 'generio_default' must be"):
        GenerioHook("generio_default").start(FLOW, "A chair", {"quality": "low"})
    assert not emulator.requests


def test_all_starts_of_a_hook_count(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """`start` and `start_created_run` wait as a task does."""
    set_extra(emulator, monkeypatch, max_runs_per_day=2)
    hook = FlowsHook.get_hook("generio_default")
    run = hook.create(FLOW, {"quality": "low"})
    hook.add_input(run.flow_run_id, "A chair")
    hook.start(FLOW, "A chair", {"quality": "low"})
    with pytest.raises(FlowQuotaExceeded):
        hook.start_created_run(run.flow_run_id)
    assert emulator.started_count == 1


# Batches ----------------------------------------------------------------------------------------------------


def test_a_batch_starts_no_more_than_the_account_may_have(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The limit of the account bounds a batch beside its own; each item is started once."""
    set_extra(emulator, monkeypatch, max_active_runs=2)
    result = run_try(create_batch(tmp_path, create_items(8), max_active_runs=8))
    assert result["completed"] == 8
    assert set(count_paid_runs(emulator).values()) == {1}
    assert get_max_active(emulator) <= 2


def test_a_failed_item_waits_for_its_second_run(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Runs of item_retries wait as well."""
    from airflow_provider_flows.emulator import Plan

    set_extra(emulator, monkeypatch, max_active_runs=1)
    emulator.add_plan(Plan("failed"))
    result = run_try(create_batch(tmp_path, create_items(3), max_active_runs=3, item_retries=1))
    assert result["completed"] == 3
    assert count_paid_runs(emulator).total() == 4
    assert get_max_active(emulator) == 1


@pytest.mark.parametrize("runs_of_others", [0, 1])
def test_a_deferrable_batch_waits_in_the_triggerer(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, runs_of_others: int
) -> None:
    """While the account is full, no worker slot is held: a trigger waits for own runs, or for others'."""
    set_extra(emulator, monkeypatch, max_active_runs=1)
    if runs_of_others:
        start_long_run(emulator)
    store, event, kinds = Store(), None, []
    while True:
        operator = create_batch(tmp_path, create_items(3), deferrable=True)
        try:
            if not kinds:
                operator.execute(context(store, 1, 3))
            else:
                result = operator.execute_complete(context(store, 1, 3), event)
            break
        except TaskDeferred as deferred:
            kind: type[Any] = FlowBatchTrigger
            if type(deferred.trigger) is FlowStartTrigger:
                kind = FlowStartTrigger
                finish_after_lists(emulator, 2)
            kinds.append(kind)
            event = get_event(deferred, kind)
            assert len(kinds) < 12
    assert result["completed"] == 3
    assert (FlowStartTrigger in kinds) == bool(runs_of_others)
    assert FlowBatchTrigger in kinds
    assert emulator.started_count == 3 + runs_of_others
    assert get_max_active(emulator) == 1


def test_the_runs_of_a_day_stop_a_batch(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Active runs end, the task fails without a retry, and a Clear a day later runs what is missing."""
    set_extra(emulator, monkeypatch, max_runs_per_day=2)
    store = Store()
    with pytest.raises(FlowQuotaExceeded, match="max_runs_per_day"):
        run_try(create_batch(tmp_path, create_items(4)), store)
    assert sorted(read_manifest_states(tmp_path).values()) == ["completed", "completed", "skipped", "skipped"]
    set_extra(emulator, monkeypatch, max_runs_per_day=4)
    assert run_try(create_batch(tmp_path, create_items(4)), store, 2, 4)["completed"] == 4  # cleared
    assert set(count_paid_runs(emulator).values()) == {1}
