"""All private Airflow APIs that the pages use: permissions, connections, stored data of task instances.

Airflow guarantees none of these names, so they are imported here and nowhere else in the plugin, and tests
compare them with the installed Airflow.
"""

from __future__ import annotations

import importlib
import inspect
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import ConnectionDetails, DagAccessEntity
from airflow.api_fastapi.core_api.security import (
    GetUserDep,
    get_user,
    requires_access_connection,
    requires_access_dag,
)
from airflow.models.connection import Connection
from airflow.models.dag import DagModel
from airflow.models.dagbag import DBDagBag
from airflow.models.renderedtifields import RenderedTaskInstanceFields
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from airflow.providers.common.compat.sdk import conf
from airflow.providers_manager import ProvidersManager
from airflow.sdk import Connection as TaskConnection
from airflow.utils.session import create_session
from fastapi import Depends
from sqlalchemy import select

from airflow_provider_flows.hooks import FlowsHook
from airflow_provider_flows.worker.finish import OUTPUTS_KEY
from airflow_provider_flows.worker.run_tracking import RUN_ID_KEY
from airflow_provider_flows.worker.task_state import (
    FILES_KEY,
    PREVIOUS_RUNS_KEY,
    RECORD_KEY,
    iter_file_records,
)

log = logging.getLogger(__name__)

User = GetUserDep
REQUIRES_LOGIN = [Depends(get_user)]
# the tab shows a task instance's state and its XComs
REQUIRES_TASK_ACCESS = [
    Depends(requires_access_dag("GET", DagAccessEntity.TASK_INSTANCE)),
    Depends(requires_access_dag("GET", DagAccessEntity.XCOM)),
]
REQUIRES_CONNECTION_ACCESS = [Depends(requires_access_connection("GET"))]

RESULT_KEY = "return_value"
TASK_ARGUMENTS = (
    "flow",
    "inputs",
    "parameters",
    "flows_conn_id",
    "output_path",
    "output_conn_id",
    "flow_run_id",
)
CONNECTION_FIELDS = ("conn_type", "description", "host", "schema", "login", "password", "port", "extra")
OFFICIAL_PROVIDERS_PREFIX = "airflow.providers."  # their hooks run no flows and are slow to import


class TaskKey(NamedTuple):
    """The key of a task instance."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int


@dataclass(frozen=True)
class TaskInstanceData:
    """What Airflow's database has of one task instance.

    XComs are those of the latest try, because Airflow deletes them when a try starts. Users who may write
    XComs can forge them, but not the task state store: only the task itself can write it, and users who may
    edit its task instances.

    :param fields: the task's arguments, as rendered.
    :param previous_runs: the flow runs of earlier tries, from the task state store.
    :param result: the XCom `return_value`.
    :param flow_run_id: the XCom of this name.
    :param outputs: the XCom with the outputs.
    :param team_name: the team that its DAG belongs to; None without one, and in an Airflow without teams.
    """

    state: str | None
    try_number: int
    fields: Mapping[str, Any] = field(default_factory=dict)
    previous_runs: Any = None
    result: Any = None
    flow_run_id: Any = None
    outputs: Any = None
    key: TaskKey | None = None
    run_record: Any = None
    """The record of the task's flow run, from the task state store."""
    first_file_records: Any = None
    """The first value with the records of its files, from there too."""
    team_name: str | None = None


def load_task_instance(dag_id: str, run_id: str, task_id: str, map_index: int) -> TaskInstanceData | None:
    """Return the stored data of a task instance, None if it does not exist."""
    key = TaskKey(dag_id, run_id, task_id, map_index)
    ti_key = key._asdict()
    with create_session() as session:
        ti = session.scalar(select(TaskInstance).filter_by(**ti_key))
        if ti is None:
            return None
        keys = (RESULT_KEY, RUN_ID_KEY, OUTPUTS_KEY)
        rows = session.scalars(select(XComModel).filter_by(**ti_key).where(XComModel.key.in_(keys)))
        xcoms = {row.key: XComModel.deserialize_value(row) for row in rows}
        rendered = RenderedTaskInstanceFields.get_templated_fields(ti, session=session)
        if rendered:
            fields = {name: rendered.get(name) for name in TASK_ARGUMENTS}
        else:
            fields = _get_untemplated_arguments(ti, session)
        get_stored = _create_store_reader(key, session)
        return TaskInstanceData(
            state=ti.state and str(ti.state),
            try_number=ti.try_number or 0,
            fields=fields,
            previous_runs=get_stored(PREVIOUS_RUNS_KEY),
            result=xcoms.get(RESULT_KEY),
            flow_run_id=xcoms.get(RUN_ID_KEY),
            outputs=xcoms.get(OUTPUTS_KEY),
            key=key,
            run_record=get_stored(RECORD_KEY),
            first_file_records=get_stored(FILES_KEY),
            team_name=get_dag_team(dag_id),
        )


