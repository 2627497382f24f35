"""The routes of a task instance's tab: the page, the same as JSON, and the outputs of its run.

What is known of the run seeing.py says, which bytes may be had files.py.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, Response, StreamingResponse

from airflow_provider_flows.plugin.inside import MAY_SEE_TASK, left_by
from airflow_provider_flows.plugin.listing import graph_at
from airflow_provider_flows.plugin.pages import page, segment
from airflow_provider_flows.plugin.seeing import Sight, run_of_task
from airflow_provider_flows.plugin.sending import sent, sent_image, told_about
from airflow_provider_flows.plugin.shapes import AboutShown, Look

TASK = "/task/{dag_id}/{run_id}/{task_id}/{map_index}"
OUTPUT = f"{TASK}/output/{{number}}"
router = APIRouter(dependencies=MAY_SEE_TASK)


async def seen(dag_id: str, run_id: str, task_id: str, map_index: str) -> Sight:
    """See the run of the task instance that a path names.

    Airflow's page leaves `{MAP_INDEX}` as it is where a task instance has none.
    """
    index = int(map_index) if map_index.removeprefix("-").isdecimal() and len(map_index) < 10 else -1
    left = await run_in_threadpool(left_by, dag_id, run_id, task_id, index)
    if left is None:
        raise HTTPException(404, "There is no such task instance")
    return await run_of_task(left)


Seen = Annotated[Sight, Depends(seen)]


@router.get(TASK, response_class=HTMLResponse)
async def show(request: Request, sight: Seen) -> HTMLResponse:
    """Show the run of a task instance."""
    look = sight.look()
    here = "/".join(segment(request.path_params[name]) for name in ("dag_id", "run_id", "task_id", "map_index"))
    graph = await graph_at(sight.flows_conn_id, look.run.flow if look.run else None)
    return page(request, "run.html", look=look, here=f"task/{here}", graph=graph, back=None)


@router.get(f"/json{TASK}")
async def tell(sight: Seen) -> Look:
    """Tell the same as JSON."""
    return sight.look()


@router.get(OUTPUT, response_class=StreamingResponse)
async def download(sight: Seen, number: int) -> StreamingResponse:
    """Send an output as a file."""
    return await sent(sight, number)


@router.get(f"{OUTPUT}/image", response_class=Response)
async def image(sight: Seen, number: int) -> Response:
    """Send a picture that may be shown."""
    return await sent_image(sight, number)


@router.get(f"/json{OUTPUT}/about")
async def about(sight: Seen, number: int) -> AboutShown:
    """Tell what the beginning of an output's file tells."""
    return await told_about(sight, number)
