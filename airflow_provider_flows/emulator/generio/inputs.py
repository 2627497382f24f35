"""Input data as it comes over the wire: prompts and data URIs into typed bytes, and back.

Whether the bytes are a picture or a model that can be read is found out by the work.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from airflow_provider_flows.emulator.errors import Refusal, complaint
from airflow_provider_flows.emulator.generio.templates import Template
from airflow_provider_flows.emulator.switches import Switches

# The vendor's pages use a name that is none: image/jpg.
ALIASES = {"image/jpg": "image/jpeg", "image/tif": "image/tiff"}
MAGIC = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"II*\x00": "image/tiff",
    b"MM\x00*": "image/tiff",
    b"RIFF": "image/webp",
    b"BM": "image/bmp",
    b"glTF": "model/gltf-binary",
}


# How much of refused data a refusal repeats.
MOST_SHOWN = 100


@dataclass(frozen=True)
class Media:
    """Bytes and their media type."""

    media_type: str
    content: bytes

    @property
    def data(self) -> str:
        """The form that goes over the wire: the bare prompt, or a data URI."""
        if self.media_type == "text/plain":
            return self.content.decode()
        return data_uri(self.media_type, self.content)


def data_uri(media_type: str, content: bytes) -> str:
    """Write bytes as a data URI."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def read_input(data: str, template: Template, switches: Switches, where: list[str | int]) -> Media:
    """Read one input's data, or refuse it."""
    if template.takes_text:
        media = _read_text(data, switches, where)
    elif data.startswith("data:"):
        media = _read_data_uri(data, switches, where)
    elif switches.bare_base64 == "accept":
        media = _read_bare(data, where)
    else:
        raise _invalid(where, "Input should be a data URI: data:<media type>;base64,<data>", data)
    allowed = {*template.input_types, *(["image/bmp"] if switches.bmp == "accept" else [])}
    if media.media_type not in allowed or (media.media_type == "image/bmp" and "image/png" not in allowed):
        types = ", ".join(template.input_types)
        raise Refusal(
            switches.media_refusal,
            f"Media type {media.media_type} is not allowed by {template.name}, only {types}",
        )
    return media


def _read_text(data: str, switches: Switches, where: list[str | int]) -> Media:
    if not data.startswith("data:") or switches.text_data_uri == "literal":
        media = Media("text/plain", data.encode())
    elif switches.text_data_uri == "reject":
        raise _invalid(where, "Input should be the bare text, not a data URI", data)
    else:
        media = _read_data_uri(data, switches, where)
    if media.media_type == "text/plain" and not media.content.strip():
        raise _invalid(where, "Input should have at least 1 character", data)
    return media


def _read_data_uri(data: str, switches: Switches, where: list[str | int]) -> Media:
    head, comma, payload = data.removeprefix("data:").partition(",")
    if comma and not head.endswith(";base64") and payload.startswith("base64;"):
        # The vendor's misprint, comma and semicolon swapped.
        if switches.swapped_data_uri == "reject":
            raise _invalid(where, "Data URI has comma and semicolon swapped; write ;base64,", data)
        head, payload = f"{head};base64", payload.removeprefix("base64;")
    if not comma or not head.endswith(";base64"):
        raise _invalid(where, "Data URI should have the form data:<media type>;base64,<data>", data)
    media_type = head.split(";")[0].strip().lower()
    return Media(ALIASES.get(media_type, media_type), _decode(payload, where))


def _read_bare(data: str, where: list[str | int]) -> Media:
    content = _decode(data, where)
    found = next(
        (name for magic, name in MAGIC.items() if content.startswith(magic)), "application/octet-stream"
    )
    return Media(found, content)


def _decode(payload: str, where: list[str | int]) -> bytes:
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _invalid(where, f"Base64 cannot be decoded: {error}", payload) from error


def _invalid(where: list[str | int], text: str, data: str) -> Refusal:
    shown = data if len(data) <= MOST_SHOWN else f"{data[:MOST_SHOWN]}..."
    return Refusal(422, [complaint(where, text, "value_error", shown)])
