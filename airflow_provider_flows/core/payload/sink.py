"""What takes an answer's body, or a file's bytes, while they come in, and the simplest of them: one in memory.

What is to be found in a body it does not know (incoming.py does).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Sink(Protocol):
    """What takes the body of an answer that is a success, a piece at a time; it raises nothing, whoever made it asks it later."""

    def on_response_start(self, status: int, headers: Mapping[str, str]) -> None:
        """Forget what came before: here is a new answer, the first one or the same one asked for again."""

    def feed(self, chunk: bytes) -> bool:
        """Take the next piece; gives whether more is wanted."""


class Target(Protocol):
    """What takes the bytes of a file; it may raise whatever the store raises."""

    def restart(self) -> None:
        """Forget what was written: the file begins, for the first time or once more."""

    def write(self, data: bytes) -> object:
        """Take the next bytes."""


class MemoryBuffer:
    """A sink and a target in memory."""

    def __init__(self) -> None:
        """Begin empty."""
        self.data = bytearray()

    def restart(self) -> None:
        """Begin again."""
        self.data = bytearray()

    def write(self, data: bytes) -> None:
        """Keep it."""
        self.data += data

    def on_response_start(self, status: int, headers: Mapping[str, str]) -> None:  # noqa: ARG002  # the signature of a sink
        """Begin again."""
        self.restart()

    def feed(self, chunk: bytes) -> bool:
        """Keep it."""
        self.write(chunk)
        return True
