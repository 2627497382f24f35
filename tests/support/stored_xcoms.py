"""XComs and rendered arguments in Airflow's database, which Airflow 3.4 stores for each attempt of a task."""

from __future__ import annotations

from typing import Any

from airflow.models import xcom
from airflow.models.renderedtifields import RenderedTaskInstanceFields
from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import create_session
from sqlalchemy import delete, select, update

from tests.support.versions import has


def _of_run(model: Any, run_id: str) -> Any:
    """Return the condition for the rows of the current attempts of a DAG run."""
    if not has("attempts"):
        return model.run_id == run_id
    return model.task_instance_id.in_(select(TaskInstance.id).where(TaskInstance.run_id == run_id))


def set_xcom(run_id: str, key: str, value: Any) -> None:
    """Replace the value of an XCom."""
    model: Any = xcom.XComModelV2 if has("attempts") else xcom.XComModel
    with create_session() as session:
        session.execute(
            update(model)
            .where(_of_run(model, run_id), model.key == key)
            .values(value=value)
            .execution_options(synchronize_session=False)
        )


def delete_xcom(run_id: str, key: str) -> None:
    """Delete an XCom."""
    model: Any = xcom.XComModelV2 if has("attempts") else xcom.XComModel
    with create_session() as session:
        session.execute(
            delete(model)
            .where(_of_run(model, run_id), model.key == key)
            .execution_options(synchronize_session=False)
        )


def get_rendered_fields(run_id: str) -> dict[str, Any]:
    """Return the rendered arguments of a DAG run's task, as Airflow's UI shows them."""
    model = RenderedTaskInstanceFields
    with create_session() as session:
        found = session.scalar(select(model.rendered_fields).where(_of_run(model, run_id)))
    return dict(found or {})


def delete_rendered_fields(run_id: str) -> None:
    """Delete the rendered arguments, as Airflow does when a DAG has many newer runs."""
    model = RenderedTaskInstanceFields
    with create_session() as session:
        session.execute(
            delete(model).where(_of_run(model, run_id)).execution_options(synchronize_session=False)
        )
