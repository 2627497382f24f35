"""Tests of connections that belong to a team (`[core] multi_team`), in Airflow's own API server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.models import dag as dag_module
from airflow.models.connection import Connection
from airflow.models.dag import DagModel
from airflow.models.dagbundle import DagBundleModel
from airflow.models.team import Team
from airflow.models.trigger import Trigger
from airflow.providers.common.compat.sdk import get_listener_manager
from airflow.sdk import DAG
from airflow.utils.session import create_session
from fastapi.testclient import TestClient
from sqlalchemy import delete, update

from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.plugin import airflow_internals
from airflow_provider_flows.plugin.cache import RESPONSE_CACHE
from airflow_provider_flows.triggers import FlowRunTrigger
from tests.support.airflow_run import run_dag
from tests.support.modes import start_external_run
from tests.support.plugin_site import airflow_clients, save_connections, task_path
from tests.support.tries import CHAIR_ARGUMENTS
from tests.support.versions import needs

pytestmark = pytest.mark.emulator(run_seconds=0, retries=0)

TEAMS = ("red", "blue")


@pytest.fixture(scope="module")
def client(airflow_database: None) -> Iterator[TestClient]:  # noqa: ARG001  # a fixture requests another
    """Yield a client of an administrator, who may read everything."""
    with airflow_clients() as clients:
        yield clients["anna"]


@pytest.fixture(autouse=True)
def empty_cache() -> None:
    """Clear the responses that the pages have cached."""
    RESPONSE_CACHE.clear()


@pytest.fixture
def multi_team(airflow_database: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:  # noqa: ARG001
    """Turn Airflow's teams on, with two of them."""
    monkeypatch.setenv("AIRFLOW__CORE__MULTI_TEAM", "True")
    with create_session() as session:
        for name in TEAMS:
            bundle = DagBundleModel(name=f"{name}_dags")
            bundle.teams = [Team(name=name)]
            session.add(bundle)
    yield
    with create_session() as session:
        session.execute(delete(Connection))
        session.execute(update(DagModel).values(bundle_name="dags-folder"))
        for name in TEAMS:
            session.delete(session.get(DagBundleModel, f"{name}_dags"))
            session.delete(session.get(Team, name))


def save_team_connection(emulator: Emulator, conn_id: str, team_name: str) -> None:
    """Store a connection to the emulator that belongs to a team."""
    fields = {"conn_type": "generio", "host": emulator.url, "password": emulator.key}
    save_connections({conn_id: fields})
    with create_session() as session:
        session.execute(update(Connection).values(team_name=team_name))


def run_dags_of_teams(team_names: Sequence[str | None], conn_id: str) -> dict[str | None, str]:
    """Start a flow run by a DAG of each team, None for no team; return the paths of their tabs."""
    paths = {}
    for team_name in team_names:
        with DAG(f"teams_{team_name}", schedule=None) as dag:
            RunFlowOperator(
                task_id="run", **{**CHAIR_ARGUMENTS, "wait_for_completion": False, "flows_conn_id": conn_id}
            )
        paths[team_name] = task_path(dag.dag_id, run_dag(dag).run_id)
    with create_session() as session:  # not earlier: a DAG's run takes bundles that are not configured away
        for team_name in filter(None, team_names):
            session.get_one(DagBundleModel, f"{team_name}_dags").teams = [session.get_one(Team, team_name)]
            session.get_one(DagModel, f"teams_{team_name}").bundle_name = f"{team_name}_dags"
    forget_teams()
    return paths


def forget_teams() -> None:
    """Let Airflow look up the teams of DAGs again, which it remembers for 30 s since 3.4."""
    getattr(dag_module, "clear_team_name_cache", lambda: None)()


def get_run(client: TestClient, path: str) -> dict[str, Any]:
    """Return a page of a run as JSON."""
    response = client.get(f"/flows/json/{path}")
    assert response.status_code == 200, response.text
    page: dict[str, Any] = response.json()
    return page


def set_connection(monkeypatch: pytest.MonkeyPatch, name: str, emulator: Emulator) -> None:
    """Define a connection to an emulator in the environment."""
    fields = {"conn_type": "generio", "host": emulator.url, "password": emulator.key}
    monkeypatch.setenv(f"AIRFLOW_CONN_{name}", json.dumps(fields))


