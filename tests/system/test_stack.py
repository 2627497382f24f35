"""Tests in a real Airflow: API server, scheduler with LocalExecutor and triggerer, with default settings.

All DAG runs start together, because most of the time is waiting; each test then checks its own.
"""

from __future__ import annotations

import shutil
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_flows.core.start_or_resume import get_stamp
from airflow_provider_flows.emulator import Emulator, Plan
from tests.support.airflow_run import empty_database
from tests.support.modes import FLOW, start_external_run
from tests.support.versions import has, lacks, needs
from tools.airflow_stack import Stack

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]

SLOW_RUN_SECONDS = 600.0  # a flow run that is in progress when its task is killed
BATCH = "batch_of_prompts"  # the lesson
KEY = "a-key-that-occurs-in-no-other-text"
MAX_WAIT_SECONDS = 100.0
MAX_DELIVERY_SECONDS = 30.0  # from the end of a flow run to a DAG run with its event
DAGS = """
from airflow.sdk import DAG
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.sensors import FlowRunSensor

chair = {"flow": "model_generate_fromprompt", "inputs": "A chair", "parameters": {"quality": "low"}}
for name, deferrable in {
    "deferrable": True, "blocking": False, "failing": True,
    "killed_blocking": False, "killed_deferrable": True,
}.items():
    with DAG(name, schedule=None) as dag:
        RunFlowOperator(task_id="run", deferrable=deferrable, **chair)
    globals()[name] = dag
with DAG("reschedule", schedule=None) as reschedule:
    FlowRunSensor(task_id="run", flow_run_id="{{ dag_run.conf['flow_run_id'] }}", poll_interval=15)
"""
# both watchers are one trigger to Airflow, whose state is then saved for two assets
WATCHER_DAGS = f"""
from airflow.sdk import DAG, Asset, AssetWatcher, task
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow_provider_flows.triggers import FlowRunFinishedTrigger

def finished(name):
    trigger = FlowRunFinishedTrigger("watched", flow="{FLOW}", poll_interval=1)
    return Asset(name, watchers=[AssetWatcher(name="service", trigger=trigger)])

with DAG("on_finished", schedule=finished("finished")) as on_finished:
    @task
    def collect_payloads(triggering_asset_events):
        return [event.extra["payload"] for events in triggering_asset_events.values() for event in events]
    collect_payloads()
with DAG("on_finished_too", schedule=finished("finished_too")) as on_finished_too:
    EmptyOperator(task_id="nothing")
"""


@dataclass
class StackRuns:
    """The Airflow, the services, and a run of each DAG."""

    airflow: Stack
    emulator: Emulator
    runs: dict[str, str]
    flow_runs: dict[str, str]
    """The flow runs of the DAGs whose flow runs have plans."""
    watched_emulator: Emulator
    """The service of the asset watchers."""
    existing_run: str
    """A flow run of that service from before Airflow's start."""

    def wait_for_end(self, dag_id: str, max_seconds: float = MAX_WAIT_SECONDS) -> str:
        """Wait for the end of a DAG's run, and return its state."""
        return self.airflow.wait(dag_id, self.runs[dag_id], max_seconds)

    def return_value(self, dag_id: str) -> dict[str, Any]:
        """Return the XCom of the DAG's task."""
        found: dict[str, Any] = self.airflow.xcom(dag_id, self.runs[dag_id], "run")
        return found

    def log(self, dag_id: str) -> str:
        """Return the log of the DAG's task, as in the UI."""
        return self.airflow.log(dag_id, self.runs[dag_id], "run")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackRuns]:
    """Start everything: first, one by one, the DAGs whose flow runs have plans, which are used in order."""
    home = tmp_path_factory.mktemp("stack")
    dags = home / "dags"
    dags.mkdir()
    (dags / "waits.py").write_text(textwrap.dedent(DAGS))
    (dags / "watches.py").write_text(textwrap.dedent(WATCHER_DAGS))
    shutil.copy(Path(__file__).parents[2] / "example_dags" / f"{BATCH}.py", dags)
    with Emulator(key=KEY, run_seconds=8) as emulator, Emulator(key=KEY, run_seconds=0.5) as watched:
        known = start_external_run(watched)
        connections = emulator.connections | {
            "AIRFLOW_CONN_WATCHED": watched.connections["AIRFLOW_CONN_GENERIO_DEFAULT"]
        }
        with Stack(home, dags, environment=connections, database=empty_database()) as airflow:
            runs: dict[str, str] = {}
            flow_runs: dict[str, str] = {}
            plans = {
                "failing": Plan(outcome="failed", error="The mesh has no faces"),
                "killed_blocking": Plan(run_seconds=SLOW_RUN_SECONDS),
                "killed_deferrable": Plan(run_seconds=SLOW_RUN_SECONDS),
            }
            for dag_id, plan in plans.items():
                emulator.add_plan(plan)
                before = set(emulator.runs)
                runs[dag_id] = _trigger(airflow, dag_id)
                flow_runs[dag_id] = _wait_for(lambda old=before: next(iter(set(emulator.runs) - old), None))
            emulator.add_plan(Plan(outcome="failed", error="The mesh has no faces", times=2))
            started = emulator.started_count
            conf = {"output_path": f"file://{home}/batch"}
            runs[BATCH] = _trigger(airflow, BATCH, conf)
            _wait_for(lambda: emulator.started_count >= started + 2)
            runs["reschedule"] = _trigger(
                airflow, "reschedule", {"flow_run_id": start_external_run(emulator)}
            )
            runs |= {dag_id: _trigger(airflow, dag_id) for dag_id in ("deferrable", "blocking")}
            yield StackRuns(airflow, emulator, runs, flow_runs, watched, known)


