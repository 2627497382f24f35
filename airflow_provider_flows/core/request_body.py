"""JSON request bodies that may contain files, which are read a chunk at a time.

A body states its length in advance, and can be read again from its start when the request is sent again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import uuid4

from airflow_provider_flows.core.payload import data_uri
from airflow_provider_flows.core.run import UploadSource


class Body:
    """A JSON text in which each file is a data URI. Iterate over it to read it from its start.

    :param parts: the JSON text around the files, one part more than there are files.
    :param sources: the files, in their order in the text.
    """

    def __init__(self, parts: Sequence[bytes], sources: Sequence[UploadSource]) -> None:
        self._parts = parts
        self._sources = sources
        # Whether the last chunk was read. Before that, no receiver has complete JSON.
        self.is_exhausted = False

    def __len__(self) -> int:
        """Return the number of bytes, for Content-Length."""
        return sum(map(len, self._parts)) + sum(
            data_uri.size(source.media_type, source.size) for source in self._sources
        )

    def __iter__(self) -> Iterator[bytes]:
        """Yield the bytes, from the start.

        :raises FlowInputError: a file cannot be read, or its content has changed. The last bytes are not
            yielded.
        """
        self.is_exhausted = False
        *leading_parts, last_part = self._parts
        for part, source in zip(leading_parts, self._sources, strict=True):
            yield part + data_uri.head(source.media_type).encode()
            yield from data_uri.iter_base64(source.chunks())
        self.is_exhausted = True
        yield last_part


def is_fully_sent(body: bytes | Body | None) -> bool:
    """Return whether so much of a body was sent that the receiver can parse it."""
    return not isinstance(body, Body) or body.is_exhausted


def to_body(value: Any) -> bytes | Body:
    """Return a value as JSON in UTF-8, with each `UploadSource` in it, at any depth, as a data URI.

    :raises TypeError: the value contains an object that JSON cannot represent.
    :raises ValueError: the value contains NaN or an infinity.
    """
    sources: list[UploadSource] = []
    placeholder = uuid4().hex  # replaces each file while the JSON is written; no caller can know it

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
