"""The pages put together: their routes, our own files, and what is answered when something cannot be shown.

It is built when the first request comes (door.py); every route asks Airflow who may see what it shows (inside.py).
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException as StarletteHTTPException

from airflow_provider_flows.core.exceptions import FlowError
from airflow_provider_flows.plugin import connection_routes, task_routes
from airflow_provider_flows.plugin.airflow_internals import REQUIRES_LOGIN
from airflow_provider_flows.plugin.html import STATIC_MEDIA_TYPES, load_static, render_page
from airflow_provider_flows.plugin.output_files import NoFileError
from airflow_provider_flows.plugin.schemas import to_safe_line

DEFAULT_TITLE = "This cannot be shown"
TITLES = {401: "Please log in", 403: "You may not see this", 404: "Nothing here"}
TEXTS = {
    401: "You are not logged in to Airflow, or not any more. Reload the page.",
    403: "Your user may not see this connection, or this DAG's task instances and XComs. An administrator of this Airflow can "
    "give you the right to.",
}
static_router = APIRouter(dependencies=REQUIRES_LOGIN)


@static_router.get("/static/{name}", response_class=Response)
async def get_static(name: str) -> Response:
    """Give one of our own files."""
    content = load_static(name)
    if content is None:
        raise HTTPException(404, "There is no such file")
    return Response(content, media_type=STATIC_MEDIA_TYPES[name])


def create_app() -> FastAPI:
    """Build the pages."""
    # no documentation of our own: FastAPI's would be there for everybody, and loads its scripts from elsewhere
    app = FastAPI(title="Flow runs", docs_url=None, redoc_url=None, openapi_url=None)
    for router in (
        static_router,
        connection_routes.index_router,
        connection_routes.router,
        task_routes.router,
    ):
        app.include_router(router)
    app.add_exception_handler(StarletteHTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(FlowError, _on_flow_error)
    app.add_exception_handler(NoFileError, _on_flow_error)
    return app


async def _on_http_error(request: Request, error: Any) -> Response:
    return await _to_error_response(
        request, error.status_code, TEXTS.get(error.status_code, str(error.detail))
    )


async def _on_validation_error(request: Request, error: Any) -> Response:
    parameters = ", ".join(sorted({str(one["loc"][-1]) for one in error.errors()}))
    return await _to_error_response(
        request, 422, f"This address cannot be read: {to_safe_line(parameters)} is wrong in it."
    )


async def _on_flow_error(request: Request, error: Exception) -> Response:
    return await _to_error_response(request, 404, to_safe_line(str(error)), DEFAULT_TITLE)


async def _to_error_response(request: Request, status: int, text: str, title: str = "") -> Response:
    if request.url.path.removeprefix(request.scope.get("root_path", "")).startswith("/json/"):
        return JSONResponse({"detail": text}, status)
    return await render_page(
        request,
        "message.html",
        status,
        title=title or TITLES.get(status, DEFAULT_TITLE),
        text=text,
        back=None,
    )
