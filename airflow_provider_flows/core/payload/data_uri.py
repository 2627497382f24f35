"""Data URIs, the form of files inside JSON: encoding, decoding, and media types by magic bytes."""

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
    (b"II+\x00", "image/tiff"),  # BigTIFF
    (b"MM\x00+", "image/tiff"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)
# the media types that `sniff` detects by content
SNIFFABLE_MEDIA_TYPES = frozenset({media_type for _, media_type in MAGIC} | {"image/bmp", "image/webp"})
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
    """A file's bytes, and its media type, None if it is unknown."""

    data: bytes = field(repr=False)
    media_type: str | None = None


def normalize_media_type(name: str | None) -> str | None:
    """Return a media type under its standard name, without parameters (vendor_notes.md, G-12)."""
    if not name:
        return None
    essence = name.partition(";")[0].strip().lower()
    return SYNONYMS.get(essence, essence) or None


def sniff(data: bytes, name: str = "") -> str | None:
    """Return the media type that a file's first bytes, or else its name, indicate; None if neither does."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data[:2] == b"BM" and data[6:10] == bytes(4):  # a text may start with "BM"; these bytes are reserved
        return "image/bmp"
    by_magic = next((media_type for magic, media_type in MAGIC if data.startswith(magic)), None)
    return by_magic or (GLB if name.lower().endswith(".glb") else normalize_media_type(guess_type(name)[0]))


def extension(media_type: str | None) -> str:
    """Return a media type's file name extension with its dot, `.bin` if it has none."""
    return EXTENSIONS.get(media_type or "") or guess_extension(media_type or "") or ".bin"


def head(media_type: str | None) -> str:
    """Return the start of a data URI as documented, `data:<type>;base64,` (vendor_notes.md, G-10)."""
    return f"data:{media_type or 'application/octet-stream'};base64,"


def encode(content: Content) -> str:
    """Return the data URI of a file: its head, then padded standard base64."""
    return head(content.media_type) + b64encode(content.data).decode()


def iter_base64(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the base64 of a file's chunks, as `encode` does for all of them at once."""
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
    """Return the length of the data URI of a file with `content_size` bytes."""
    return len(head(media_type)) + 4 * -(-content_size // 3)


def decode(text: str) -> Content:
    """Decode a data URI.

    White space, missing padding, the URL-safe alphabet, and a swapped comma and semicolon are accepted.

    :raises ValueError: the text is not a data URI, or its base64 is broken or truncated.
    """
    data = bytearray()
    decoder = DataUriDecoder(data.extend)
    decoder.feed(text.encode())
    decoder.finish()
    return Content(bytes(data), decoder.media_type)


class DataUriDecoder:
    """A streaming decoder of a data URI, which accepts what `decode` accepts.

    Every method raises ValueError if the text is not a data URI, or is broken.
    """

    is_self_delimiting = False

    def __init__(self, write: Write) -> None:
        """Create a decoder.

        :param write: receives the decoded bytes.
        """
        self.media_type: str | None = None
        self._write = write
        self._head = b""
        self._payload: Base64Stream | PercentStream | None = None

    def feed(self, chunk: bytes) -> None:
        """Decode the next chunk."""
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
        """Parse the head, and decode the part of the payload that was received with it."""
        text, self._head = self._head, b""
        head = _HEAD.match(text[:MAX_HEAD_BYTES].decode("latin-1"))
        if head is None:
            raise ValueError("not a data URI")
        payload, media_type = text[head.end() :], normalize_media_type(head["type"])
        # `data:image/png,base64;...`, an error in the vendor's documentation (vendor_notes.md, G-10)
        is_swapped = payload[: len(_SWAPPED_MARKER)].lower() == _SWAPPED_MARKER
        is_base64 = is_swapped or ";base64" in head["rest"].lower()
        self.media_type = media_type if is_base64 else media_type or "text/plain"
        self._payload = Base64Stream(self._write) if is_base64 else PercentStream(self._write)
        self._payload.feed(payload[len(_SWAPPED_MARKER) :] if is_swapped else payload)
        return self._payload
