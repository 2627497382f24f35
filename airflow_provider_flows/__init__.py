"""An Apache Airflow provider that starts flow runs, waits for them and fetches their outputs.

How a task runs a flow: `operators.RunFlowOperator` turns its arguments into a `RunRequest` (storage.inputs)
and calls the `FlowsHook` of its connection (hooks, connection). The hook runs *conversations* (core.http):
generators that yield requests and receive responses. Each endpoint of a service is one (services), and so
are the start of a flow run (core.start_or_resume) and the wait for it (core.polling). A worker sends
requests with `requests` (transport.blocking), and a triggerer with `aiohttp` (transport.asynchronous),
where all `FlowRunTrigger`s of a connection share one poller (triggerer.shared_poller). Either way the
result is the same `FlowRun` (core.flow_run). The task stores its outputs (storage.outputs), emits asset
events (worker.finish) and returns one plain dict as XCom.

`FlowRunSensor` waits for a flow run that was started elsewhere. `FlowRunFinishedTrigger` emits events for
asset watchers, from one list of runs for all of them (triggerer.asset_watchers).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    from airflow_provider_flows.core.flow_run import FlowRun, FlowState

    # not imported for types either, because storage is above this module
    def read_manifest(manifest: Any, conn_id: str | None = None) -> Iterator[dict[str, Any]]:
        """Yield the lines of a batch's manifest (`storage.batch_manifest.read_manifest`)."""


__version__ = "0.1.0"

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
    "FlowRun",
    "FlowRunAborted",
    "FlowRunFailed",
    "FlowServiceError",
    "FlowState",
    "FlowTimeout",
    "FlowUnreachable",
    "__version__",
    "read_manifest",
]
_MODULES = {
    "FlowRun": "core.flow_run",
    "FlowState": "core.flow_run",
    "read_manifest": "storage.batch_manifest",
}


def __getattr__(name: str) -> Any:
    """Import a class or function on first use, so that `import airflow_provider_flows` stays cheap."""
    if name not in __all__:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    module = _MODULES.get(name, "core.exceptions")
    return getattr(import_module(f"{__name__}.{module}"), name)
