"""Lesson 1: a 3D model from a prompt, reduced in a second flow run; `make demo` runs this DAG.

It shows how the outputs of one flow run become the inputs of the next one, and where the files are stored. It
needs a connection `flows_default` of type Generio.
"""

from __future__ import annotations

import os

from airflow.sdk import DAG

from airflow_provider_flows.operators import RunFlowOperator

# Any location that Airflow's ObjectStoragePath can write to. Each flow run gets its own folder.
OUTPUT = os.environ.get("FLOWS_DEMO_OUTPUT", "file:///tmp/flows")

with DAG(
    dag_id="flows_demo",
    schedule=None,
    params={"prompt": "A modern office chair"},
    tags=["flows"],
    doc_md=__doc__,
) as dag:
    # A string is a prompt and never names a file, wherever it comes from. As `data`, even a text that looks
    # like a path is sent. All arguments below are templated.
    make_chair = RunFlowOperator(
        task_id="make_chair",
        flow="model_generate_fromprompt",
        inputs=[{"data": "{{ params.prompt }}"}],
        parameters={"quality": "high"},
        poll_interval=1,
        output_path=OUTPUT,
    )

    # The result of the first task lists its outputs, each with the `uri` of its file. They are valid inputs
    # of the next task.
    shrink_chair = RunFlowOperator(
        task_id="shrink_chair",
        flow="model_optimize",
        inputs=make_chair.output["outputs"],
        parameters={"polygon_count": 500},
        poll_interval=1,
        output_path=OUTPUT,
    )
