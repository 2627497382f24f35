"""Lesson 8: a function words the prompt, and the task runs the flow with it; `@task.flow` is the operator of the other lessons.

What the function returns are the inputs; a dict with `inputs` sets the other arguments too. `task` is Airflow's own, imported
from here so that editors and type checkers know `task.flow`. It needs a connection `flows_default` of type Generio.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG

from airflow_provider_flows.decorators import task

with DAG(
    dag_id="decorated_flow",
    schedule=None,
    params={
        "orders": [{"thing": "chair", "triangles": 900}, {"thing": "lamp", "triangles": 600}],
        "output_path": "file:///tmp/flows",
    },
    tags=["flows"],
    doc_md=__doc__,
) as dag:

    @task
    def orders(params: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """Give what is to be made; in your DAG it may come from a table."""
        return list((params or {})["orders"])

    @task.flow(flow="model_generate_fromprompt", parameters={"quality": "low"}, deferrable=True, retries=2)
    def make_model(order: dict[str, Any]) -> str:
        """Word the prompt; a retry that words it the same goes on with the same flow run."""
        return f"A modern {order['thing']} made of wood"

    # The decorator's arguments are templates, as the operator's are; what the function returns is sent to the letter.
    @task.flow(flow="model_optimize", output_path="{{ params.output_path }}")
    def make_smaller(order: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
        """Take the model as the task before returned it, and set a parameter of this flow run."""
        return {"inputs": model["outputs"], "parameters": {"polygon_count": order["triangles"]}}

    ordered = orders()
    made = make_model.override(output_path="{{ params.output_path }}").expand(order=ordered)
    make_smaller.expand_kwargs(ordered.zip(made).map(lambda pair: {"order": pair[0], "model": pair[1]}))
