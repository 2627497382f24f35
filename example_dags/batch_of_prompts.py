"""Lesson 12: forty prompts in one task, and those that failed again in the next one.

It shows `RunFlowBatchOperator`, its file of failed items as the items of another batch, and `read_manifest`.
It needs a connection `flows_default` of type Generio.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from airflow.sdk import DAG, task

from airflow_provider_flows import read_manifest
from airflow_provider_flows.operators import RunFlowBatchOperator

with DAG(
    dag_id="batch_of_prompts",
    schedule=None,
    params={"output_path": "file:///tmp/flows"},
    default_args={
        "flow": "model_generate_fromprompt",
        "parameters": {"quality": "low"},
        "deferrable": True,
        "retries": 2,  # a retry runs only what is missing: no item is billed twice
    },
    tags=["flows"],
    doc_md=__doc__,
) as dag:

    @task
    def prompts() -> list[dict[str, Any]]:
        """Return the items; for thousands of them, write a file and return its URI instead."""
        return [
            {"key": f"chair-{number}", "inputs": f"A chair with {number} legs"} for number in range(3, 43)
        ]

    models = RunFlowBatchOperator(
        task_id="make_models",
        items=prompts(),
        output_path="{{ params.output_path }}/first",
        max_active_runs=20,
        min_success_ratio=0.9,  # a few failures do not fail the task
    )

    # `failed.jsonl` has the items that failed, in the form that `items` takes.
    again = RunFlowBatchOperator(
        task_id="make_failed_models",
        items=models.output["failed_items"],
        output_path="{{ params.output_path }}/second",
    )

    @task
    def summary(first: str, second: str) -> dict[str, int]:
        """Return how many lines of both manifests have which state."""
        return dict(Counter(line["state"] for uri in (first, second) for line in read_manifest(uri)))

    summary(models.output["manifest"], again.output["manifest"])
