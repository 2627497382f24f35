"""Tests that the package works with an independent server of the documented API, and leaks no secrets.

One run of `airflow dags test`, in an Airflow of its own, has a DAG with every mode. Other tests check the
behaviour of the server that the scenarios of tests/system/chaos rely on.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from airflow_provider_flows.worker.task_state import RECORD_KEY
from tests.support.airflow_run import empty_database
from tests.support.other_runs import FLOW, model
from tests.support.other_server import RUN_SECONDS, OtherServer
from tests.support.versions import has, needs
from tools.airflow_settings import own_environment
from tools.airflow_stack import AIRFLOW

pytestmark = pytest.mark.timeout(300)  # its one DAG run has seven tasks, and is the first of a fresh Airflow

PROMPT = "A prompt that nobody else may read"
DAG = """
import os
from airflow.sdk import DAG
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.sensors import FlowRunSensor

often = {"poll_interval": 0.2, "max_poll_interval": 0.4, "output_path": os.environ["OUTPUT"]}
with DAG("every_mode", schedule=None):
    inputs = [{"data": os.environ["PROMPT"], "additional": {"order": 17}}]
    given = {"flow": os.environ["FLOW"], "inputs": inputs}
    RunFlowOperator(task_id="blocking", **given, **often)
    RunFlowOperator(task_id="deferrable", deferrable=True, **given, **often)
    elsewhere = RunFlowOperator(task_id="elsewhere", wait_for_completion=False, durable=False, **given)
    flow_run_id = "{{ ti.xcom_pull('elsewhere')['flow_run_id'] }}"
    modes = {"reschedule": {}, "poke": {"mode": "poke"}, "sensor_deferrable": {"deferrable": True}}
    elsewhere >> [
        FlowRunSensor(task_id=name, flow_run_id=flow_run_id, **mode, **often) for name, mode in modes.items()
    ]
