"""Tests of what a deferred task needs again: it comes from the event or the task state store, from no XCom.

Other tasks and users may be able to write a task's XComs.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from airflow.models.trigger import TRIGGER_FAIL_REPR, TriggerFailureReason
from airflow.providers.common.compat.sdk import AirflowException, TaskDeferred
from airflow.sdk import DAG

from airflow_provider_flows.decorators import DEFERRED_ARGUMENTS_KEY, MAX_SAVED_PROMPTS, FlowDecoratedOperator
from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.triggers import FlowRunTrigger
from airflow_provider_flows.worker.task_state import PROMPTS_KEY
from tests.support.airflow_run import run_dag
from tests.support.modes import FAST_POLLING, FLOW, start_external_run
from tests.support.task_instances import Store, context
from tests.support.tries import CHAIR_ARGUMENTS

pytestmark = pytest.mark.emulator(run_seconds=1000, abort="instant", retries=0)

NO_EVENT = (TRIGGER_FAIL_REPR, {"error": TriggerFailureReason.TRIGGER_TIMEOUT.value})


def create_decorated(returned: dict[str, Any], **more: Any) -> FlowDecoratedOperator:
    """Return a deferrable task of a function that returns these arguments, or fails at its second call."""
    calls = iter([returned])
    return FlowDecoratedOperator(
        task_id="t",
        python_callable=lambda: next(calls),
        deferrable=True,
        **{"flow": FLOW, "parameters": {"quality": "low"}, **FAST_POLLING, **more},
    )


def defer(task: Any, task_context: Any) -> TaskDeferred:
    """Execute a deferrable task, and return its deferral."""
    with pytest.raises(TaskDeferred) as caught:
        task.execute(task_context | {"task": task})
    return caught.value


def forge_xcoms(task_context: Any, forged: Any) -> Any:
    """Return the context in which each XCom of the task has been replaced."""
    task_context["ti"].xcom_pull = lambda *_, **__: forged
    return task_context


def get_event(deferred: TaskDeferred) -> Any:
    """Return the event of a deferral's trigger, which Airflow stores and loads in between."""
    path, arguments = deferred.trigger.serialize()
    assert path.endswith("FlowRunTrigger")
    trigger = FlowRunTrigger(**json.loads(json.dumps(arguments)))
    return asyncio.run(anext(trigger.run())).payload


def find_stored_files(folder: Path) -> list[Path]:
    """Return the files in a folder of outputs."""
    return [path for path in folder.rglob("*") if path.is_file()]


def test_forged_xcom_redirects_no_file(emulator: Emulator, tmp_path: Path) -> None:
    """After a deferral the function's arguments come from the event, whatever the task's XComs have."""
    right, forged = tmp_path / "right", tmp_path / "forged"
    task = create_decorated({"inputs": "A chair", "output_path": str(right)})
    deferred = defer(task, context(Store()))
    emulator.advance(1000)
    resumed = forge_xcoms(context(Store()), {"output_path": str(forged), "flows_conn_id": "other"})

    event = {"event": get_event(deferred)}
    returned = create_decorated({}).resume_execution("execute_complete", event, resumed)

    assert returned["state"] == "completed"
    assert len(find_stored_files(right)) == 1
    assert not forged.exists()


def test_function_arguments_outlast_a_deferral_without_event(emulator: Emulator, tmp_path: Path) -> None:
    """Without an event the function's arguments come from the task state store, as this try saved them."""
    right, decorators = tmp_path / "right", tmp_path / "decorator"
    store = Store()
    defer(create_decorated({"inputs": "A chair", "output_path": str(right)}), context(store))
    emulator.advance(1000)
    resumed = forge_xcoms(context(store), {"output_path": str(tmp_path / "forged")})

    create_decorated({}, output_path=str(decorators)).resume_execution(*NO_EVENT, resumed)
    assert len(find_stored_files(right)) == 1
    assert list(tmp_path.iterdir()) == [right]

    store.set(DEFERRED_ARGUMENTS_KEY, {**store[DEFERRED_ARGUMENTS_KEY], "try_number": 7})
    create_decorated({}, output_path=str(decorators)).resume_execution(*NO_EVENT, resumed)
    assert len(find_stored_files(decorators)) == 1


