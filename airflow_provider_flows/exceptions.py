"""The exceptions that this provider raises; `FlowError` is the base class of all of them."""

from __future__ import annotations

from airflow_provider_flows.core.exceptions import (
    FlowAuthError,
    FlowConflict,
    FlowError,
    FlowInputError,
    FlowInvalid,
    FlowMalformed,
    FlowNotFound,
    FlowOutputRejected,
    FlowQuotaExceeded,
    FlowRateLimited,
    FlowRunAborted,
    FlowRunFailed,
    FlowServiceError,
    FlowTimeout,
    FlowUnreachable,
)

__all__ = [
    "FlowAuthError",
    "FlowConflict",
    "FlowError",
    "FlowInputError",
    "FlowInvalid",
    "FlowMalformed",
    "FlowNotFound",
    "FlowOutputRejected",
    "FlowQuotaExceeded",
    "FlowRateLimited",
    "FlowRunAborted",
    "FlowRunFailed",
    "FlowServiceError",
    "FlowTimeout",
    "FlowUnreachable",
]
