"""The FastAPI app of the plugin's pages: all routers, the static files and the error responses."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException as StarletteHTTPException

from airflow_provider_flows.core.exceptions import FlowError
from airflow_provider_flows.plugin import routes
from airflow_provider_flows.plugin.airflow_internals import REQUIRES_LOGIN
from airflow_provider_flows.plugin.html import STATIC_MEDIA_TYPES, load_static, render_page
from airflow_provider_flows.plugin.output_files import NoFileError
from airflow_provider_flows.plugin.present import to_safe_line

DEFAULT_TITLE = "Not available"
TITLES = {401: "Not logged in", 403: "Access denied", 404: "Not found"}
TEXTS = {
    401: "You are not logged in to Airflow, or your session has expired. Reload the page.",
    403: "You do not have permission to view this connection, or the task instances and XComs of this DAG. "
    "Ask an administrator of this Airflow deployment for access.",
}
static_router = APIRouter(dependencies=REQUIRES_LOGIN)


@static_router.get("/static/{name}", response_class=Response)
async def get_static(name: str) -> Response:
    """Return a static file."""
    content = load_static(name)
    if content is None:
        raise HTTPException(404, "File not found.")
    return Response(content, media_type=STATIC_MEDIA_TYPES[name])


def create_app() -> FastAPI:
    """Create the app."""
    # no API documentation: FastAPI would serve it without a login, with scripts from another host
    app = FastAPI(title="Flow runs", docs_url=None, redoc_url=None, openapi_url=None)
    for router in (static_router, routes.index_router, routes.connection_router, routes.task_router):
        app.include_router(router)
    app.add_exception_handler(StarletteHTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(FlowError, _on_flow_error)
    app.add_exception_handler(NoFileError, _on_flow_error)
    return app


async def _on_http_error(request: Request, error: Any) -> Response:
    text = TEXTS.get(error.status_code, str(error.detail))
    return await _to_error_response(request, error.status_code, text)


async def _on_validation_error(request: Request, error: Any) -> Response:
    names = ", ".join(sorted({str(one["loc"][-1]) for one in error.errors()}))
    return await _to_error_response(request, 422, f"Invalid URL parameter: {to_safe_line(names)}.")


async def _on_flow_error(request: Request, error: Exception) -> Response:
    return await _to_error_response(request, 404, to_safe_line(str(error)), DEFAULT_TITLE)


async def _to_error_response(request: Request, status: int, text: str, title: str = "") -> Response:
    path = request.url.path.removeprefix(request.scope.get("root_path", ""))
    if path.startswith("/json/"):
        return JSONResponse({"detail": text}, status)
    title = title or TITLES.get(status, DEFAULT_TITLE)
    return await render_page(request, "message.html", status, title=title, text=text)
