"""All private Airflow APIs that the pages use: permissions, connections, stored data of task instances.

Airflow guarantees none of these names, so they are imported here and nowhere else in the plugin, and tests
compare them with the installed Airflow.
"""

from __future__ import annotations

import importlib
import inspect
import json
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

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
from airflow.sdk.bases.xcom import BaseXCom
from airflow.sdk.execution_time.comms import XComResult
from airflow.sdk.execution_time.xcom import resolve_xcom_backend
from airflow.utils.session import create_session
from fastapi import Depends
from sqlalchemy import select

from airflow_provider_flows.hooks import FlowsHook
from airflow_provider_flows.worker.finish import OUTPUTS_KEY
from airflow_provider_flows.worker.run_tracking import (
    OUTPUTS_LINK_KEY,
    RUN_ID_KEY,
    RUN_LINK_KEY,
    get_page_url,
)
from airflow_provider_flows.worker.task_state import (
    FILES_KEY,
    INPUT_ERROR_KEY,
    PREVIOUS_RUNS_KEY,
    RECORD_KEY,
    iter_file_records,
)

if TYPE_CHECKING:
    from airflow.sdk.types import TaskInstanceKey

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
    input_error: str | None = None
    """Why the latest try has started no flow run, from there too, if its arguments were invalid."""
    team_name: str | None = None


def load_task_instance(dag_id: str, run_id: str, task_id: str, map_index: int) -> TaskInstanceData | None:
    """Return the stored data of a task instance, None if it does not exist."""
    key = TaskKey(dag_id, run_id, task_id, map_index)
    ti_key = key._asdict()
    with create_session() as session:
        ti = session.scalar(select(TaskInstance).filter_by(**ti_key))
        if ti is None:
            return None
        stored_xcoms = _load_stored_xcoms(key, (RESULT_KEY, RUN_ID_KEY, OUTPUTS_KEY), session)
        rendered = RenderedTaskInstanceFields.get_templated_fields(ti, session=session)
        if rendered:
            fields = {name: rendered.get(name) for name in TASK_ARGUMENTS}
        else:
            fields = _get_untemplated_arguments(ti, session)
        get_stored = _create_store_reader(key, session)
        ti_data = TaskInstanceData(
            state=ti.state and str(ti.state),
            try_number=ti.try_number or 0,
            fields=fields,
            previous_runs=get_stored(PREVIOUS_RUNS_KEY),
            key=key,
            run_record=get_stored(RECORD_KEY),
            first_file_records=get_stored(FILES_KEY),
            input_error=_parse_input_error(get_stored(INPUT_ERROR_KEY), ti.try_number),
            team_name=get_dag_team(dag_id),
        )
    # without the session, because a backend may read from elsewhere
    xcoms = {name: _resolve_xcom(name, value) for name, value in stored_xcoms.items()}
    return replace(
        ti_data,
        result=xcoms.get(RESULT_KEY),
        flow_run_id=xcoms.get(RUN_ID_KEY)
        or _get_recorded_run_id(ti_data, is_pushed=RUN_ID_KEY in stored_xcoms),
        outputs=xcoms.get(OUTPUTS_KEY),
    )


def _get_recorded_run_id(ti_data: TaskInstanceData, *, is_pushed: bool) -> Any:
    """Return the recorded flow run if this try has one whose id cannot be read from XCom."""
    record = ti_data.run_record
    return record.get("flow_run_id") if is_pushed and isinstance(record, Mapping) else None


def get_run_link(key: TaskInstanceKey) -> str:
    """Return the link to a task instance's flow run: the page that its service has, or else ours.

    :returns: the URL; empty if the task has no flow run.
    """
    with create_session() as session:
        stored = _load_stored_xcoms(_to_task_key(key), (RUN_LINK_KEY, RUN_ID_KEY), session)
    if _is_web_address(stored.get(RUN_LINK_KEY)):
        return str(stored[RUN_LINK_KEY])
    return get_page_url(key) if stored.get(RUN_ID_KEY) else ""


def get_outputs_link(key: TaskInstanceKey) -> str:
    """Return the link to a task instance's files: a storage's console, or else our page.

    :returns: the URL; empty if the task has no files.
    """
    with create_session() as session:
        names = (OUTPUTS_LINK_KEY, RESULT_KEY, OUTPUTS_KEY)
        stored = _load_stored_xcoms(_to_task_key(key), names, session)
    if _is_web_address(stored.get(OUTPUTS_LINK_KEY)):
        return str(stored[OUTPUTS_LINK_KEY])
    result = _resolve_xcom(RESULT_KEY, stored.get(RESULT_KEY))
    outputs = result.get("outputs") if isinstance(result, Mapping) else None
    outputs = outputs or _resolve_xcom(OUTPUTS_KEY, stored.get(OUTPUTS_KEY))
    rows = [row for row in outputs if isinstance(row, Mapping)] if isinstance(outputs, list) else []
    return get_page_url(key) if any(row.get("uri") for row in rows) else ""


def _to_task_key(key: TaskInstanceKey) -> TaskKey:
    return TaskKey(key.dag_id, key.run_id, key.task_id, key.map_index)


def _is_web_address(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(("https://", "http://"))


def _load_stored_xcoms(key: TaskKey, names: Collection[str], session: Any) -> dict[str, Any]:
    query = select(XComModel).filter_by(**key._asdict()).where(XComModel.key.in_(names))
    return {row.key: XComModel.deserialize_value(row) for row in session.scalars(query)}


def _resolve_xcom(name: str, stored: Any) -> Any:
    """Return an XCom as the configured backend reads it, None if it cannot.

    The database has the value itself with Airflow's own backend, and whatever another one has stored.
    """
    try:
        backend = resolve_xcom_backend()
        if backend.deserialize_value is BaseXCom.deserialize_value:
            return stored
        value = backend.deserialize_value(XComResult(key=name, value=stored))
    except Exception as error:  # noqa: BLE001  # a backend may raise anything, and pages do without it
        log.warning(
            "The XCom backend cannot read %s (%s); the page does without it", name, type(error).__name__
        )
        return None
    # an object storage's backend returns the object's path if the object is gone, or is out of reach
    return None if isinstance(value, str) and value == stored and "://" in value else value


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
            return None if value is None else _resolve_stored_value(json.loads(value))
        except Exception as error:  # noqa: BLE001  # a backend may raise anything, and pages do without it
            log.warning(
                "Airflow's task state store failed (%s); the page does without it", type(error).__name__
            )
            return None

    return get_stored


def _parse_input_error(value: Any, try_number: int | None) -> str | None:
    """Return the error that a try has saved, None for that of an earlier try."""
    if not isinstance(value, Mapping) or value.get("try_number") != try_number:
        return None
    error = value.get("error")
    return error if isinstance(error, str) else None


def _resolve_stored_value(value: Any) -> Any:
    """Return a value that a worker has stored; its own backend may have left a reference to it.

    :raises Exception: the backend cannot read it, or is not configured here; an ImportError on an Airflow in
        which workers have none.
    """
    from airflow.sdk.execution_time import context  # Airflow 3.3 and later

    reference = value.get(context._EXTERNAL_STATE_REF_KEY) if isinstance(value, dict) else None  # noqa: SLF001  # see above
    if reference is None:
        return value
    backend: Any = context._get_worker_state_store_backend()  # noqa: SLF001  # there is no public way
    return backend.deserialize_task_state_store_from_ref(reference)


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
