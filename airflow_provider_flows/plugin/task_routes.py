"""The routes of a task instance's tab: its flow run, and those of the tries before.

What a page of a run shows, and how, showing.py says; what is known of the run seeing.py.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException
from fastapi.concurrency import run_in_threadpool

from airflow_provider_flows.plugin.airflow_internals import MAY_SEE_TASK, Left, left_by
from airflow_provider_flows.plugin.run_routes import add_run
from airflow_provider_flows.plugin.run_view import Sight, run_before, run_of_task

TASK = "/task/{dag_id}/{run_id}/{task_id}/{map_index}"
BEFORE = f"{TASK}/before/{{flow_run_id}}"
router = APIRouter(dependencies=MAY_SEE_TASK)


async def left(dag_id: str, run_id: str, task_id: str, map_index: str) -> Left:
    """Give what the task instance that a path names has left.

    Airflow's page leaves `{MAP_INDEX}` as it is where a task instance has none.
    """
    index = int(map_index) if map_index.removeprefix("-").isdecimal() and len(map_index) < 10 else -1
    found = await run_in_threadpool(left_by, dag_id, run_id, task_id, index)
    if found is None:
        raise HTTPException(404, "There is no such task instance")
    return found


LeftBy = Annotated[Left, Depends(left)]


async def seen(found: LeftBy) -> Sight:
    """See the run of a task instance's last try."""
    return await run_of_task(found)


async def seen_before(found: LeftBy, flow_run_id: str) -> Sight:
    """See a run that a try before the last one had."""
    sight = await run_before(found, flow_run_id)
    if sight is None:
        raise HTTPException(
            404, "No try of this task instance had this flow run, or it is not remembered any more"
        )
    return sight


add_run(router, BEFORE, seen_before, back=TASK, word="The last try's flow run")
add_run(router, TASK, seen)
