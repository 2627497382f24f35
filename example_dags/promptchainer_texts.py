"""Lesson 4: a chain of prompts at PromptChainer: variables in, texts and pictures out.

The same operator serves both services: the type of the connection picks the one. It needs a connection `promptchainer_default`
of type PromptChainer.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, task

from airflow_provider_flows.operators import RunFlowOperator

SAMPLE_FLOW = (
    "clibnwpno000bmc0k9hvv3y7f"  # the vendor's sample: variables color and item, outputs image and text
)

with DAG(
    dag_id="promptchainer_texts",
    schedule=None,
    params={"color": "red", "item": "ball", "output_path": "file:///tmp/flows"},
    tags=["flows"],
    doc_md=__doc__,
) as dag:
    # Variables are checked against the flow before it runs: a misspelt name is an error that names the nearest match.
    texts = RunFlowOperator(
        task_id="make_texts",
        flow=SAMPLE_FLOW,
        inputs={"color": "{{ params.color }}", "item": "{{ params.item }}"},
        flows_conn_id="promptchainer_default",
        output_path="{{ params.output_path }}",  # pictures are links that end after an hour: this keeps them
    )

    @task
    def show(run: dict[str, Any]) -> dict[str, str]:
        """Pick each output's text, or the place of its file."""
        return {output["name"]: output.get("uri") or output["value"] for output in run["outputs"]}

    show(texts.output)
