"""The pages put together: their routes, our own files, and what is answered when something cannot be shown.

It is built when the first request comes (door.py); every route asks Airflow who may see what it shows (inside.py).
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException as Refused

from airflow_provider_flows.core.exceptions import FlowError
from airflow_provider_flows.plugin import connection_routes, task_routes
from airflow_provider_flows.plugin.airflow_internals import LOGGED_IN
from airflow_provider_flows.plugin.html import STATIC, page, static
from airflow_provider_flows.plugin.output_files import NoFileError
from airflow_provider_flows.plugin.schemas import line

CANNOT = "This cannot be shown"
TITLES = {401: "Please log in", 403: "You may not see this", 404: "Nothing here"}
TEXTS = {
    401: "You are not logged in to Airflow, or not any more. Reload the page.",
    403: "Your user may not see this connection, or this DAG's task instances and XComs. An administrator of this Airflow can "
    "give you the right to.",
}
own = APIRouter(dependencies=LOGGED_IN)


@own.get("/static/{name}", response_class=Response)
async def give_static(name: str) -> Response:
    """Give one of our own files."""
    content = static(name)
    if content is None:
        raise HTTPException(404, "There is no such file")
    return Response(content, media_type=STATIC[name])


def site() -> FastAPI:
    """Build the pages."""
    # no documentation of our own: FastAPI's would be there for everybody, and loads its scripts from elsewhere
    app = FastAPI(title="Flow runs", docs_url=None, redoc_url=None, openapi_url=None)
    for router in (own, connection_routes.welcome, connection_routes.router, task_routes.router):
        app.include_router(router)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(RequestValidationError, _not_understood)
    app.add_exception_handler(FlowError, _not_shown)
    app.add_exception_handler(NoFileError, _not_shown)
    return app


async def _refused(request: Request, error: Any) -> Response:
    return await _said(request, error.status_code, TEXTS.get(error.status_code, str(error.detail)))


async def _not_understood(request: Request, error: Any) -> Response:
    where = ", ".join(sorted({str(one["loc"][-1]) for one in error.errors()}))
    return await _said(request, 422, f"This address cannot be read: {line(where)} is wrong in it.")


async def _not_shown(request: Request, error: Exception) -> Response:
    return await _said(request, 404, line(str(error)), CANNOT)


async def _said(request: Request, status: int, text: str, title: str = "") -> Response:
    if request.url.path.removeprefix(request.scope.get("root_path", "")).startswith("/json/"):
        return JSONResponse({"detail": text}, status)
    return await page(
        request, "message.html", status, title=title or TITLES.get(status, CANNOT), text=text, back=None
    )
