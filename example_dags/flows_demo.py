"""Lesson 1: a 3D model from a prompt, made smaller in a second flow run; `make demo` runs this DAG.

It shows how one flow run's outputs become the next one's inputs, and where the files go; it needs a connection `flows_default`.
"""

from __future__ import annotations

import os

from airflow.sdk import DAG

from airflow_provider_flows.operators import RunFlowOperator

# Where the files go: any place that Airflow's ObjectStoragePath can write to. A folder named after the flow run is made there.
OUTPUT = os.environ.get("FLOWS_DEMO_OUTPUT", "file:///tmp/flows")

with DAG(
    dag_id="flows_demo",
    schedule=None,
    params={"prompt": "A modern office chair"},
    tags=["flows"],
    doc_md=__doc__,
) as dag:
    # A flow is started by its name. What comes from others is said to be a prompt (`data`), so that it can never name a file.
    # Everything below is templated.
    make_chair = RunFlowOperator(
        task_id="make_chair",
        flow="model_generate_fromprompt",
        inputs=[{"data": "{{ params.prompt }}"}],
        parameters={"quality": "high"},
        poll_interval=1,
        output_path=OUTPUT,
    )

    # What the first task returns lists its outputs, each with the `uri` of its file: they can be given to the next as they are.
    shrink_chair = RunFlowOperator(
        task_id="shrink_chair",
        flow="model_optimize",
        inputs=make_chair.output["outputs"],
        parameters={"polygon_count": 500},
        poll_interval=1,
        output_path=OUTPUT,
    )