@pytest.mark.usefixtures("emulator")
def test_store_has_arguments_of_the_function_only() -> None:
    """A function that returns inputs only has the beginnings of its prompts there, and nothing else."""
    store = Store()
    defer(create_decorated({"inputs": "A chair"}), context(store))
    assert DEFERRED_ARGUMENTS_KEY not in store
    assert store[PROMPTS_KEY] == {"prompts": ["A chair"], "try_number": 1}


def test_a_store_that_fails_costs_no_flow_run(emulator: Emulator, caplog: pytest.LogCaptureFixture) -> None:
    """The prompts are for the UI only, so the flow run starts without them."""

    class Broken(Store):
        def set(self, key: str, value: object) -> None:
            if key == PROMPTS_KEY:
                raise ConnectionError
            super().set(key, value)

    defer(create_decorated({"inputs": "A chair"}), context(Broken()))
    assert len(emulator.runs) == 1
    assert "the UI shows no prompts" in caplog.text


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("is_completed", [True, False])
def test_forged_run_id_touches_no_other_run(emulator: Emulator, *, durable: bool, is_completed: bool) -> None:
    """Without a store, an XCom that names another run of the account has it neither aborted nor fetched."""
    operator = RunFlowOperator(
        task_id="t", deferrable=True, durable=durable, **{**CHAIR_ARGUMENTS, **FAST_POLLING}
    )
    defer(operator, context(Store()))
    own_run_id = next(iter(emulator.runs))
    other_run_id = start_external_run(emulator)
    emulator.advance(1000 if is_completed else 0)

    for forged in (other_run_id, "0" * 24, 7, ["a"], None, ""):
        resumed = forge_xcoms(context(Store()), forged)
        with pytest.raises(AirflowException, match="Trigger timeout"):
            operator.resume_execution(*NO_EVENT, resumed | {"task": operator})
    assert emulator.runs[other_run_id].state == ("completed" if is_completed else "starting")
    assert not any(request.path.endswith("/outputs") for request in emulator.requests)

    resumed = forge_xcoms(context(Store()), own_run_id) | {"task": operator}
    if is_completed:
        assert operator.resume_execution(*NO_EVENT, resumed)["flow_run_id"] == own_run_id
    else:
        with pytest.raises(Exception, match="no triggerer has reported its end"):
            operator.resume_execution(*NO_EVENT, resumed)
        assert emulator.runs[own_run_id].state == "aborted"


def test_deferral_pushes_no_arguments_and_no_secrets(emulator: Emulator, tmp_path: Path) -> None:
    """A deferred function's arguments are in no XCom; its trigger has no prompt and no metadata.

    Airflow logs the trigger's event. The beginnings of a few prompts are in the task state store, for the UI.
    """
    returned = {
        "inputs": ["A chair " * 25 + "and a secret", {"data": "data:text/plain,secret"}, *["A stool"] * 30],
        "parameters": {"quality": "low"},
        "additional": {"note": "A secret note"},
        "output_path": tmp_path,
    }
    store = Store()
    stored = json.dumps(defer(create_decorated(returned), context(store)).trigger.serialize())
    assert not [text for text in ("secret", "A chair", "A stool") if text in stored]
    assert str(tmp_path) in stored
    assert len(stored) < 2_000
    assert store[PROMPTS_KEY]["prompts"] == ["A chair " * 25, *["A stool"] * (MAX_SAVED_PROMPTS - 1)]

    with DAG("deferred_arguments", schedule=None) as dag:
        create_decorated({**returned, "inputs": ["A chair"], "output_path": str(tmp_path)})
    emulator.run_seconds = 0.3
    result = run_dag(dag)
    assert result.state == "success", result.log
    assert DEFERRED_ARGUMENTS_KEY not in result.xcoms["t"]
