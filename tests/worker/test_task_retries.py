"""Tests of a task's second try in real DAG runs: it resumes the run, starts another, or is not made at all.

A try ends because the emulator or the storage fails. Killed processes are tested in tests/system/chaos.
"""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_flows.core import exceptions
from airflow_provider_flows.emulator import Emulator, Fault, Plan
from airflow_provider_flows.worker.task_state import OUTPUT_TOO_LARGE
from tests.support.modes import compat_notices
from tests.support.tries import (
    BOTH_MODES,
    CHAIN_ARGUMENTS,
    CHAIR_ARGUMENTS,
    request_times,
    run_with_retries,
)
from tests.support.versions import lacks, needs

pytestmark = pytest.mark.emulator(run_seconds=0, abort="instant", retries=0)


# which errors are tried again
# -------------------------------------------------------------------------------------------

FAULTS = [
    # what happens to the first POST, tries, error
    (Fault("POST", status=401), 1, exceptions.FlowAuthError),
    (Fault("POST", status=422), 1, exceptions.FlowInvalid),
    (Fault("POST", status=503), 2, exceptions.FlowServiceError),
    (Fault("POST", reset="before"), 2, exceptions.FlowUnreachable),
    (Fault("POST", status=402), 2, exceptions.FlowServiceError),
]


@needs("retry policies")
@pytest.mark.parametrize(("fault", "tries", "error"), FAULTS, ids=lambda told: getattr(told, "status", None))
def test_only_what_may_get_better_is_tried_again(
    emulator: Emulator, fault: Fault, tries: int, error: type[Exception]
) -> None:
    """An invalid key or argument ends the task at its first try; an unavailable service does not."""
    emulator.add_fault(fault)
    ended = run_with_retries(f"retries_{fault.status or 'reset'}", **CHAIR_ARGUMENTS)
    assert (ended.tries, ended.state) == (tries, "success" if tries > 1 else "failed")
    assert type(ended.error) is error
    assert emulator.started_count == tries - 1
    assert len(emulator.runs) == tries - 1


@needs("retry policies")
def test_argument_that_cannot_be_sent_is_not_tried_again(emulator: Emulator) -> None:
    """An invalid argument ends the task at its first try, before a run is created."""
    ended = run_with_retries("retries_input", **{**CHAIR_ARGUMENTS, "inputs": 42})
    assert (ended.tries, ended.state) == (1, "failed")
    assert [request.path for request in emulator.requests] == ["/templates"]


@needs("retry policies")
def test_retry_comes_as_late_as_the_service_asks(emulator: Emulator) -> None:
    """A Retry-After that is longer than the task's own delay is the delay."""
    emulator.add_fault(Fault("POST", "/flows", status=503, headers={"Retry-After": "3"}))
    ended = run_with_retries("retries_after", **CHAIR_ARGUMENTS)
    assert ended.state == "success"
    first, second = request_times(emulator, "POST", "/flows")
    assert 3.0 <= second - first < 15.0
    assert "the service requested this delay" in ended.result.log


@needs("retry policies")
def test_own_retry_policy_wins(emulator: Emulator) -> None:
    """A task's own retry policy replaces the default."""
    from airflow.sdk import ExceptionRetryPolicy, RetryAction, RetryRule

    emulator.add_fault(Fault("POST", status=401))
    rule = RetryRule(exception=exceptions.FlowAuthError, action=RetryAction.RETRY, retry_delay=timedelta(0))
    ended = run_with_retries(
        "retries_own", **CHAIR_ARGUMENTS, retry_policy=ExceptionRetryPolicy(rules=[rule])
    )
    assert (ended.tries, ended.state) == (2, "success")


@lacks("retry policies")
def test_without_retry_policies_airflows_own_retries_are_left(emulator: Emulator) -> None:
    """Without retry policies each try logs that once, and even an invalid key is retried."""
    emulator.add_fault(Fault("POST", status=401))
    ended = run_with_retries("retries_no_policy", **CHAIR_ARGUMENTS)
    assert (ended.tries, ended.state) == (2, "success")
    assert type(ended.error) is exceptions.FlowAuthError
    assert compat_notices(ended.result.log).count("Retry policies") == ended.tries


def service_error(retry_after: float | None, status: int = 503) -> exceptions.FlowServiceError:
    """Return the error of a response with a Retry-After."""
    return exceptions.FlowServiceError("away", status=status, retry_after=retry_after)


