"""What the pages need of Airflow's inside: who asks, what that user may see, and what a task instance has left.

Airflow promises none of these names; they stand here and nowhere else, and tests/plugin/test_airflow_internals.py notices when they move.
What is shown of them is for others to say.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import ConnectionDetails, DagAccessEntity
from airflow.api_fastapi.core_api.security import (
    GetUserDep,
    get_user,
    requires_access_connection,
    requires_access_dag,
)
from airflow.models.connection import Connection
from airflow.models.dagbag import DBDagBag
from airflow.models.renderedtifields import RenderedTaskInstanceFields
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from airflow.providers_manager import ProvidersManager
from airflow.utils.session import create_session
from fastapi import Depends
from sqlalchemy import select

from airflow_provider_flows.hooks import FlowsHook
from airflow_provider_flows.worker.finish import OUTPUTS_KEY
from airflow_provider_flows.worker.task_state import PREVIOUS_RUNS_KEY, RUN_ID_KEY

User = GetUserDep
REQUIRES_LOGIN = [Depends(get_user)]
# What is shown of a task instance is its state, and what it has pushed to XCom.
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
OFFICIAL_PROVIDERS_PREFIX = "airflow.providers."  # their hooks are none of ours, and dear to import


@dataclass(frozen=True)
class TaskInstanceData:
    """What one task instance has left in Airflow's database; `fields` are the task's arguments as they were rendered.

    What was pushed to XCom is the last try's, for Airflow forgets it when a try begins; `previous_runs` is what was remembered of the
    flow runs of the tries before (memory.py).
    """

    state: str | None
    try_number: int
    fields: Mapping[str, Any] = field(default_factory=dict)
    previous_runs: Any = None
    result: Any = None
    flow_run_id: Any = None
    outputs: Any = None


def load_task_instance(dag_id: str, run_id: str, task_id: str, map_index: int) -> TaskInstanceData | None:
    """Read what a task instance has left, None if there is none."""
    ti_key = {"dag_id": dag_id, "run_id": run_id, "task_id": task_id, "map_index": map_index}
    with create_session() as session:
        ti = session.scalar(select(TaskInstance).filter_by(**ti_key))
        if ti is None:
            return None
        keys = (RESULT_KEY, RUN_ID_KEY, OUTPUTS_KEY)
        rows = session.scalars(select(XComModel).filter_by(**ti_key).where(XComModel.key.in_(keys)))
        xcoms = {row.key: XComModel.deserialize_value(row) for row in rows}
        rendered = RenderedTaskInstanceFields.get_templated_fields(ti, session=session)
        fields = (
            {name: (rendered or {}).get(name) for name in TASK_ARGUMENTS}
            if rendered
            else _get_untemplated_arguments(ti, session)
        )
        previous_runs = _load_previous_runs(ti_key, session)
        xcom_values = (xcoms.get(key) for key in keys)
        return TaskInstanceData(
            ti.state and str(ti.state), ti.try_number or 0, fields, previous_runs, *xcom_values
        )


def _load_previous_runs(ti_key: Mapping[str, Any], session: Any) -> Any:
    """Read what the tries before left in the task state store, None where this Airflow (before 3.3) has none."""
    try:
        from airflow.models.task_state_store import TaskStateStoreModel
    except ImportError:
        return None
    value = session.scalar(select(TaskStateStoreModel.value).filter_by(**ti_key, key=PREVIOUS_RUNS_KEY))
    return None if value is None else json.loads(value)


def _get_untemplated_arguments(ti: TaskInstance, session: Any) -> dict[str, Any]:
    """Give those of a task's arguments that are no templates: of runs long past Airflow keeps the rendered ones no more."""
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


def readable_connections(user: Any) -> list[tuple[str, str]]:
    """Give id and type of each connection in Airflow's database that runs flows and that this user may read."""
    with create_session() as session:
        rows = session.execute(
            select(Connection.conn_id, Connection.conn_type).order_by(Connection.conn_id)
        ).all()
    return [
        (conn_id, kind)
        for conn_id, kind in rows
        if _is_flows_connection_type(kind) and _can_read(user, conn_id)
    ]


def _can_read(user: Any, conn_id: str) -> bool:
    details = ConnectionDetails(conn_id=conn_id, team_name=Connection.get_team_name(conn_id))
    return get_auth_manager().is_authorized_connection(method="GET", details=details, user=user)


@cache
def _is_flows_connection_type(conn_type: str) -> bool:
    """Whether the hook of a connection type is one of ours, or made of one."""
    # the public mapping would import each hook that is asked for, the amazon provider's with all of boto
    manager = ProvidersManager()
    manager.initialize_providers_hooks()
    provider = manager._hook_provider_dict.get(conn_type)  # noqa: SLF001
    if provider is None or provider.hook_class_name.startswith(OFFICIAL_PROVIDERS_PREFIX):
        return False
    module, _, name = provider.hook_class_name.rpartition(".")
    try:
        hook = getattr(importlib.import_module(module), name)
    except Exception:  # noqa: BLE001  # somebody else's package: whatever it raises, it shows no flow runs
        return False
    return isinstance(hook, type) and issubclass(hook, FlowsHook)
