"""Bodies with files in them, in the form that aiohttp takes: each chunk is read in a thread, not on the event loop.

How such a body is made up is flow/body.py's; `requests` takes it as it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.request_body import Body


def to_stream(body: bytes | Body | None) -> bytes | AsyncIterator[bytes] | None:
    """Give a body as it is if it lies in memory, else its chunks one by one."""
    return _read_chunks(body) if isinstance(body, Body) else body


def length_header(body: bytes | Body | None) -> dict[str, str]:
    """Give the header without which aiohttp would send chunks of no known number."""
    return {"Content-Length": str(len(body))} if isinstance(body, Body) else {}


def raise_input_error(error: BaseException) -> None:
    """Raise what ended a body, out of the error that aiohttp has made of it.

    :raises FlowInputError: a file has changed, or cannot be read any more.
    """
    if isinstance(error.__cause__, FlowInputError):
        raise error.__cause__ from None


async def _read_chunks(body: Body) -> AsyncIterator[bytes]:
    chunks = iter(body)
    while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
        yield chunk