DECISIONS = [
    (exceptions.FlowAuthError("no"), "fail", None),
    (exceptions.FlowNotFound("no"), "fail", None),
    (exceptions.FlowInvalid("no"), "fail", None),
    (exceptions.FlowInputError("no"), "fail", None),
    (exceptions.FlowTimeout("late"), "fail", None),
    (exceptions.FlowTimeout("late", is_permanent=False), "default", None),
    (exceptions.FlowRunFailed("failed"), "default", None),
    (exceptions.FlowRunAborted("aborted"), "default", None),
    (exceptions.FlowConflict("not now"), "default", None),
    (exceptions.FlowUnreachable("away"), "default", None),
    (exceptions.FlowMalformed("HTML"), "default", None),
    (exceptions.FlowRateLimited("slow", status=429, retry_after=9), "retry", 9),
    (service_error(9), "retry", 9),
    (service_error(0), "default", None),
    (service_error(1e18), "retry", 3600),
    (service_error(float("inf")), "retry", 3600),
    (ValueError("another's"), "default", None),
]


@needs("retry policies")
@pytest.mark.parametrize(("error", "action", "delay"), DECISIONS, ids=lambda told: repr(told)[:40])
def test_policy_decides_by_the_error(error: BaseException, action: str, delay: float | None) -> None:
    """Each error has its decision, and no service can delay a retry by more than an hour."""
    from airflow_provider_flows.retry_policy import FlowsRetryPolicy

    decision = FlowsRetryPolicy.deserialize(FlowsRetryPolicy().serialize()).evaluate(error, 1, 3)
    assert decision.action.value == action
    assert decision.retry_delay == (None if delay is None else timedelta(seconds=delay))


# what a retry takes up
# --------------------------------------------------------------------------------------------------


@needs("task state store")
@BOTH_MODES
def test_failure_in_the_fetch_takes_the_same_run_up(
    emulator: Emulator, tmp_path: Path, *, deferrable: bool
) -> None:
    """A try after a failed download fetches the outputs of the same flow run."""
    emulator.add_fault(Fault("GET", "*/outputs/*", status=500))
    ended = run_with_retries(
        f"retries_fetch_{deferrable}", **CHAIR_ARGUMENTS, deferrable=deferrable, output_path=str(tmp_path)
    )
    assert (ended.tries, ended.state, emulator.started_count) == (2, "success", 1)
    (output,) = ended.outputs
    assert Path(output["uri"].removeprefix("file://")).stat().st_size == output["size"]
    assert ended.count_log_lines("Resuming the generio flow run") == 1


@needs("task state store")
@BOTH_MODES
def test_failure_in_the_wait_takes_the_same_run_up(emulator: Emulator, *, deferrable: bool) -> None:
    """A try after a rejected poll waits for the same flow run."""
    emulator.run_seconds = 2
    emulator.add_fault(Fault("GET", "/flows/*", skip=1, status=402, times=3))
    ended = run_with_retries(f"retries_wait_{deferrable}", **CHAIR_ARGUMENTS, deferrable=deferrable)
    assert (ended.tries, ended.state, emulator.started_count) == (2, "success", 1)


@lacks("task state store")
@BOTH_MODES
def test_without_a_store_a_retry_starts_another(
    emulator: Emulator, tmp_path: Path, *, deferrable: bool
) -> None:
    """Without a store each try logs that once and starts its own flow run, and the task completes."""
    emulator.add_fault(Fault("GET", "*/outputs/*", status=500))
    ended = run_with_retries(
        f"retries_no_store_{deferrable}", **CHAIR_ARGUMENTS, deferrable=deferrable, output_path=str(tmp_path)
    )
    assert (ended.tries, ended.state, emulator.started_count) == (2, "success", 2)
    assert compat_notices(ended.result.log).count("The task state store") == ended.tries
    assert ended.count_log_lines("Resuming the") == 0


def test_not_durable_starts_another(emulator: Emulator) -> None:
    """With durable=False each try starts its own flow run, and nothing is saved."""
    emulator.add_fault(Fault("GET", "*/outputs", status=500))
    ended = run_with_retries("retries_not_durable", **CHAIR_ARGUMENTS, durable=False)
    assert (ended.tries, ended.state, emulator.started_count) == (2, "success", 2)
    assert ended.record is None


@needs("task state store")
@pytest.mark.parametrize("abort", [True, False])
def test_changed_inputs_start_another(emulator: Emulator, *, abort: bool) -> None:
    """A try with other inputs starts a new flow run, and aborts the old one unless abort_on_kill=False."""
    emulator.add_plan(Plan(run_seconds=60))
    emulator.add_fault(Fault("GET", "/flows/*", status=402, times=3))
    arguments = {**CHAIR_ARGUMENTS, "inputs": "Chair number {{ ti.try_number }}", "abort_on_kill": abort}
    ended = run_with_retries(f"retries_changed_{abort}", **arguments)
    assert (ended.tries, ended.state, emulator.started_count) == (2, "success", 2)
    first, second = emulator.runs.values()
    assert (first.state == "aborted") is abort
    assert second.state == "completed"