def _trigger(airflow: Stack, dag_id: str, conf: dict[str, Any] | None = None) -> str:
    """Trigger a DAG, again if SQLite was locked by another process."""
    for _ in range(5):
        try:
            return airflow.trigger(dag_id, conf)
        except RuntimeError as error:
            if "Database error" not in str(error):
                raise
            time.sleep(1)
    return airflow.trigger(dag_id, conf)


def _wait_for(get: Callable[[], Any]) -> Any:
    """Wait until a function returns something, and return it."""
    deadline = time.monotonic() + MAX_WAIT_SECONDS
    while not (result := get()):
        assert time.monotonic() < deadline
        time.sleep(0.5)  # more calls would slow Airflow down
    return result


@pytest.mark.parametrize("dag_id", ["deferrable", "reschedule", "blocking"])
def test_every_way_of_waiting_succeeds(stack: StackRuns, dag_id: str) -> None:
    """A deferrable task, a reschedule sensor and a blocking task succeed with Airflow's default settings."""
    assert stack.wait_for_end(dag_id) == "success", stack.log(dag_id)
    returned = stack.return_value(dag_id)
    assert (returned["state"], returned["progress"]) == ("completed", 1.0)
    assert returned["outputs"][0]["status"] == "ready"
    run_id = returned["flow_run_id"]
    # in full in a sensor whose first poll finds it completed, and without a store in every poll of a sensor
    names = [f"...{run_id[-6:]} (model_generate_fromprompt)", f"{run_id} (flow model_generate_fromprompt)"]
    log = stack.log(dag_id)
    names = names if dag_id == "reschedule" else names[:1]
    assert any(f"flow run {name} is completed after 8.0 s" in log for name in names), log


@pytest.mark.parametrize(("dag_id", "most"), [("blocking", 10), ("deferrable", 14)])
def test_task_sends_few_requests_to_the_api_server(stack: StackRuns, dag_id: str, most: int) -> None:
    """A task sends at most so many requests, with those of Airflow itself and one heartbeat per process."""
    assert stack.wait_for_end(dag_id) == "success", stack.log(dag_id)
    path = f"dags/{dag_id}/dagRuns/{stack.runs[dag_id]}/taskInstances/run"
    ti_id = stack.airflow.call("GET", path).json()["id"]
    lines = [
        line
        for line in stack.airflow.process_log("api-server", 100_000).splitlines()
        if "/execution/" in line and (ti_id in line or f"/xcoms/{dag_id}/" in line)
    ]
    starts = [line for line in lines if f"{ti_id}/run" in line]
    assert len(starts) == (2 if dag_id == "deferrable" else 1)
    without_heartbeats = [
        line for line in lines if "/heartbeat" not in line
    ]  # their number depends on the load
    assert len(without_heartbeats) + len(starts) <= most, "\n".join(lines)


def test_failed_flow_run_fails_its_task_with_the_reason(stack: StackRuns) -> None:
    """A task whose flow run fails has failed, and its log contains the service's reason."""
    assert stack.wait_for_end("failing") == "failed"
    log = stack.log("failing")
    assert "FlowRunFailed" in log
    assert "Reason given by the service: The mesh has no faces." in log


