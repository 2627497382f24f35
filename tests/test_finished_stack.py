"""A test of an asset watcher in one real Airflow: a DAG starts by a flow run that somebody else started, once.

What the trigger does when services fail is in test_finished.py.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_flows.emulator import Emulator
from tests.airflow_run import empty_database
from tests.modes import FLOW, start_elsewhere
from tests.versions import lacks, needs
from tools.airflow_stack import Stack

pytestmark = [pytest.mark.stack, pytest.mark.timeout(240)]

KEY = "a-key-that-nobody-else-may-read"
WITHIN = 60.0  # seconds
# both watchers are one trigger to Airflow, whose memory then lies with two assets
DAGS = f"""
from airflow.sdk import DAG, Asset, AssetWatcher, task
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow_provider_flows.triggers import FlowRunFinishedTrigger

def finished(name):
    trigger = FlowRunFinishedTrigger(flow="{FLOW}", poll_interval=1)
    return Asset(name, watchers=[AssetWatcher(name="service", trigger=trigger)])

with DAG("on_finished", schedule=finished("finished")) as on_finished:
    @task
    def tell(triggering_asset_events):
        return [event.extra["payload"] for events in triggering_asset_events.values() for event in events]
    tell()
with DAG("on_finished_too", schedule=finished("finished_too")) as on_finished_too:
    EmptyOperator(task_id="nothing")
"""
# an Airflow that finds out within seconds that a triggerer died
HURRIED = {"AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "4", "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "1"}


def soon(found: Callable[[], Any]) -> Any:
    """Wait until something is found."""
    deadline = time.monotonic() + WITHIN
    while not (result := found()):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    return result


def remembered(airflow: Stack) -> list[set[str]]:
    """Give, of each asset that has a memory, the flow runs that were told."""
    assets = airflow.call("GET", "assets").json()["assets"]
    stores = [airflow.call("GET", f"assets/{asset['id']}/state-store").json()["asset_state_store"] for asset in assets]
    return [set(entry["value"]["told"]) for store in stores for entry in store]


def runs_of(airflow: Stack, dag_id: str) -> list[str]:
    """Give the ids of a DAG's runs."""
    return [run["dag_run_id"] for run in airflow.call("GET", f"dags/{dag_id}/dagRuns").json()["dag_runs"]]


def told(airflow: Stack) -> list[dict[str, Any]]:
    """Give what the DAG's runs were told, when they are over."""
    runs = runs_of(airflow, "on_finished")
    assert [airflow.wait("on_finished", run_id, WITHIN) for run_id in runs] == ["success"] * len(runs)
    return [payload for run_id in runs for payload in airflow.xcom("on_finished", run_id, "tell")]


@needs("asset state store")
def test_dag_starts_by_a_flow_run_that_ended(tmp_path: Path) -> None:
    """A DAG starts with the right payload; after its triggerer was killed, by what ended meanwhile, and by nothing twice."""
    dags = tmp_path / "dags"
    dags.mkdir()
    (dags / "watches.py").write_text(textwrap.dedent(DAGS))
    with Emulator(key=KEY, run_seconds=0.5) as emulator:
        before = start_elsewhere(emulator)
        settings = {**emulator.connections, **HURRIED}
        with Stack(tmp_path, dags, environment=settings, tuned=True, parallelism=2, database=empty_database()) as airflow:
            soon(lambda: remembered(airflow) == [{before}] * 2)
            first = start_elsewhere(emulator)
            soon(lambda: runs_of(airflow, "on_finished"))
            soon(lambda: remembered(airflow) == [{before, first}] * 2)
            log = airflow.process_log("triggerer", 10_000)

            airflow.process("triggerer").kill()
            second = start_elsewhere(emulator)
            airflow.restart("triggerer")
            soon(lambda: len(runs_of(airflow, "on_finished")) > 1)
            soon(lambda: remembered(airflow) == [{before, first, second}] * 2)

            payloads = {one["flow_run_id"]: one for one in told(airflow)}
            assert len(runs_of(airflow, "on_finished")) == len(runs_of(airflow, "on_finished_too")) == len(payloads)

    assert set(payloads) == {first, second}
    payload = payloads[first]
    assert (payload["flow_run_id"], payload["flow"], payload["state"]) == (first, FLOW, "completed")
    assert (payload["service"], payload["duration"], payload["error"]) == ("generio", 0.5, None)
    assert "Traceback" not in log
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert tmp_path / "airflow.db" in files
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


@lacks("asset state store")
def test_dag_starts_without_a_memory(tmp_path: Path) -> None:
    """Where Airflow keeps nothing for an asset the DAG starts all the same, and the trigger says once what is missing."""
    dags = tmp_path / "dags"
    dags.mkdir()
    (dags / "watches.py").write_text(textwrap.dedent(DAGS))
    emulator = Emulator(key=KEY, run_seconds=0.5)
    with emulator, Stack(tmp_path, dags, environment=emulator.connections, tuned=True, parallelism=2) as airflow:
        soon(lambda: any(asked.method == "GET" for asked in emulator.requests))
        first = start_elsewhere(emulator)
        soon(lambda: runs_of(airflow, "on_finished"))
        assert [payload["flow_run_id"] for payload in told(airflow)] == [first]
    logs = "".join(path.read_text() for path in tmp_path.rglob("*.log") if path.is_file())
    assert logs.count("keeps no memory for asset watchers") == 1