"""
XCOMS_QUERY = "select task_id, value from xcom where key = 'return_value'"
RENDERED_QUERY = "select count(*) from rendered_task_instance_fields"
if has("attempts"):
    XCOMS_QUERY = (
        "select ti.task_id, x.value from xcom_v2 x join task_instance ti on ti.id = x.task_instance_id "
        "where x.key = 'return_value'"
    )
    RENDERED_QUERY = "select count(*) from rtif_v2"
MODES = ["blocking", "deferrable", "reschedule", "poke", "sensor_deferrable"]


@dataclass
class DagOutcome:
    """What one run of the command left behind."""

    home: Path
    printed: str
    key: str
    returned: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def dag_outcome(tmp_path_factory: pytest.TempPathFactory) -> DagOutcome:
    """Run the DAG once."""
    home = tmp_path_factory.mktemp("other")
    (home / "dags").mkdir()
    (home / "dags" / "every_mode.py").write_text(DAG)
    with OtherServer() as server:
        connection = {"conn_type": "generio", "host": server.url, "password": server.key}
        environment = own_environment(home, home / "dags") | {
            "AIRFLOW_CONN_FLOWS_DEFAULT": json.dumps(connection),
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "DEBUG",
            "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "0",
            "FLOW": FLOW,
            "PROMPT": PROMPT,
            "OUTPUT": f"file://{home / 'output'}",
        }
        shutil.copy(empty_database(), home / "airflow.db")
        command = [*AIRFLOW, "dags", "test", "every_mode"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        printed = done.stdout + done.stderr
        assert done.returncode == 0, printed[-3000:]
    with sqlite3.connect(home / "airflow.db") as database:
        rows = database.execute(XCOMS_QUERY).fetchall()
    return DagOutcome(
        home, printed, server.key, {task_id: _parse_xcom(json.loads(value)) for task_id, value in rows}
    )


def _parse_xcom(value: Any) -> Any:
    """Parse an XCom that Airflow has written as JSON in JSON."""
    return json.loads(value) if isinstance(value, str) else value


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_returns_the_dict(dag_outcome: DagOutcome, mode: str) -> None:
    """Against an independent server, each mode returns the documented dict and writes a complete file."""
    returned = dag_outcome.returned[mode]

    (output,) = returned.pop("outputs")
    moments = {key: returned.pop(key) for key in ("flow_run_id", "created_at", "started_at", "finished_at")}
    assert returned == {
        "flow": FLOW,
        "service": "generio",
        "state": "completed",
        "progress": 1.0,
        "duration": RUN_SECONDS,
    }
    assert all(moments.values())
    file = Path(output.pop("uri").removeprefix("file://"))
    assert file.read_bytes() == model(PROMPT)
    assert file.parent.name == moments["flow_run_id"]
    assert output == {
        "name": output["asset_id"],
        "asset_id": output["asset_id"],
        "status": "ready",
        "media_type": "model/gltf-binary",
        "additional": {"order": 17},
        "size": len(model(PROMPT)),
        "sha256": hashlib.sha256(model(PROMPT)).hexdigest(),
    }


def test_the_key_appears_nowhere(dag_outcome: DagOutcome) -> None:
    """After runs in every mode, with DEBUG logs, the key is in no log, XCom, field, trigger or file."""
    files = [path for path in dag_outcome.home.rglob("*") if path.is_file()]
    assert dag_outcome.home / "airflow.db" in files

    # At DEBUG Airflow prints the very message by which it tells itself to mask a secret.
    lines = [line for line in dag_outcome.printed.splitlines() if "MaskSecret" not in line]
    assert [line for line in lines if dag_outcome.key in line] == []
    assert [path for path in files if dag_outcome.key.encode() in path.read_bytes()] == []


def test_every_searched_place_is_not_empty(dag_outcome: DagOutcome) -> None:
    """What is searched for the key was really written: XComs and rendered fields."""
    with sqlite3.connect(dag_outcome.home / "airflow.db") as database:
        (rendered,) = database.execute(RENDERED_QUERY).fetchone()
    assert set(dag_outcome.returned) == {*MODES, "elsewhere"}
    assert rendered == len(dag_outcome.returned)


@needs("task state store")
def test_record_of_each_start_is_saved(dag_outcome: DagOutcome) -> None:
    """Each durable start has left a record in the state store, and in it no key and no content."""
    with sqlite3.connect(dag_outcome.home / "airflow.db") as database:
        store = database.execute("select task_id, key, value from task_state_store").fetchall()
    records = {task_id: json.loads(value) for task_id, key, value in store if key == RECORD_KEY}
    assert set(records) == {"blocking", "deferrable"}  # `elsewhere` is not durable
    assert all(record["flow_run_id"] for record in records.values())
    # a record holds neither key nor content, in whatever spelling
    text = json.dumps(store)
    assert not any(secret in text for secret in (dag_outcome.key, PROMPT, "Bearer"))


def test_the_inputs_are_in_no_log(dag_outcome: DagOutcome) -> None:
    """No log line of this package has the content of inputs, a request or its headers."""
    own = [
        line
        for line in dag_outcome.printed.splitlines()
        if "airflow_provider_flows" in line and "Rendered" not in line
    ]

    assert any("Started the generio flow run" in line for line in own)
    assert not any(PROMPT in line for line in own)
    assert "Bearer" not in dag_outcome.printed


@dataclass
class ApiClient:
    """A client of the server without any code of the package."""

    server: OtherServer

    def send(self, method: str, path: str, key: str | None = None, **options: Any) -> requests.Response:
        """Send one request."""
        with requests.Session() as session:
            session.trust_env = False
            session.headers.update({"Authorization": f"Bearer {key or self.server.key}"})
            return session.request(method, self.server.url + path, timeout=10, **options)

    def create_run(self, **more: Any) -> str:
        """Create a flow run and return its path."""
        given = self.send(
            "POST", "/flows", json={"template": FLOW, "additional": {"tag": "mine"}, **more}
        ).json()
        return f"/flows/{given['flow_id']}"

    def start(self, path: str) -> requests.Response:
        """Start a flow run."""
        return self.send("PATCH", path, json={"action": "start"})


@pytest.fixture
def client() -> Iterator[ApiClient]:
    """Yield a client of a server whose flow runs last until its clock is advanced."""
    with OtherServer(seconds=1000) as server:
        yield ApiClient(server)


def test_a_run_is_billed_once_at_its_start(client: ApiClient) -> None:
    """Creation, inputs and rejected requests are not billed; a deleted run remains billed."""
    run = client.create_run()
    client.send("POST", f"{run}/inputs", json={"data": PROMPT})
    assert client.server.count_paid("mine") == 0

    assert client.start(run).status_code == 200
    assert client.start(run).status_code == 400
    assert client.server.count_paid("mine") == 1
    assert client.server.count_paid("another's") == 0

    client.server.advance(1001)
    client.send("DELETE", run)
    assert client.send("GET", run).status_code == 404
    assert client.server.count_paid("mine") == 1


def test_rejected_requests_by_state(client: ApiClient) -> None:
    """A running run takes no input and no deletion, and has no outputs; a final one cannot be aborted."""
    run = client.create_run(inputs=[{"data": PROMPT}])
    assert client.send("POST", f"{run}/inputs", json={"data": PROMPT}).status_code == 400
    assert client.send("DELETE", run).status_code == 400
    assert client.send("GET", f"{run}/outputs").status_code == 425

    client.server.advance(1001)
    assert client.send("PATCH", run, json={"action": "abort"}).status_code == 400


def test_runs_follow_their_plan(client: ApiClient) -> None:
    """A plan applies to the next run only: its duration and its failure."""
    client.server.plan_next(seconds=10, error="No.")
    planned, usual = client.create_run(inputs=[{"data": "a"}]), client.create_run(inputs=[{"data": "b"}])
    assert client.send("GET", planned).json()["state"] == "running"

    client.server.advance(11)
    assert client.send("GET", planned).json()["state"] == "failed"
    assert client.send("GET", usual).json()["state"] == "running"


def test_several_inputs_produce_one_file_each_and_another(client: ApiClient) -> None:
    """There is one output for each input, with its metadata, and one for all, each in its own file."""
    run = client.create_run(inputs=[{"data": "a", "additional": 1}, {"data": "b", "additional": 2}])
    client.server.advance(1001)

    rows = client.send("GET", f"{run}/outputs").json()["outputs"]
    assert [row["additional"] for row in rows] == [1, 2, None]
    files = [client.send("GET", f"{run}/outputs/{row['id']}").content for row in rows]
    assert files == [model("a"), model("b"), model("a and b")]


def test_the_list_has_the_other_shape(client: ApiClient) -> None:
    """`filter_by` selects fields, as in the older documentation, so the rows of a list have no state."""
    client.create_run()
    assert [set(row) for row in client.send("GET", "/flows?filter_by=created").json()] == [{"flow_id"}]
    assert [row["state"] for row in client.send("GET", "/flows").json()] == ["created"]


def test_another_key_is_rejected(client: ApiClient) -> None:
    """A request with another key is rejected."""
    assert client.send("GET", "/flows", key="guessed").status_code == 403
