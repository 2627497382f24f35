"""The plugin's FastAPI app and its routes: the *Flow run* tab, the *Flow runs* page, and a run's outputs.

Each page of runs has a JSON route at the same path below `/json`, which the page polls. Access is checked by
the dependencies of the routers, before any route runs.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException as StarletteHTTPException

from airflow_provider_flows.core.batch import MAX_KEY_LENGTH
from airflow_provider_flows.core.exceptions import FlowError
from airflow_provider_flows.plugin.airflow_internals import (
    REQUIRES_CONNECTION_ACCESS,
    REQUIRES_LOGIN,
    REQUIRES_TASK_ACCESS,
    User,
    get_connection_team,
    list_readable_connections,
    load_task_instance,
)
from airflow_provider_flows.plugin.batches import BatchQuery, find_batch, get_batch_page, get_item_view
from airflow_provider_flows.plugin.connection_view import (
    ListQuery,
    get_definition,
    get_flow_ids,
    get_graph,
    get_origins,
    get_run_list,
)
from airflow_provider_flows.plugin.html import (
    STATIC_MEDIA_TYPES,
    SegmentRoute,
    load_static,
    quote_segment,
    render_page,
    respond_to_flow_error,
    respond_to_http_error,
    respond_to_invalid_request,
)
from airflow_provider_flows.plugin.output_files import NoFileError
from airflow_provider_flows.plugin.output_routes import GetView, add_output_routes
from airflow_provider_flows.plugin.present import BatchPage, RunListSchema, RunPage
from airflow_provider_flows.plugin.run_view import (
    RunView,
    get_previous_run_view,
    get_service_run_view,
    get_task_run_view,
)
from airflow_provider_flows.plugin.sources import load_sources
from airflow_provider_flows.plugin.task_data import TaskInstanceData, TaskKey
from airflow_provider_flows.plugin.texts import MAX_LINE_LENGTH, to_safe_line
from airflow_provider_flows.plugin.viewer import FILE_NAME, load_viewer
from airflow_provider_flows.storage.batch_manifest import MAX_STATE_LENGTH

CONNECTION_PATH = "/connection/{connection_id}"
CONNECTION_RUN_PATH = f"{CONNECTION_PATH}/run/{{flow_run_id}}"
TASK_PATH = "/task/{dag_id}/{run_id}/{task_id}/{map_index}"
ITEM_PATH = f"{TASK_PATH}/item/{{key}}"
PREVIOUS_RUN_PATH = f"{TASK_PATH}/previous/{{flow_run_id}}"
PREFERRED_CONN_ID = "flows_default"
NO_CONNECTION_NOTE = (
    "There are no connections to a flow service such as Generio or PromptChainer, "
    "or you do not have permission to view them. Connections are added under Admin, Connections. "
    "Those defined in environment variables or in a secrets backend are not listed here."
)


index_router = APIRouter(dependencies=REQUIRES_LOGIN)
connection_router = APIRouter(dependencies=REQUIRES_CONNECTION_ACCESS, route_class=SegmentRoute)
task_router = APIRouter(dependencies=REQUIRES_TASK_ACCESS, route_class=SegmentRoute)
ConnectionTeam = Annotated[str | None, Depends(get_connection_team)]


def add_run_routes(
    router: APIRouter, path: str, get_view: GetView, *, back: str | None = None, back_label: str = ""
) -> None:
    """Add the routes of one flow run to a router: its page, its JSON and its outputs.

    :param path: path of the page, with placeholders; the other paths are derived from it.
    :param get_view: the FastAPI dependency that returns the run.
    :param back: path of the page to link back to, with the same placeholders.
    :param back_label: text of that link.
    """
    add_output_routes(router, f"{path}/output/{{number}}", get_view)

    @router.get(path, response_class=HTMLResponse)
    async def show_run(request: Request, view: RunView = Depends(get_view)) -> HTMLResponse:  # noqa: B008, FAST002  # `get_view` is local
        """Return the run as a page."""
        return await render_run(request, view, path, back and fill_path(back, request), back_label)

    @router.get(f"/json{path}")
    async def get_run(view: RunView = Depends(get_view)) -> RunPage:  # noqa: B008, FAST002  # `get_view` is local
        """Return the run as JSON."""
        return await run_in_threadpool(view.to_page)


async def render_run(
    request: Request, view: RunView, path: str, back: str | None = None, back_label: str = ""
) -> HTMLResponse:
    """Return the page of a run; the parameters are as for `add_run_routes`, with `back` filled in."""
    sources = await run_in_threadpool(load_sources, view)
    return await render_page(
        request,
        "run.html",
        run_page=await run_in_threadpool(view.to_page, sources[0].output.title if sources else ""),
        sources=sources,
        run_path=fill_path(path, request),
        graph=await get_graph(view.flows_conn_id, view.run.flow if view.run else None, view.team_name),
        back=back,
        back_label=back_label,
    )


def fill_path(path: str, request: Request) -> str:
    """Return a path, relative to the app, with its placeholders replaced by the request's path parameters."""
    return path.format_map(
        {name: quote_segment(str(value)) for name, value in request.path_params.items()}
    ).lstrip("/")


