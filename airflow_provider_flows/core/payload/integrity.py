"""Checks of a file while it is written or read: its type, and by its format its length, end or structure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Literal

from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.payload import data_uri
from airflow_provider_flows.core.payload.data_uri import GLB, Content, sniff
from airflow_provider_flows.core.payload.sink import DigestTarget, TooLargeError, WriteFailedError

if TYPE_CHECKING:
    from airflow_provider_flows.core.payload.sink import Target

MIN_SNIFF_BYTES = (
    12  # enough to detect a media type, and to read the length in the header of a GLB or WebP file
)
WEBP = "image/webp"
MAX_START_BYTES = 192 * 1024  # of a content, from which its media type is detected
NAME, MEDIA_TYPE = "name", "media type"  # what declares the type of content
# the end may be followed by zeros, because some writers fill a block
END_MARKERS = {"image/png": b"IEND\xaeB`\x82", "image/jpeg": b"\xff\xd9"}


# after the end that the header declares, in a response without a Content-Length, which may be endless
MAX_SURPLUS_BYTES = 64 * 1024 * 1024


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

    def redact(self, redact: Callable[[str], str]) -> None:
        """Remove secrets from the texts that the service determines."""
        self.args = (redact(str(self)),)
        self.media_type = redact(self.media_type)


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
        self.max_surplus_bytes: int | None = None  # after the end that the header declares
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
        if self._length_range is not None and self.max_surplus_bytes is not None:
            surplus = self.size - self._length_range[1]
            if surplus > self.max_surplus_bytes:
                raise TooLargeError(
                    f"it is longer than its header says, by more than {self.max_surplus_bytes} bytes"
                )

    def write_text(self, data: bytes) -> None:
        """Write the next bytes of a text, whose content does not indicate its type or its length."""
        self.is_text = True
        self._write_to_target(data)

    def _write_to_target(self, data: bytes) -> None:
        self.size += len(data)
        if self._max_bytes is not None and self.size > self._max_bytes:
            hint = "to allow that, raise max_response_mib in the connection's extra"
            raise TooLargeError(f"it is larger than {self._max_bytes} bytes; {hint}")
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
    except TooLargeError:
        raise
    except Exception as error:  # a storage library may raise anything
        raise WriteFailedError(error) from error


# a picture of fewer bytes is only a signature, as in a test of a DAG, and not a real one that was truncated
MIN_PICTURE_BYTES = 16
READ, SKIP, FIND = "read", "skip", "find"
# a number of bytes to read or to skip, or a byte value to go behind
WalkStep = tuple[str, int]
Walk = Generator[WalkStep, bytes, None]


class TruncationDetector:
    """Follows the structure of a file, chunk by chunk, to detect one that ends before its own structure does.

    Data after the end is ignored. A structure that does not make sense is not followed any further: it
    does not prove that something is missing.
    """

    def __init__(self, media_type: str | None) -> None:
        """Create a detector.

        :param media_type: of the file, as `sniff` returns it.
        """
        self._walk = WALKS[media_type]() if media_type in WALKS else None
        self._min_bytes = 0 if media_type == GLB else MIN_PICTURE_BYTES
        self._size = 0
        self._step: WalkStep | None = None
        self._rest = b""  # of a chunk, at most a few bytes
        self._advance(None)

    @property
    def is_truncated(self) -> bool:
        """Whether the file's structure continues after the last byte so far."""
        return self._step is not None and self._size >= self._min_bytes

    def feed(self, chunk: bytes) -> None:
        """Follow the structure through the next bytes of the file."""
        self._size += len(chunk)
        data, position = self._rest + chunk if self._rest else chunk, 0
        while self._step is not None:
            kind, number = self._step
            available = len(data) - position
            if kind == FIND:
                found = data.find(number, position)
                position = len(data) if found < 0 else found + 1
                if found < 0:
                    break
                self._advance(b"")
            elif available >= number:
                position += number
                self._advance(data[position - number : position] if kind == READ else b"")
            else:
                if kind == SKIP:
                    position, self._step = len(data), (SKIP, number - available)
                break
        self._rest = b"" if self._step is None else data[position:]

    def _advance(self, data: bytes | None) -> None:
        try:
            self._step = None if self._walk is None else self._walk.send(data)  # type: ignore[arg-type]
        except StopIteration:
            self._step = None


def _walk_glb() -> Walk:
    """Follow a GLB: magic, version and total length, then the rest."""
    header = yield READ, 12
    yield SKIP, max(0, int.from_bytes(header[8:12], "little") - 12)


def _walk_webp() -> Walk:
    """Follow a RIFF file: magic and the length of the rest, then the rest."""
    header = yield READ, 12
    yield SKIP, max(0, int.from_bytes(header[4:8], "little") - 4)


def _walk_png() -> Walk:
    """Follow the chunks of a PNG to the one that ends it."""
    yield SKIP, 8
    for expected in b"\x00\x00\x00\rIHDR":
        if (yield READ, 1)[0] != expected:
            return
    yield SKIP, 13 + 4
    kind = b""
    while kind != b"IEND":
        header = yield READ, 8
        kind = header[4:]
        yield SKIP, int.from_bytes(header[:4], "big") + 4


def _walk_jpeg() -> Walk:
    """Follow the segments of a JPEG, and the compressed data after some of them, to the end of the image."""
    yield SKIP, 2
    marker = yield from _read_jpeg_marker()
    while marker not in {None, 0xD9}:
        yield SKIP, max(0, int.from_bytes((yield READ, 2), "big") - 2)
        marker = yield from (_find_jpeg_marker() if marker == 0xDA else _read_jpeg_marker())


def _read_jpeg_marker() -> Generator[WalkStep, bytes, int | None]:
    """Return the marker that begins here, None if there is none."""
    if (yield READ, 1) != b"\xff":
        return None
    return (yield from _read_jpeg_marker_code())


