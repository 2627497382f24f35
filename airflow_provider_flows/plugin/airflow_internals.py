"""All private Airflow APIs that the pages use: permissions, connections, stored data of task instances.

Airflow guarantees none of these names, so they are imported here and nowhere else in the plugin, and tests
compare them with the installed Airflow.
"""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote
from uuid import UUID

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
from sqlalchemy import String, cast, or_, select

from airflow_provider_flows.batch.records import HEADER_KEY, BatchRecords
from airflow_provider_flows.compat import connections_have_teams, has_attempts, load_state_backend
from airflow_provider_flows.hooks import FlowsHook
from airflow_provider_flows.plugin.task_data import TaskInstanceData, TaskKey
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
    MAX_PREVIOUS_RUNS,
    PREVIOUS_RUNS_KEY,
    PROMPTS_KEY,
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
    "items",
    "parameters",
    "flows_conn_id",
    "output_path",
    "output_conn_id",
    "flow_run_id",
)
CONNECTION_FIELDS = ("conn_type", "description", "host", "schema", "login", "password", "port", "extra")
MAX_FLOW_RUN_TASKS = 100
OFFICIAL_PROVIDERS_PREFIX = "airflow.providers."  # their hooks run no flows and are slow to import


class Attempt(NamedTuple):
    """One try of a task instance, as far as Airflow has it."""

    key: TaskKey
    row: Any
    """Its row. Before Airflow 3.4 a task instance has one row, which is that of its latest try."""


