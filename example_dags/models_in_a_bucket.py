"""Lesson 7: image, model and reduced model in object storage; each task reads what the previous one stored.

It shows one Airflow connection of a storage for both inputs and outputs, and that tasks pass on URIs, never
files. By default a local folder is the storage. For a bucket set `output_path` to `s3://BUCKET/FOLDER` and
`storage_conn_id` to an `aws` connection, and install `apache-airflow-providers-amazon[s3fs]`. It needs a
connection `flows_default` of type Generio.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from airflow.sdk import DAG, ObjectStoragePath, Param, task

from airflow_provider_flows.operators import RunFlowOperator

CHAIR = Path(__file__).parent / "images" / "chair.png"

with DAG(
    dag_id="models_in_a_bucket",
    schedule=None,
    params={"output_path": "file:///tmp/flows", "storage_conn_id": Param(None, type=["null", "string"])},
    render_template_as_native_obj=True,  # so that no connection is None, not the text "None"
    # The storage's connection: `output_conn_id` for writing, `input_conn_id` for reading. A local folder
    # needs none.
    default_args={
        "output_path": "{{ params.output_path }}",
        "output_conn_id": "{{ params.storage_conn_id }}",
        "input_conn_id": "{{ params.storage_conn_id }}",
    },
    tags=["flows"],
    doc_md=__doc__,
) as dag:

    @task
    def put_image(params: dict[str, Any] | None = None) -> dict[str, str]:
        """Store an image, as another system would do, and return it as an input, which names the file."""
        values = params or {}
        uri = f"{values['output_path']}/{CHAIR.name}"
        image = ObjectStoragePath(uri, conn_id=values["storage_conn_id"])
        if image.protocol == "file":
            image.parent.mkdir(parents=True, exist_ok=True)  # in a bucket folders are only names
        image.write_bytes(CHAIR.read_bytes())
        return {"uri": uri}  # a string alone would be a prompt

    # The file is read from the storage and sent in chunks; the model is stored there in the same way.
    model = RunFlowOperator(
        task_id="make_model",
        flow="model_generate_fromimage",
        inputs=put_image(),
        parameters={"quality": "high"},
    )

    # Each output is a dict with the `uri` of its file. As inputs, the files are read from there.
    RunFlowOperator(
        task_id="optimize_model",
        flow="model_optimize",
        inputs=model.output["outputs"],
        parameters={"polygon_count": 800},
    )
