"""Tests of a task's memory where Airflow has no store for it; what it does with one is shown in test_retries.py.

The context is a plain one without `task_state_store`, as Airflow before 3.3 gives it.
"""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_flows.core.run import FlowInput, FlowOutput, FlowRun, FlowState
from airflow_provider_flows.core.start import RunRecord, RunRequest
from airflow_provider_flows.worker.task_state import PREVIOUS_RUNS_KEY, RECORD_KEY, RUN_ID_KEY, TaskState
from tests.support.task_instances import Store

REQUEST = RunRequest("model_generate_fromprompt", [FlowInput("a chair")])


@pytest.fixture
def pushed() -> dict[str, Any]:
    """Take what is pushed to XCom."""
    return {}


@pytest.fixture
def context(pushed: dict[str, Any]) -> Any:
    """Give the context of a task's only try, without a store."""
    return {"ti": SimpleNamespace(max_tries=3, try_number=1, xcom_push=pushed.__setitem__)}


def test_without_a_store_one_warning_says_what_is_missing(
    context: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A durable task on an Airflow without the store is told, once, that a retry will start another run."""
    with caplog.at_level(logging.WARNING):
        memory = TaskState(context, durable=True)
        memory.create_record(REQUEST.fingerprint, None, "generio_default")
    (line,) = [record.getMessage() for record in caplog.records]
    assert "no task state store (3.3 and later have one)" in line
    assert not memory.has_retry_left


def test_without_a_store_the_start_is_the_same_and_nothing_is_remembered(
    context: Any, pushed: dict[str, Any]
) -> None:
    """What is kept goes to XCom, for whoever looks while the task waits; the next try finds nothing."""
    memory = TaskState(context, durable=True)
    record = memory.create_record(REQUEST.fingerprint, None, "generio_default")
    memory.save(record)
    assert pushed == {}
    memory.save(type(record)(record.fingerprint, record.generation, flow_run_id="6b02"))
    assert pushed == {RUN_ID_KEY: "6b02"}
    assert TaskState(context, durable=True).record is None


def test_who_wants_no_memory_is_not_warned(context: Any, caplog: pytest.LogCaptureFixture) -> None:
    """With durable=False nothing is said of a store."""
    TaskState(context, durable=False).create_record(REQUEST.fingerprint, None, "generio_default")
    assert not caplog.records


def test_answer_that_does_not_fit_is_not_kept_in_part(context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a deletion all of a run is kept or nothing; an answer that came once only loses what is no file, if it must."""
    store = Store()
    memory = TaskState({**context, "task_state_store": store}, durable=True)
    memory.save(memory.create_record(REQUEST.fingerprint, None, "generio_default"))
    before = dict(store)
    file = FlowOutput(
        "chair", "a1", uri="file:///tmp/chair.glb", size=8, sha256="0" * 64, additional={"n": "x" * 3000}
    )
    run = FlowRun(
        "r", "generio", state=FlowState.COMPLETED, outputs=(file, FlowOutput("text", value="long " * 500))
    )
    monkeypatch.setenv("AIRFLOW__STATE_STORE__MAX_VALUE_STORAGE_BYTES", "4500")
    assert not memory.save_run(run)
    assert dict(store) == before

    memory.save(RunRecord(REQUEST.fingerprint, 3, flow_run_id="r", saved_run=run.to_record()))
    assert [(output["status"], output["uri"]) for output in store[RECORD_KEY]["saved_run"]["outputs"]] == [
        ("ready", "file:///tmp/chair.glb"),
        ("error", None),
    ]
    monkeypatch.setenv("AIRFLOW__STATE_STORE__MAX_VALUE_STORAGE_BYTES", "9000")
    assert memory.save_run(run)
    assert store[RECORD_KEY]["saved_run"] == run.to_record()


def test_runs_of_the_tries_before_are_remembered(context: Any) -> None:
    """Each try that has another run than the one before notes that one, once; one that goes on with a run notes nothing."""
    store = Store()
    for number, run in ((1, "first"), (2, "first"), (3, "second"), (4, "third")):
        memory = TaskState(
            {
                "ti": SimpleNamespace(**{**vars(context["ti"]), "try_number": number}),
                "task_state_store": store,
            },
            durable=True,
        )
        for _ in range(2):
            memory.save(RunRecord(REQUEST.fingerprint, 3, flow_run_id=run))
    assert store[PREVIOUS_RUNS_KEY] == [
        {"flow_run_id": "first", "last_try": 2},
        {"flow_run_id": "second", "last_try": 3},
    ]