@pytest.mark.parametrize(
    ("dag_id", "while_it_is"), [("killed_blocking", "running"), ("killed_deferrable", "deferred")]
)
def test_killed_task_aborts_its_flow_run(stack: StackRuns, dag_id: str, while_it_is: str) -> None:
    """A task that is marked as failed, in a worker or in the triggerer, aborts its flow run."""
    run_id, flow_run = stack.runs[dag_id], stack.emulator.runs[stack.flow_runs[dag_id]]
    stack.airflow.wait_for_task(dag_id, run_id, "run", {while_it_is}, MAX_WAIT_SECONDS)
    _wait_for(lambda: flow_run.state in {"running", "starting"})
    _wait_for(
        lambda: f"{flow_run.flow_run_id[-6:]} (model_generate_fromprompt) is starting" in stack.log(dag_id)
    )

    stack.airflow.set_task_state(dag_id, run_id, "run", "failed")

    _wait_for(lambda: flow_run.state in {"aborting", "aborted"})
    assert stack.wait_for_end(dag_id) == "failed"
    logged_by_server = while_it_is == "deferred" and not has("on_kill of triggers")
    log = (
        partial(stack.airflow.process_log, "api-server", 2000)
        if logged_by_server
        else partial(stack.log, dag_id)
    )
    # the listener in the API server may abort the run before the trigger does
    ends = (
        f"low run {flow_run.flow_run_id} was aborted",
        f"low run {flow_run.flow_run_id} had already ended",
    )
    _wait_for(lambda: any(end in log() for end in ends))


@pytest.mark.timeout(400)  # 42 flow runs of 8 s, and four tasks one after the other
def test_batch_and_its_failed_items(stack: StackRuns) -> None:
    """The lesson with a batch of 40: two items fail, and they complete as the items of the next batch."""
    run_id = stack.runs[BATCH]
    assert stack.wait_for_end(BATCH, 300) == "success", stack.airflow.log(BATCH, run_id, "make_models")
    first, second = (
        stack.airflow.xcom(BATCH, run_id, task_id) for task_id in ("make_models", "make_failed_models")
    )
    assert (first["total"], first["completed"], first["failed"]) == (40, 38, 2)
    assert (second["total"], second["completed"], second["failed"]) == (2, 2, 0)
    assert stack.airflow.xcom(BATCH, run_id, "summary") == {"completed": 40, "failed": 2}
    runs_of_keys = Counter(
        get_stamp(run).get("batch_key")
        for run in stack.emulator.paid_runs
        if isinstance(run.additional, Mapping)
    )
    del runs_of_keys[None]
    assert sorted(runs_of_keys.values()) == [1] * 38 + [2] * 2
    log = stack.airflow.log(BATCH, run_id, "make_models")
    assert "38 of 40 completed, 2 failed" in log
    assert "Reason given by the service: The mesh has no faces." in log
    assert "A chair with" not in log


@lacks("on_kill of triggers")
def test_deferred_task_logs_that_kills_do_not_abort(stack: StackRuns) -> None:
    """If Airflow does not call `on_kill` of triggers, a task logs once, before it defers, what it means."""
    run_id = stack.runs["killed_deferrable"]
    stack.airflow.wait_for_task("killed_deferrable", run_id, "run", {"deferred", "failed"}, MAX_WAIT_SECONDS)
    _wait_for(
        lambda: stack.log("killed_deferrable").count("on_kill method of triggers requires Airflow") == 1
    )


# a DAG that an external flow run starts ---------------------------------------------------------------------


def saved_runs(airflow: Stack) -> list[set[str]]:
    """Return the flow runs in the saved state of each asset that has one."""
    assets = airflow.call("GET", "assets").json()["assets"]
    stores = [
        airflow.call("GET", f"assets/{asset['id']}/state-store").json()["asset_state_store"]
        for asset in assets
    ]
    return [set(entry["value"]["ends"]) for store in stores for entry in store]


def dag_run_ids(airflow: Stack, dag_id: str) -> list[str]:
    """Return the ids of a DAG's runs."""
    return [run["dag_run_id"] for run in airflow.call("GET", f"dags/{dag_id}/dagRuns").json()["dag_runs"]]


def received_payloads(airflow: Stack) -> list[dict[str, Any]]:
    """Return the payloads of the events that the DAG's runs received, after their end."""
    runs = dag_run_ids(airflow, "on_finished")
    assert [airflow.wait("on_finished", run_id, MAX_WAIT_SECONDS) for run_id in runs] == ["success"] * len(
        runs
    )
    return [payload for run_id in runs for payload in airflow.xcom("on_finished", run_id, "collect_payloads")]


