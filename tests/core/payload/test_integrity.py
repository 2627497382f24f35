"""Tests of complete downloads: truncated pictures, texts, bare base64, missing lengths, declared types.

No socket is opened.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable

import pytest

from airflow_provider_flows.core.exceptions import FlowMalformed
from airflow_provider_flows.core.payload.data_uri import GLB
from tests.core.payload.test_download import GIF, decode, glb, png, to_base64, to_data_uri, try_decode


def webp(rest: bytes, fill: bytes = b"") -> bytes:
    """Return bytes with the header of a WebP file."""
    return b"RIFF" + struct.pack("<I", 4 + len(rest)) + b"WEBP" + rest + fill


PICTURES = {
    "png": ("image/png", png()),
    "png with zeros inside": ("image/png", png(bytes(30)) + bytes(7)),
    "jpeg": ("image/jpeg", b"\xff\xd8\xff" + bytes(20) + b"noise\xff\xd9" + bytes(3)),
    "webp": ("image/webp", webp(b"noise!")),
    "odd webp": ("image/webp", webp(b"noise", b"\x00")),
    "odd webp, not filled": ("image/webp", webp(b"noise")),
}


@pytest.mark.parametrize("name", PICTURES)
def test_truncated_picture_is_rejected(name: str) -> None:
    """A truncated picture, raw or in a data URI without JSON, is rejected, wherever it is cut."""
    kind, body = PICTURES[name]
    least = len(body.rstrip(b"\0")) if kind != "image/webp" else 8 + int.from_bytes(body[4:8], "little")
    for end in range(12, len(body) + 1):
        for sent in (body[:end], f"data:{kind};base64,{to_base64(body[:end])}".encode()):
            expected = (kind, body[:end]) if end >= least else None
            assert try_decode(sent) == try_decode(*(bytes([one]) for one in sent)) == expected, (name, end)


def test_jpeg_end_marker_must_be_contiguous() -> None:
    """The two bytes of an end count only next to each other, also where the network parts them."""
    assert try_decode(b"\xff\xd8\xff" + bytes(20) + b"\xff", b"\x00", b"\xd9") is None
    assert try_decode(b"\xff\xd8\xff" + bytes(20) + b"\xff", b"\xd9", b"\x00") is not None


@pytest.mark.parametrize("headers", [{"content-length": "46"}, {"transfer-encoding": "gzip, Chunked"}])
def test_file_without_an_end_marker_needs_a_length(headers: dict[str, str]) -> None:
    """A raw file without an end marker is accepted only if the response has a length."""
    assert decode(GIF, headers=headers) == ("image/gif", GIF)
    assert try_decode(GIF) is None
    assert decode(b'{"data": "data:image/gif;base64,%s"}' % base64.b64encode(GIF)) == ("image/gif", GIF)


def test_data_after_a_picture_is_accepted_if_the_length_is_known() -> None:
    """Cameras and editors write data after a picture's end; that is accepted if the length is known."""
    longer = png() + b"and a second picture"
    assert decode(longer, headers={"content-length": str(len(longer))}) == ("image/png", longer)
    assert decode(b'{"data": "data:image/png;base64,%s"}' % base64.b64encode(longer)) == ("image/png", longer)
    assert try_decode(longer) is None


@pytest.mark.parametrize(
    "text", ["BMW makes cars", "GIF89 was", "GIF89a was", "glTF is a format, and more than that"]
)
def test_listed_text_is_a_text_with_any_prefix(text: str) -> None:
    """What the list calls a text is not taken for the file that its first letters belong to."""
    assert decode(json.dumps({"data": text}).encode(), listed="text/plain") == ("text/plain", text.encode())


@pytest.mark.parametrize(
    "content", [glb(b"abc"), png(), b"BM" + bytes(60), GIF], ids=["glb", "png", "bmp", "gif"]
)
@pytest.mark.parametrize("encode", [base64.b64encode, base64.encodebytes, base64.urlsafe_b64encode])
def test_bare_base64_of_a_known_file_is_decoded(content: bytes, encode: Callable[[bytes], bytes]) -> None:
    """Base64 without a head (vendor_notes.md, G-14) is detected by the file's first bytes, in any chunks."""
    body = json.dumps({"data": encode(content).decode()}).encode()
    assert decode(body)[1] == decode(*(bytes([one]) for one in body))[1] == content


@pytest.mark.parametrize("text", ["", "x", "not ready yet, and this may take a while"])
@pytest.mark.parametrize("listed", [None, "text/plain"])
def test_data_uri_takes_precedence_over_a_text(text: str, listed: str | None) -> None:
    """Of `data` and `file_data` the one that is a data URI is the file, whichever comes first."""
    for value in (
        {"data": text, "file_data": to_data_uri(glb(b"a"))},
        {"data": to_data_uri(glb(b"a")), "file_data": text},
    ):
        body = json.dumps(value).encode()
        assert (
            decode(body, listed=listed)
            == decode(*(bytes([one]) for one in body), listed=listed)
            == (GLB, glb(b"a"))
        )


def test_file_must_match_the_listed_type() -> None:
    """A file listed as a model must be one; a picture may be of another picture type than listed."""
    octets = json.dumps({"data": f"data:application/octet-stream;base64,{to_base64(b'<html>')}"}).encode()
    assert decode(octets)[0] == "application/octet-stream"
    with pytest.raises(FlowMalformed, match="declared as model/gltf-binary"):
        decode(octets, listed=GLB)
    assert decode(png(), listed="image/jpeg") == ("image/png", png())
    with pytest.raises(FlowMalformed, match="declared as image/jpeg"):
        decode(octets, listed="Image/JPG; q=1")
