"""Tests of the retry policy: which errors are retried, and after which delay.

DAG runs use the emulator. What a retry does with the flow run is tested in worker/test_task_try.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException
from airflow.sdk import DAG

from airflow_provider_flows.core import exceptions
from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.decorators import task
from airflow_provider_flows.emulator import Emulator, Fault
from airflow_provider_flows.operators import (
    AbortFlowRunOperator,
    FetchFlowRunOperator,
    RunFlowBatchOperator,
    RunFlowOperator,
)
from airflow_provider_flows.retry_policy import FlowsRetryPolicy
from airflow_provider_flows.sensors import FlowRunSensor
from airflow_provider_flows.worker.task_try import allows_retry
from tests.support.modes import compat_notices
from tests.support.tries import CHAIR_ARGUMENTS, request_times, run_with_retries
from tests.support.versions import lacks, needs

pytestmark = pytest.mark.emulator(run_seconds=0, abort="instant", retries=0)


def return_prompt() -> str:
    """Return a prompt."""
    return "A chair"


RUN_ID = {"task_id": "t", "flow_run_id": "0" * 24}
TASKS_WITH_POLICIES: dict[str, Callable[..., Any]] = {
    "operator": partial(RunFlowOperator, task_id="t", flow="f"),
    "batch": partial(RunFlowBatchOperator, task_id="t", flow="f", items=[], output_path="/x"),
    "sensor": partial(FlowRunSensor, **RUN_ID),
    "fetch": partial(FetchFlowRunOperator, **RUN_ID),
    "abort": partial(AbortFlowRunOperator, **RUN_ID),
    "decorator": lambda **more: task.flow(flow="f", **more)(return_prompt)(),
}

FAULTS = [
    # fault of the first POST, tries, error
    (Fault("POST", status=401), 1, exceptions.FlowAuthError),
    (Fault("POST", status=422), 1, exceptions.FlowInvalid),
    (Fault("POST", status=503), 2, exceptions.FlowServiceError),
    (Fault("POST", reset="before"), 2, exceptions.FlowUnreachable),
    (Fault("POST", status=402), 1, exceptions.FlowQuotaExceeded),
]


@needs("retry policies")
@pytest.mark.parametrize(
    ("fault", "tries", "error"), FAULTS, ids=lambda value: getattr(value, "status", None)
)
def test_only_transient_errors_are_retried(
    emulator: Emulator, fault: Fault, tries: int, error: type[Exception]
) -> None:
    """An invalid key or argument ends the task at its first try; an unavailable service does not."""
    emulator.add_fault(fault)
    task_result = run_with_retries(f"retries_{fault.status or 'reset'}", **CHAIR_ARGUMENTS)
    assert (task_result.tries, task_result.state) == (tries, "success" if tries > 1 else "failed")
    assert type(task_result.error) is error
    assert emulator.started_count == tries - 1
    assert len(emulator.runs) == tries - 1


@needs("retry policies")
def test_invalid_argument_is_not_retried(emulator: Emulator) -> None:
    """An invalid argument ends the task at its first try, before a run is created."""
    task_result = run_with_retries("retries_input", **{**CHAIR_ARGUMENTS, "inputs": 42})
    assert (task_result.tries, task_result.state) == (1, "failed")
    assert [request.path for request in emulator.requests] == ["/templates"]


@needs("retry policies")
@pytest.mark.parametrize("deferrable", [False, True])
def test_wrong_scheme_is_not_retried(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, deferrable: bool
) -> None:
    """A connection whose scheme must be corrected ends the task at its first try, after one request each."""
    host = emulator.url.replace("http:", "https:")
    connection = {"conn_type": "generio", "host": host, "password": emulator.key}
    monkeypatch.setenv("AIRFLOW_CONN_HTTPS", json.dumps(connection))
    arguments = {**CHAIR_ARGUMENTS, "flows_conn_id": "https", "deferrable": deferrable}
    task_result = run_with_retries(f"retries_https_{deferrable}", **arguments)
    assert (task_result.tries, task_result.state) == (1, "failed")
    assert "it does not speak TLS there" in str(task_result.error)
    # once in the traceback and once as the error of the task, and not as the reason for no validation
    assert task_result.count_log_lines("it does not speak TLS there") == 0


@needs("retry policies")
def test_retry_after_header_delays_the_retry(emulator: Emulator) -> None:
    """A Retry-After that is longer than the task's own delay is the delay."""
    emulator.add_fault(Fault("POST", "/flows", status=503, headers={"Retry-After": "3"}))
    task_result = run_with_retries("retries_after", **CHAIR_ARGUMENTS)
    assert task_result.state == "success"
    first, second = request_times(emulator, "POST", "/flows")
    assert 3.0 <= second - first < 15.0
    assert "the service requested this delay" in task_result.result.log


