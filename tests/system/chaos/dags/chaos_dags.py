"""The DAGs of the scenarios, one for each way of waiting; a DAG run's configuration names the service."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import PurePath
from typing import Any

import requests
from airflow.sdk import DAG

from airflow_provider_flows.operators import RunFlowBatchOperator, RunFlowOperator
from airflow_provider_flows.sensors import FlowRunSensor


def report_end(context: Any, _result: Any = None) -> None:
    """Report to the proxy that all files are written, before the task ends."""
    with requests.Session() as session:
        session.trust_env = False
        session.get(context["dag_run"].conf["proxy"] + "/chaos/written", timeout=60)


FILES_OF_A_BATCH = ("manifest.jsonl", "failed.jsonl")


def report_batch_files(context: Any) -> None:
    """Report to the proxy when a batch has written one of its own files, before the file gets its name."""
    proxy = context["dag_run"].conf["proxy"]

    def on_event(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.rename" and (name := PurePath(arguments[1]).name) in FILES_OF_A_BATCH:
            with requests.Session() as session:
                session.trust_env = False
                session.get(f"{proxy}/chaos/{name}", timeout=60)

    sys.addaudithook(on_event)


FAST_POLLING: dict[str, Any] = {"poll_interval": 1, "max_poll_interval": 2}
RETRIES: dict[str, Any] = {"retries": 3, "retry_delay": timedelta(seconds=1)}
SLOW_RETRIES: dict[str, Any] = {"retries": 3, "retry_delay": timedelta(seconds=25)}
LOCATION_ARGUMENTS: dict[str, Any] = {
    "flows_conn_id": "{{ dag_run.conf['conn'] }}",
    "output_path": "{{ dag_run.conf['output'] }}",
}
FLOW_ARGUMENTS: dict[str, Any] = {
    "flow": "{{ dag_run.conf['flow'] }}",
    "inputs": ["A modern office chair", "A round table"],
    "additional": {"tag": "{{ dag_run.conf['tag'] }}"},
}
MODES: dict[str, dict[str, Any]] = {
    "blocking": {},
    "deferrable": {"deferrable": True},
    "blocking_forgetful": {"durable": False},
    "blocking_left_alone": {"abort_on_kill": False},
    "deferrable_left_alone": {"abort_on_kill": False, "deferrable": True},
    "blocking_slow_retries": SLOW_RETRIES,
    "blocking_no_retries": {"retries": 0},
    "deferrable_slow_retries": SLOW_RETRIES | {"deferrable": True},
}
for name, mode in MODES.items():
    with DAG(f"chaos_{name}", schedule=None, max_active_runs=100, max_active_tasks=100) as dag:
        RunFlowOperator(
            task_id="run",
            post_execute=report_end,
            **(FLOW_ARGUMENTS | LOCATION_ARGUMENTS | FAST_POLLING | RETRIES | mode),
        )
    globals()[dag.dag_id] = dag

with DAG("chaos_sensor", schedule=None, max_active_runs=100, max_active_tasks=100) as chaos_sensor:
    FlowRunSensor(
        task_id="run",
        flow_run_id="{{ dag_run.conf['flow_run_id'] }}",
        poll_interval=5,
        max_poll_interval=6,
        timeout=600,
        **LOCATION_ARGUMENTS,
        **RETRIES,
    )

with DAG("chaos_chain", schedule=None, max_active_runs=100, max_active_tasks=100) as chaos_chain:
    RunFlowOperator(
        task_id="run",
        flow="{{ dag_run.conf['flow'] }}",
        inputs={"color": "red", "item": "{{ dag_run.conf['tag'] }}"},
        flows_conn_id=LOCATION_ARGUMENTS["flows_conn_id"],
        post_execute=report_end,
        **RETRIES,
    )

for name in ("blocking", "deferrable"):
    with DAG(f"chaos_{name}_mapped", schedule=None, max_active_runs=100, max_active_tasks=100) as dag:
        RunFlowOperator.partial(
            task_id="run",
            flow=FLOW_ARGUMENTS["flow"],
            additional=FLOW_ARGUMENTS["additional"],
            deferrable=name == "deferrable",
            **(LOCATION_ARGUMENTS | FAST_POLLING | RETRIES),
        ).expand(inputs=[["A modern office chair", "A round table"], ["A lamp", "A shelf"]])
    globals()[dag.dag_id] = dag

for name, count in {"many": int(os.environ["CHAOS_MANY"]), "eighty": 80}.items():
    with DAG(f"chaos_{name}", schedule=None, max_active_runs=100, max_active_tasks=100) as dag:
        RunFlowOperator.partial(
            task_id="run",
            flow="{{ dag_run.conf['flow'] }}",
            deferrable=True,
            flows_conn_id=LOCATION_ARGUMENTS["flows_conn_id"],
            timeout=None,
            **FAST_POLLING,
            **RETRIES,
        ).expand(inputs=[[f"Chair number {number}"] for number in range(count)])
    globals()[dag.dag_id] = dag

for name in ("blocking", "deferrable"):
    for suffix, max_active_runs in {"batch": 8, "batch_wide": 200}.items():
        with DAG(f"chaos_{name}_{suffix}", schedule=None, max_active_runs=100, max_active_tasks=100) as dag:
            RunFlowBatchOperator(
                task_id="run",
                flow=FLOW_ARGUMENTS["flow"],
                items="{{ dag_run.conf['items'] }}",
                max_active_runs=max_active_runs,
                deferrable=name == "deferrable",
                pre_execute=report_batch_files,
                post_execute=report_end,
                **(LOCATION_ARGUMENTS | FAST_POLLING | RETRIES),
            )
        globals()[dag.dag_id] = dag
