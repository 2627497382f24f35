"""Lesson 3: from an image file to a 3D model with fewer triangles, waiting without a worker slot.

It shows files as inputs and a deferrable task. It needs a connection `flows_default` of type Generio.
"""

from __future__ import annotations

from pathlib import Path

from airflow.sdk import DAG

from airflow_provider_flows.operators import RunFlowOperator

# A file is a pathlib.Path, or a dict with its `uri` (file:///..., s3://...). A string is a prompt.
CHAIR = Path(__file__).parent / "images" / "chair.png"

with DAG(
    dag_id="image_to_optimized_model",
    schedule=None,
    params={"output_path": "file:///tmp/flows"},
    default_args={"deferrable": True, "output_path": "{{ params.output_path }}"},
    tags=["flows"],
    doc_md=__doc__,
) as dag:
    # The service copies `additional` of an input to its output.
    model = RunFlowOperator(
        task_id="make_model",
        flow="model_generate_fromimage",
        inputs=[{"uri": CHAIR.as_uri(), "additional": {"drawing": "chair"}}],
        parameters={"quality": "high"},
    )

    # The outputs of the first flow run are the inputs of the second one, by the URIs of their files.
    RunFlowOperator(
        task_id="optimize_model",
        flow="model_optimize",
        inputs=model.output["outputs"],
        parameters={"polygon_count": 800},
    )