# The Flow runs page of a connection


@index_router.get("/", response_class=HTMLResponse)
async def redirect_to_connection(request: Request, user: User) -> Response:
    """Redirect to the default connection, or else to the first one that the user may read."""
    conn_ids = [conn_id for conn_id, _ in await run_in_threadpool(list_readable_connections, user)]
    if not conn_ids:
        return await render_page(request, "message.html", title="No connections", text=NO_CONNECTION_NOTE)
    conn_id = PREFERRED_CONN_ID if PREFERRED_CONN_ID in conn_ids else conn_ids[0]
    return RedirectResponse(f"{request.scope.get('root_path', '')}/connection/{quote_segment(conn_id)}", 303)


def get_list_query(
    state: Annotated[str, Query(max_length=20)] = "",
    flow: Annotated[str, Query(max_length=MAX_LINE_LENGTH + 1)] = "",
    search: Annotated[str, Query(max_length=MAX_LINE_LENGTH)] = "",
    sort: Annotated[str, Query(max_length=20)] = "-created",
    page: Annotated[int, Query(ge=1, le=100_000)] = 1,
) -> ListQuery:
    """Return the filters, the order and the page number in the URL."""
    return ListQuery(state, flow, search.strip(), sort, page)


ListQueryDependency = Annotated[ListQuery, Depends(get_list_query)]


@connection_router.get(CONNECTION_PATH, response_class=HTMLResponse)
async def show_runs(
    request: Request, connection_id: str, user: User, query: ListQueryDependency, team_name: ConnectionTeam
) -> HTMLResponse:
    """Return the runs of a connection as a page."""
    run_list = await get_run_list(connection_id, query, team_name)
    return await render_page(
        request,
        "runs.html",
        run_list=run_list,
        origins=await get_origins(connection_id, run_list, user, team_name),
        connections=await run_in_threadpool(list_readable_connections, user),
        flows=await get_flow_ids(connection_id, team_name),
        selection={
            "state": query.state,
            "flow": query.flow,
            "search": query.search,
            "sort": query.sort,
            "page": run_list.page,
        },
    )


@connection_router.get(f"/json{CONNECTION_PATH}")
async def get_runs(
    connection_id: str, query: ListQueryDependency, team_name: ConnectionTeam
) -> RunListSchema:
    """Return the runs of a connection as JSON."""
    return await get_run_list(connection_id, query, team_name)


@connection_router.get(f"{CONNECTION_PATH}/flow/{{flow}}", response_class=HTMLResponse)
async def show_flow(
    request: Request, connection_id: str, flow: str, team_name: ConnectionTeam
) -> HTMLResponse:
    """Return a page with a flow's inputs and outputs, and its picture if an exported graph is configured."""
    definition, error = await get_definition(connection_id, flow, team_name)
    return await render_page(
        request,
        "flow.html",
        flow=flow,
        definition=definition,
        error_text=None if error is None else to_safe_line(str(error)),
        graph=await get_graph(connection_id, flow, team_name),
        back=fill_path(CONNECTION_PATH, request),
    )


async def get_connection_run_view(connection_id: str, flow_run_id: str, team_name: ConnectionTeam) -> RunView:
    """Return a run as its service reports it; the user may read the connection."""
    view = RunView(flow_run_id, connection_id, show_host=True, team_name=team_name)
    return await get_service_run_view(connection_id, flow_run_id, view)


add_run_routes(
    connection_router,
    CONNECTION_RUN_PATH,
    get_connection_run_view,
    back=CONNECTION_PATH,
    back_label="Flow runs",
)


# The Flow run tab of a task instance


async def get_task_instance(dag_id: str, run_id: str, task_id: str, map_index: str) -> TaskInstanceData:
    """Return the stored data of the task instance in the path."""
    ti_data = await run_in_threadpool(load_task_instance, *TaskKey.parse(dag_id, run_id, task_id, map_index))
    if ti_data is None:
        raise HTTPException(404, "Task instance not found.")
    return ti_data


