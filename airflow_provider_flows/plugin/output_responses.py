"""Outputs on their way to the browser: as a file to keep, as a picture to show, as what its beginning tells.

Where the bytes come from is for files.py to say.
"""

from __future__ import annotations

from fastapi.responses import Response, StreamingResponse

from airflow_provider_flows.plugin import output_files
from airflow_provider_flows.plugin.run_view import FINAL_TTL_SECONDS, RESPONSE_CACHE, RunView
from airflow_provider_flows.plugin.schemas import OutputInfoSchema


async def to_download_response(view: RunView, number: int) -> StreamingResponse:
    """Send an output as a file, which no browser opens by itself."""
    file = await RESPONSE_CACHE.run_in_file_pool(lambda: output_files.open_output(view, number))
    headers = {
        "content-length": str(file.size),
        "content-disposition": f'attachment; filename="{file.name}"',
    }
    return StreamingResponse(file.iter_chunks(), media_type="application/octet-stream", headers=headers)


async def to_image_response(view: RunView, number: int) -> Response:
    """Send a picture of a kind in which a browser runs nothing."""
    image = await RESPONSE_CACHE.run_in_file_pool(lambda: output_files.load_image(view, number))
    return Response(image.data, media_type=image.media_type)


async def get_output_info(view: RunView, number: int) -> OutputInfoSchema:
    """Tell of a file; it does not change any more, so it is looked at once."""
    key = (
        "about",
        view.flows_conn_id,
        view.flow_run_id,
        number,
        view.outputs[number : number + 1],
        view.output_options,
    )
    response = await RESPONSE_CACHE.get(
        key, lambda: output_files.load_output_info(view, number), lambda _: FINAL_TTL_SECONDS
    )
    if response.value is None:
        message = "This output cannot be read"
        raise output_files.NoFileError(message)
    return response.value
