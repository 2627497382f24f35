"""The DAGs of benchmark 3: the same flow runs with four ways to wait, set by environment variables."""

from __future__ import annotations

import json
import os
import time
from datetime import timedelta
from typing import Any

import requests
from airflow.providers.http.operators.http import HttpOperator
from airflow.providers.http.sensors.http import HttpSensor
from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG, task_group

from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.sensors import FlowRunSensor

ADDRESS = os.environ["FLOWS_BENCH_ADDRESS"]
HEADERS = {"Authorization": f"Bearer {os.environ['FLOWS_BENCH_TOKEN']}"}
POKE = float(os.environ["FLOWS_BENCH_POKE"])
PROMPTS = [f"A chair, number {number}" for number in range(int(os.environ["FLOWS_BENCH_MAPPED"]))]
FLOW = "model_generate_fromprompt"
OUTPUT_PATH = os.environ.get("FLOWS_BENCH_OUTPUT")  # only the benchmark of batches stores files
# Airflow 3.3 may fail a task that resumes after a deferral or a reschedule; users would set retries, too.
DEFAULTS = {"retries": 2, "retry_delay": timedelta(seconds=5)}


def body(prompt: str) -> dict[str, Any]:
    """Return the request that starts a flow run, as in the vendor's samples."""
    return {"template": FLOW, "parameters": {"quality": "low"}, "inputs": [{"data": prompt}]}


def vendors_loop(prompt: str) -> dict[str, Any]:
    """Start a flow run and wait for it, as in the vendor's quickstart."""
    started = requests.post(f"{ADDRESS}/flows", headers=HEADERS, json=body(prompt), timeout=60)
    started.raise_for_status()
    flow_id = started.json()["flow_id"]
    while True:
        response = requests.get(f"{ADDRESS}/flows/{flow_id}", headers=HEADERS, timeout=60)
        response.raise_for_status()
        if response.json()["state"] in {"completed", "failed", "aborted"}:
            break
        time.sleep(5)
    outputs = requests.get(f"{ADDRESS}/flows/{flow_id}/outputs", headers=HEADERS, timeout=60)
    outputs.raise_for_status()
    return dict(outputs.json())


with DAG("deferrable", schedule=None, default_args=DEFAULTS):
    RunFlowOperator.partial(
        task_id="run",
        flow=FLOW,
        parameters={"quality": "low"},
        flows_conn_id="flows_bench",
        output_path=OUTPUT_PATH,
        deferrable=True,
    ).expand(inputs=PROMPTS)

with DAG("reschedule", schedule=None, default_args=DEFAULTS):

    @task_group
    def with_sensor(prompt: str) -> None:
        """Start one flow run, and wait for it in reschedule mode."""
        start = RunFlowOperator(
            task_id="start",
            flow=FLOW,
            parameters={"quality": "low"},
            inputs=prompt,
            flows_conn_id="flows_bench",
            wait_for_completion=False,
        )
        flow_run_id = start.output["flow_run_id"]  # type: ignore[index]  # Airflow types it too widely
        FlowRunSensor(
            task_id="wait", flow_run_id=flow_run_id, flows_conn_id="flows_bench", poll_interval=POKE
        )

    with_sensor.expand(prompt=PROMPTS)

with DAG("http", schedule=None, default_args=DEFAULTS):

    @task_group
    def over_http(request: str) -> None:
        """Start one flow run with HttpOperator, and wait for it with HttpSensor in reschedule mode."""
        start = HttpOperator(
            task_id="start",
            http_conn_id="http_bench",
            endpoint="flows",
            data=request,
            headers={"Content-Type": "application/json", **HEADERS},
            response_filter=lambda response: response.json()["flow_id"],
        )
        wait = HttpSensor(
            task_id="wait",
            http_conn_id="http_bench",
            endpoint="flows/{{ ti.xcom_pull(task_ids='over_http.start', map_indexes=ti.map_index) }}",
            headers=HEADERS,
            response_check=lambda response: response.json()["state"] == "completed",
            mode="reschedule",
            poke_interval=POKE,
        )
        start >> wait

    over_http.expand(request=[json.dumps(body(prompt)) for prompt in PROMPTS])

with DAG("python", schedule=None, default_args=DEFAULTS):
    PythonOperator.partial(task_id="run", python_callable=vendors_loop).expand(
        op_args=[[prompt] for prompt in PROMPTS]
    )
