"""One order for each service, and the record of a start, for the tests of how runs are started and picked up."""

from __future__ import annotations

from airflow_provider_flows.core.run import FlowInput, FlowRun
from airflow_provider_flows.core.start import Keep, Order, Record
from airflow_provider_flows.hooks import FlowsHook

FLOW = "model_generate_fromprompt"
CHAIN = "clibnwpno000bmc0k9hvv3y7f"  # PromptChainer's sample: variables color and item
ORDER = Order(FLOW, [FlowInput("a chair"), FlowInput("a table", {"n": 2})], {"quality": "low"}, {"order": 17})
RECORD = Record(ORDER.fingerprint, 0, 12.5, "mark")
CHAINED = Order(CHAIN, {"color": "red", "item": "ball"})


def begun(hook: FlowsHook, keep: Keep = lambda _: None, order: Order = ORDER) -> FlowRun:
    """Start an order in the way that keeps, unchecked."""
    return hook.start(order, record=RECORD, keep=keep, validate=False)
