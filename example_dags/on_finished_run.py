"""Lesson 9: a DAG that starts by itself when a flow run ends at the service, whoever started it there.

An asset stands for what the service makes; its watcher looks for runs that ended and starts this DAG, which fetches their files.
One start may be for several runs, so the fetching is mapped. Started by hand, it takes the newest run that completed.
It needs a triggerer, and a connection `flows_default` of type Generio.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, Asset, AssetWatcher, task

from airflow_provider_flows import FlowState
from airflow_provider_flows.hooks import FlowsHook
from airflow_provider_flows.sensors import FlowRunSensor
from airflow_provider_flows.triggers import FlowRunFinishedTrigger

trigger = FlowRunFinishedTrigger(
    "flows_default", flow="model_generate_fromprompt", states="completed", poll_interval=60
)
models_made = Asset("models_made", watchers=[AssetWatcher(name="generio", trigger=trigger)])

with DAG(
    dag_id="on_finished_run",
    schedule=[models_made],
    params={"output_path": "file:///tmp/flows"},
    tags=["flows"],
    doc_md=__doc__,
) as dag:

    @task
    def ended(triggering_asset_events: Any = None) -> list[str]:
        """Give the ids of the flow runs that this start is for."""
        events = [event for found in (triggering_asset_events or {}).values() for event in found]
        if events:
            return [event.extra["payload"]["flow_run_id"] for event in events]
        runs = FlowsHook.get_hook("flows_default").list_runs(FlowState.COMPLETED)
        return [run.flow_run_id for run in runs[:1]]

    FlowRunSensor.partial(task_id="fetch", output_path="{{ params.output_path }}").expand(flow_run_id=ended())
