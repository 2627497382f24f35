"""An Apache Airflow provider for services that run flows: it starts a flow run, waits for it and fetches what it made.

This module says how the data goes and which version this is; it does nothing itself, and importing it costs nothing.

The way of the data: a DAG author's `RunFlowOperator` (operators) turns its arguments into inputs (inputs, flow/data_uri) and
asks the `FlowsHook` of its connection (hooks, connection) to hold *conversations*: generators that yield requests and are sent
responses (flow/exchange), one for each thing a service can do (flow/services), one that starts (flow/starting) and one that
waits (flow/waiting, flow/schedule). Two transports carry them (transport/blocking in workers, transport/asynchronous in the
triggerer, where all `FlowRunTrigger`s of a connection share one `Watch` (watch)). Whatever waited, the same `FlowRun` (flow/run)
comes back, its outputs are written to object storage (outputs), the task's outlets are told (assets), and one plain dict goes to
XCom. `FlowRunSensor` (sensors) waits for runs that somebody else started; `FlowRunFinishedTrigger` (finished) tells asset
watchers of them, from one list for all (bulletin).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_flows.core.run import FlowRun as FlowRun
    from airflow_provider_flows.core.run import FlowState as FlowState

__version__ = "0.1.0"

__all__ = ["FlowRun", "FlowState", "__version__"]


def __getattr__(name: str) -> Any:
    """Import `FlowRun` and `FlowState` when they are first asked for, so that `import airflow_provider_flows` stays cheap."""
    if name in {"FlowRun", "FlowState"}:
        return getattr(import_module("airflow_provider_flows.core.run"), name)
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)
