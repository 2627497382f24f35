"""The routes of one flow run, however it was found: its page, the same as JSON, and its outputs.

Who may see it is for the router to say, how it is found for `seen`; which bytes may be had stands in files.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, Response, StreamingResponse

from airflow_provider_flows.plugin.html import page, segment
from airflow_provider_flows.plugin.output_responses import sent, sent_image, told_about
from airflow_provider_flows.plugin.run_list import graph_at
from airflow_provider_flows.plugin.run_view import Sight
from airflow_provider_flows.plugin.schemas import AboutShown, Look


def add_run(
    router: APIRouter,
    path: str,
    seen: Callable[..., Awaitable[Sight]],
    *,
    back: str | None = None,
    word: str = "",
) -> None:
    """Add the routes of a run to a router.

    :param path: the address of its page, with names in the place of what is variable; the other addresses are made of it.
    :param seen: the dependency that finds the run.
    :param back: the address of the page before it, in the same form, and `word` what it is called.
    """

    @router.get(path, response_class=HTMLResponse)
    async def show(request: Request, sight: Sight = Depends(seen)) -> HTMLResponse:  # noqa: B008, FAST002  # `seen` is known here only
        """Show the run."""
        look = await run_in_threadpool(sight.look)
        graph = await graph_at(sight.flows_conn_id, sight.run.flow if sight.run else None)
        there = back and address(back, request)
        return await page(
            request, "run.html", look=look, here=address(path, request), graph=graph, back=there, word=word
        )

    @router.get(f"/json{path}")
    async def tell(sight: Sight = Depends(seen)) -> Look:  # noqa: B008, FAST002  # `seen` is known here only
        """Tell the same as JSON."""
        return await run_in_threadpool(sight.look)

    add_outputs(router, f"{path}/output/{{number}}", seen)


def add_outputs(router: APIRouter, path: str, seen: Callable[..., Awaitable[Sight]]) -> None:
    """Add the routes of a run's outputs to a router."""

    @router.get(path, response_class=StreamingResponse)
    async def download(number: int, sight: Sight = Depends(seen)) -> StreamingResponse:  # noqa: B008, FAST002  # as above
        """Send an output as a file."""
        return await sent(sight, number)

    @router.get(f"{path}/image", response_class=Response)
    async def image(number: int, sight: Sight = Depends(seen)) -> Response:  # noqa: B008, FAST002  # as above
        """Send a picture that may be shown."""
        return await sent_image(sight, number)

    @router.get(f"/json{path}/about")
    async def about(number: int, sight: Sight = Depends(seen)) -> AboutShown:  # noqa: B008, FAST002  # as above
        """Tell what the beginning of an output's file tells."""
        return await told_about(sight, number)


def address(path: str, request: Request) -> str:
    """Give an address below the pages' beginning, with what the request has in the place of the names."""
    return path.format_map({name: segment(str(given)) for name, given in request.path_params.items()}).lstrip(
        "/"
    )
