"""Lesson 10: start a flow run now, do other work meanwhile, and fetch its outputs later.

No task waits while the flow run works. The setup starts it, and the teardown aborts it if the work between
has failed, so that nothing is left running. It needs a connection `flows_default` of type Generio.
"""

from __future__ import annotations

from airflow.sdk import DAG, task

from airflow_provider_flows.operators import (
    AbortFlowRunOperator,
    DeleteFlowRunOperator,
    FetchFlowRunOperator,
    RunFlowOperator,
)

with DAG(
    dag_id="start_now_fetch_later",
    schedule=None,
    params={"output_path": "file:///tmp/flows"},
    tags=["flows"],
    doc_md=__doc__,
) as dag:
    start = RunFlowOperator(
        task_id="start",
        flow="model_generate_fromprompt",
        inputs="A wooden bench",
        parameters={"quality": "low"},
        wait_for_completion=False,
    )
    flow_run_id = start.output["flow_run_id"]

    @task
    def prepare_scene() -> str:
        """Do the work that needs no model yet."""
        return "park"

    fetch = FetchFlowRunOperator(
        task_id="fetch",
        flow_run_id=flow_run_id,
        output_path="{{ params.output_path }}",
        deferrable=True,  # waits only if the run is not final yet
    )
    delete = DeleteFlowRunOperator(task_id="delete", flow_run_id=flow_run_id)
    abort = AbortFlowRunOperator(task_id="abort", flow_run_id=flow_run_id)

    start >> prepare_scene() >> fetch >> delete >> abort.as_teardown(setups=start)
