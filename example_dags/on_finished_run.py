"""Lesson 9: a DAG that starts when a flow run finishes at the service.

This includes runs that were started outside of Airflow. An asset represents the models that the service
creates. Its watcher detects finished runs and starts this DAG, which downloads their files. One event, and so
one DAG run, may be for several flow runs, so the downloads are mapped. If a user starts it, it uses the
newest completed run. It needs a triggerer, and a connection `flows_default` of type Generio.
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
finished_models = Asset("finished_models", watchers=[AssetWatcher(name="generio", trigger=trigger)])

with DAG(
    dag_id="on_finished_run",
    schedule=[finished_models],
    params={"output_path": "file:///tmp/flows"},
    tags=["flows"],
    doc_md=__doc__,
) as dag:

    @task
    def finished_runs(triggering_asset_events: Any = None) -> list[str]:
        """Return the ids of the flow runs that this DAG run is for."""
        events = [event for found in (triggering_asset_events or {}).values() for event in found]
        if events:
            return [run_id for event in events for run_id in event.extra["payload"]["flow_run_ids"]]
        runs = FlowsHook.get_hook("flows_default").list_runs(FlowState.COMPLETED)
        return [run.flow_run_id for run in runs[:1]]

    FlowRunSensor.partial(task_id="fetch", output_path="{{ params.output_path }}").expand(
        flow_run_id=finished_runs()
    )
