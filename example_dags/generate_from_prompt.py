"""Lesson 2: one prompt in, one 3D model out, stored in the folder `output_path`.

It needs a connection `flows_default` of type Generio.
"""

from __future__ import annotations

from airflow.sdk import DAG

from airflow_provider_flows.operators import RunFlowOperator

with DAG(
    dag_id="generate_from_prompt",
    schedule=None,
    params={"prompt": "A garden gnome", "output_path": "file:///tmp/flows"},
    tags=["flows"],
    doc_md=__doc__,
) as dag:
    RunFlowOperator(
        task_id="make_gnome",
        flow="model_generate_fromprompt",
        inputs="{{ params.prompt }}",  # a string is a prompt and never names a file, wherever it comes from
        parameters={"quality": "low", "seed": 7},
        additional={"dag_run": "{{ run_id }}"},  # your own metadata, stored with the flow run at the service
        output_path="{{ params.output_path }}",
    )
