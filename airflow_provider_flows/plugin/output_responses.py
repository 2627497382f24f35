"""Outputs on their way to the browser: as a file to keep, as a picture to show, as what its beginning tells.

Where the bytes come from is for files.py to say.
"""

from __future__ import annotations

from fastapi.responses import Response, StreamingResponse

from airflow_provider_flows.plugin import output_files
from airflow_provider_flows.plugin.run_view import ANSWERS, FINAL_SECONDS, Sight
from airflow_provider_flows.plugin.schemas import AboutShown


async def sent(sight: Sight, number: int) -> StreamingResponse:
    """Send an output as a file, which no browser opens by itself."""
    opened = await ANSWERS.aside(lambda: output_files.opened(sight, number))
    headers = {
        "content-length": str(opened.size),
        "content-disposition": f'attachment; filename="{opened.name}"',
    }
    return StreamingResponse(opened.pieces(), media_type="application/octet-stream", headers=headers)


async def sent_image(sight: Sight, number: int) -> Response:
    """Send a picture of a kind in which a browser runs nothing."""
    image = await ANSWERS.aside(lambda: output_files.image(sight, number))
    return Response(image.data, media_type=image.media_type)


async def told_about(sight: Sight, number: int) -> AboutShown:
    """Tell of a file; it does not change any more, so it is looked at once."""
    of = (
        "about",
        sight.flows_conn_id,
        sight.flow_run_id,
        number,
        sight.outputs[number : number + 1],
        sight.delivery,
    )
    told = await ANSWERS.get(of, lambda: output_files.about(sight, number), lambda _: FINAL_SECONDS)
    if told.value is None:
        message = "This output cannot be read"
        raise output_files.NoFileError(message)
    return told.value
