"""Which errors a task's retry can do nothing about: the retry policy that the operator brings along.

It is about tries of a task; single requests are flow/retry.py's, looks at a run flow/waiting.py's.
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
    FlowTimeout,
)
from airflow_provider_flows.core.polling.schedule import MAX_RETRY_AFTER_SECONDS

if TYPE_CHECKING:
    from airflow.sdk import Context

PERMANENT_ERRORS = (FlowAuthError, FlowInputError, FlowInvalid, FlowNotFound, FlowTimeout)


class FlowsRetryPolicy(RetryPolicy):
    """Airflow's own retries, but none for what cannot get better by itself, and as late as the service asks (Retry-After)."""

    def evaluate(
        self,
        exception: BaseException,
        try_number: int,  # noqa: ARG002  # the signature is Airflow's
        max_tries: int,  # noqa: ARG002
        context: Context | None = None,
    ) -> RetryDecision:
        """Decide by the error's type; a Retry-After makes a delay longer, never shorter than the task's own."""
        if isinstance(exception, PERMANENT_ERRORS) and getattr(exception, "is_permanent", True):
            return RetryDecision.fail(f"{type(exception).__name__}: trying again cannot change it")
        requested_delay = min(getattr(exception, "retry_after", None) or 0.0, MAX_RETRY_AFTER_SECONDS)
        task_delay = timedelta(0) if context is None else context["ti"].task.retry_delay
        if timedelta(seconds=requested_delay) > task_delay:
            return RetryDecision.retry(timedelta(seconds=requested_delay), "the service asked for this delay")
        return RetryDecision.default()

    def serialize(self) -> dict[str, Any]:
        """Give nothing: the policy has no settings."""
        return {}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> FlowsRetryPolicy:  # noqa: ARG003
        """Make the policy."""
        return cls()
