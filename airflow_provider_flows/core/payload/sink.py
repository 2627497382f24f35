"""Protocols for receivers of streamed bytes, a response's body or a file's content, and a memory buffer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Sink(Protocol):
    """A receiver of the body of a successful response.

    Its methods raise nothing: a sink stores its error, and raises that after the end of the response.
    """

    def on_response_start(self, status: int, headers: Mapping[str, str]) -> None:
        """Discard everything received before, because a request may be sent again."""

    def feed(self, chunk: bytes) -> bool:
        """Accept the next chunk, and return whether the transport shall continue to read."""


class Target(Protocol):
    """A receiver of a file's bytes. It may raise any exception of the store that it writes to."""

    def restart(self) -> None:
        """Start the file, or start it again without the bytes written before."""

    def write(self, data: bytes) -> object:
        """Write the next bytes."""


class MemoryBuffer:
    """A sink and a target in memory."""

    def __init__(self) -> None:
        self.data = bytearray()

    def restart(self) -> None:
        """Clear the buffer."""
        self.data = bytearray()

    def write(self, data: bytes) -> None:
        """Append the bytes."""
        self.data += data

    def on_response_start(self, status: int, headers: Mapping[str, str]) -> None:
        """Clear the buffer."""
        self.restart()

    def feed(self, chunk: bytes) -> bool:
        """Append the chunk."""
        self.write(chunk)
        return True
