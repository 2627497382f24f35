"""The one ending of operator and sensor in every mode: completed or raise, then the outputs, then the dict.

It neither waits nor decides where files go (outputs.py does).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_flows.flow.run import FlowRun
    from airflow_provider_flows.hooks import FlowsHook

OUTPUTS_KEY = "outputs"


def end(context: Context, hook: FlowsHook, run: FlowRun, output_path: str | None, output_conn_id: str | None) -> dict[str, Any]:
    """Give what a task returns for a run that is final.

    The outputs are pushed to XCom under a key of their own as well, so that `first.output["outputs"]` can be another task's
    inputs.

    :raises FlowRunFailed: the run failed; FlowRunAborted if somebody aborted it.
    :raises FlowServiceError: an output could not be fetched.
    """
    from airflow_provider_flows.outputs import fetch  # needed at the end only: importing the operators stays cheap

    told = fetch(hook, run.completed_or_raise(), output_path, output_conn_id).as_dict()
    context["ti"].xcom_push(OUTPUTS_KEY, told["outputs"])
    return told
