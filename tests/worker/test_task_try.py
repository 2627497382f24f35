"""Tests of one try of a task, above all the second: it resumes the flow run, starts a new one, or aborts it.

A try ends because the emulator or the storage fails. Kills are tested in test_kills_at_start.py and
tests/system/chaos.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_flows.core import exceptions
from airflow_provider_flows.core.exceptions import FlowInputError, FlowServiceError
from airflow_provider_flows.emulator import Emulator, Fault, Plan
from airflow_provider_flows.hooks import GenerioHook
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.worker.task_state import RECORD_KEY
from tests.support.modes import compat_notices
from tests.support.object_stores import attach_store
from tests.support.task_instances import Store, context
from tests.support.tries import (
    BOTH_MODES,
    CHAIN_ARGUMENTS,
    CHAIR_ARGUMENTS,
    create_retry,
    request_times,
    run_states,
    run_with_retries,
    start_earlier_run,
)
from tests.support.versions import TaskDeferralError, lacks, needs

pytestmark = pytest.mark.emulator(run_seconds=0, abort="instant", retries=0)


# What a retry resumes
# --------------------------------------------------------------------------------------------------


@needs("task state store")
@BOTH_MODES
def test_retry_after_failed_download_resumes_the_run(
    emulator: Emulator, tmp_path: Path, *, deferrable: bool
) -> None:
    """A try after a failed download fetches the outputs of the same flow run."""
    emulator.add_fault(Fault("GET", "*/outputs/*", status=500))
    task_result = run_with_retries(
        f"retries_fetch_{deferrable}", **CHAIR_ARGUMENTS, deferrable=deferrable, output_path=str(tmp_path)
    )
    assert (task_result.tries, task_result.state, emulator.started_count) == (2, "success", 1)
    (output,) = task_result.outputs
    assert Path(output["uri"].removeprefix("file://")).stat().st_size == output["size"]
    assert task_result.count_log_lines("Resuming the generio flow run") == 1


@needs("task state store")
@BOTH_MODES
def test_retry_after_failed_wait_resumes_the_run(emulator: Emulator, *, deferrable: bool) -> None:
    """A try after a rejected poll waits for the same flow run."""
    emulator.run_seconds = 2
    emulator.add_fault(Fault("GET", "/flows/*", skip=1, status=402, times=3))
    task_result = run_with_retries(f"retries_wait_{deferrable}", **CHAIR_ARGUMENTS, deferrable=deferrable)
    assert (task_result.tries, task_result.state, emulator.started_count) == (2, "success", 1)


@lacks("task state store")
@BOTH_MODES
def test_retry_without_store_resumes_listed_run(
    emulator: Emulator, tmp_path: Path, *, deferrable: bool
) -> None:
    """Without a store the first try logs that once, and the retry finds its flow run in the list."""
    emulator.add_fault(Fault("GET", "*/outputs/*", status=500))
    task_result = run_with_retries(
        f"retries_no_store_{deferrable}", **CHAIR_ARGUMENTS, deferrable=deferrable, output_path=str(tmp_path)
    )
    assert (task_result.tries, task_result.state, emulator.started_count) == (2, "success", 1)
    assert compat_notices(task_result.result.log).count("The task state store") == 1
    assert task_result.count_log_lines("Resuming the") == 1


@lacks("task state store")
@BOTH_MODES
def test_retry_without_store_and_list_starts_new_run(emulator: Emulator, *, deferrable: bool) -> None:
    """Without a store and a list each try aborts its own flow run, and the next one starts another."""
    emulator.switches.list_endpoint = 404
    emulator.run_seconds = 2
    emulator.add_fault(Fault("GET", "/flows/*", skip=1, status=402, times=3))
    task_result = run_with_retries(f"retries_no_list_{deferrable}", **CHAIR_ARGUMENTS, deferrable=deferrable)
    assert (task_result.tries, task_result.state, emulator.started_count) == (2, "success", 2)
    assert run_states(emulator) == ["aborted", "completed"]
    assert task_result.count_log_lines("the list of flow runs cannot be searched") == 1


def test_retry_of_task_that_is_not_durable_starts_new_run(emulator: Emulator) -> None:
    """With durable=False each try starts its own flow run, and nothing is saved."""
    emulator.add_fault(Fault("GET", "*/outputs", status=500))
    task_result = run_with_retries("retries_not_durable", **CHAIR_ARGUMENTS, durable=False)
    assert (task_result.tries, task_result.state, emulator.started_count) == (2, "success", 2)
    assert task_result.record is None


@needs("task state store")
@pytest.mark.parametrize("abort", [True, False])
def test_retry_with_changed_inputs_starts_new_run(emulator: Emulator, *, abort: bool) -> None:
    """A try with other inputs starts a new flow run, and aborts the old one unless abort_on_kill=False."""
    emulator.add_plan(Plan(run_seconds=60))
    emulator.add_fault(Fault("GET", "/flows/*", status=402, times=3))
    arguments = {**CHAIR_ARGUMENTS, "inputs": "Chair number {{ ti.try_number }}", "abort_on_kill": abort}
    task_result = run_with_retries(f"retries_changed_{abort}", **arguments)
    assert (task_result.tries, task_result.state, emulator.started_count) == (2, "success", 2)
    first, second = emulator.runs.values()
    assert (first.state == "aborted") is abort
    assert second.state == "completed"


@pytest.mark.parametrize("outcome", ["failed", "aborted"])
def test_failed_run_is_not_resumed(emulator: Emulator, outcome: Any) -> None:
    """A flow run that failed or was aborted is followed by a new one."""
    emulator.add_plan(Plan(outcome=outcome))
    task_result = run_with_retries(f"retries_{outcome}", **CHAIR_ARGUMENTS)
    assert (task_result.tries, task_result.state, emulator.started_count) == (2, "success", 2)


@pytest.mark.emulator(run_seconds=3600, abort="instant", retries=0)
def test_run_that_is_not_found_is_a_warning(emulator: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    """An earlier flow run that is neither returned nor listed is named in a warning before a new start."""
    operator, store = create_retry()
    store[RECORD_KEY]["deadline"] = time.time() - 1  # so that the search is short
    emulator.add_fault(Fault("GET", "/flows*", status=404, times=None))
    with pytest.raises(exceptions.FlowTimeout):
        operator.execute(context(store, 2, 3))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "was not found" in line]
    assert "[warning" in line
    assert store[RECORD_KEY]["flow_run_id"] in line
    assert "generio" in line


@pytest.mark.emulator(run_seconds=3600, abort="instant", retries=0)
def test_run_that_is_found_by_its_stamp_is_aborted_by_a_kill(emulator: Emulator) -> None:
    """A try that resumes a run with another id than the saved one saves that id, for a kill and a retry."""
    operator, store = create_retry(wait_for_completion=False)
    store[RECORD_KEY] |= {"flow_run_id": "gone", "deadline": time.time() - 1}  # so that the search is short
    operator.execute(context(store, 2, 3))
    assert [store[RECORD_KEY]["flow_run_id"]] == list(emulator.runs)
    operator.on_kill()
    assert run_states(emulator) == ["aborted"]


@needs("task state store")
@pytest.mark.usefixtures("short_search")
@pytest.mark.parametrize("place", ["/flows", "*/inputs"])
def test_created_run_with_lost_response_is_deleted(emulator: Emulator, place: str) -> None:
    """A created run whose response or input was lost is deleted by this or the next try."""
    emulator.add_fault(Fault("POST", place, reset="after"))
    task_result = run_with_retries(f"retries_lost_{len(place)}", **CHAIR_ARGUMENTS)
    assert (task_result.tries, task_result.state, emulator.started_count, len(emulator.runs)) == (
        2,
        "success",
        1,
        1,
    )


# PromptChainer, which cannot return a run a second time
# --------------------------------------------------------------------------------------------------


@needs("task state store")
def test_retry_after_lost_response_logs_a_warning(emulator: Emulator) -> None:
    """A retry after a lost response runs the flow again, and logs that it may have run before."""
    emulator.add_fault(Fault("POST", reset="after"))
    task_result = run_with_retries("retries_lost_response", **CHAIN_ARGUMENTS)
    assert (task_result.tries, task_result.state, emulator.started_count) == (2, "success", 2)
    assert task_result.count_log_lines("the flow may have run before, and this try runs it again") == 1


@needs("task state store")
def test_warning_about_lost_response_persists_after_rejection(emulator: Emulator) -> None:
    """A rejected second try does not remove the warning about the first one from the third try."""
    emulator.add_fault(Fault("POST", reset="after"))
    emulator.add_fault(Fault("POST", status=429))
    task_result = run_with_retries("retries_lost_twice", **CHAIN_ARGUMENTS, retries=2)
    assert (task_result.tries, task_result.state) == (3, "success")
    assert task_result.count_log_lines("the flow may have run before") == 2


def test_retry_after_rejection_logs_no_warning(emulator: Emulator) -> None:
    """A retry after a POST that was certainly rejected logs no warning."""
    emulator.add_fault(Fault("POST", status=429))
    task_result = run_with_retries("retries_rejected", **CHAIN_ARGUMENTS)
    assert (task_result.tries, task_result.state, emulator.started_count) == (2, "success", 1)
    assert task_result.count_log_lines("the flow may have run before") == 0


def test_failed_promptchainer_run_is_followed_by_new_one(emulator: Emulator) -> None:
    """A PromptChainer run without outputs is followed by a new one, without a warning."""
    emulator.switches.model_failure = "empty"
    task_result = run_with_retries("retries_chain_failed", **CHAIN_ARGUMENTS)
    assert type(task_result.error) is exceptions.FlowRunFailed
    assert (task_result.tries, emulator.started_count) == (2, 2)
    assert task_result.count_log_lines("the flow may have run before") == 0


IMAGE_FAULT = Fault("GET", "*.png", status=500)


@needs("task state store")
def test_retry_uses_saved_response(emulator: Emulator, tmp_path: Path) -> None:
    """A try after a saved response uses it, sends no POST and pays nothing."""
    emulator.add_fault(IMAGE_FAULT)
    task_result = run_with_retries("retries_saved_response", **CHAIN_ARGUMENTS, output_path=str(tmp_path))
    assert type(task_result.error) is exceptions.FlowServiceError
    assert (task_result.tries, task_result.state, emulator.started_count) == (2, "success", 1)
    assert len(request_times(emulator, "POST")) == 1
    assert {output["name"]: output["status"] for output in task_result.outputs} == {
        "image": "ready",
        "text": "ready",
    }


# When the flow run of an earlier try is aborted, and when it is left to the next try
# --------------------------------------------------------------------------------------------------


@pytest.mark.emulator(run_seconds=3600, abort="instant", retries=0)
@pytest.mark.parametrize("completed", [True, False])
def test_retry_without_readable_inputs_resumes_the_run(
    emulator: Emulator, tmp_path: Path, *, completed: bool
) -> None:
    """A retry whose input file is gone resumes the run; if the run was aborted, the error names the input."""
    image = tmp_path / "chair.png"
    image.write_bytes((Path(__file__).parents[2] / "example_dags" / "images" / "chair.png").read_bytes())
    arguments: dict[str, Any] = {"flow": "model_generate_fromimage", "inputs": [image], "poll_interval": 0.1}
    store = start_earlier_run(
        GenerioHook("generio_default").build_request(arguments["flow"], [image], None, None), 3
    )
    run_id = store[RECORD_KEY]["flow_run_id"]
    image.unlink()
    operator = RunFlowOperator(task_id="t", **arguments)
    if completed:
        emulator.advance(4000)
        returned = operator.execute(context(store, 2, 3))
        assert (returned["flow_run_id"], returned["state"]) == (run_id, "completed")
    else:
        GenerioHook("generio_default").abort(run_id)
        with pytest.raises(FlowInputError, match=r"inputs\[0\] names a file that cannot be read"):
            operator.execute(context(store, 2, 3))
    assert emulator.started_count == 1


@pytest.mark.emulator(run_seconds=3600, abort="instant", retries=0)
@pytest.mark.parametrize("completed", [True, False])
def test_retry_while_the_store_fails_resumes_the_run(emulator: Emulator, *, completed: bool) -> None:
    """A store that fails for now does not prevent that a run is resumed; it does prevent a new run."""
    attach_store("fragile")
    operator, store = create_retry(output_path="fragile://bucket")
    run_id = store[RECORD_KEY]["flow_run_id"]
    if completed:
        emulator.advance(4000)
        with pytest.raises(OSError, match=rf"bucket/{run_id}/.* cannot be written: .*No space left"):
            operator.execute(context(store, 2, 3))
    else:
        GenerioHook("generio_default").abort(run_id)
        with pytest.raises(FlowInputError, match="output_path 'fragile://bucket' cannot be written to"):
            operator.execute(context(store, 2, 3))
    assert (emulator.started_count, list(emulator.runs)) == (1, [run_id])


@pytest.mark.emulator(run_seconds=3600, abort="instant", retries=0)
def test_service_error_in_last_try_aborts_the_run(emulator: Emulator) -> None:
    """If the service's responses end the last try, the run is aborted."""
    emulator.add_fault(Fault("GET", "/flows/*", status=402, times=3))
    operator = RunFlowOperator(task_id="t", **CHAIR_ARGUMENTS, poll_interval=0.1, max_poll_interval=0.2)
    with pytest.raises(FlowServiceError):
        operator.execute(context(Store()))
    assert run_states(emulator) == ["aborted"]