@pytest.mark.parametrize("outcome", ["failed", "aborted"])
def test_failed_run_is_not_taken_up(emulator: Emulator, outcome: Any) -> None:
    """A flow run that failed or was aborted is followed by a new one."""
    emulator.add_plan(Plan(outcome=outcome))
    ended = run_with_retries(f"retries_{outcome}", **CHAIR_ARGUMENTS)
    assert (ended.tries, ended.state, emulator.started_count) == (2, "success", 2)


@needs("task state store")
@pytest.mark.parametrize("place", ["/flows", "*/inputs"])
def test_lost_answer_litters_no_account(emulator: Emulator, place: str) -> None:
    """A created run whose response or input was lost is deleted by this or the next try."""
    emulator.add_fault(Fault("POST", place, reset="after"))
    ended = run_with_retries(f"retries_litter_{len(place)}", **CHAIR_ARGUMENTS)
    assert (ended.tries, ended.state, emulator.started_count, len(emulator.runs)) == (2, "success", 1, 1)


# PromptChainer, which cannot be asked a second time
# -----------------------------------------------------------------------


@needs("task state store")
def test_doubtful_attempt_is_told(emulator: Emulator) -> None:
    """A retry after a lost response runs the flow again, and logs that it may have run before."""
    emulator.add_fault(Fault("POST", reset="after"))
    ended = run_with_retries("retries_doubt", **CHAIN_ARGUMENTS)
    assert (ended.tries, ended.state, emulator.started_count) == (2, "success", 2)
    assert ended.count_log_lines("the flow may have run before, and this try runs it again") == 1


@needs("task state store")
def test_doubt_outlives_a_refusal(emulator: Emulator) -> None:
    """A rejected second try does not remove the warning about the first one from the third try."""
    emulator.add_fault(Fault("POST", reset="after"))
    emulator.add_fault(Fault("POST", status=429))
    ended = run_with_retries("retries_doubt_on", **CHAIN_ARGUMENTS, retries=2)
    assert (ended.tries, ended.state) == (3, "success")
    assert ended.count_log_lines("the flow may have run before") == 2


def test_certain_refusal_is_no_doubt(emulator: Emulator) -> None:
    """A retry after a POST that was certainly rejected logs no warning."""
    emulator.add_fault(Fault("POST", status=429))
    ended = run_with_retries("retries_no_doubt", **CHAIN_ARGUMENTS)
    assert (ended.tries, ended.state, emulator.started_count) == (2, "success", 1)
    assert ended.count_log_lines("the flow may have run before") == 0


def test_chain_that_failed_is_run_again(emulator: Emulator) -> None:
    """A PromptChainer run without outputs is followed by a new one, without a warning."""
    emulator.switches.model_failure = "empty"
    ended = run_with_retries("retries_chain_failed", **CHAIN_ARGUMENTS)
    assert type(ended.error) is exceptions.FlowRunFailed
    assert (ended.tries, emulator.started_count) == (2, 2)
    assert ended.count_log_lines("the flow may have run before") == 0


IMAGE_FAULT = Fault("GET", "*.png", status=500)


@needs("task state store")
def test_answer_is_kept_until_the_task_is_done(emulator: Emulator, tmp_path: Path) -> None:
    """A try after a saved response uses it, sends no POST and pays nothing."""
    emulator.add_fault(IMAGE_FAULT)
    ended = run_with_retries("retries_answer", **CHAIN_ARGUMENTS, output_path=str(tmp_path))
    assert type(ended.error) is exceptions.FlowServiceError
    assert (ended.tries, ended.state, emulator.started_count) == (2, "success", 1)
    assert len(request_times(emulator, "POST")) == 1
    assert {output["name"]: output["status"] for output in ended.outputs} == {
        "image": "ready",
        "text": "ready",
    }


@needs("task state store")
def test_answer_that_is_too_large_is_kept_as_far_as_it_fits(
    emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs that are too large for the store are left out and logged; the retry returns the others."""
    limit = 2000
    monkeypatch.setenv("AIRFLOW__STATE_STORE__MAX_VALUE_STORAGE_BYTES", str(limit))
    arguments = {**CHAIN_ARGUMENTS, "inputs": {"color": "red" * 600, "item": "ball"}}
    emulator.add_fault(IMAGE_FAULT)
    ended = run_with_retries("retries_large", **arguments, output_path=str(tmp_path))
    assert (ended.tries, ended.state, emulator.started_count) == (2, "success", 1)
    assert len(json.dumps(ended.record)) <= limit
    assert "error" not in next(output for output in ended.outputs if output["name"] == "image")
    assert ended.count_log_lines("is too large for Airflow's task state store") == sum(
        output["status"] == "error" for output in ended.outputs
    )
    assert {output.get("error") for output in ended.outputs} == {None, OUTPUT_TOO_LARGE}