@needs("teams")
@pytest.mark.usefixtures("multi_team")
def test_pages_of_a_teams_connection_use_it(client: TestClient, emulator: Emulator) -> None:
    """List, flow and run are those of the team's connection, which a lookup without a team does not find."""
    flow_run_id = start_external_run(emulator)
    save_team_connection(emulator, "reds_own", "red")
    listed = client.get("/flows/json/connection/reds_own").json()
    assert [run["flow_run_id"] for run in listed["runs"]] == [flow_run_id], listed
    assert get_run(client, f"connection/reds_own/run/{flow_run_id}")["note"] is None
    for path in ("connection/reds_own", "connection/reds_own/flow/model_generate_fromprompt"):
        page = client.get(f"/flows/{path}")
        assert (page.status_code, "does not exist" in page.text) == (200, False)


@needs("teams")
@pytest.mark.usefixtures("multi_team")
def test_tab_uses_the_connection_of_the_dags_team_only(
    client: TestClient, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A DAG's tab gets the connection as its tasks do: that of its team, and never that of another team."""
    set_connection(monkeypatch, "REDS_OWN", emulator)  # for the tasks, which run without a team here
    paths = run_dags_of_teams([*TEAMS, None], "reds_own")
    monkeypatch.delenv("AIRFLOW_CONN_REDS_OWN")
    save_team_connection(emulator, "reds_own", "red")
    assert get_run(client, paths["red"])["note"] is None
    for other in ("blue", None):
        RESPONSE_CACHE.clear()
        assert "Connection 'reds_own' does not exist" in get_run(client, paths[other])["note"]


@needs("teams")
@pytest.mark.usefixtures("multi_team")
def test_teams_share_no_response_of_connections_with_one_id(
    client: TestClient, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two teams' connections may have one id: what one's service said is not shown to the other."""
    set_connection(monkeypatch, "SHARED", emulator)
    paths = run_dags_of_teams(TEAMS, "shared")
    monkeypatch.delenv("AIRFLOW_CONN_SHARED")
    with Emulator(key="another") as other:
        set_connection(monkeypatch, "_RED___SHARED", emulator)
        set_connection(monkeypatch, "_BLUE___SHARED", other)
        assert get_run(client, paths["red"])["note"] is None
        assert "was not found at the service" in get_run(client, paths["blue"])["note"]
        ids = {request.path for request in other.requests}
        assert len(ids) == 1
        assert get_run(client, paths["red"])["note"] is None


@needs("teams")
@pytest.mark.usefixtures("multi_team")
def test_marked_task_aborts_its_run_with_its_teams_connection(emulator: Emulator) -> None:
    """The API server aborts the run of a deferred task by the connection of the team of its DAG."""
    emulator.run_seconds = 60
    flow_run_id = start_external_run(emulator)
    save_team_connection(emulator, "reds_own", "red")
    with create_session() as session:
        session.merge(DagModel(dag_id="teams_marked", bundle_name="red_dags"))
    forget_teams()
    trigger = Trigger.from_object(FlowRunTrigger("reds_own", flow_run_id, abort_on_kill=True))
    marked = SimpleNamespace(task=None, trigger=trigger, dag_id="teams_marked")
    get_listener_manager().hook.on_task_instance_failed(
        previous_state=None, task_instance=marked, error="marked"
    )
    assert wait_until(lambda: emulator.runs[flow_run_id].state == "aborted")


def wait_until(condition: Callable[[], Any], seconds: float = 20.0) -> bool:
    """Wait until a condition is true; return whether it was in time."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(condition())


def test_without_teams_a_connection_is_looked_up_by_its_id(client: TestClient, emulator: Emulator) -> None:
    """An Airflow without teams, an older one too, gets no team, and nobody has one."""
    assert airflow_internals.get_dag_team("any") is None
    assert airflow_internals.get_connection_team("any") is None
    flow_run_id = start_external_run(emulator)
    save_connections({"plain": {"conn_type": "generio", "host": emulator.url, "password": emulator.key}})
    listed = client.get("/flows/json/connection/plain").json()
    assert [run["flow_run_id"] for run in listed["runs"]] == [flow_run_id]