def load_task_instance(
    dag_id: str, run_id: str, task_id: str, map_index: int, region_id: str | None = None
) -> TaskInstanceData | None:
    """Return the stored data of a task instance, None if it does not exist.

    :param map_index: the index that Airflow shows: -1 for a task in a loop. With a region, the one it stores.
    :param region_id: the region, if the index alone may be that of several task instances.
    """
    with create_session() as session:
        attempts = _load_attempts(TaskKey(dag_id, run_id, task_id, map_index, region_id), session)
        if not attempts:
            return None
        latest, *earlier = _get_started(attempts)
        (key, ti), state = latest, attempts[0].row.state
        stored_xcoms = _load_stored_xcoms(latest, (RESULT_KEY, RUN_ID_KEY, OUTPUTS_KEY), session)
        rendered = RenderedTaskInstanceFields.get_templated_fields(ti, session=session)
        if rendered:
            fields = {name: rendered.get(name) for name in TASK_ARGUMENTS}
        else:
            fields = _get_untemplated_arguments(ti, session)
        get_stored = _create_store_reader(key, session)
        ti_data = TaskInstanceData(
            state=state and str(state),
            try_number=ti.try_number or 0,
            fields=fields,
            previous_runs=get_stored(PREVIOUS_RUNS_KEY),
            earlier_runs=_load_earlier_runs(earlier, session),
            key=key,
            run_record=get_stored(RECORD_KEY),
            first_file_records=get_stored(FILES_KEY),
            batch_header=get_stored(HEADER_KEY),
            prompts=get_stored(PROMPTS_KEY),
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


# Attempts. Since Airflow 3.4 each try is a row of `task_instance`, and its XComs and rendered arguments are
# those of that row. The row of the next try is created when a try fails or the task is cleared, long before
# it starts. Airflow's own routes read it like this: routes/public/xcom.py and extra_links.py.


def _load_attempts(key: TaskKey, session: Any, *, is_stored_index: bool = False) -> list[Attempt]:
    """Return the attempts of a task instance, latest first; before Airflow 3.4 there is one, the latest.

    Without a region, an index that several task instances have selects the latest one of these.

    :param is_stored_index: whether the index is the one that Airflow stores, as it is with a region.
    """
    if not has_attempts(TaskInstance):
        ti = session.scalar(select(TaskInstance).filter_by(**key.to_filters()))
        return [] if ti is None else [Attempt(key._replace(region_id=None), ti)]
    from airflow.models.task_coordinates import build_coordinate_filters

    same_task = {name: getattr(key, name) for name in ("dag_id", "run_id", "task_id")}
    query = select(TaskInstance).filter_by(**same_task).execution_options(include_all_attempts=True)
    if key.region_id is not None:
        filters = [TaskInstance.region_id == UUID(key.region_id), TaskInstance.region_index == key.map_index]
    elif is_stored_index:
        filters = [TaskInstance.region_index == key.map_index]
    else:
        filters = build_coordinate_filters(TaskInstance, map_index=key.map_index)
    current_first = TaskInstance.working_set.is_(True).desc()
    latest_first = (TaskInstance.region_id.desc(), TaskInstance.region_index.desc())
    latest = session.scalar(query.where(*filters).order_by(current_first, *latest_first).limit(1))
    if latest is None:
        return []
    rows = session.scalars(
        query.filter_by(region_id=latest.region_id, region_index=latest.region_index).order_by(
            current_first, TaskInstance.try_number.desc()
        )
    )
    region_id = str(latest.region_id) if latest.region_id.int else None  # zero is no region
    attempt_key = key._replace(map_index=latest.region_index, region_id=region_id)
    return [Attempt(attempt_key, row) for row in rows]


def _get_started(attempts: Sequence[Attempt]) -> Sequence[Attempt]:
    """Return the attempts from the latest one that has started, or from the first one if none has.

    Airflow creates the row of the next try as a copy, and sets another start date when that try starts.
    """
    dates = [attempt.row.start_date for attempt in attempts]
    latest = next((index for index, (one, other) in enumerate(pairwise(dates)) if one != other), -1)
    return attempts[latest:]


def _load_earlier_runs(attempts: Sequence[Attempt], session: Any) -> tuple[tuple[str, int], ...]:
    """Return the flow runs in the XComs of attempts, each with its try.

    Airflow 3.4 deletes the records of runs when a person clears a task, but not the XComs of earlier tries.
    Before, it is the other way round.
    """
    tries = {attempt.row.id: attempt.row.try_number for attempt in attempts[:MAX_PREVIOUS_RUNS]}
    if not tries:
        return ()
    rows = session.scalars(_select_xcoms(_select_attempts(tries), (RUN_ID_KEY,)))
    runs = {tries[row.task_instance_id]: XComModel.deserialize_value(row) for row in rows}
    return tuple((runs[number], number) for number in sorted(runs, reverse=True))


def _select_xcoms(producers: Any, names: Collection[str]) -> Any:
    """Return the query of attempts' XComs, on Airflow 3.4 and later.

    :param producers: the query of the attempts' ids.
    """
    from airflow.models.xcom import build_xcom_read_query, xcom_entity

    query = build_xcom_read_query(producer_ids=producers)
    return query.where(xcom_entity(query).key.in_(names)).execution_options(include_all_attempts=True)


def _select_attempts(ids: Collection[UUID]) -> Any:
    return select(TaskInstance.id).where(TaskInstance.id.in_(ids))


def find_flow_run_tasks(dag_id: str, run_id: str, flow_run_ids: Collection[str]) -> dict[str, TaskKey]:
    """Return the task instances of a DAG run that have started these flow runs, by XCom, with one query."""
    has_rows_of_tries = has_attempts(TaskInstance)
    if has_rows_of_tries:
        attempts = select(TaskInstance.id).filter_by(dag_id=dag_id, run_id=run_id)
        query = _select_xcoms(attempts, (RUN_ID_KEY,))
    else:
        query = select(XComModel).filter_by(dag_id=dag_id, run_id=run_id, key=RUN_ID_KEY)
    text = cast(query.selected_columns.value, String)  # whatever the database stores JSON as
    matches = [text.contains(one, autoescape=True) for one in flow_run_ids if one]
    with create_session() as session:
        rows = session.scalars(query.where(or_(*matches)).limit(MAX_FLOW_RUN_TASKS)).all()
        ids = [row.task_instance_id for row in rows] if has_rows_of_tries else []
        keys = _load_attempt_keys(ids, session) if ids else [_get_xcom_key(row) for row in rows]
        return {XComModel.deserialize_value(row): key for row, key in zip(rows, keys, strict=True)}


def _get_xcom_key(row: Any) -> TaskKey:
    return TaskKey(row.dag_id, row.run_id, row.task_id, row.map_index)


def _load_attempt_keys(ids: Sequence[UUID], session: Any) -> list[TaskKey]:
    """Return the keys of attempts, on Airflow 3.4 and later."""
    query = select(TaskInstance).where(TaskInstance.id.in_(ids)).execution_options(include_all_attempts=True)
    keys = {
        ti.id: TaskKey(ti.dag_id, ti.run_id, ti.task_id, ti.region_index)._replace(
            region_id=str(ti.region_id) if ti.region_id.int else None
        )
        for ti in session.scalars(query)
    }
    return [keys[one] for one in ids]


def _load_stored_xcoms(attempt: Attempt, names: Collection[str], session: Any) -> dict[str, Any]:
    if has_attempts(TaskInstance):
        query = _select_xcoms(_select_attempts((attempt.row.id,)), names)
    else:
        query = select(XComModel).filter_by(**attempt.key.to_filters()).where(XComModel.key.in_(names))
    return {row.key: XComModel.deserialize_value(row) for row in session.scalars(query)}


def _load_link_xcoms(key: TaskInstanceKey, names: Collection[str]) -> tuple[str, dict[str, Any]]:
    """Return the address of the page that a link is for, and XComs of the link's try.

    Before Airflow 3.4 that is the latest try. Airflow gives a link the index that it stores, but no region.
    """
    task_key = TaskKey(key.dag_id, key.run_id, key.task_id, key.map_index)
    with create_session() as session:
        started = _get_started(_load_attempts(task_key, session, is_stored_index=True))
        if not started:
            return "", {}
        latest = started[0]
        attempt = next((one for one in started if one.row.try_number <= key.try_number), latest)
        stored = _load_stored_xcoms(attempt, {RUN_ID_KEY, *names}, session)
        run_id = stored.get(RUN_ID_KEY)
        page_url = get_page_url(key, _get_page_region(latest.key, session))
        latest_stored = stored if attempt is latest else _load_stored_xcoms(latest, (RUN_ID_KEY,), session)
        if run_id != latest_stored.get(RUN_ID_KEY):
            page_url += f"/previous/{quote(str(run_id), safe='')}"
        return page_url, stored


def _get_page_region(key: TaskKey, session: Any) -> dict[str, Any]:
    """Return the region that the address of a page needs; empty if the index is enough."""
    if key.region_id is None:
        return {}
    is_selected = any(one.key == key for one in _load_attempts(key._replace(region_id=None), session)[:1])
    return {} if is_selected else key.to_region()


def _get_recorded_run_id(ti_data: TaskInstanceData, *, is_pushed: bool) -> Any:
    """Return the recorded flow run if this try has one whose id cannot be read from XCom."""
    record = ti_data.run_record
    return record.get("flow_run_id") if is_pushed and isinstance(record, Mapping) else None


def get_run_link(key: TaskInstanceKey) -> str:
    """Return the link to a task instance's flow run: the page that its service has, or else ours.

    :returns: the URL; empty if the task has no flow run.
    """
    page_url, stored = _load_link_xcoms(key, (RUN_LINK_KEY,))
    if _is_web_address(stored.get(RUN_LINK_KEY)):
        return str(stored[RUN_LINK_KEY])
    return page_url if stored.get(RUN_ID_KEY) else ""


def get_outputs_link(key: TaskInstanceKey) -> str:
    """Return the link to a task instance's files: a storage's console, or else our page.

    :returns: the URL; empty if the task has no files.
    """
    page_url, stored = _load_link_xcoms(key, (OUTPUTS_LINK_KEY, RESULT_KEY, OUTPUTS_KEY))
    if _is_web_address(stored.get(OUTPUTS_LINK_KEY)):
        return str(stored[OUTPUTS_LINK_KEY])
    result = _resolve_xcom(RESULT_KEY, stored.get(RESULT_KEY))
    outputs = result.get("outputs") if isinstance(result, Mapping) else None
    outputs = outputs or _resolve_xcom(OUTPUTS_KEY, stored.get(OUTPUTS_KEY))
    rows = [row for row in outputs if isinstance(row, Mapping)] if isinstance(outputs, list) else []
    return page_url if any(row.get("uri") for row in rows) else ""


def _is_web_address(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(("https://", "http://"))


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


def load_batch_records(key: TaskKey) -> BatchRecords | None:
    """Return the records of a task's batch; None if there are none.

    :raises FlowError: they cannot be read.
    """
    with create_session() as session:
        return BatchRecords.load(SimpleNamespace(get=_create_store_reader(key, session)))


def _create_store_reader(key: TaskKey, session: Any) -> Callable[[str], Any]:
    """Return a function that returns a value of a task instance's state store, None if it cannot be read.

    It reads the backend of Airflow's API server. Airflow before 3.3 has no such store.
    """
    backend = load_state_backend()
    if backend is None:
        return lambda _: None
    scope_class, get_state_backend = backend
    region = {} if key.region_id is None else {"region_id": UUID(key.region_id)}
    scope = scope_class(**key.to_filters(), **region)

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
    return connections_have_teams() and conf.getboolean("core", "multi_team", fallback=False)


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
