"""Lesson 4: a chain of prompts at PromptChainer: variables in, texts and images out.

The same operator supports both services; the type of the connection selects the service. It needs a
connection `promptchainer_default` of type PromptChainer.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, task

from airflow_provider_flows.operators import RunFlowOperator

# The vendor's sample flow, with variables color and item, and outputs image and text.
SAMPLE_FLOW = "clibnwpno000bmc0k9hvv3y7f"

with DAG(
    dag_id="promptchainer_texts",
    schedule=None,
    params={"color": "red", "item": "ball", "output_path": "file:///tmp/flows"},
    tags=["flows"],
    doc_md=__doc__,
) as dag:
    # Variables are checked against the flow before it runs; the error for a misspelled name has the nearest
    # match.
    texts = RunFlowOperator(
        task_id="make_texts",
        flow=SAMPLE_FLOW,
        inputs={"color": "{{ params.color }}", "item": "{{ params.item }}"},
        flows_conn_id="promptchainer_default",
        output_path="{{ params.output_path }}",  # stores images, whose links expire after an hour
    )

    @task
    def show(run: dict[str, Any]) -> dict[str, str]:
        """Return each output's text, or the URI of its file."""
        return {output["name"]: output.get("uri") or output["value"] for output in run["outputs"]}

    show(texts.output)
