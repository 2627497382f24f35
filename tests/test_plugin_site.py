"""Tests of the pages in a real Airflow app."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from airflow.sdk import DAG
from fastapi.testclient import TestClient

from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.operators import RunFlowOperator
from tests.airflow_run import run_dag
from tests.plugin_site import airflow_site, keep_connections, task_path
from tests.tries import CHAIN, CHAIR, set_up


@pytest.fixture(scope="module")
def site(airflow_database: None) -> Iterator[dict[str, TestClient]]:
    with airflow_site() as clients:
        yield clients


def test_try(site, flow_emulator, monkeypatch, tmp_path):
    import time

    set_up(flow_emulator, monkeypatch)
    flow_emulator.run_seconds = 0
    with DAG("ui_one", schedule=None) as dag:
        RunFlowOperator(task_id="run", **CHAIR, output_path=f"file://{tmp_path}")
    result = run_dag(dag)
    path = task_path("ui_one", result.run_id)
    for who in ("nobody", "vera", "anna"):
        t = time.time()
        answer = site[who].get(f"/flows/{path}")
        print(who, answer.status_code, time.time() - t)
    print(answer.text)
    print(answer.headers)
    told = site["vera"].get(f"/flows/json/{path}")
    print(told.json())
    d = site["vera"].get(f"/flows/{path}/output/0")
    print(d.status_code, d.headers, len(d.content))
    print(site["vera"].get(f"/flows/json/{path}/output/0/model").json())
    keep_connections(
        {"g": {"conn_type": "generio", "host": flow_emulator.url, "password": "emulator"}, "x": {"conn_type": "http"}}
    )
    print(site["anna"].get("/flows/").headers, site["vera"].get("/flows/").text)
    r = site["anna"].get("/flows/connection/g")
    print(r.status_code, r.text)
    print(site["vera"].get("/flows/connection/g").status_code, site["anna"].get("/flows/connection/x").text)
    assert 0
