"""The routes of one flow run, however it was found: its page, the same as JSON, and its outputs.

Who may see it is for the router to say, how it is found for `get_view`; which bytes may be had stands in files.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, Response, StreamingResponse

from airflow_provider_flows.plugin.html import quote_segment, render_page
from airflow_provider_flows.plugin.output_responses import (
    get_output_info,
    to_download_response,
    to_image_response,
)
from airflow_provider_flows.plugin.run_list import get_graph
from airflow_provider_flows.plugin.run_view import RunView
from airflow_provider_flows.plugin.schemas import OutputInfoSchema, RunPage


def add_run_routes(
    router: APIRouter,
    path: str,
    get_view: Callable[..., Awaitable[RunView]],
    *,
    back: str | None = None,
    back_label: str = "",
) -> None:
    """Add the routes of a run to a router.

    :param path: the address of its page, with names in the place of what is variable; the other addresses are made of it.
    :param get_view: the dependency that finds the run.
    :param back: the address of the page before it, in the same form, and and `back_label` what it is called.
    """

    @router.get(path, response_class=HTMLResponse)
    async def show_run(request: Request, view: RunView = Depends(get_view)) -> HTMLResponse:  # noqa: B008, FAST002  # `get_view` is known here only
        """Show the run."""
        run_page = await run_in_threadpool(view.to_page)
        graph = await get_graph(view.flows_conn_id, view.run.flow if view.run else None)
        back_path = back and fill_path(back, request)
        return await render_page(
            request,
            "run.html",
            run_page=run_page,
            run_path=fill_path(path, request),
            graph=graph,
            back=back_path,
            back_label=back_label,
        )

    @router.get(f"/json{path}")
    async def get_run(view: RunView = Depends(get_view)) -> RunPage:  # noqa: B008, FAST002  # `get_view` is known here only
        """Tell the same as JSON."""
        return await run_in_threadpool(view.to_page)

    add_output_routes(router, f"{path}/output/{{number}}", get_view)


def add_output_routes(router: APIRouter, path: str, get_view: Callable[..., Awaitable[RunView]]) -> None:
    """Add the routes of a run's outputs to a router."""

    @router.get(path, response_class=StreamingResponse)
    async def download_output(number: int, view: RunView = Depends(get_view)) -> StreamingResponse:  # noqa: B008, FAST002  # as above
        """Send an output as a file."""
        return await to_download_response(view, number)

    @router.get(f"{path}/image", response_class=Response)
    async def get_image(number: int, view: RunView = Depends(get_view)) -> Response:  # noqa: B008, FAST002  # as above
        """Send a picture that may be shown."""
        return await to_image_response(view, number)

    @router.get(f"/json{path}/about")
    async def get_info(number: int, view: RunView = Depends(get_view)) -> OutputInfoSchema:  # noqa: B008, FAST002  # as above
        """Tell what the beginning of an output's file tells."""
        return await get_output_info(view, number)


def fill_path(path: str, request: Request) -> str:
    """Give an address below the pages' beginning, with what the request has in the place of the names."""
    return path.format_map(
        {name: quote_segment(str(value)) for name, value in request.path_params.items()}
    ).lstrip("/")
