"""Data URIs: the form in which files travel inside JSON, and what a file's first bytes say it is.

It opens no file and sends nothing; inputs.py and outputs.py do the first, the services say where a data URI belongs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from mimetypes import guess_extension, guess_type

from pybase64 import b64encode

from airflow_provider_flows.core.payload.base64_stream import Base64Stream, PercentStream, Write

GLB = "model/gltf-binary"
GLB_MAGIC = b"glTF"
MAGIC: tuple[tuple[bytes, str], ...] = (
    (GLB_MAGIC, GLB),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
    (b"II+\x00", "image/tiff"),  # a large one
    (b"MM\x00+", "image/tiff"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)
SNIFFABLE_MEDIA_TYPES = frozenset(
    {kind for _, kind in MAGIC} | {"image/bmp", "image/webp"}
)  # what `sniff` tells by content
SYNONYMS = {
    "image/jpg": "image/jpeg",
    "image/pjpeg": "image/jpeg",
    "image/x-png": "image/png",
    "image/x-ms-bmp": "image/bmp",
    "image/tif": "image/tiff",
    "model/glb": GLB,
}
EXTENSIONS = {
    GLB: ".glb",
    "image/jpeg": ".jpg",
    "image/tiff": ".tiff",
    "text/plain": ".txt",
    "image/webp": ".webp",
}
_HEAD = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?P<rest>(?:;[^;,]*)*),", re.IGNORECASE | re.ASCII)
_SWAPPED_MARKER = b"base64;"
MAX_HEAD_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Content:
    """A file's bytes and media type (None where nothing tells it)."""

    data: bytes = field(repr=False)
    media_type: str | None = None


def normalize_media_type(name: str | None) -> str | None:
    """Give a media type its standard name: lower case, no parameters, image/jpg as image/jpeg (vendor-api G-12)."""
    if not name:
        return None
    plain = name.partition(";")[0].strip().lower()
    return SYNONYMS.get(plain, plain) or None


def sniff(data: bytes, name: str = "") -> str | None:
    """Tell a file's media type by its first bytes, else by its name, else None."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data[:2] == b"BM" and data[6:10] == bytes(
        4
    ):  # two letters alone may begin a text; here something is reserved
        return "image/bmp"
    found = next((kind for magic, kind in MAGIC if data.startswith(magic)), None)
    return found or (GLB if name.lower().endswith(".glb") else normalize_media_type(guess_type(name)[0]))


def extension(media_type: str | None) -> str:
    """Give the file name extension of a media type, with its dot; `.bin` where there is none."""
    return EXTENSIONS.get(media_type or "") or guess_extension(media_type or "") or ".bin"


def head(media_type: str | None) -> str:
    """Give what stands before the base64, exactly as documented (vendor-api G-10): `data:<type>;base64,`."""
    return f"data:{media_type or 'application/octet-stream'};base64,"


def encode(content: Content) -> str:
    """Write a data URI: its head, then padded standard base64."""
    return head(content.media_type) + b64encode(content.data).decode()


def iter_base64(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Write base64 as `encode` does, a chunk at a time."""
    rest = b""
    for chunk in chunks:
        data = rest + chunk if rest else chunk
        cut = len(data) - len(data) % 3
        rest = data[cut:]
        if cut:
            yield b64encode(data[:cut] if rest else data)
    if rest:
        yield b64encode(rest)


def size(media_type: str | None, content_size: int) -> int:
    """Give the length of the data URI of so many bytes."""
    return len(head(media_type)) + 4 * -(-content_size // 3)


def decode(text: str) -> Content:
    """Read a data URI: also with comma and semicolon swapped, white space, no padding, or the URL-safe alphabet.

    :raises ValueError: it is not a data URI, or its base64 is broken or cut short.
    """
    data = bytearray()
    decoder = DataUriDecoder(data.extend)
    decoder.feed(text.encode())
    decoder.finish()
    return Content(bytes(data), decoder.media_type)


class DataUriDecoder:
    """A data URI read piece by piece, wherever it is cut, with the tolerance of `decode`.

    Every method raises ValueError if it is none, or is broken.
    """

    def __init__(self, write: Write) -> None:
        """Take what the decoded bytes are written to."""
        self.media_type: str | None = None
        self._write = write
        self._head = b""
        self._payload: Base64Stream | PercentStream | None = None

    def feed(self, chunk: bytes) -> None:
        """Decode what is whole so far."""
        if self._payload is not None:
            self._payload.feed(chunk)
            return
        self._head = (self._head + chunk).lstrip()
        if b"," in self._head[: -len(_SWAPPED_MARKER)] or len(self._head) > MAX_HEAD_BYTES:
            self._parse_head()

    def finish(self) -> None:
        """Decode the rest."""
        (self._payload or self._parse_head()).finish()

    def _parse_head(self) -> Base64Stream | PercentStream:
        """Read what stands before the payload, and decode what came with it."""
        text, self._head = self._head, b""
        head = _HEAD.match(text[:MAX_HEAD_BYTES].decode("latin-1"))
        if head is None:
            message = "not a data URI"
            raise ValueError(message)
        payload, kind = text[head.end() :], normalize_media_type(head["type"])
        swapped = (
            payload[: len(_SWAPPED_MARKER)].lower() == _SWAPPED_MARKER
        )  # `data:image/png,base64;...`, in the docs by mistake (G-10)
        plain = not swapped and ";base64" not in head["rest"].lower()
        self.media_type = kind or "text/plain" if plain else kind
        self._payload = PercentStream(self._write) if plain else Base64Stream(self._write)
        self._payload.feed(payload[len(_SWAPPED_MARKER) :] if swapped else payload)
        return self._payload
