"""The routes of a run's outputs: downloads, images, models, and the facts in a file's first bytes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from typing import TYPE_CHECKING

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response, StreamingResponse

from airflow_provider_flows.plugin import output_files
from airflow_provider_flows.plugin.cache import (
    DOWNLOAD_SLOTS,
    FINAL_TTL_SECONDS,
    RESPONSE_CACHE,
    PageWaitError,
    get_download_pool,
    get_storage_pool,
)
from airflow_provider_flows.plugin.output_files import OpenFile
from airflow_provider_flows.plugin.present import OutputInfoSchema, get_output_version
from airflow_provider_flows.plugin.run_view import RunView
from airflow_provider_flows.plugin.texts import to_safe_line
from airflow_provider_flows.storage.parallel import BrokenFileError

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

log = logging.getLogger(__name__)

OCTET_STREAM = "application/octet-stream"
DISCONNECT_SECONDS = 5.0
MODEL_CACHE_SECONDS = 3600
GetView = Callable[..., Awaitable[RunView]]


class BrokenDownloadError(Exception):
    """Ends the connection of a download, which its reader must not take for complete."""


class DownloadResponse(StreamingResponse):
    """The response with an output's file. It closes the file however it ends.

    It ends the connection if the file breaks, or if the reader takes no chunk for too long.

    :param stall_seconds: how long the reader may take no chunk.
    """

    def __init__(self, file: OpenFile, media_type: str, stall_seconds: float) -> None:
        # else Airflow's middleware compresses the file, and removes its length
        headers = {"content-encoding": "identity"}
        if media_type == OCTET_STREAM:
            headers["content-disposition"] = f'attachment; filename="{file.name}"'
        if file.size is not None:
            headers["content-length"] = str(file.size)
        super().__init__(file.aiter_chunks(), media_type=media_type, headers=headers)
        self._file = file
        self._stall_seconds = stall_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file."""
        # the version of ASGI in which a disconnected reader is noticed while there is nothing to send, too
        scope = {**scope, "asgi": {**scope.get("asgi", {}), "spec_version": "2.3"}}
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._file.close()

    async def stream_response(self, send: Send) -> None:
        """Send the file to a reader who is connected.

        :raises BrokenDownloadError: the file broke, or the reader takes nothing.
        """

        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(self._stall_seconds):
                await send(message)

        try:
            await super().stream_response(send_in_time)
        except (BrokenFileError, TimeoutError) as error:
            reason = "its reader took nothing for too long" if isinstance(error, TimeoutError) else error
            log.warning("The download of %s was broken off: %s", to_safe_line(self._file.name), reason)
            self._file.close()
            await _disconnect(send)
            raise BrokenDownloadError from None


async def _disconnect(send: Send) -> None:
    """Let the server close the connection of a response in progress.

    Any exception would do, but for Airflow's middleware, which completes the response before it raises one.
    Therefore the server gets a body that it cannot send, once the reader has taken what is in front of it. A
    reader who stays and takes nothing costs a connection and one chunk.

    :raises Exception: the server's error. With such middleware, this is cancelled by then.
    """
    await send({"type": "http.response.body", "body": object(), "more_body": True})
    await asyncio.sleep(DISCONNECT_SECONDS)


def add_output_routes(router: APIRouter, path: str, get_view: GetView) -> None:
    """Add the routes of one flow run's outputs.

    :param path: path of an output, with placeholders, `{number}` among them.
    :param get_view: as for `add_run_routes`.
    """

    @router.get(path, response_class=StreamingResponse)
    async def download_output(number: int, view: RunView = Depends(get_view)) -> StreamingResponse:  # noqa: B008, FAST002  # as above
        """Return an output as an attachment, which the browser saves and does not open."""
        return await _send_file(view, number, lambda: (output_files.open_output(view, number), OCTET_STREAM))

    @router.get(f"{path}/image", response_class=StreamingResponse)
    async def get_image(number: int, view: RunView = Depends(get_view)) -> StreamingResponse:  # noqa: B008, FAST002  # as above
        """Return an image of a type in which a browser executes nothing."""
        return await _send_file(view, number, lambda: output_files.open_image(view, number))

    @router.get(f"{path}/model", response_class=StreamingResponse)
    async def get_model(
        request: Request,
        number: int,
        v: str = "",
        view: RunView = Depends(get_view),  # noqa: B008, FAST002  # as above
    ) -> Response:
        """Return a 3D model for the viewer. The browser caches it under a URL with the output's version."""
        version = get_output_version(view.outputs[number]) if 0 <= number < len(view.outputs) else ""
        headers = {}
        if version and v == version:
            headers = {"cache-control": f"private, max-age={MODEL_CACHE_SECONDS}", "etag": f'"{version}"'}
            if request.headers.get("if-none-match") == headers["etag"]:
                return Response(status_code=304, headers=headers)
        response = await _send_file(view, number, lambda: output_files.open_model(view, number))
        response.headers.update(headers)
        return response

    @router.get(f"/json{path}/info")
    async def get_output_info(number: int, view: RunView = Depends(get_view)) -> OutputInfoSchema:  # noqa: B008, FAST002  # as above
        """Return the facts in the first bytes of an output's file, which does not change and is read once."""
        selected_output = view.outputs[number : number + 1]
        key = (
            "output_info",
            view.task_key,
            view.ownership,
            view.flows_conn_id,
            view.team_name,
            view.flow_run_id,
            number,
            selected_output,
            view.output_options,
        )
        response = await RESPONSE_CACHE.get(
            key,
            lambda: output_files.load_output_info(view, number),
            lambda _: FINAL_TTL_SECONDS,
            get_output_pool(view, number),
        )
        if response.value is None and isinstance(response.error, PageWaitError):
            raise PageWaitError(str(response.error))
        if response.value is None:
            raise output_files.NoFileError("This output cannot be read.")
        return response.value


async def _send_file(
    view: RunView, number: int, open_file: Callable[[], tuple[OpenFile, str]]
) -> StreamingResponse:
    """Return the response with an output's file, once no other request downloads the output.

    :param open_file: returns the file and its media type.
    """
    output = view.outputs[number] if 0 <= number < len(view.outputs) else None
    key = (view.flows_conn_id, (view.flow_run_id, output and (output.asset_id or output.uri), number))
    await DOWNLOAD_SLOTS.acquire(key)
    try:
        file, media_type = await RESPONSE_CACHE.run_in_file_pool(
            open_file, get_output_pool(view, number), discard=lambda opened: opened[0].close()
        )
    except BaseException:
        DOWNLOAD_SLOTS.release(key)
        raise
    file.when_done(lambda: DOWNLOAD_SLOTS.release(key))
    return DownloadResponse(file, media_type, DOWNLOAD_SLOTS.stall_seconds)


def get_output_pool(view: RunView, number: int) -> Hashable:
    """Return the pool of threads in which an output is read: that of stored files, or that of downloads."""
    options = view.output_options
    has_storage = options is not None and options.output_path is not None
    is_stored = has_storage and any(output.uri is not None for output in view.outputs[number : number + 1])
    return get_storage_pool(view.flows_conn_id) if is_stored else get_download_pool(view.flows_conn_id)