@needs("retry policies")
@pytest.mark.parametrize(
    ("error", "is_allowed"),
    [
        (AirflowFailException(), False),
        (AirflowSkipException(), False),
        (exceptions.FlowAuthError("no"), False),
        (LookupError(), True),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("operator_type", [RunFlowOperator, RunFlowBatchOperator])
def test_run_is_left_to_a_retry_only_if_the_error_allows_one(
    operator_type: type, error: Exception, *, is_allowed: bool
) -> None:
    """A single run and a batch ask the same: after these errors no other try would resume their runs."""
    more = {"items": ["A chair"], "output_path": "/outputs"} if operator_type is RunFlowBatchOperator else {}
    operator = operator_type(task_id="t", flow="f", retries=3, **more)
    ti = SimpleNamespace(try_number=1, max_tries=3, task=operator)
    assert allows_retry({"task": operator, "ti": ti}, error) is is_allowed


@needs("retry policies")
def test_own_retry_policy_replaces_the_default(emulator: Emulator) -> None:
    """A task's own retry policy replaces the default."""
    from airflow.sdk import ExceptionRetryPolicy, RetryAction, RetryRule

    emulator.add_fault(Fault("POST", status=401))
    rule = RetryRule(exception=exceptions.FlowAuthError, action=RetryAction.RETRY, retry_delay=timedelta(0))
    task_result = run_with_retries(
        "retries_own", **CHAIR_ARGUMENTS, retry_policy=ExceptionRetryPolicy(rules=[rule])
    )
    assert (task_result.tries, task_result.state) == (2, "success")


@lacks("retry policies")
def test_without_retry_policies_every_error_is_retried(emulator: Emulator) -> None:
    """Without retry policies each try logs that once, and even an invalid key is retried."""
    emulator.add_fault(Fault("POST", status=401))
    task_result = run_with_retries("retries_no_policy", **CHAIR_ARGUMENTS)
    assert (task_result.tries, task_result.state) == (2, "success")
    assert type(task_result.error) is exceptions.FlowAuthError
    assert compat_notices(task_result.result.log).count("Retry policies") == task_result.tries


def service_error(retry_after: float | None, status: int = 503) -> exceptions.FlowServiceError:
    """Return the error of a response with a Retry-After."""
    return exceptions.FlowServiceError("away", status=status, retry_after=retry_after)


DECISIONS = [
    (exceptions.FlowAuthError("no"), "fail", None),
    (exceptions.FlowNotFound("no"), "fail", None),
    (exceptions.FlowInvalid("no"), "fail", None),
    (exceptions.FlowInputError("no"), "fail", None),
    (exceptions.FlowQuotaExceeded("empty", status=402, retry_after=9), "fail", None),
    (exceptions.FlowQuotaExceeded("empty", status=402, is_permanent=False), "default", None),
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
@pytest.mark.parametrize(("error", "action", "delay"), DECISIONS, ids=lambda value: repr(value)[:40])
def test_decision_depends_on_the_error(error: BaseException, action: str, delay: float | None) -> None:
    """Each error has its decision, and no service can delay a retry by more than an hour."""
    from airflow_provider_flows.retry_policy import FlowsRetryPolicy

    decision = FlowsRetryPolicy.deserialize(FlowsRetryPolicy().serialize()).evaluate(error, 1, 3)
    assert decision.action.value == action
    assert decision.retry_delay == (None if delay is None else timedelta(seconds=delay))


@needs("retry policies")
@pytest.mark.parametrize("value", ["mine", 3, {"retries": 2}, FlowsRetryPolicy], ids=str)
@pytest.mark.parametrize("kind", TASKS_WITH_POLICIES)
def test_value_that_is_no_policy_is_rejected_at_parse_time(kind: str, value: object) -> None:
    """Anything but an instance of a retry policy is an error, which shows how to write one."""
    with DAG("policies", schedule=None), pytest.raises(FlowInputError) as caught:
        TASKS_WITH_POLICIES[kind](retry_policy=value)
    assert str(caught.value).startswith("retry_policy must be an instance of")
    assert ("write FlowsRetryPolicy()" in str(caught.value)) == (value is FlowsRetryPolicy)
