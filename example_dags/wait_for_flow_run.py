"""Lesson 6: a flow run that somebody else started, waited for by a sensor that holds no worker slot between its looks.

The sensor looks, gives its slot back, and is scheduled again when the next look pays: more rarely for a run that takes long.
It needs a connection `flows_default` of type Generio.
"""

from __future__ import annotations

from airflow.sdk import DAG, task

from airflow_provider_flows.hooks import FlowsHook
from airflow_provider_flows.sensors import FlowRunSensor

with DAG(
    dag_id="wait_for_flow_run",
    schedule=None,
    params={"output_path": "file:///tmp/flows"},
    tags=["flows"],
    doc_md=__doc__,
) as dag:

    @task
    def start_elsewhere() -> str:
        """Stand for the other system: start a flow run and hand on nothing but its id."""
        run = FlowsHook.get_hook("flows_default").start(
            "model_generate_fromprompt", "A street lamp", {"quality": "low"}
        )
        return run.flow_run_id

    FlowRunSensor(
        task_id="wait_for_model",
        flow_run_id=start_elsewhere(),
        output_path="{{ params.output_path }}",
        timeout=2 * 60 * 60,
    )
