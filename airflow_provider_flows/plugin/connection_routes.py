"""The routes of the page "Flow runs": a connection's runs and one of them, its flows, and the same as JSON.

What is in the list listing.py says, what is known of one run seeing.py, how it is shown showing.py.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from airflow_provider_flows.plugin.airflow_internals import (
    LOGGED_IN,
    MAY_SEE_CONNECTION,
    User,
    readable_connections,
)
from airflow_provider_flows.plugin.html import page, segment
from airflow_provider_flows.plugin.run_list import Wanted, definition_at, flow_ids, graph_at, runs_shown
from airflow_provider_flows.plugin.run_routes import add_run, address
from airflow_provider_flows.plugin.run_view import Sight, run_at_service
from airflow_provider_flows.plugin.schemas import LONGEST_LINE, RunsShown, line

CONNECTION = "/connection/{connection_id}"
RUN = f"{CONNECTION}/run/{{flow_run_id}}"
FIRST = "flows_default"
NOTHING = (
    "There is no connection that runs flows, or none that you may read. Somebody with the right to do so adds one under Admin, "
    "Connections: of type Generio or PromptChainer. One from the environment or a secrets backend is not listed here."
)
welcome = APIRouter(dependencies=LOGGED_IN)
router = APIRouter(dependencies=MAY_SEE_CONNECTION)


@welcome.get("/", response_class=HTMLResponse)
async def begin(request: Request, user: User) -> Response:
    """Lead to the first connection that the user may read."""
    known = [conn_id for conn_id, _ in await run_in_threadpool(readable_connections, user)]
    if not known:
        return await page(request, "message.html", title="No connection", text=NOTHING, back=None)
    first = FIRST if FIRST in known else known[0]
    return RedirectResponse(f"{request.scope.get('root_path', '')}/connection/{segment(first)}", 303)


def wanted(
    state: Annotated[str, Query(max_length=20)] = "",
    flow: Annotated[str, Query(max_length=LONGEST_LINE + 1)] = "",
    sort: Annotated[str, Query(max_length=20)] = "-created",
    number: Annotated[int, Query(alias="page", ge=1, le=100_000)] = 1,
) -> Wanted:
    """Read which part of the list is wanted."""
    return Wanted(state, flow, sort, number)


@router.get(CONNECTION, response_class=HTMLResponse)
async def show_runs(
    request: Request, connection_id: str, user: User, part: Annotated[Wanted, Depends(wanted)]
) -> HTMLResponse:
    """Show a connection's runs."""
    shown = await runs_shown(connection_id, part)
    known = await run_in_threadpool(readable_connections, user)
    flows = await flow_ids(connection_id)
    chosen = {"state": part.state, "flow": part.flow, "sort": part.sort, "page": shown.page}
    return await page(request, "runs.html", shown=shown, known=known, flows=flows, chosen=chosen)


@router.get(f"/json{CONNECTION}")
async def tell_runs(connection_id: str, part: Annotated[Wanted, Depends(wanted)]) -> RunsShown:
    """Tell the same as JSON."""
    return await runs_shown(connection_id, part)


@router.get(f"{CONNECTION}/flow/{{flow}}", response_class=HTMLResponse)
async def show_flow(request: Request, connection_id: str, flow: str) -> HTMLResponse:
    """Show what a flow takes and gives, and its picture where an exported graph is configured."""
    definition, error = await definition_at(connection_id, flow)
    graph = await graph_at(connection_id, flow)
    back = address(CONNECTION, request)
    trouble = None if error is None else line(str(error))
    return await page(
        request, "flow.html", flow=flow, definition=definition, trouble=trouble, graph=graph, back=back
    )


async def seen(connection_id: str, flow_run_id: str) -> Sight:
    """See a run at its service."""
    return await run_at_service(connection_id, flow_run_id, Sight(flow_run_id, connection_id, frank=True))


add_run(router, RUN, seen, back=CONNECTION, word="Flow runs")
