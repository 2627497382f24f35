"""A file that goes by on its way to a target, and whether it is whole, by what its own format says of its length or its end.

It does not know in what the file was wrapped (incoming.py does), nor where it is written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.core.payload.data_uri import GLB, sniff

if TYPE_CHECKING:
    from airflow_provider_flows.core.payload.sink import Target

TELLING = 12  # so many of a file's first bytes tell what it is, and how long a GLB or a WebP is
WEBP = "image/webp"
CUT = f"{GLB} that is cut short, or longer than its header says"
ENDS = {
    "image/png": b"IEND\xaeB`\x82",
    "image/jpeg": b"\xff\xd9",
}  # zeros may follow: some writers fill a block


class TargetFailed(Exception):
    """What a target raised, on its way past those who judge the answer."""


class Passing:
    """The file that is written to a target; it raises ValueError as soon as it cannot be whole any more."""

    def __init__(self, target: Target, most: int | None = None) -> None:
        """Take what it is written to, and how many bytes it may have."""
        self._target = target
        self._most = most
        self._forget()

    def _forget(self) -> None:
        self.text = False
        self.size = 0
        self._first = b""
        self._length: tuple[int, int] | None = None  # the least and the most that its header allows
        self._end = b""
        self._zeros = False

    @property
    def kind(self) -> str | None:
        """What its first bytes say that it is; nothing can be told of a text by them."""
        return None if self.text else sniff(self._first)

    @property
    def shows_its_end(self) -> bool:
        """Whether its own format shows that nothing is missing; a picture may go on after its end, and be whole all the same."""
        if self._length is not None:
            return self._length[0] <= self.size <= self._length[1]
        return self.kind in ENDS and self._end.endswith(ENDS[self.kind])

    def restart(self) -> None:
        """Begin, for the first time or once more."""
        self._forget()
        to_target(self._target.restart)

    def write(self, data: bytes) -> None:
        """Take the next bytes."""
        if len(self._first) < TELLING:
            self._first += data[: TELLING - len(self._first)]
            self._length = _length(self._first) if len(self._first) == TELLING else None
        if self._length is None:
            self._see_end(data)
        self._count(data)

    def write_text(self, data: bytes) -> None:
        """Take the next bytes of what is known to be a text."""
        self.text = True
        self._count(data)

    def _count(self, data: bytes) -> None:
        self.size += len(data)
        if self._most is not None and self.size > self._most:
            message = f"it is larger than {self._most} bytes; if that is right, raise max_answer_mib in the connection's extra"
            raise ValueError(message)
        if self._length is not None and self.kind == GLB and self.size > self._length[1]:
            raise ValueError(CUT)
        to_target(self._target.write, data)

    def _see_end(self, data: bytes) -> None:
        """Keep the last bytes that are not followed by zeros only."""
        bare = data.rstrip(b"\0")
        if bare:
            between = b"\0" if self._zeros else b""
            self._end = bare[-TELLING:] if len(bare) >= TELLING else (self._end + between + bare)[-TELLING:]
        self._zeros = len(bare) < len(data) or (self._zeros and not data)

    def finish(self) -> None:
        """Say whether that was the whole of it, as far as can be told."""
        if not self.size:
            message = "it is empty"
            raise ValueError(message)
        if self.kind == GLB and not self.shows_its_end:
            raise ValueError(CUT)


def _length(first: bytes) -> tuple[int, int] | None:
    """Read how long a file must be (glTF 2.0: magic, version, length of all; RIFF: magic, length of the rest, perhaps filled)."""
    kind = sniff(first)
    if kind == GLB:
        return (told := int.from_bytes(first[8:12], "little")), told
    if kind != WEBP:
        return None
    riff = 8 + int.from_bytes(first[4:8], "little")
    return riff, riff + riff % 2


def to_target(do: Callable[..., object], *what: Any) -> None:
    """Have a target do something.

    :raises TargetFailed: whatever it raised.
    """
    try:
        do(*what)
    except Exception as error:
        raise TargetFailed from error