@pytest.mark.emulator(run_seconds=3600, abort="instant", retries=0)
def test_service_error_with_retry_left_does_not_abort_the_run(emulator: Emulator) -> None:
    """If a retry is left, the run is left to it."""
    emulator.add_fault(Fault("GET", "/flows/*", status=402, times=3))
    operator = RunFlowOperator(task_id="t", **CHAIR_ARGUMENTS, poll_interval=0.1, max_poll_interval=0.2)
    with pytest.raises(FlowServiceError):
        operator.execute(context(Store(), 1, 2))
    assert "aborted" not in run_states(emulator)


@pytest.mark.emulator(run_seconds=3600, abort="instant", retries=0)
@pytest.mark.parametrize("try_number", [pytest.param(2, marks=needs("retry policies")), 4])
def test_retry_with_unwritable_output_path_aborts_the_earlier_run(
    emulator: Emulator, try_number: int
) -> None:
    """If files cannot be written, no try follows, and the active run is aborted."""
    operator, store = create_retry(output_path="file:///proc/none")
    try_context = context(store, try_number, 3) | {"task": operator}
    with pytest.raises(FlowInputError, match="cannot be written"):
        operator.execute(try_context)
    assert run_states(emulator) == ["aborted"]


@pytest.mark.emulator(run_seconds=3600, abort="instant", retries=0)
@pytest.mark.parametrize(("try_number", "state"), [(2, "starting"), (4, "aborted")])
def test_failed_trigger_aborts_the_run_in_last_try(emulator: Emulator, try_number: int, state: str) -> None:
    """If the trigger fails, the next try resumes the run, and the last try aborts it."""
    operator, store = create_retry(deferrable=True)
    try_context = context(store, try_number, 3) | {"task": operator}
    with pytest.raises(TaskDeferralError):
        operator.resume_execution("__fail__", {"error": "Trigger failure"}, try_context)
    assert run_states(emulator) == [state]
