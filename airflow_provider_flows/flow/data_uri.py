"""Data URIs: the form in which files travel inside JSON, and what a file's first bytes say it is.

It opens no file and sends nothing; inputs.py and outputs.py do the first, the services say where a data URI belongs.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from mimetypes import guess_extension, guess_type
from urllib.parse import unquote_to_bytes

GLB = "model/gltf-binary"
GLB_MAGIC = b"glTF"
MAGIC: tuple[tuple[bytes, str], ...] = (
    (GLB_MAGIC, GLB),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
    (b"BM", "image/bmp"),
    (b"GIF8", "image/gif"),
)
SYNONYMS = {
    "image/jpg": "image/jpeg",
    "image/pjpeg": "image/jpeg",
    "image/x-png": "image/png",
    "image/x-ms-bmp": "image/bmp",
}
EXTENSIONS = {GLB: ".glb", "image/jpeg": ".jpg", "image/tiff": ".tiff", "text/plain": ".txt", "image/webp": ".webp"}
_HEAD = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?P<rest>(?:;[^;,]*)*),", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class Content:
    """A file's bytes and media type (None where nothing tells it)."""

    data: bytes = field(repr=False)
    media_type: str | None = None


def normal_media_type(name: str | None) -> str | None:
    """Give a media type its standard name: lower case, no parameters, image/jpg as image/jpeg (vendor-api G-12)."""
    if not name:
        return None
    plain = name.partition(";")[0].strip().lower()
    return SYNONYMS.get(plain, plain) or None


def sniff(data: bytes, name: str = "") -> str | None:
    """Tell a file's media type by its first bytes, else by its name, else None."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    found = next((kind for magic, kind in MAGIC if data.startswith(magic)), None)
    return found or (GLB if name.lower().endswith(".glb") else normal_media_type(guess_type(name)[0]))


def extension(media_type: str | None) -> str:
    """Give the file name extension of a media type, with its dot; `.bin` where there is none."""
    return EXTENSIONS.get(media_type or "") or guess_extension(media_type or "") or ".bin"


def encode(content: Content) -> str:
    """Write a data URI, exactly as documented (vendor-api G-10): `data:<type>;base64,<padded standard base64>`."""
    return f"data:{content.media_type or 'application/octet-stream'};base64,{base64.b64encode(content.data).decode()}"


def decode(text: str) -> Content:
    """Read a data URI: also with comma and semicolon swapped, white space, no padding, or the URL-safe alphabet.

    :raises ValueError: it is not a data URI, or its base64 is broken or cut short.
    """
    text = text.strip()
    head = _HEAD.match(text)
    if head is None:
        message = "not a data URI"
        raise ValueError(message)
    payload, rest = text[head.end() :], head["rest"].lower()
    swapped = payload[:7].lower() == "base64;"  # `data:image/png,base64;...`, printed in the docs by mistake (G-10)
    media_type = normal_media_type(head["type"])
    if not swapped and ";base64" not in rest:
        return Content(unquote_to_bytes(payload), media_type or "text/plain")
    return Content(decode_base64(payload[7:] if swapped else payload), media_type)


def decode_base64(text: str) -> bytes:
    """Read base64 in either alphabet, with white space, with or without padding.

    :raises ValueError: a character that belongs to neither alphabet, or a length that no base64 has.
    """
    plain = "".join(text.split()).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except binascii.Error as error:
        message = f"broken base64: {error}"
        raise ValueError(message) from error


def whole_glb(data: bytes) -> bool:
    """Whether a GLB's header (glTF 2.0: magic, version, length; 4 bytes each) names just the length it has."""
    return len(data) >= 12 and int.from_bytes(data[8:12], "little") == len(data)  # the header's size
