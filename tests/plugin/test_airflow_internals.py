"""Tests that the private Airflow APIs of the pages exist and behave as expected.

When one fails after an update of Airflow, adapt airflow_provider_flows/plugin/airflow_internals.py.
"""

from __future__ import annotations

import inspect

import pytest
from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.base_auth_manager import BaseAuthManager
from airflow.api_fastapi.auth.managers.models.resource_details import ConnectionDetails
from airflow.models.connection import Connection
from airflow.models.dag import DagModel
from airflow.models.dagbag import DBDagBag
from airflow.models.renderedtifields import RenderedTaskInstanceFields
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from airflow.providers_manager import ProvidersManager
from airflow.sdk import DAG
from sqlalchemy import inspect as inspect_mapper
from sqlalchemy import select

from airflow_provider_flows import compat
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.plugin import airflow_internals
from airflow_provider_flows.plugin.task_data import TaskKey
from tests.support.airflow_run import run_dag
from tests.support.stored_xcoms import delete_rendered_fields
from tests.support.tries import CHAIR_ARGUMENTS
from tests.support.versions import has, lacks, needs


def test_private_apis_have_the_expected_signatures() -> None:
    """The imported functions exist and have the expected parameters."""
    assert callable(get_auth_manager)
    assert {"user", "method", "details"} <= inspect.signature(
        BaseAuthManager.is_authorized_connection
    ).parameters.keys()
    assert {"conn_id", "team_name"} <= inspect.signature(ConnectionDetails).parameters.keys()
    assert callable(Connection.get_team_name)
    assert callable(DagModel.get_team_name)
    lookup = inspect.signature(Connection.get_connection_from_secrets).parameters
    assert ("team_name" in lookup) is has("teams")
    assert {"dag_run", "session"} <= inspect.signature(DBDagBag.get_dag_for_run).parameters.keys()
    assert "session" in inspect.signature(RenderedTaskInstanceFields.get_templated_fields).parameters
    assert list(inspect.signature(XComModel.deserialize_value).parameters) == ["result"]
    assert callable(ProvidersManager.initialize_providers_hooks)


@needs("attempts")
def test_attempts_have_the_expected_columns_and_queries() -> None:
    """Airflow's own routes find a task instance, its tries and their XComs with these."""
    from airflow.models.dynamic_region import SENTINEL_REGION_ID
    from airflow.models.task_coordinates import build_coordinate_filters
    from airflow.models.xcom import build_xcom_read_query, xcom_entity

    assert {"id", "region_id", "region_index", "working_set", "try_number", "start_date"} <= set(
        TaskInstance.__table__.columns.keys()
    )
    assert SENTINEL_REGION_ID.int == 0
    assert {"model", "map_index"} <= inspect.signature(build_coordinate_filters).parameters.keys()
    query = build_xcom_read_query(producer_ids=select(TaskInstance.id))
    assert {"task_instance_id", "key", "value"} <= set(
        inspect_mapper(xcom_entity(query)).mapper.columns.keys()
    )
    assert "include_all_attempts" in (TaskInstance.__doc__ or "")


@lacks("attempts")
def test_a_task_instance_without_attempts_has_one_row() -> None:
    """Airflow before 3.4 has no rows of tries, and no regions."""
    assert not compat.has_attempts(TaskInstance)


@needs("task state store")
def test_the_task_state_store_has_the_expected_backend() -> None:
    """The task's flow runs and files are read from it, where this Airflow has one."""
    from airflow.state import TaskScope, get_state_backend

    expected = set(TaskKey._fields) - (set() if has("attempts") else {"region_id"})
    assert expected <= inspect.signature(TaskScope).parameters.keys()
    assert {"scope", "key", "session"} <= inspect.signature(get_state_backend().get).parameters.keys()


@needs("task state store")
@pytest.mark.usefixtures("airflow_database")
def test_a_state_store_that_fails_has_no_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend may raise anything, or store something else than this provider: pages do without it."""
    from airflow import state

    class Broken(state.BaseStoreBackend):
        """A backend that raises, or returns what is no JSON."""

        def get(self, scope: object, key: str, *, session: object = None) -> str:  # noqa: ARG002  # Airflow's signature
            """Return what cannot be parsed."""
            if key.endswith("2"):
                raise ConnectionError
            return "{"

        set = delete = clear = aget = aset = adelete = aclear = get

    monkeypatch.setattr(state, "_backend_instance", Broken())
    assert airflow_internals.load_file_records(TaskKey("d", "r", "t", -1), "run") == {}


@pytest.mark.parametrize(
    ("conn_type", "expected"),
    [("generio", True), ("promptchainer", True), ("aws", False), ("http", False), ("", False)],
)
def test_connection_types_of_flow_services_are_detected(conn_type: str, expected: bool) -> None:
    """The class of the hook decides; hooks of official providers are not even imported."""
    assert airflow_internals._is_flows_connection_type(conn_type) is expected


@pytest.mark.emulator(run_seconds=0, abort="instant", retries=0)
@pytest.mark.usefixtures("airflow_database", "emulator")
def test_the_stored_data_of_a_task_instance_is_loaded() -> None:
    """State, returned dict, id and rendered arguments; of an old run, the arguments without templates."""
    with DAG("internals_stored", schedule=None) as dag:
        RunFlowOperator(
            task_id="run", **{**CHAIR_ARGUMENTS, "flow": "{{ 'model_generate_' ~ 'fromprompt' }}"}
        )
    result = run_dag(dag)
    ti_data = airflow_internals.load_task_instance("internals_stored", result.run_id, "run", -1)
    assert ti_data is not None
    returned = result.xcoms["run"]["return_value"]
    assert (ti_data.state, ti_data.result, ti_data.flow_run_id) == (
        "success",
        returned,
        returned["flow_run_id"],
    )
    assert ti_data.outputs is None  # they are in the returned dict
    assert ti_data.fields["flow"] == "model_generate_fromprompt"
    assert (ti_data.fields["flows_conn_id"], ti_data.fields["parameters"]) == (
        "flows_default",
        {"quality": "low"},
    )
    delete_rendered_fields(result.run_id)
    old = airflow_internals.load_task_instance("internals_stored", result.run_id, "run", -1)
    assert old is not None
    assert old.fields["flows_conn_id"] == "flows_default"
    assert "flow" not in old.fields
    assert airflow_internals.load_task_instance("internals_stored", result.run_id, "run", 0) is None
