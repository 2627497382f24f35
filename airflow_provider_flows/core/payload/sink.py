"""Protocols for receivers of streamed bytes, a response's body or a file's content, and a memory buffer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from airflow_provider_flows.core.limits import MAX_IN_MEMORY_BYTES, MIB


class Sink(Protocol):
    """A receiver of the body of a successful response, which the transport calls while the body arrives.

    Its methods raise ValueError if the body is invalid, and WriteFailedError if the sink's target has failed.
    The transport then closes the response, and raises `FlowMalformed` or the cause.
    """

    def on_response_start(self, status: int, headers: Mapping[str, str]) -> None:
        """Discard everything received before, because a request may be sent again."""

    def feed(self, chunk: bytes) -> None:
        """Accept the next chunk."""

    def finish(self) -> None:
        """Accept the end of the response."""


@runtime_checkable
class SizedSink(Sink, Protocol):
    """A sink that counts the bytes of the file in the body."""

    @property
    def size(self) -> int:
        """The size of the file so far, in bytes."""


class TooLargeError(ValueError):
    """A file exceeds a bound, so that a second download makes no sense."""


class WriteFailedError(Exception):
    """An error of a sink's target, so that the transport does not mistake it for a network error.

    :param cause: the error.
    """

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Target(Protocol):
    """A receiver of a file's bytes. It may raise any exception of the store that it writes to."""

    def restart(self) -> None:
        """Start the file, or start it again without the bytes written before."""

    def write(self, data: bytes) -> object:
        """Write the next bytes."""


@runtime_checkable
class DigestTarget(Target, Protocol):
    """A target that computes the digest of what is written to it."""

    @property
    def sha256(self) -> str:
        """The hexadecimal SHA-256 of the bytes written since the last restart."""


class MemoryBuffer:
    """A sink and a target in memory, which raises TooLargeError beyond `MAX_IN_MEMORY_BYTES`."""

    def __init__(self) -> None:
        self.data = bytearray()

    @property
    def size(self) -> int:
        """The number of bytes in the buffer."""
        return len(self.data)

    def restart(self) -> None:
        """Clear the buffer."""
        self.data = bytearray()

    def write(self, data: bytes) -> None:
        """Append the bytes.

        :raises TooLargeError: they are too many.
        """
        if len(self.data) + len(data) > MAX_IN_MEMORY_BYTES:
            raise TooLargeError(
                f"it is larger than {MAX_IN_MEMORY_BYTES // MIB} MiB, the bound for a download into memory; "
                "download it to a file instead (output_path, save_output)"
            )
        self.data += data

    def on_response_start(self, status: int, headers: Mapping[str, str]) -> None:
        """Clear the buffer."""
        self.restart()

    def feed(self, chunk: bytes) -> None:
        """Append the chunk."""
        self.write(chunk)

    def finish(self) -> None:
        """Do nothing."""
