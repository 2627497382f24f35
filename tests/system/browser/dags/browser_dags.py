"""The DAGs of the browser tests: a model, a chain, mapped tasks, a batch, no waiting, retries, no flow run.

Hostile texts come from the configuration of a DAG run.
"""

from __future__ import annotations

import os
from datetime import timedelta

from airflow.sdk import DAG, task

from airflow_provider_flows.operators import RunFlowBatchOperator, RunFlowOperator

OUTPUT = os.environ["FLOWS_DEMO_OUTPUT"]

with DAG("browser_model", schedule=None, params={"prompt": "A modern office chair"}):
    RunFlowOperator(
        task_id="make",
        flow="model_generate_fromprompt",
        inputs=[{"data": "{{ params.prompt }}"}],
        parameters={"quality": "high"},
        output_path=OUTPUT,
        poll_interval=1,
    )

with DAG("browser_chain", schedule=None, params={"flow": "", "item": "ball"}):
    RunFlowOperator(
        task_id="write",
        flow="{{ params.flow }}",
        inputs={"color": "red", "item": "{{ params.item }}"},
        flows_conn_id="promptchainer_default",
        output_path=OUTPUT,
    )

with DAG("browser_mapped", schedule=None):
    RunFlowOperator.partial(
        task_id="make", flow="model_generate_fromprompt", parameters={"quality": "low"}, poll_interval=1
    ).expand(inputs=["A round table", "A stool"])

with DAG("browser_reduced", schedule=None):
    made = RunFlowOperator(
        task_id="make",
        flow="model_generate_fromprompt",
        inputs="A round table",
        parameters={"quality": "high"},
        output_path=OUTPUT,
        poll_interval=1,
    )
    RunFlowOperator(
        task_id="shrink",
        flow="model_optimize",
        parameters={"polygon_count": 500},
        inputs=made.output["outputs"],
        output_path=OUTPUT,
        poll_interval=1,
    )

with DAG("browser_from_image", schedule=None, params={"uri": ""}):
    RunFlowOperator(
        task_id="make",
        flow="model_generate_fromimage",
        inputs=[{"uri": "{{ params.uri }}"}],
        output_path=OUTPUT,
        poll_interval=1,
    )

STYLES, KINDS = ("modern", "rustic", "round"), ("chair", "stool", "bench")

with DAG("browser_batch", schedule=None):
    RunFlowBatchOperator(
        task_id="make",
        flow="model_generate_fromprompt",
        items=[
            {"key": f"{name}-{number}", "inputs": f"A {name.replace('-', ' ')}"}
            for name in (f"{style}-{kind}" for style in STYLES for kind in KINDS)
            for number in range(1, 7)
        ],
        parameters={"quality": "low"},
        output_path=f"{OUTPUT}/chairs",
        max_active_runs=6,
        min_success_ratio=0.9,
        poll_interval=1,
    )

with DAG("browser_left", schedule=None):
    RunFlowOperator(
        task_id="start", flow="model_generate_fromprompt", inputs="A bench", wait_for_completion=False
    )

with DAG("browser_tries", schedule=None):
    RunFlowOperator(
        task_id="make",
        flow="model_generate_fromprompt",
        inputs="A garden chair",
        poll_interval=1,
        retries=1,
        retry_delay=timedelta(seconds=1),
    )

with DAG("browser_none", schedule=None):

    @task
    def nothing() -> None:
        """Start no flow run."""

    nothing()
