"""Data URIs, the form of files inside JSON: base64 and percent decoding in a stream, and media types."""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from mimetypes import guess_extension, guess_type
from urllib.parse import unquote_to_bytes

from pybase64 import b64decode, b64encode

from airflow_provider_flows.core.limits import MAX_MEDIA_TYPE_LENGTH

Write = Callable[[bytes], object]

WHITESPACE = b" \t\n\r\v\f"
MAX_TRAILING_WHITESPACE_BYTES = 64 * 1024  # a longer run counts as content, so that memory is bounded
_URL_SAFE_TO_STANDARD = bytes.maketrans(b"-_", b"+/")


class Base64Stream:
    """A decoder of base64 with or without padding and white space, in the standard or the URL-safe alphabet.

    Every method raises ValueError if the input is not valid base64.
    """

    def __init__(self, write: Write) -> None:
        """Create a decoder.

        :param write: receives the decoded bytes.
        """
        self._write = write
        self._rest = b""  # at most three characters
        self._padding = 0

    def feed(self, chunk: bytes) -> None:
        """Decode all complete groups of four characters."""
        encoded = self._rest + chunk
        end = len(encoded) & ~3
        if self._padding or encoded[end - 1 : end] == b"=":  # padding may be followed by white space only
            self._feed_lenient(encoded)
            return
        try:
            decoded = b64decode(encoded[:end], validate=True)
        except binascii.Error:
            self._feed_lenient(encoded)
            return
        self._rest = encoded[end:]
        self._write(decoded)

    def _feed_lenient(self, encoded: bytes) -> None:
        standard = encoded.translate(_URL_SAFE_TO_STANDARD, WHITESPACE)
        unpadded = standard.rstrip(b"=")
        if b"=" in unpadded or (self._padding and unpadded != self._rest):
            raise ValueError("broken base64: padding is not at its end")
        self._padding += len(standard) - len(unpadded)
        end = len(unpadded) & ~3
        self._write(_decode_strict(unpadded[:end]))
        self._rest = unpadded[end:]

    def finish(self) -> None:
        """Decode the last characters. Their padding may be absent, but not wrong."""
        if not self._padding:
            self._feed_lenient(self._rest)
        needed = -len(self._rest) % 4
        if self._padding not in {0, needed}:
            raise ValueError("broken base64: wrong padding")
        self._write(_decode_strict(self._rest + b"=" * needed))


def decode_prefix(encoded: bytes) -> bytes:
    """Decode the first characters of a text; return no bytes if they are not base64."""
    standard = encoded.translate(_URL_SAFE_TO_STANDARD, WHITESPACE)
    try:
        return b64decode(standard[: len(standard) & ~3], validate=True)
    except binascii.Error:
        return b""


def _decode_strict(encoded: bytes) -> bytes:
    try:
        return b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise ValueError(f"broken base64: {error}") from error


class PercentStream:
    """A decoder of text in which `%41` is a byte. White space at the end is not part of the content."""

    def __init__(self, write: Write) -> None:
        """Create a decoder.

        :param write: receives the decoded bytes.
        """
        self._write = write
        self._rest = b""  # an escape that is cut in two, or white space that may be at the end

    def feed(self, chunk: bytes) -> None:
        """Decode the chunk, except for an incomplete escape and trailing white space."""
        text = self._rest + chunk
        ready = text[:-2] + text[-2:].partition(b"%")[0]
        stripped = ready.rstrip(WHITESPACE)
        ready = stripped if len(ready) - len(stripped) < MAX_TRAILING_WHITESPACE_BYTES else ready
        self._rest = text[len(ready) :]
        self._write(unquote_to_bytes(ready))

    def finish(self) -> None:
        """Decode the rest, without its trailing white space."""
        self._write(unquote_to_bytes(self._rest.rstrip(WHITESPACE)))


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
POINTER = "a Git LFS or git-annex pointer (git lfs pull or git annex get fetches the file)"
HTML_PAGE = "an HTML page"
POINTER_STARTS = (b"version https://git-lfs.github.com/spec/", b"/annex/objects/")
HTML_STARTS = (b"<!doctype html", b"<html", b"<head", b"<body", b"<script")
ARCHIVE, XML, JSON, TEXT, UNKNOWN = (
    "a ZIP archive", "an XML document", "JSON", "a text", "of an unknown type"
)  # fmt: skip
OTHER_FORMATS = (
    (b"PK\x03\x04", ARCHIVE),
    (b"\x1f\x8b", "compressed with gzip"),
    (b"%PDF-", "application/pdf"),
    (b"<", XML),
    (b"{", JSON),
    (b"[", JSON),
)
# what a file of a type that `sniff` does not detect may begin with, as `describe_content` calls it
EXPECTED_CONTENT = {
    "model/gltf+json": frozenset({JSON, GLB}),
    "model/obj": frozenset({TEXT}),
    "model/stl": frozenset({TEXT, UNKNOWN}),
    "model/vnd.usdz+zip": frozenset({ARCHIVE}),
    "application/zip": frozenset({ARCHIVE}),
    "application/pdf": frozenset({"application/pdf", UNKNOWN}),
    "image/heic": frozenset({UNKNOWN}),
    "image/avif": frozenset({UNKNOWN}),
}
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
    """Return a media type under its standard name, without parameters (vendor_notes.md, G-12).

    Return None if it is longer than any media type is.
    """
    if not name:
        return None
    essence = name[: 8 * MAX_MEDIA_TYPE_LENGTH].partition(";")[0].strip().lower()
    if len(essence) > MAX_MEDIA_TYPE_LENGTH:
        return None
    return SYNONYMS.get(essence, essence) or None


def sniff(data: bytes, name: str = "") -> str | None:
    """Return the media type that a file's first bytes, or else its name, indicate; None if neither does."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data[:2] == b"BM" and data[6:10] == bytes(4):  # a text may start with "BM"; these bytes are reserved
        return "image/bmp"
    by_magic = next((media_type for magic, media_type in MAGIC if data.startswith(magic)), None)
    return by_magic or (GLB if name.lower().endswith(".glb") else normalize_media_type(guess_type(name)[0]))


def sniff_foreign(data: bytes) -> str | None:
    """Return POINTER or HTML_PAGE if the first bytes are those of one in place of a file, else None."""
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(POINTER_STARTS):
        return POINTER
    return HTML_PAGE if start.startswith(HTML_STARTS) else None


def describe_content(data: bytes) -> str:
    """Return a description of content by its first bytes, for messages."""
    known = sniff(data) or sniff_foreign(data)
    if known is not None:
        return known
    for magic, description in OTHER_FORMATS:
        if data.lstrip().startswith(magic):
            return description
    try:
        data[:1024].decode()
    except UnicodeDecodeError as error:
        if error.start < len(data[:1024]) - 3:  # otherwise the last character is incomplete
            return UNKNOWN
    return UNKNOWN if b"\0" in data[:1024] else TEXT


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