def get_batch_query(
    state: Annotated[str, Query(max_length=MAX_STATE_LENGTH)] = "",
    key: Annotated[str, Query(max_length=MAX_KEY_LENGTH)] = "",
    page: Annotated[int, Query(ge=1, le=100_000)] = 1,
) -> BatchQuery:
    """Return the filters and the page number in the URL."""
    return BatchQuery(state, key, page)


BatchQueryDependency = Annotated[BatchQuery, Depends(get_batch_query)]
TaskInstanceDependency = Annotated[TaskInstanceData, Depends(get_task_instance)]


async def get_task_view(ti_data: TaskInstanceDependency) -> RunView:
    """Return the run of a task instance's latest try."""
    return await get_task_run_view(ti_data)


async def get_previous_view(ti_data: TaskInstanceDependency, flow_run_id: str) -> RunView:
    """Return the run of an earlier try."""
    view = await get_previous_run_view(ti_data, flow_run_id)
    if view is None:
        raise HTTPException(
            404, "No earlier try of this task instance has this flow run, or it is no longer recorded."
        )
    return view


add_run_routes(
    task_router,
    PREVIOUS_RUN_PATH,
    get_previous_view,
    back=TASK_PATH,
    back_label="Flow run of the latest try",
)
add_output_routes(task_router, f"{TASK_PATH}/output/{{number}}", get_task_view)


@task_router.get(TASK_PATH, response_class=HTMLResponse)
async def show_task(
    request: Request, ti_data: TaskInstanceDependency, query: BatchQueryDependency
) -> HTMLResponse:
    """Return the run of a task instance's latest try as a page, or its batch."""
    batch = find_batch(ti_data)
    if batch is None:
        return await render_run(request, await get_task_view(ti_data), TASK_PATH)
    return await render_page(
        request,
        "batch.html",
        batch=await get_batch_page(batch, query),
        batch_path=fill_path(TASK_PATH, request),
        selection={"state": query.state, "key": query.key},
    )


@task_router.get(f"/json{TASK_PATH}")
async def get_task(ti_data: TaskInstanceDependency, query: BatchQueryDependency) -> RunPage | BatchPage:
    """Return the same as JSON."""
    batch = find_batch(ti_data)
    if batch is not None:
        return await get_batch_page(batch, query)
    view = await get_task_view(ti_data)
    return await run_in_threadpool(view.to_page)


async def get_batch_item_view(ti_data: TaskInstanceDependency, key: str) -> RunView:
    """Return the run of an item of a task instance's batch."""
    batch = find_batch(ti_data)
    view = None if batch is None else await get_item_view(batch, key)
    if view is None:
        raise HTTPException(404, "No item of this task's batch has this key and a flow run.")
    return view


add_run_routes(task_router, ITEM_PATH, get_batch_item_view, back=TASK_PATH, back_label="Batch")


static_router = APIRouter(dependencies=REQUIRES_LOGIN)


@static_router.get("/static/{name}", response_class=Response)
async def get_static(name: str) -> Response:
    """Return a static file."""
    content = load_static(name)
    if content is None:
        raise HTTPException(404, "File not found.")
    return Response(content, media_type=STATIC_MEDIA_TYPES[name])


@static_router.get(f"/viewer/{{version}}/{FILE_NAME}", response_class=Response)
async def get_viewer(request: Request, version: str) -> Response:
    """Return the viewer of 3D models. Its URL has its version, so a browser requests it once."""
    viewer = await run_in_threadpool(load_viewer)
    if viewer is None or version != viewer.version:
        raise HTTPException(404, "File not found.")
    is_compressed = "gzip" in request.headers.get("accept-encoding", "")
    return Response(
        viewer.compressed if is_compressed else viewer.script,
        media_type="text/javascript",
        headers={
            "cache-control": "private, max-age=31536000, immutable",
            "content-encoding": "gzip" if is_compressed else "identity",
            "vary": "accept-encoding",
        },
    )


def create_app() -> FastAPI:
    """Create the app."""
    # no API documentation: FastAPI would serve it without a login, with scripts from another host
    app = FastAPI(title="Flow runs", docs_url=None, redoc_url=None, openapi_url=None)
    for router in (static_router, index_router, connection_router, task_router):
        app.include_router(router)
    app.add_exception_handler(StarletteHTTPException, respond_to_http_error)
    app.add_exception_handler(RequestValidationError, respond_to_invalid_request)
    app.add_exception_handler(FlowError, respond_to_flow_error)
    app.add_exception_handler(NoFileError, respond_to_flow_error)
    return app
