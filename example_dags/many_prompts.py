"""Lesson 5: one model for each prompt, all at once, by dynamic task mapping, without worker slots.

It shows `.partial().expand()`, and a task that reads all results. It needs a connection `flows_default` of
type Generio.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, Param, task

from airflow_provider_flows.operators import RunFlowOperator

with DAG(
    dag_id="many_prompts",
    schedule=None,
    params={
        # Only strings, which are prompts: a dict from the user who starts the DAG could name a file.
        "prompts": Param(
            ["A teapot", "A wooden boat", "A lighthouse"], type="array", items={"type": "string"}
        ),
        "output_path": "file:///tmp/flows",
    },
    tags=["flows"],
    doc_md=__doc__,
) as dag:

    @task
    def prompts(params: dict[str, Any] | None = None) -> list[str]:
        """Return the prompts; in your DAG they may come from a table or a file."""
        return list((params or {})["prompts"])

    models = RunFlowOperator.partial(
        task_id="make_model",
        flow="model_generate_fromprompt",
        parameters={"quality": "low"},
        deferrable=True,
        output_path="{{ params.output_path }}",
        retries=2,  # a retry resumes the same flow run, which is billed once
    ).expand(inputs=prompts())

    @task
    def summary(runs: list[dict[str, Any]]) -> dict[str, int]:
        """Return the size of each file."""
        return {output["uri"]: output["size"] for run in runs for output in run["outputs"]}

    summary(models.output)
