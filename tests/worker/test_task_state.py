"""Tests of a task's saved state, with and without Airflow's task state store.

A context without `task_state_store` is that of Airflow before 3.3.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_flows.core.flow_run import FlowInput
from airflow_provider_flows.core.start_or_resume import RunRecord, RunRequest
from airflow_provider_flows.worker.run_tracking import RUN_ID_KEY
from airflow_provider_flows.worker.task_state import PREVIOUS_RUNS_KEY, TaskState
from tests.support.task_instances import Store

REQUEST = RunRequest("model_generate_fromprompt", [FlowInput("a chair")])


@pytest.fixture
def xcoms() -> dict[str, Any]:
    """Return the dict that XComs are pushed to."""
    return {}


@pytest.fixture
def context(xcoms: dict[str, Any]) -> Any:
    """Return the context of a try without a store."""
    return {"ti": SimpleNamespace(max_tries=3, try_number=1, xcom_push=xcoms.__setitem__)}


@pytest.mark.parametrize("is_listable", [True, False])
def test_without_a_store_a_listed_run_is_left_to_the_retry(context: Any, *, is_listable: bool) -> None:
    """Without a store, a retry can resume the run of this try only if the service lists it."""
    task_state = TaskState(context, durable=True)
    task_state.is_listable = is_listable
    assert not task_state.has_retry_left
    task_state.save(RunRecord(REQUEST.fingerprint, 3))
    assert not task_state.has_retry_left
    task_state.save(RunRecord(REQUEST.fingerprint, 3, flow_run_id="6b02"))
    assert task_state.has_retry_left == is_listable


def test_missing_store_saves_no_record_but_pushes_the_id(context: Any, xcoms: dict[str, Any]) -> None:
    """The flow run id is pushed to XCom for the UI; the next try has no record."""
    task_state = TaskState(context, durable=True)
    record = RunRecord(REQUEST.fingerprint, 3, conn_id="generio_default")
    task_state.save(record)
    assert xcoms == {}
    task_state.save(type(record)(record.fingerprint, record.generation, flow_run_id="6b02"))
    assert xcoms == {RUN_ID_KEY: "6b02"}
    assert TaskState(context, durable=True).record is None


def test_runs_of_earlier_tries_are_saved(context: Any) -> None:
    """A try with another run than the earlier one saves that one, once; a resuming try saves nothing."""
    store = Store()
    for try_number, run in ((1, "first"), (2, "first"), (3, "second"), (4, "third")):
        task_state = TaskState(
            {
                "ti": SimpleNamespace(**{**vars(context["ti"]), "try_number": try_number}),
                "task_state_store": store,
            },
            durable=True,
        )
        for _ in range(2):
            task_state.save(RunRecord(REQUEST.fingerprint, 3, flow_run_id=run))
    assert store[PREVIOUS_RUNS_KEY] == [
        {"flow_run_id": "first", "last_try": 2},
        {"flow_run_id": "second", "last_try": 3},
    ]