@needs("asset state store")
def test_finished_flow_run_starts_a_dag(stack: StackRuns) -> None:
    """A finished run starts a DAG once, with its payload, also one that finished while no triggerer ran."""
    airflow, known = stack.airflow, stack.existing_run
    _wait_for(lambda: saved_runs(airflow) == [{known}] * 2)
    first = start_external_run(stack.watched_emulator)
    _wait_for(lambda: dag_run_ids(airflow, "on_finished"))
    _wait_for(lambda: saved_runs(airflow) == [{known, first}] * 2)
    log = airflow.process_log("triggerer", 10_000)

    airflow.process("triggerer").kill()
    second = start_external_run(stack.watched_emulator)
    airflow.restart("triggerer")
    _wait_for(lambda: len(dag_run_ids(airflow, "on_finished")) > 1)
    _wait_for(lambda: saved_runs(airflow) == [{known, first, second}] * 2)

    payloads = received_payloads(airflow)
    assert (
        len(dag_run_ids(airflow, "on_finished"))
        == len(dag_run_ids(airflow, "on_finished_too"))
        == len(payloads)
    )
    runs = {tuple(payload["flow_run_ids"]): payload["runs"] for payload in payloads}
    assert set(runs) == {(first,), (second,)}
    (payload,) = runs[(first,)]
    assert (payload["flow_run_id"], payload["flow"], payload["state"]) == (first, FLOW, "completed")
    assert (payload["service"], payload["duration"], payload["error"]) == ("generio", 0.5, None)
    assert "Traceback" not in log


def delivered_ids(airflow: Stack) -> list[list[str]]:
    """Return, for each asset, the flow runs in the events that a DAG run was given."""
    assets = airflow.call("GET", "assets").json()["assets"]
    events = [
        airflow.call("GET", f"assets/events?asset_id={asset['id']}&limit=100").json()["asset_events"]
        for asset in assets
    ]
    return [
        [
            key
            for event in of_asset
            if event["created_dagruns"]
            for key in event["extra"]["payload"]["flow_run_ids"]
        ]
        for of_asset in events
    ]


def wait_for_delivery(airflow: Stack, flow_run_ids: set[str], deadline: float) -> None:
    """Wait until these flow runs have reached a DAG run of each asset; no flow run may reach two."""
    missing = [flow_run_ids]
    while any(missing):
        assert time.monotonic() < deadline, [len(ids) for ids in missing]
        time.sleep(0.5)
        with suppress(RuntimeError):  # Airflow's API cannot return an event whose DAG run is still queued
            delivered = delivered_ids(airflow)
            assert all(len(ids) == len(set(ids)) for ids in delivered)
            missing = [flow_run_ids.difference(ids) for ids in delivered]


@pytest.mark.parametrize("size", [1, 8, 200])
def test_every_run_of_a_burst_reaches_a_dag_run(stack: StackRuns, size: int) -> None:
    """All flow runs that finish in a burst, over several polls, reach a DAG run of each asset within 30 s."""
    flow_run_ids = {start_external_run(stack.watched_emulator) for _ in range(size)}
    wait_for_delivery(stack.airflow, flow_run_ids, time.monotonic() + 0.5 + MAX_DELIVERY_SECONDS)


@lacks("asset state store")
def test_finished_flow_run_starts_a_dag_without_a_store(stack: StackRuns) -> None:
    """Without an asset state store the DAG starts as well, and the trigger logs once what is missing."""
    airflow = stack.airflow
    _wait_for(lambda: any(recorded.method == "GET" for recorded in stack.watched_emulator.requests))
    first = start_external_run(stack.watched_emulator)
    _wait_for(lambda: [first] in [payload["flow_run_ids"] for payload in received_payloads(airflow)])
    logs = "".join(path.read_text() for path in airflow.home.rglob("*.log") if path.is_file())
    assert logs.count("The asset state store requires Airflow") == 1


# after all that ---------------------------------------------------------------------------------------------


def test_the_key_is_nowhere(stack: StackRuns) -> None:
    """The key is in no file of this Airflow: no log, no XCom, no rendered field, no trigger's arguments."""
    for dag_id in stack.runs:
        stack.wait_for_end(dag_id)

    files = [path for path in stack.airflow.home.rglob("*") if path.is_file()]
    assert stack.airflow.home / "airflow.db" in files
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
