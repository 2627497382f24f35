"""Lesson 7: image, model and smaller model, all in object storage; each task reads there what the one before it wrote.

It shows one Airflow connection for a store at both ends of a flow run, and that tasks hand on URIs, never files. As it stands a
local folder is the store. For a bucket set `output_path` to `s3://BUCKET/FOLDER` and `storage_conn_id` to an `aws` connection,
and install `apache-airflow-providers-amazon[s3fs]`. It needs a connection `flows_default` of type Generio.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from airflow.sdk import DAG, ObjectStoragePath, task

from airflow_provider_flows.operators import RunFlowOperator

CHAIR = Path(__file__).parent / "images" / "chair.png"

with DAG(
    dag_id="models_in_a_bucket",
    schedule=None,
    params={"output_path": "file:///tmp/flows", "storage_conn_id": "aws_default"},
    # The store's connection: `output_conn_id` for what is written, `input_conn_id` for what is read. A local folder needs none.
    default_args={
        "output_path": "{{ params.output_path }}",
        "output_conn_id": "{{ params.storage_conn_id }}",
        "input_conn_id": "{{ params.storage_conn_id }}",
    },
    tags=["flows"],
    doc_md=__doc__,
) as dag:

    @task
    def put_image(params: dict[str, Any] | None = None) -> str:
        """Stand for whoever brings images into the store: put one there, and hand on its URI."""
        given = params or {}
        uri = f"{given['output_path']}/{CHAIR.name}"
        image = ObjectStoragePath(uri, conn_id=given["storage_conn_id"])
        if image.protocol == "file":
            image.parent.mkdir(parents=True, exist_ok=True)  # in a bucket folders are only names
        image.write_bytes(CHAIR.read_bytes())
        return uri

    # A file is read from the store and sent a chunk at a time; the model goes back there in the same way.
    model = RunFlowOperator(
        task_id="make_model",
        flow="model_generate_fromimage",
        inputs=put_image(),
        parameters={"quality": "high"},
    )

    # Each output is a dict that has the `uri` of its file: given as inputs, the files are read from where they were written.
    RunFlowOperator(
        task_id="optimize_model",
        flow="model_optimize",
        inputs=model.output["outputs"],
        parameters={"polygon_count": 800},
    )
