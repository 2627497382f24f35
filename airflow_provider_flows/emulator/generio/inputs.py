"""Input data as it comes over the wire: prompts and data URIs into typed bytes, and back.

Whether the bytes are a picture or a model that can be read is found out by the work.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from airflow_provider_flows.emulator.errors import ApiError, validation_error
from airflow_provider_flows.emulator.generio.templates import Template
from airflow_provider_flows.emulator.switches import Switches

# The vendor's pages use a name that is none: image/jpg.
ALIASES = {"image/jpg": "image/jpeg", "image/tif": "image/tiff"}
MAGIC_TO_MEDIA_TYPE = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"II*\x00": "image/tiff",
    b"MM\x00*": "image/tiff",
    b"RIFF": "image/webp",
    b"BM": "image/bmp",
    b"glTF": "model/gltf-binary",
}


# How much of refused data a refusal repeats.
MAX_ECHOED_CHARACTERS = 100


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
        return to_data_uri(self.media_type, self.content)


def to_data_uri(media_type: str, content: bytes) -> str:
    """Write bytes as a data URI."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def parse_input(data: str, template: Template, switches: Switches, location: list[str | int]) -> Media:
    """Read one input's data, or refuse it."""
    if template.has_text_inputs:
        media = _parse_text(data, switches, location)
    elif data.startswith("data:"):
        media = _parse_data_uri(data, switches, location)
    elif switches.bare_base64 == "accept":
        media = _parse_bare_base64(data, location)
    else:
        raise _invalid_input_error(
            location, "Input should be a data URI: data:<media type>;base64,<data>", data
        )
    allowed = {*template.input_types, *(["image/bmp"] if switches.bmp == "accept" else [])}
    if media.media_type not in allowed or (media.media_type == "image/bmp" and "image/png" not in allowed):
        types = ", ".join(template.input_types)
        raise ApiError(
            switches.media_refusal,
            f"Media type {media.media_type} is not allowed by {template.name}, only {types}",
        )
    return media


def _parse_text(data: str, switches: Switches, location: list[str | int]) -> Media:
    if not data.startswith("data:") or switches.text_data_uri == "literal":
        media = Media("text/plain", data.encode())
    elif switches.text_data_uri == "reject":
        raise _invalid_input_error(location, "Input should be the bare text, not a data URI", data)
    else:
        media = _parse_data_uri(data, switches, location)
    if media.media_type == "text/plain" and not media.content.strip():
        raise _invalid_input_error(location, "Input should have at least 1 character", data)
    return media


def _parse_data_uri(data: str, switches: Switches, location: list[str | int]) -> Media:
    head, comma, payload = data.removeprefix("data:").partition(",")
    if comma and not head.endswith(";base64") and payload.startswith("base64;"):
        # The vendor's misprint, comma and semicolon swapped.
        if switches.swapped_data_uri == "reject":
            raise _invalid_input_error(
                location, "Data URI has comma and semicolon swapped; write ;base64,", data
            )
        head, payload = f"{head};base64", payload.removeprefix("base64;")
    if not comma or not head.endswith(";base64"):
        raise _invalid_input_error(
            location, "Data URI should have the form data:<media type>;base64,<data>", data
        )
    media_type = head.split(";")[0].strip().lower()
    return Media(ALIASES.get(media_type, media_type), _decode_base64(payload, location))


def _parse_bare_base64(data: str, location: list[str | int]) -> Media:
    content = _decode_base64(data, location)
    found = next(
        (name for magic, name in MAGIC_TO_MEDIA_TYPE.items() if content.startswith(magic)),
        "application/octet-stream",
    )
    return Media(found, content)


def _decode_base64(payload: str, location: list[str | int]) -> bytes:
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _invalid_input_error(location, f"Base64 cannot be decoded: {error}", payload) from error


def _invalid_input_error(location: list[str | int], message: str, data: str) -> ApiError:
    excerpt = data if len(data) <= MAX_ECHOED_CHARACTERS else f"{data[:MAX_ECHOED_CHARACTERS]}..."
    return ApiError(422, [validation_error(location, message, "value_error", excerpt)])
