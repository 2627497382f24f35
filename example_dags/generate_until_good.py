"""Lesson 11: generate, check, and generate again with another seed until the result is good.

It shows a task loop, which Airflow has since version 3.4; in an earlier Airflow this file defines no DAG.
Each iteration starts a flow run of its own, which is billed. A retry resumes the run of its iteration. The
DAG needs a connection `flows_default` of type Generio.
"""

from __future__ import annotations

from typing import Any

from airflow import sdk
from airflow.sdk import dag, task_group

from airflow_provider_flows.decorators import task


@dag(
    schedule=None,
    params={"prompt": "A vase", "min_bytes": 34_000, "output_path": "file:///tmp/flows"},
    tags=["flows"],
    doc_md=__doc__,
)
def generate_until_good() -> None:
    """Define the DAG: a loop, and a task that uses the model of its last iteration."""

    @task_group
    def generate_and_check() -> None:
        """Generate one model, and check it."""

        @task.flow(
            flow="model_generate_fromprompt",
            deferrable=True,
            output_path="{{ params.output_path }}",
            retries=2,
        )
        def make_model(params: dict[str, Any], *, loop: Any) -> dict[str, Any]:
            """Return the prompt, and another seed in each iteration: the same seed gives the same model."""
            return {"inputs": params["prompt"], "parameters": {"quality": "low", "seed": loop.index}}

        @task
        def check(model: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
            """Return whether the model has enough detail; in your DAG this may render or measure it."""
            (output,) = model["outputs"]
            return {
                "is_good": output["size"] >= params["min_bytes"],
                "size": output["size"],
                "uri": output["uri"],
            }

        check(make_model())

    def is_good(*, loop: Any) -> Any:
        """Stop at the first good model; the loop fails if there is none after its last iteration."""
        checked = loop.result  # of the iteration's last task
        return sdk.LoopDecision(stop=checked["is_good"], reason=f"{checked['size']} bytes")

    generate_and_check.loop(until=is_good, max_iterations=5)


if hasattr(sdk, "LoopDecision"):  # Airflow has task loops
    generate_until_good()
