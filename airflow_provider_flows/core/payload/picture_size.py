"""The size of a picture in pixels, from the header of its file. The picture is not decoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from airflow_provider_flows.core.payload.data_uri import sniff

Read = Callable[[int, int], bytes]
"""Returns bytes of a file by offset and length; at its end fewer than that."""

KTX2 = "image/ktx2"
KTX2_MAGIC = b"\xabKTX 20\xbb\r\n\x1a\n"
HEADER_BYTES = 64
MAX_JPEG_SEGMENTS = 1000  # before the one with the size; cameras write a few dozen
NO_LENGTH_MARKERS = frozenset({0x01, *range(0xD0, 0xD9)})
FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True, slots=True)
class PictureSize:
    """The format of a picture, and its width and height in pixels."""

    media_type: str
    width: int
    height: int


def read_picture_size(read: Read) -> PictureSize | None:
    """Return the size of a PNG, JPEG, GIF, WebP, BMP or KTX2 file; None if it cannot be read.

    At most a few KiB are read.

    :param read: reads the file.
    """
    head = read(0, HEADER_BYTES)
    media_type = KTX2 if head.startswith(KTX2_MAGIC) else sniff(head)
    size: tuple[int, int] | None = None
    if media_type == "image/png" and head[12:16] == b"IHDR":
        size = _get_number(head, 16, 4, "big"), _get_number(head, 20, 4, "big")
    elif media_type == "image/gif":
        size = _get_number(head, 6, 2), _get_number(head, 8, 2)
    elif media_type == "image/bmp":
        size = abs(_get_number(head, 18, 4, signed=True)), abs(_get_number(head, 22, 4, signed=True))
    elif media_type == "image/webp":
        size = _get_webp_size(head)
    elif media_type == "image/jpeg":
        size = _read_jpeg_size(read)
    elif media_type == KTX2:
        size = _get_number(head, 20, 4), _get_number(head, 24, 4)
    if media_type is None or size is None or min(size) < 1:
        return None
    return PictureSize(media_type, *size)


def _get_number(data: bytes, start: int, length: int, order: str = "little", *, signed: bool = False) -> int:
    """Return a number, 0 if the data ends before it."""
    part = data[start : start + length]
    is_big = order == "big"
    return int.from_bytes(part, "big" if is_big else "little", signed=signed) if len(part) == length else 0


def _get_webp_size(head: bytes) -> tuple[int, int] | None:
    kind = head[12:16]
    if kind == b"VP8 " and head[23:26] == b"\x9d\x01\x2a":
        return _get_number(head, 26, 2) & 0x3FFF, _get_number(head, 28, 2) & 0x3FFF
    if kind == b"VP8L" and head[20:21] == b"\x2f":
        bits = _get_number(head, 21, 4)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8X":
        return _get_number(head, 24, 3) + 1, _get_number(head, 27, 3) + 1
    return None


def _read_jpeg_size(read: Read) -> tuple[int, int] | None:
    """Follow the segments to the one that begins a frame."""
    position = 2
    for _ in range(MAX_JPEG_SEGMENTS):
        header = read(position, 9)
        if len(header) < 9 or header[0] != 0xFF:
            return None
        marker = header[1]
        if marker == 0xFF:  # repeated as filling
            position += 1
        elif marker in NO_LENGTH_MARKERS:
            position += 2
        elif marker in FRAME_MARKERS:
            return _get_number(header, 7, 2, "big"), _get_number(header, 5, 2, "big")
        else:
            position += 2 + max(2, _get_number(header, 2, 2, "big"))
    return None
