"""JSON bodies that may hold files: how long one is, and its bytes a chunk at a time, the same as often as it is sent.

It opens no file (whatever is a `Source` does) and sends nothing (the transports do).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import uuid4

from airflow_provider_flows.core.payload import data_uri
from airflow_provider_flows.core.run import UploadSource


class Body:
    """A JSON text in which each file stands as a data URI; it has a length, and can be gone through again for a resend."""

    def __init__(self, parts: Sequence[bytes], sources: Sequence[UploadSource]) -> None:
        """Take the text around the files, one piece more than there are files."""
        self._parts = parts
        self._sources = sources
        self.is_exhausted = (
            False  # whether all of it was handed out: until then nobody can have read it as JSON
        )

    def __len__(self) -> int:
        """Give the number of bytes, for Content-Length."""
        return sum(map(len, self._parts)) + sum(
            data_uri.size(source.media_type, source.size) for source in self._sources
        )

    def __iter__(self) -> Iterator[bytes]:
        """Give the bytes, from the beginning.

        :raises FlowInputError: a file cannot be read any more, or is not what it was; the last bytes are not given then.
        """
        self.is_exhausted = False
        *before, last = self._parts
        for part, source in zip(before, self._sources, strict=True):
            yield part + data_uri.head(source.media_type).encode()
            yield from data_uri.iter_base64(source.chunks())
        self.is_exhausted = True
        yield last


def is_fully_sent(body: bytes | Body | None) -> bool:
    """Whether enough of a body was handed out to be read as JSON: a file may break off long before."""
    return not isinstance(body, Body) or body.is_exhausted


def to_body(value: Any) -> bytes | Body:
    """Write a value as JSON (UTF-8), with the content of each `Source` in it, at any depth, as a data URI."""
    sources: list[UploadSource] = []
    placeholder = uuid4().hex  # stands for a file while the JSON is written; no user can have written it

    def replace_source(item: object) -> str:
        if not isinstance(item, UploadSource):
            message = f"{type(item).__name__} cannot be sent as JSON"
            raise TypeError(message)
        sources.append(item)
        return placeholder

    text = json.dumps(value, allow_nan=False, default=replace_source)
    if not sources:
        return text.encode()
    return Body([part.encode() for part in text.split(placeholder)], sources)
