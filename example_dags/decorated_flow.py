"""Lesson 8: with `@task.flow` a function returns the inputs, and the task runs the flow with them.

The function returns inputs, or a dict with `inputs` and other arguments. `task` is Airflow's own object;
this import adds the type of `task.flow` for editors and type checkers. The DAG needs a connection
`flows_default` of type Generio.
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
        """Return the orders; in your DAG they may come from a table."""
        return list((params or {})["orders"])

    @task.flow(flow="model_generate_fromprompt", parameters={"quality": "low"}, deferrable=True, retries=2)
    def make_model(order: dict[str, Any]) -> str:
        """Return the prompt; a retry that returns the same prompt resumes the same flow run."""
        return f"A modern {order['thing']} made of wood"

    # The decorator's arguments are templated, as the operator's are; the returned value is sent unchanged.
    @task.flow(flow="model_optimize", output_path="{{ params.output_path }}")
    def make_smaller(order: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
        """Return the outputs of the previous task as inputs, and a parameter for this flow run."""
        return {"inputs": model["outputs"], "parameters": {"polygon_count": order["triangles"]}}

    all_orders = orders()
    models = make_model.override(output_path="{{ params.output_path }}").expand(order=all_orders)
    make_smaller.expand_kwargs(all_orders.zip(models).map(lambda pair: {"order": pair[0], "model": pair[1]}))
