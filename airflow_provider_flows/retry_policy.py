"""The operator's default retry policy, which fails a task at once on an error that a retry cannot fix.

It needs Airflow 3.3.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import RetryDecision, RetryPolicy

from airflow_provider_flows.core.exceptions import (
    FlowAuthError,
    FlowInputError,
    FlowInvalid,
    FlowNotFound,
    FlowQuotaExceeded,
    FlowTimeout,
)
from airflow_provider_flows.core.polling.schedule import MAX_RETRY_AFTER_SECONDS

if TYPE_CHECKING:
    from airflow.sdk import Context

PERMANENT_ERRORS = (
    FlowAuthError,
    FlowInputError,
    FlowInvalid,
    FlowNotFound,
    FlowQuotaExceeded,
    FlowTimeout,
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
