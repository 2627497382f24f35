"""A run request for each service, and a run record, for the tests of starting and resuming runs."""

from __future__ import annotations

from airflow_provider_flows.core.flow_run import FlowInput, FlowRun
from airflow_provider_flows.core.start_or_resume import RunRecord, RunRequest, SaveRecord
from airflow_provider_flows.hooks import FlowsHook

FLOW = "model_generate_fromprompt"
CHAIN_ID = "clibnwpno000bmc0k9hvv3y7f"  # PromptChainer's sample: variables color and item
RUN_REQUEST = RunRequest(
    FLOW, [FlowInput("a chair"), FlowInput("a table", {"n": 2})], {"quality": "low"}, {"order": 17}
)
RECORD = RunRecord(RUN_REQUEST.fingerprint, 0, 12.5, "mark")
CHAIN_REQUEST = RunRequest(CHAIN_ID, {"color": "red", "item": "ball"})


def start_and_record(
    hook: FlowsHook, save: SaveRecord = lambda _: None, request: RunRequest = RUN_REQUEST
) -> FlowRun:
    """Start a flow run that is recorded, without validation."""
    return hook.start_from_request(request, record=RECORD, save=save, validate=False)
