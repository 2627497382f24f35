"""Everything that the author of another service imports: the `Service` class, its data types and helpers.

The hook's base class is `airflow_provider_flows.hooks.FlowsHook`, the fields of a connection form are in
`airflow_provider_flows.connection`, and the exceptions in `airflow_provider_flows.exceptions`.
"""

from __future__ import annotations

from airflow_provider_flows.core.definition import FlowDefinition, Parameter
from airflow_provider_flows.core.exceptions import (
    FlowAuthError,
    FlowConflict,
    FlowError,
    FlowInputError,
    FlowInvalid,
    FlowMalformed,
    FlowNotFound,
    FlowQuotaExceeded,
    FlowRateLimited,
    FlowRunAborted,
    FlowRunFailed,
    FlowServiceError,
    FlowTimeout,
    FlowUnreachable,
)
from airflow_provider_flows.core.flow_run import (
    ERROR,
    PENDING,
    READY,
    FlowInput,
    FlowOutput,
    FlowRun,
    FlowState,
    Inputs,
    UploadSource,
    parse_progress,
)
from airflow_provider_flows.core.graph import FlowGraph
from airflow_provider_flows.core.http import Conversation, Purpose, Request, Resend, Response, Sleep, send
from airflow_provider_flows.core.payload.data_uri import Content
from airflow_provider_flows.core.payload.download import DownloadSink, RawFileSink, download_file
from airflow_provider_flows.core.payload.sink import MemoryBuffer, Target
from airflow_provider_flows.core.polling.bulk import ActiveRuns
from airflow_provider_flows.core.responses import (
    error_reason,
    expect_success,
    malformed_message,
    parse_json,
    raise_for_status,
    request_json,
)
from airflow_provider_flows.core.safe_text import decode_text
from airflow_provider_flows.core.service import RunPage, Service, quote_path_segment
from airflow_provider_flows.core.timestamps import parse_timestamp
from airflow_provider_flows.core.validation import Problems, find_unsendable_values, find_unsendable_variables

__all__ = [
    "ERROR",
    "PENDING",
    "READY",
    "ActiveRuns",
    "Content",
    "Conversation",
    "DownloadSink",
    "FlowAuthError",
    "FlowConflict",
    "FlowDefinition",
    "FlowError",
    "FlowGraph",
    "FlowInput",
    "FlowInputError",
    "FlowInvalid",
    "FlowMalformed",
    "FlowNotFound",
    "FlowOutput",
    "FlowQuotaExceeded",
    "FlowRateLimited",
    "FlowRun",
    "FlowRunAborted",
    "FlowRunFailed",
    "FlowServiceError",
    "FlowState",
    "FlowTimeout",
    "FlowUnreachable",
    "Inputs",
    "MemoryBuffer",
    "Parameter",
    "Problems",
    "Purpose",
    "RawFileSink",
    "Request",
    "Resend",
    "Response",
    "RunPage",
    "Service",
    "Sleep",
    "Target",
    "UploadSource",
    "decode_text",
    "download_file",
    "error_reason",
    "expect_success",
    "find_unsendable_values",
    "find_unsendable_variables",
    "malformed_message",
    "parse_json",
    "parse_progress",
    "parse_timestamp",
    "quote_path_segment",
    "raise_for_status",
    "request_json",
    "send",
]