def _find_jpeg_marker() -> Generator[WalkStep, bytes, int | None]:
    """Return the marker after compressed data, in which 0xFF is followed by a zero or a restart marker."""
    marker: int | None = 0
    while marker == 0 or (marker is not None and 0xD0 <= marker <= 0xD7):
        yield FIND, 0xFF
        marker = yield from _read_jpeg_marker_code(minimum=0)
    return marker


def _read_jpeg_marker_code(minimum: int = 0xC0) -> Generator[WalkStep, bytes, int | None]:
    code = 0xFF
    while code == 0xFF:  # repeated as filling
        code = (yield READ, 1)[0]
    return code if code >= minimum else None


def _walk_gif() -> Walk:
    """Follow the blocks of a GIF to its trailer."""
    header = yield READ, 13
    yield SKIP, _gif_color_table_size(header[10])
    while (kind := (yield READ, 1)) in {b"\x21", b"\x2c"}:  # an extension, an image
        if kind == b"\x21":
            yield SKIP, 1
        else:
            descriptor = yield READ, 9
            yield SKIP, _gif_color_table_size(descriptor[8]) + 1
        while size := (yield READ, 1)[0]:
            yield SKIP, size


def _gif_color_table_size(flags: int) -> int:
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _walk_tiff() -> Walk:
    """Follow a TIFF to the end of its first directory and of what that refers to, but not a BigTIFF."""
    header = yield READ, 8
    order: Literal["little", "big"] = "little" if header[:2] == b"II" else "big"
    if header[2] + header[3] != 42:
        return
    offset = int.from_bytes(header[4:8], order)
    yield SKIP, max(0, offset - 8)
    count = int.from_bytes((yield READ, 2), order)
    directory = yield READ, 12 * count + 4
    end = position = offset + 2 + 12 * count + 4
    numbers: dict[int, int] = {}  # the single number that a tag has
    for start in range(0, 12 * count, 12):
        entry = directory[start : start + 12]
        tag, kind = (int.from_bytes(entry[part : part + 2], order) for part in (0, 2))
        length, value = (int.from_bytes(entry[part : part + 4], order) for part in (4, 8))
        size = TIFF_TYPE_SIZES.get(kind, 0) * length
        if size > 4:
            end = max(end, value + size)
        elif length == 1:
            numbers[tag] = int.from_bytes(entry[8 : 8 + size], order)
    for data, data_size in TIFF_DATA_TAGS:  # in one piece
        end = max(end, numbers.get(data, 0) + numbers.get(data_size, 0))
    yield SKIP, end - position


TIFF_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}  # in bytes
TIFF_DATA_TAGS = ((273, 279), (324, 325))  # offset and length of strips, of tiles
WALKS: dict[str | None, Callable[[], Walk]] = {
    GLB: _walk_glb,
    WEBP: _walk_webp,
    "image/png": _walk_png,
    "image/jpeg": _walk_jpeg,
    "image/gif": _walk_gif,
    "image/tiff": _walk_tiff,
}


def identify_content(where: str, content: Content) -> Content:
    """Return the content of a data URI with the media type that its first bytes indicate, or else its own.

    :raises FlowInputError: the content is empty, is not of the URI's media type, or is truncated.
    """
    subject, data, declared = f"{where} is a data URI", content.data, content.media_type
    if not data.strip():
        raise FlowInputError(f"{subject} without content")
    if declared == "text/plain" and is_text(data):  # also one that begins like a picture, but not a GLB
        return content
    media_type = detect_media_type(subject, data[:MAX_START_BYTES], declared, MEDIA_TYPE)
    if media_type == "text/plain":
        raise FlowInputError(f"{subject} of a text, but its content is not UTF-8 or has zero bytes")
    truncation_detector = TruncationDetector(media_type)
    truncation_detector.feed(data)
    if truncation_detector.is_truncated:
        raise truncation_error(subject, media_type, len(data))
    return Content(data, media_type)


def detect_media_type(subject: str, start: bytes, declared: str | None, source: str) -> str | None:
    """Return the media type of the first bytes, or else the declared one. A picture may be of another kind.

    :param declared: the media type that the file's name or data URI declares.
    :param source: NAME or MEDIA_TYPE, for the message.
    :raises FlowInputError: the content contradicts the declared type, or is a pointer or page in its place.
    """
    sniffed = data_uri.sniff(start)
    is_other_picture = (declared or "").startswith("image/") and (sniffed or "").startswith("image/")
    is_wrong = declared in data_uri.SNIFFABLE_MEDIA_TYPES and sniffed != declared and not is_other_picture
    expected_content = data_uri.EXPECTED_CONTENT.get(declared or "")
    if expected_content is not None:
        is_wrong = data_uri.describe_content(start) not in expected_content
    foreign = data_uri.sniff_foreign(start)
    is_page = foreign == data_uri.HTML_PAGE and not re.match(r"text/|.*html", declared or "")
    if not is_wrong and foreign != data_uri.POINTER and not is_page:
        return sniffed or declared
    expected = f", but its {source} says {declared}" if declared else ""
    actual = data_uri.describe_content(start)
    raise FlowInputError(f"{subject} whose content is {actual}{expected}. Replace it with the right one")


def truncation_error(subject: str, media_type: str | None, size: int) -> FlowInputError:
    """Return the error of a truncated input."""
    return FlowInputError(
        f"{subject} that is truncated: it has {size} bytes, and its {media_type} structure continues after "
        "them. Copy it from its source again"
    )


def is_text(data: bytes | bytearray) -> bool:
    """Return whether this is UTF-8 without zero bytes, which binary files and UTF-16 have."""
    if b"\0" in data:
        return False
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
