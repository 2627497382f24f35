"""The tasks' default retry policy, which fails a task at once on an error that a retry cannot fix.

It needs Airflow 3.3; on an older version a task has none.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.compat import HAS_RETRY_POLICIES, RetryDecision, RetryPolicy
from airflow_provider_flows.core.exceptions import (
    FlowAuthError,
    FlowInputError,
    FlowInvalid,
    FlowNotFound,
    FlowOutputRejected,
    FlowQuotaExceeded,
    FlowTimeout,
    FlowUnreachable,
)
from airflow_provider_flows.core.polling.schedule import MAX_RETRY_AFTER_SECONDS

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator, Context

NO_RETRY_POLICIES = (
    "Retry policies require Airflow 3.3 or later. On this version a task is also retried after a permanent "
    "error, such as an invalid API key; set retries=0 to avoid that. A service's Retry-After does not delay "
    "the retry"
)
PERMANENT_ERRORS = (
    FlowAuthError,
    FlowInputError,
    FlowInvalid,
    FlowNotFound,
    FlowOutputRejected,
    FlowQuotaExceeded,
    FlowTimeout,
    FlowUnreachable,  # only if the connection must be changed
)


class FlowsRetryPolicy(RetryPolicy):
    """Airflow's retries, but none after a permanent error, and none before a service's Retry-After."""

    def evaluate(
        self,
        exception: BaseException,
        try_number: int,  # noqa: ARG002  # Airflow's signature
        max_tries: int,  # noqa: ARG002  # Airflow's signature
        context: Context | None = None,
    ) -> RetryDecision:
        """Return the decision for an error.

        A Retry-After makes the delay longer than the task's `retry_delay`, never shorter.
        """
        if isinstance(exception, PERMANENT_ERRORS) and getattr(exception, "is_permanent", True):
            return RetryDecision.fail(f"{type(exception).__name__}: a retry cannot fix it")
        requested_delay = min(getattr(exception, "retry_after", None) or 0.0, MAX_RETRY_AFTER_SECONDS)
        task_delay = timedelta(0) if context is None else context["ti"].task.retry_delay
        delay = timedelta(seconds=requested_delay)
        if delay > task_delay:
            return RetryDecision.retry(delay, "the service requested this delay (Retry-After)")
        return RetryDecision.default()

    def serialize(self) -> dict[str, Any]:
        """Return no arguments, because the policy has none."""
        return {}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> FlowsRetryPolicy:  # noqa: ARG003  # Airflow's signature
        """Return the policy."""
        return cls()


def to_retry_arguments(retry_policy: Any) -> dict[str, Any]:
    """Return the arguments of Airflow's operator for a task's retry policy, or the default one if it is None.

    An Airflow without retry policies does not have the argument.

    :raises FlowInputError: the value is no retry policy.
    """
    if retry_policy is None:  # `partial()` passes None if it was not given
        return {"retry_policy": FlowsRetryPolicy()} if HAS_RETRY_POLICIES else {}
    if HAS_RETRY_POLICIES and not isinstance(retry_policy, RetryPolicy):
        is_class = isinstance(retry_policy, type) and issubclass(retry_policy, RetryPolicy)
        remedy = f"; write {retry_policy.__name__}()" if is_class else ""
        what = "an instance of a subclass of airflow.sdk.RetryPolicy, or None for that of this provider"
        raise FlowInputError(f"retry_policy must be {what}, not {retry_policy!r}{remedy}")
    return {"retry_policy": retry_policy}


def log_if_unsupported(task: BaseOperator) -> None:
    """Log what a task with retries lacks on an Airflow without retry policies."""
    if task.retries and not HAS_RETRY_POLICIES:
        task.log.info(NO_RETRY_POLICIES)
