"""The origins of the flow runs in a list: the tasks that started them, and what they asked for.

A service does not know Airflow's tasks, but returns the stamp with which a task has started a run. Anyone
with the API key can write a stamp. A run's origin is therefore the stamped task instance only if that has
pushed the run's id as an XCom, and if the user may read both its task instances and its XComs.

These private APIs of Airflow are those of `airflow_internals`, with the access checks of single DAGs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.models import xcom
from airflow.models.renderedtifields import RenderedTaskInstanceFields
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from sqlalchemy import and_, select, tuple_

from airflow_provider_flows.compat import has_attempts
from airflow_provider_flows.core.flow_run import FlowRun
from airflow_provider_flows.core.start_or_resume import get_stamp
from airflow_provider_flows.plugin.airflow_internals import get_dag_team
from airflow_provider_flows.plugin.html import quote_segment
from airflow_provider_flows.plugin.task_data import TaskKey
from airflow_provider_flows.plugin.texts import to_input_schemas, to_safe_line, to_title
from airflow_provider_flows.worker.run_tracking import RUN_ID_KEY

UUID_PATTERN = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
KEY_COLUMNS = ("dag_id", "run_id", "task_id", "map_index")


class Origin(NamedTuple):
    """The task instance that started a flow run.

    :param title: what it asked for; empty if Airflow no longer knows.
    :param task: the task's id, with the map index of a mapped one.
    :param path: of the task instance's page, relative to the app.
    """

    title: str
    dag_id: str
    task: str
    path: str


def to_task_key(run: FlowRun) -> TaskKey | None:
    """Return the task instance in a run's stamp, None without one."""
    stamp = get_stamp(run)
    dag_id, run_id, task_id = (stamp.get(name) for name in KEY_COLUMNS[:3])
    index = stamp.get("region_index") if isinstance(stamp.get("region_id"), str) else stamp.get("map_index")
    if not (isinstance(dag_id, str) and isinstance(run_id, str) and isinstance(task_id, str)):
        return None
    region = stamp.get("region_id")
    region_id = region if isinstance(region, str) and UUID_PATTERN.fullmatch(region) else None
    return TaskKey(dag_id, run_id, task_id, index, region_id) if type(index) is int else None


def load_origins(keys: Mapping[str, TaskKey], user: Any) -> dict[str, Origin]:
    """Return the origins of flow runs whose DAGs a user may read, with one query.

    :param keys: the task instances in the stamps, by flow run id.
    """
    dag_ids = {key.dag_id for key in keys.values()}
    readable = {dag_id for dag_id in dag_ids if _can_read_dag(user, dag_id)}
    wanted = {run: key for run, key in keys.items() if key.dag_id in readable}
    rows = _load_rows(set(wanted.values())) if wanted else {}
    return {run: _to_origin(key, rows[run, key[:4]]) for run, key in wanted.items() if (run, key[:4]) in rows}


def _can_read_dag(user: Any, dag_id: str) -> bool:
    details = DagDetails(id=dag_id, team_name=get_dag_team(dag_id))
    return all(
        get_auth_manager().is_authorized_dag(method="GET", user=user, access_entity=entity, details=details)
        for entity in (DagAccessEntity.TASK_INSTANCE, DagAccessEntity.XCOM)
    )


def _load_rows(keys: Iterable[TaskKey]) -> dict[tuple[Any, tuple[Any, ...]], Any]:
    """Return the rendered arguments of task instances, by the flow run in their XCom and their key."""
    rendered: Any = RenderedTaskInstanceFields
    if has_attempts(TaskInstance):  # each try has XComs and arguments of its own
        pushed: Any = xcom.XComModelV2
        columns = [getattr(TaskInstance, name) for name in (*KEY_COLUMNS[:3], "region_index")]
        query = (
            select(*columns, pushed.value, rendered.rendered_fields)
            .select_from(TaskInstance)
            .join(pushed, pushed.task_instance_id == TaskInstance.id)
            .outerjoin(rendered, rendered.task_instance_id == TaskInstance.id)
            .execution_options(include_all_attempts=True)
        )
    else:
        pushed = XComModel
        columns = [getattr(pushed, name) for name in KEY_COLUMNS]
        same = [column == getattr(rendered, column.key) for column in columns]
        query = select(*columns, pushed.value, rendered.rendered_fields).outerjoin(rendered, and_(*same))
    query = query.where(pushed.key == RUN_ID_KEY, tuple_(*columns).in_([key[:4] for key in keys]))
    with create_session() as session:
        rows = session.execute(query).all()
    return {
        (XComModel.deserialize_value(SimpleNamespace(value=value)), tuple(key)): fields
        for *key, value, fields in rows
    }


def _to_origin(key: TaskKey, fields: Any) -> Origin:
    inputs = fields.get("inputs") if isinstance(fields, Mapping) else None
    index = str(key.map_index) if key.region_id is None else f"{key.map_index}@{key.region_id}"
    path = "/".join(["task", *map(quote_segment, (key.dag_id, key.run_id, key.task_id, index))])
    task = key.task_id if key.map_index < 0 else f"{key.task_id} [{key.map_index}]"
    return Origin(to_title(to_input_schemas(inputs)), to_safe_line(key.dag_id), to_safe_line(task), path)
