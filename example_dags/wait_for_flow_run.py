"""Lesson 6: a sensor waits for a flow run that was started elsewhere, without a worker slot between polls.

The sensor polls, releases its slot, and is scheduled again for the next poll; the interval grows with the age
of the run. It needs a connection `flows_default` of type Generio.
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
        """Start a flow run, as another system would do, and return its id."""
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
