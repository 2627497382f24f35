"""Tests that Airflow's inside is still where the pages of flow runs look for it, and does what they take it to do.

When one fails after an update of Airflow, airflow_provider_flows/plugin/inside.py is the one place to mend.
"""

from __future__ import annotations

import inspect

import pytest
from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.base_auth_manager import BaseAuthManager
from airflow.api_fastapi.auth.managers.models.resource_details import ConnectionDetails
from airflow.models.connection import Connection
from airflow.models.dagbag import DBDagBag
from airflow.models.renderedtifields import RenderedTaskInstanceFields
from airflow.models.xcom import XComModel
from airflow.providers_manager import ProvidersManager
from airflow.sdk import DAG
from airflow.utils.session import create_session
from sqlalchemy import delete

from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.plugin import airflow_internals
from tests.support.airflow_run import run_dag
from tests.support.tries import CHAIR_ARGUMENTS, set_up
from tests.support.versions import needs


def test_the_signatures_are_the_ones_that_are_called() -> None:
    """Names and parameters of what is imported from Airflow's inside."""
    assert callable(get_auth_manager)
    assert {"user", "method", "details"} <= inspect.signature(
        BaseAuthManager.is_authorized_connection
    ).parameters.keys()
    assert {"conn_id", "team_name"} <= inspect.signature(ConnectionDetails).parameters.keys()
    assert callable(Connection.get_team_name)
    assert {"dag_run", "session"} <= inspect.signature(DBDagBag.get_dag_for_run).parameters.keys()
    assert "session" in inspect.signature(RenderedTaskInstanceFields.get_templated_fields).parameters
    assert list(inspect.signature(XComModel.deserialize_value).parameters) == ["result"]
    assert callable(ProvidersManager.initialize_providers_hooks)


@needs("task state store")
def test_the_table_of_the_state_store_is_the_one_that_is_read() -> None:
    """What the tries before have left is looked up in it; where it is missing, nothing is said to have been left."""
    from airflow.models.task_state_store import TaskStateStoreModel

    assert {"dag_id", "run_id", "task_id", "map_index", "key", "value"} <= set(
        TaskStateStoreModel.__table__.columns.keys()
    )


@pytest.mark.parametrize(
    ("kind", "ours"),
    [("generio", True), ("promptchainer", True), ("aws", False), ("http", False), ("", False)],
)
def test_connection_types_that_run_flows_are_known(kind: str, ours: bool) -> None:  # noqa: FBT001  # a table's column
    """A type is ours by its hook's class; an official provider's hook is not even imported."""
    assert airflow_internals._is_flows_connection_type(kind) is ours


@pytest.mark.usefixtures("airflow_database")
def test_what_a_task_instance_has_left_is_read(
    flow_emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """State, returned dict, id and rendered arguments; of runs long past, those arguments that are no templates."""
    set_up(flow_emulator, monkeypatch)
    with DAG("inside_left", schedule=None) as dag:
        RunFlowOperator(
            task_id="run", **{**CHAIR_ARGUMENTS, "flow": "{{ 'model_generate_' ~ 'fromprompt' }}"}
        )
    result = run_dag(dag)
    left = airflow_internals.load_task_instance("inside_left", result.run_id, "run", -1)
    assert left is not None
    returned = result.xcoms["run"]["return_value"]
    assert (left.state, left.result, left.flow_run_id) == ("success", returned, returned["flow_run_id"])
    assert left.outputs == returned["outputs"]
    assert left.fields["flow"] == "model_generate_fromprompt"
    assert (left.fields["flows_conn_id"], left.fields["parameters"]) == ("flows_default", {"quality": "low"})
    with create_session() as session:
        session.execute(
            delete(RenderedTaskInstanceFields).where(RenderedTaskInstanceFields.run_id == result.run_id)
        )
    old = airflow_internals.load_task_instance("inside_left", result.run_id, "run", -1)
    assert old is not None
    assert old.fields["flows_conn_id"] == "flows_default"
    assert "flow" not in old.fields
    assert airflow_internals.load_task_instance("inside_left", result.run_id, "run", 0) is None
