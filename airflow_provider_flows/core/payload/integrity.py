"""A check of a file while it is written: its type, and its length or end marker by its format."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.core.payload.data_uri import GLB, sniff
from airflow_provider_flows.core.payload.sink import DigestTarget, WriteFailedError

if TYPE_CHECKING:
    from airflow_provider_flows.core.payload.sink import Target

MIN_SNIFF_BYTES = (
    12  # enough to detect a media type, and to read the length in the header of a GLB or WebP file
)
WEBP = "image/webp"
# the end may be followed by zeros, because some writers fill a block
END_MARKERS = {"image/png": b"IEND\xaeB`\x82", "image/jpeg": b"\xff\xd9"}


class UnconfirmedFileError(ValueError):
    """A file was received to its end, but its content or the response does not confirm it.

    If the same file arrives a second time, it is what the service has.

    :param problem: what is wrong with the file.
    :param media_type: the media type under which it can be stored.
    :param size: the size in bytes.
    :param sha256: the hexadecimal digest of the content.
    """

    def __init__(self, problem: str, media_type: str, size: int, sha256: str) -> None:
        super().__init__(problem)
        self.media_type = media_type
        self.size = size
        self.sha256 = sha256


class IntegrityChecker:
    """A file on its way to a target.

    Its methods raise ValueError if there is no file, WriteFailedError if the target fails.
    """

    def __init__(self, target: Target, max_bytes: int | None = None) -> None:
        """Create a checker.

        :param target: receives the file's bytes.
        :param max_bytes: the maximum size of the file, None for any.
        """
        self._target = target
        self._max_bytes = max_bytes
        self._reset()

    def _reset(self) -> None:
        self.is_text = False
        self.size = 0
        self._start = b""
        self._length_range: tuple[int, int] | None = None  # minimum and maximum by the file's header
        self._end = b""
        self._has_trailing_zeros = False
        self._problems: list[str] = []
        # computed only if the target does not do that
        self._digest = None if isinstance(self._target, DigestTarget) else hashlib.sha256()

    @property
    def sha256(self) -> str:
        """The hexadecimal digest of the bytes written since the last restart."""
        if self._digest is not None:
            return self._digest.hexdigest()
        return self._target.sha256 if isinstance(self._target, DigestTarget) else ""

    @property
    def problems(self) -> list[str]:
        """What contradicts that the file is complete and of its type; empty if nothing does."""
        return [*self._problems, *self._find_length_problem()]

    @property
    def sniffed_media_type(self) -> str | None:
        """The media type that the first bytes indicate, always None for a text."""
        return None if self.is_text else sniff(self._start)

    @property
    def has_complete_end(self) -> bool:
        """Whether the format proves that nothing is missing. Data may follow the end of a picture."""
        if self._length_range is not None:
            return self._length_range[0] <= self.size <= self._length_range[1]
        marker = END_MARKERS.get(self.sniffed_media_type or "")
        return marker is not None and self._end.endswith(marker)

    def add_problem(self, problem: str) -> None:
        """Record what is wrong with the file until it is restarted."""
        self._problems.append(problem)

    def restart(self) -> None:
        """Start the file, or start it again."""
        self._reset()
        _call_target(self._target.restart)

    def write(self, data: bytes) -> None:
        """Write the next bytes of a file of any type."""
        if len(self._start) < MIN_SNIFF_BYTES:
            self._start += data[: MIN_SNIFF_BYTES - len(self._start)]
            self._length_range = (
                _parse_length_range(self._start) if len(self._start) == MIN_SNIFF_BYTES else None
            )
        if self._length_range is None:
            self._record_end(data)
        self._write_to_target(data)

    def write_text(self, data: bytes) -> None:
        """Write the next bytes of a text, whose content does not indicate its type or its length."""
        self.is_text = True
        self._write_to_target(data)

    def _write_to_target(self, data: bytes) -> None:
        self.size += len(data)
        if self._max_bytes is not None and self.size > self._max_bytes:
            hint = "to allow that, raise max_response_mib in the connection's extra"
            raise ValueError(f"it is larger than {self._max_bytes} bytes; {hint}")
        if self._digest is not None:
            self._digest.update(data)
        _call_target(self._target.write, data)

    def _record_end(self, data: bytes) -> None:
        """Store the last bytes, without trailing zeros."""
        content = data.rstrip(b"\0")
        if len(content) >= MIN_SNIFF_BYTES:
            self._end = content[-MIN_SNIFF_BYTES:]
        elif content:
            between = b"\0" if self._has_trailing_zeros else b""
            self._end = (self._end + between + content)[-MIN_SNIFF_BYTES:]
        self._has_trailing_zeros = len(content) < len(data) or (self._has_trailing_zeros and not data)

    def finish(self) -> None:
        """Raise ValueError if the file is empty."""
        if not self.size:
            raise ValueError("it is empty")

    def _find_length_problem(self) -> list[str]:
        media_type = self.sniffed_media_type
        if media_type == GLB and self._length_range is None:
            return [f"it is a {GLB} that is cut short: {self.size} bytes are less than its header has"]
        if self._length_range is None or self.has_complete_end:
            return []
        minimum, maximum = self._length_range
        problem = "cut short" if self.size < minimum else "longer than its header says"
        expected = minimum if self.size < minimum else maximum
        return [f"it is a {media_type} that is {problem}: {self.size} bytes, {expected} by its header"]


def _parse_length_range(start: bytes) -> tuple[int, int] | None:
    """Return the minimum and maximum length of a file in bytes, None if its header does not say.

    The header of glTF 2.0 is magic, version and total length.
    The header of RIFF is magic and the length of the rest, which may be padded to an even number.
    """
    media_type = sniff(start)
    if media_type == GLB:
        length = int.from_bytes(start[8:12], "little")
        return length, length
    if media_type != WEBP:
        return None
    length = 8 + int.from_bytes(start[4:8], "little")
    return length, length + length % 2


def _call_target(method: Callable[..., object], *args: Any) -> None:
    try:
        method(*args)
    except Exception as error:
        raise WriteFailedError(error) from error
