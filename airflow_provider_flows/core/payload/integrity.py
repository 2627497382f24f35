"""A file that goes by on its way to a target, and whether it is whole, by what its own format says of its length or its end.

It does not know in what the file was wrapped (incoming.py does), nor where it is written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.core.payload.data_uri import GLB, sniff

if TYPE_CHECKING:
    from airflow_provider_flows.core.payload.sink import Target

MIN_SNIFF_BYTES = 12  # so many of a file's first bytes tell what it is, and how long a GLB or a WebP is
WEBP = "image/webp"
GLB_SIZE_MISMATCH = f"{GLB} that is cut short, or longer than its header says"
END_MARKERS = {
    "image/png": b"IEND\xaeB`\x82",
    "image/jpeg": b"\xff\xd9",
}  # zeros may follow: some writers fill a block


class WriteFailedError(Exception):
    """What a target raised, on its way past those who judge the answer."""


class IntegrityChecker:
    """The file that is written to a target; it raises ValueError as soon as it cannot be whole any more."""

    def __init__(self, target: Target, max_bytes: int | None = None) -> None:
        """Take what it is written to, and how many bytes it may have."""
        self._target = target
        self._max_bytes = max_bytes
        self._reset()

    def _reset(self) -> None:
        self.is_text = False
        self.size = 0
        self._first = b""
        self._length_range: tuple[int, int] | None = None  # the least and the most that its header allows
        self._end = b""
        self._zeros = False

    @property
    def sniffed_media_type(self) -> str | None:
        """What its first bytes say that it is; nothing can be told of a text by them."""
        return None if self.is_text else sniff(self._first)

    @property
    def has_complete_end(self) -> bool:
        """Whether its own format shows that nothing is missing; a picture may go on after its end, and be whole all the same."""
        if self._length_range is not None:
            return self._length_range[0] <= self.size <= self._length_range[1]
        return self.sniffed_media_type in END_MARKERS and self._end.endswith(
            END_MARKERS[self.sniffed_media_type]
        )

    def restart(self) -> None:
        """Begin, for the first time or once more."""
        self._reset()
        call_target(self._target.restart)

    def write(self, data: bytes) -> None:
        """Take the next bytes."""
        if len(self._first) < MIN_SNIFF_BYTES:
            self._first += data[: MIN_SNIFF_BYTES - len(self._first)]
            self._length_range = (
                _parse_length_range(self._first) if len(self._first) == MIN_SNIFF_BYTES else None
            )
        if self._length_range is None:
            self._record_end(data)
        self._write_to_target(data)

    def write_text(self, data: bytes) -> None:
        """Take the next bytes of what is known to be a text."""
        self.is_text = True
        self._write_to_target(data)

    def _write_to_target(self, data: bytes) -> None:
        self.size += len(data)
        if self._max_bytes is not None and self.size > self._max_bytes:
            message = f"it is larger than {self._max_bytes} bytes; if that is right, raise max_response_mib in the connection's extra"
            raise ValueError(message)
        if (
            self._length_range is not None
            and self.sniffed_media_type == GLB
            and self.size > self._length_range[1]
        ):
            raise ValueError(GLB_SIZE_MISMATCH)
        call_target(self._target.write, data)

    def _record_end(self, data: bytes) -> None:
        """Keep the last bytes that are not followed by zeros only."""
        content = data.rstrip(b"\0")
        if content:
            between = b"\0" if self._zeros else b""
            self._end = (
                content[-MIN_SNIFF_BYTES:]
                if len(content) >= MIN_SNIFF_BYTES
                else (self._end + between + content)[-MIN_SNIFF_BYTES:]
            )
        self._zeros = len(content) < len(data) or (self._zeros and not data)

    def finish(self) -> None:
        """Say whether that was the whole of it, as far as can be told."""
        if not self.size:
            message = "it is empty"
            raise ValueError(message)
        if self.sniffed_media_type == GLB and not self.has_complete_end:
            raise ValueError(GLB_SIZE_MISMATCH)


def _parse_length_range(first: bytes) -> tuple[int, int] | None:
    """Read how long a file must be (glTF 2.0: magic, version, length of all; RIFF: magic, length of the rest, perhaps filled)."""
    media_type = sniff(first)
    if media_type == GLB:
        return (length := int.from_bytes(first[8:12], "little")), length
    if media_type != WEBP:
        return None
    riff = 8 + int.from_bytes(first[4:8], "little")
    return riff, riff + riff % 2


def call_target(method: Callable[..., object], *args: Any) -> None:
    """Have a target do something.

    :raises TargetFailed: whatever it raised.
    """
    try:
        method(*args)
    except Exception as error:
        raise WriteFailedError from error