def load_file_records(key: TaskKey, flow_run_id: str) -> dict[str, Mapping[str, Any]]:
    """Return the records of the files that a task has stored for a flow run, by URI; empty without any."""
    with create_session() as session:
        parts = list(iter_file_records(_create_store_reader(key, session), flow_run_id))
    records = [record for part in parts for record in part.values() if isinstance(record, Mapping)]
    return {record["uri"]: record for record in records if isinstance(record.get("uri"), str)}


def _create_store_reader(key: TaskKey, session: Any) -> Callable[[str], Any]:
    """Return a function that returns a value of a task instance's state store, None if it cannot be read.

    It reads the backend of Airflow's API server. Airflow before 3.3 has no such store.
    """
    try:
        from airflow.state import TaskScope, get_state_backend
    except ImportError:
        return lambda _: None
    scope = TaskScope(**key._asdict())

    def get_stored(name: str) -> Any:
        try:
            value = get_state_backend().get(scope, name, session=session)
            return None if value is None else json.loads(value)
        except Exception as error:  # noqa: BLE001  # a backend may raise anything, and pages do without it
            log.warning(
                "Airflow's task state store failed (%s); the page does without it", type(error).__name__
            )
            return None

    return get_stored


def _get_untemplated_arguments(ti: TaskInstance, session: Any) -> dict[str, Any]:
    """Return the arguments without templates, for old runs whose rendered arguments Airflow has deleted."""
    dag = DBDagBag().get_dag_for_run(ti.dag_run, session=session)
    if dag is None or not dag.has_task(ti.task_id):
        return {}
    task: Any = dag.get_task(ti.task_id)
    partial_kwargs = getattr(task, "partial_kwargs", None)
    values = {
        name: partial_kwargs.get(name) if partial_kwargs is not None else getattr(task, name, None)
        for name in TASK_ARGUMENTS
    }
    return {name: value for name, value in values.items() if value is not None and "{{" not in str(value)}


def get_dag_team(dag_id: str) -> str | None:
    """Return the team that a DAG belongs to; None without one, and in an Airflow without teams."""
    return DagModel.get_team_name(dag_id) if _has_teams() else None


def get_connection_team(connection_id: str) -> str | None:
    """Return the team of a connection in Airflow's database; None without one, and without teams."""
    return Connection.get_team_name(connection_id) if _has_teams() else None


def _has_teams() -> bool:
    """Return whether connections may belong to a team: Airflow 3.2 and later, with `[core] multi_team`."""
    parameters = inspect.signature(Connection.get_connection_from_secrets).parameters
    return "team_name" in parameters and conf.getboolean("core", "multi_team", fallback=False)


def load_hook(conn_id: str, team_name: str | None) -> FlowsHook:
    """Return the hook of a connection as a task of a team gets it, or a task without a team.

    In a worker, Airflow knows the task's team. In the API server, the lookup has to name it.

    :raises AirflowNotFoundException: the connection does not exist, or belongs to another team.
    :raises FlowInputError: the connection's type does not run flows.
    """
    connection: Any
    if team_name is None:
        connection = FlowsHook.get_connection(conn_id)
    else:
        connection = Connection.get_connection_from_secrets(conn_id, team_name=team_name)
    if isinstance(connection, Connection):  # from the database; its own `get_hook` is deprecated
        connection = TaskConnection(
            conn_id=conn_id, **{name: getattr(connection, name) for name in CONNECTION_FIELDS}
        )
    return FlowsHook._hook_from_connection(connection, None)  # noqa: SLF001  # what `get_hook` calls


def list_readable_connections(user: Any) -> list[tuple[str, str]]:
    """Return id and type of the connections to flow services in Airflow's database that the user may read."""
    with create_session() as session:
        rows = session.execute(
            select(Connection.conn_id, Connection.conn_type).order_by(Connection.conn_id)
        ).all()
    return [
        (conn_id, conn_type)
        for conn_id, conn_type in rows
        if _is_flows_connection_type(conn_type) and _can_read(user, conn_id)
    ]


def _can_read(user: Any, conn_id: str) -> bool:
    details = ConnectionDetails(conn_id=conn_id, team_name=get_connection_team(conn_id))
    return get_auth_manager().is_authorized_connection(method="GET", details=details, user=user)


@cache
def _is_flows_connection_type(conn_type: str) -> bool:
    """Return whether the hook of a connection type is a subclass of `FlowsHook`."""
    # the public mapping imports each hook when it is read, for the Amazon provider together with boto
    manager = ProvidersManager()
    manager.initialize_providers_hooks()
    provider = manager._hook_provider_dict.get(conn_type)  # noqa: SLF001  # see above
    if provider is None or provider.hook_class_name.startswith(OFFICIAL_PROVIDERS_PREFIX):
        return False
    module, _, name = provider.hook_class_name.rpartition(".")
    try:
        hook = getattr(importlib.import_module(module), name)
    except Exception:  # noqa: BLE001  # importing another package's hook can raise any exception
        return False
    return isinstance(hook, type) and issubclass(hook, FlowsHook)
