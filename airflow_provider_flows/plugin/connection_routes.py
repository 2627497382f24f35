"""The routes of the page "Flow runs": a connection's runs and one of them, its flows, and the same as JSON.

What is in the list listing.py says, what is known of one run seeing.py, how it is shown showing.py.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from airflow_provider_flows.plugin.airflow_internals import (
    REQUIRES_CONNECTION_ACCESS,
    REQUIRES_LOGIN,
    User,
    readable_connections,
)
from airflow_provider_flows.plugin.html import quote_segment, render_page
from airflow_provider_flows.plugin.run_list import (
    ListQuery,
    get_definition,
    get_flow_ids,
    get_graph,
    get_run_list,
)
from airflow_provider_flows.plugin.routes import add_run_routes, fill_path
from airflow_provider_flows.plugin.run_view import RunView, get_service_run_view
from airflow_provider_flows.plugin.schemas import MAX_LINE_LENGTH, RunListSchema, to_safe_line

CONNECTION_PATH = "/connection/{connection_id}"
CONNECTION_RUN_PATH = f"{CONNECTION_PATH}/run/{{flow_run_id}}"
PREFERRED_CONN_ID = "flows_default"
NO_CONNECTION_NOTE = (
    "There is no connection that runs flows, or none that you may read. Somebody with the right to do so adds one under Admin, "
    "Connections: of type Generio or PromptChainer. One from the environment or a secrets backend is not listed here."
)
index_router = APIRouter(dependencies=REQUIRES_LOGIN)
router = APIRouter(dependencies=REQUIRES_CONNECTION_ACCESS)


@index_router.get("/", response_class=HTMLResponse)
async def redirect_to_connection(request: Request, user: User) -> Response:
    """Lead to the first connection that the user may read."""
    conn_ids = [conn_id for conn_id, _ in await run_in_threadpool(readable_connections, user)]
    if not conn_ids:
        return await render_page(
            request, "message.html", title="No connection", text=NO_CONNECTION_NOTE, back=None
        )
    conn_id = PREFERRED_CONN_ID if PREFERRED_CONN_ID in conn_ids else conn_ids[0]
    return RedirectResponse(f"{request.scope.get('root_path', '')}/connection/{quote_segment(conn_id)}", 303)


def get_list_query(
    state: Annotated[str, Query(max_length=20)] = "",
    flow: Annotated[str, Query(max_length=MAX_LINE_LENGTH + 1)] = "",
    sort: Annotated[str, Query(max_length=20)] = "-created",
    number: Annotated[int, Query(alias="page", ge=1, le=100_000)] = 1,
) -> ListQuery:
    """Read which part of the list is wanted."""
    return ListQuery(state, flow, sort, number)


@router.get(CONNECTION_PATH, response_class=HTMLResponse)
async def show_runs(
    request: Request, connection_id: str, user: User, query: Annotated[ListQuery, Depends(get_list_query)]
) -> HTMLResponse:
    """Show a connection's runs."""
    run_list = await get_run_list(connection_id, query)
    connections = await run_in_threadpool(readable_connections, user)
    flows = await get_flow_ids(connection_id)
    selection = {"state": query.state, "flow": query.flow, "sort": query.sort, "page": run_list.page}
    return await render_page(
        request, "runs.html", run_list=run_list, connections=connections, flows=flows, selection=selection
    )


@router.get(f"/json{CONNECTION_PATH}")
async def get_runs(connection_id: str, query: Annotated[ListQuery, Depends(get_list_query)]) -> RunListSchema:
    """Tell the same as JSON."""
    return await get_run_list(connection_id, query)


@router.get(f"{CONNECTION_PATH}/flow/{{flow}}", response_class=HTMLResponse)
async def show_flow(request: Request, connection_id: str, flow: str) -> HTMLResponse:
    """Show what a flow takes and gives, and its picture where an exported graph is configured."""
    definition, error = await get_definition(connection_id, flow)
    graph = await get_graph(connection_id, flow)
    back = fill_path(CONNECTION_PATH, request)
    error_text = None if error is None else to_safe_line(str(error))
    return await render_page(
        request, "flow.html", flow=flow, definition=definition, error_text=error_text, graph=graph, back=back
    )


async def get_connection_run_view(connection_id: str, flow_run_id: str) -> RunView:
    """See a run at its service."""
    return await get_service_run_view(
        connection_id, flow_run_id, RunView(flow_run_id, connection_id, show_host=True)
    )


add_run_routes(
    router, CONNECTION_RUN_PATH, get_connection_run_view, back=CONNECTION_PATH, back_label="Flow runs"
)
