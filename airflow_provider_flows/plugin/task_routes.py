"""The routes of a task instance's tab: its flow run, and those of the tries before.

What a page of a run shows, and how, showing.py says; what is known of the run seeing.py.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException
from fastapi.concurrency import run_in_threadpool

from airflow_provider_flows.plugin.airflow_internals import (
    REQUIRES_TASK_ACCESS,
    TaskInstanceData,
    load_task_instance,
)
from airflow_provider_flows.plugin.routes import add_run_routes
from airflow_provider_flows.plugin.run_view import RunView, get_previous_run_view, get_task_run_view

TASK_PATH = "/task/{dag_id}/{run_id}/{task_id}/{map_index}"
PREVIOUS_RUN_PATH = f"{TASK_PATH}/before/{{flow_run_id}}"
router = APIRouter(dependencies=REQUIRES_TASK_ACCESS)


async def get_task_instance(dag_id: str, run_id: str, task_id: str, map_index: str) -> TaskInstanceData:
    """Give what the task instance that a path names has left.

    Airflow's page leaves `{MAP_INDEX}` as it is where a task instance has none.
    """
    index = int(map_index) if map_index.removeprefix("-").isdecimal() and len(map_index) < 10 else -1
    ti_data = await run_in_threadpool(load_task_instance, dag_id, run_id, task_id, index)
    if ti_data is None:
        raise HTTPException(404, "There is no such task instance")
    return ti_data


TaskInstanceDependency = Annotated[TaskInstanceData, Depends(get_task_instance)]


async def get_task_view(ti_data: TaskInstanceDependency) -> RunView:
    """See the run of a task instance's last try."""
    return await get_task_run_view(ti_data)


async def get_previous_view(ti_data: TaskInstanceDependency, flow_run_id: str) -> RunView:
    """See a run that a try before the last one had."""
    view = await get_previous_run_view(ti_data, flow_run_id)
    if view is None:
        raise HTTPException(
            404, "No try of this task instance had this flow run, or it is not remembered any more"
        )
    return view


add_run_routes(
    router, PREVIOUS_RUN_PATH, get_previous_view, back=TASK_PATH, back_label="The last try's flow run"
)
add_run_routes(router, TASK_PATH, get_task_view)
