"""Property tests of downloads in every form of vendor_notes.md, G-02, cut into chunks and truncated.

No socket is opened; the expected content is that from which the body was built.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Mapping
from itertools import pairwise
from types import MappingProxyType
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from airflow_provider_flows.core.exceptions import FlowMalformed
from airflow_provider_flows.core.http import Request, Response
from airflow_provider_flows.core.payload.data_uri import GLB, decode
from airflow_provider_flows.core.payload.download import DownloadSink
from airflow_provider_flows.core.payload.json_stream import MAX_OTHER_JSON_BYTES
from airflow_provider_flows.core.payload.sink import MemoryBuffer

GET = Request("GET", "/flows/r/outputs/a")
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
MANY = settings(max_examples=100, deadline=None, derandomize=True, database=None)


def glb(rest: bytes) -> bytes:
    """Make what counts as a whole GLB."""
    return b"glTF\x02\x00\x00\x00" + (12 + len(rest)).to_bytes(4, "little") + rest


def encoded(content: bytes) -> str:
    """Return the usual data URI of a GLB."""
    return f"data:{GLB};base64,{base64.b64encode(content).decode()}"


def escaped(text: str) -> str:
    """Escape every sign of a JSON string."""
    return "".join(f"\\u{ord(sign):04x}" for sign in text)


def wrapped(text: str, end: str) -> str:
    """Break a text into short lines."""
    return end.join(text[at : at + 5] for at in range(0, len(text), 5))


def payload(content: bytes) -> str:
    """Return the base64 alone."""
    return base64.b64encode(content).decode()


# how a service might send a file: the documented form, and others that exist or are usual elsewhere
SHAPES: dict[str, Callable[[bytes], str | bytes]] = {
    "json": lambda c: json.dumps({"data": encoded(c)}),
    "more keys": lambda c: json.dumps(
        {"id": 1, "additional": {"data": "no", "l": [{"data": "no"}]}, "data": encoded(c), "z": [0.5]}
    ),
    "file last": lambda c: json.dumps({"name": 'a "quote" and a \\', "data": None, "file_data": encoded(c)}),
    "nested": lambda c: json.dumps({"data": {"file_data": encoded(c), "type": "x"}}),
    "string": lambda c: json.dumps(encoded(c)),
    "indented": lambda c: "\n " + json.dumps({"a": {}, "data": encoded(c)}, indent=3) + "\r\n ",
    "slashes": lambda c: json.dumps({"data": encoded(c)}).replace("/", "\\/"),
    "escaped": lambda c: f'{{"{escaped("data")}": "{escaped(encoded(c))}"}}',
    "lines": lambda c: json.dumps(
        {"data": f"  data:{GLB};base64,{wrapped(payload(c), chr(13) + chr(10))}\n"}
    ),
    "raw lines": lambda c: f'{{"data": "data:{GLB};base64,\n{wrapped(payload(c), chr(10))}"}}',
    "twice": lambda c: json.dumps({"data": encoded(c), "file_data": encoded(c)}),
    "swapped": lambda c: json.dumps({"data": f"data:{GLB},base64;{payload(c)}"}),
    "no padding": lambda c: json.dumps({"data": encoded(c).rstrip("=")}),
    "url-safe": lambda c: json.dumps({"data": f"data:{GLB};base64,{base64.urlsafe_b64encode(c).decode()}"}),
    "parameters": lambda c: json.dumps({"data": f"DATA:{GLB};name=a.glb;BASE64,{payload(c)}"}),
    "percent": lambda c: json.dumps({"data": f"data:{GLB},{quote_from_bytes(c)}"}),
    "bare": lambda c: f"\n{encoded(c)}\n",
    "bare percent": lambda c: f"data:{GLB},{quote_from_bytes(c)}",
    "raw": lambda c: c,
}


def noise(size: int) -> bytes:
    """Return bytes without a pattern, the same ones each time."""
    return hashlib.shake_256(b"noise").digest(size)


def body(shape: str, content: bytes) -> bytes:
    """Make an answer's body."""
    made = SHAPES[shape](content)
    return made if isinstance(made, bytes) else made.encode()


def read(
    *pieces: bytes, listed: str | None = None, headers: Mapping[str, str] = NO_HEADERS
) -> tuple[str, bytes]:
    """Feed an answer's pieces, and give the media type and the bytes that came of it."""
    kept = MemoryBuffer()
    incoming = DownloadSink(kept, listed)
    incoming.on_response_start(200, headers)
    for piece in pieces:
        if not incoming.feed(piece):
            break
    whole = b"".join(pieces)
    return incoming.finish(GET, Response(200, {}, whole[:400], bytes_received=len(whole))), bytes(kept.data)


def outcome(*pieces: bytes) -> tuple[str, bytes] | None:
    """Return the same, None for what is refused."""
    try:
        return read(*pieces)
    except FlowMalformed:
        return None


def cut(whole: bytes, places: list[int]) -> list[bytes]:
    """Cut a body at these places."""
    at = sorted({0, len(whole), *(place % (len(whole) + 1) for place in places)})
    return [whole[start:end] for start, end in pairwise(at)] or [b""]


def png(rest: bytes = b"noise") -> bytes:
    """Make what has a PNG's beginning and end."""
    return (
        b"\x89PNG\r\n\x1a\n" + rest + struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    )


GIF = b"GIF89a" + bytes(40)
CONTENTS = st.binary(max_size=90).map(glb)
PLACES = st.lists(st.integers(0, 10_000), max_size=12)


@pytest.mark.parametrize("shape", SHAPES)
@MANY
@given(content=CONTENTS, places=PLACES)
def test_any_shape_cut_anywhere_is_the_same_file(shape: str, content: bytes, places: list[int]) -> None:
    """However a service words an output and wherever the network cuts it, the very bytes come out."""
    assert read(*cut(body(shape, content), places)) == (GLB, content)


@pytest.mark.parametrize("shape", SHAPES)
def test_any_shape_comes_byte_by_byte(shape: str) -> None:
    """A network that brings single bytes changes nothing."""
    content = glb(noise(200))
    assert read(*(bytes([one]) for one in body(shape, content))) == (GLB, content)


@pytest.mark.parametrize("shape", SHAPES)
def test_large_file_in_large_pieces(shape: str) -> None:
    """So do pieces as large as a transport reads them."""
    content = glb(noise(700_001))
    whole = body(shape, content)
    assert read(*(whole[at : at + 262_144] for at in range(0, len(whole), 262_144))) == (GLB, content)


@pytest.mark.parametrize("shape", SHAPES)
def test_no_shape_cut_short_is_a_file(shape: str) -> None:
    """Wherever a body ends too early, it is refused, unless nothing but white space or padding is missing."""
    content = glb(b"\xff\xfe+/ abc" * 3)
    whole = body(shape, content)
    for end in range(len(whole)):
        found = outcome(whole[:end])
        assert found in {None, (GLB, content)}, (shape, end)
        assert found is None or not whole[end:].strip(b" \r\n=")
        if whole.lstrip()[:1] in {b"{", b'"'}:
            assert found is None or not whole[end:].strip()


@pytest.mark.parametrize("shape", SHAPES)
def test_what_follows_the_file_is_refused(shape: str) -> None:
    """A body with something behind the file's end is no file."""
    assert outcome(body(shape, glb(b"abc")) + b"?") is None


@MANY
@given(
    content=CONTENTS,
    shape=st.sampled_from(sorted(SHAPES)),
    spoil=st.lists(
        st.tuples(
            st.integers(0, 300),
            st.sampled_from([b"", b'"', b"\\", b"=", b"{", b"}", b",", b"\xc3", b"\\ud83d"]),
        ),
        max_size=3,
    ),
    places=PLACES,
)
@example(content=glb(b""), shape="escaped", spoil=[(12, b"\\")], places=[13])
@example(content=glb(b"ab"), shape="json", spoil=[(300, b"=")], places=[70, 71, 72])
def test_spoilt_body_is_the_same_cut_or_not(
    content: bytes, shape: str, spoil: list[tuple[int, bytes]], places: list[int]
) -> None:
    """What becomes of a body with a few wrong bytes in it does not depend on where it is cut."""
    whole = body(shape, content)
    for place, wrong in spoil:
        at = place % len(whole)
        whole = whole[:at] + wrong + whole[at + 1 :]
    assert outcome(*cut(whole, places)) == outcome(whole)


@MANY
@given(
    text=st.text(min_size=1, max_size=60).filter(lambda text: not text.lstrip().lower().startswith("data:")),
    ascii_only=st.booleans(),
    places=PLACES,
)
@example(text="\U0001f600\U0001f600", ascii_only=True, places=list(range(40)))
def test_text_cut_anywhere_is_the_same_text(text: str, ascii_only: bool, places: list[int]) -> None:  # noqa: FBT001
    """A text in JSON is decoded to UTF-8 without escapes and surrogates, wherever it is cut."""
    whole = json.dumps({"data": text}, ensure_ascii=ascii_only).encode()
    assert read(*cut(whole, places), listed="text/markdown") == ("text/markdown", text.encode())


@MANY
@given(
    content=st.binary(min_size=1, max_size=60),
    places=PLACES,
    kind=st.sampled_from(["", "image/x-own", "application/octet-stream"]),
)
def test_any_bytes_come_out_of_base64(content: bytes, places: list[int], kind: str) -> None:
    """A file of any type in a data URI is decoded to its content, as by the decoder of complete texts."""
    uri = f"data:{kind or 'text/x-own'};base64,{payload(content)}"
    assert read(*cut(json.dumps({"data": uri}).encode(), places))[1] == content == decode(uri).data


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (b"", "file of a known type"),
        (b"<html>Bad gateway</html>", "file of a known type"),
        (b'{"data": null}', "JSON without a data URI"),
        (b'{"additional": {"data": "data:,x"}}', "JSON without a data URI"),
        (b'[{"data": "data:,x"}]', "file of a known type"),
        (b'{"data": "data:image/png;base64,a"}', "broken base64"),
        (b'{"data": "data:image/png;base64,aGFs!G8="}', "broken base64"),
        (b'{"data": "data:image/png;base64,aGE=aGE="}', "padding"),
        (b'{"data": "data:image/png"}', "not a data URI"),
        (b'{"data": "data:,\\ud83d\\ude"}', "broken escape"),
        (b'{"data": "data:,\\x and more"}', "escape"),
        (b'{"data": "data:,x"', "Expecting"),
        (b'{"data": "data:,x', "inside a string"),
        (b'{"data": "\xff\xff\xff\xff\xff"}', "no text is expected"),
        (b'{"data": ""}', "it is empty"),
        (b'""', "it is empty"),
        (b'{"data": "data:image/png;base64,"}', "it is empty"),
        (b"data:,", "it is empty"),
        (b'{"data": "Internal error, try later"}', "no text is expected"),
        (b'{"data": "not ready", "file_data": "nor here"}', "no text is expected"),
        (b'{"data": "' + b"x" * 70_000, "no text is expected"),
        (b'{"success": false, "message": "no", "data": "data:,x"}', "success: false"),
        (b'{"data": "data:image/png;base64,AAAA"}', "declared as image/png"),
        (b'{"data": "data:model/gltf-binary,<html>"}', "declared as model/gltf-binary"),
        (
            b'{"data": "data:model/gltf-binary;base64,%s"}' % base64.b64encode(png()),
            "declared as model/gltf-binary",
        ),
        (b'{"data": "data:model/gltf-binary;base64,Z2xURg=="}', "cut short"),
        (b'{"data": "data:x/y;base64,QUJDRA="}', "wrong padding"),
        (b'{"data": "data:x/y;base64,QUJD===="}', "wrong padding"),
        (b'{"data": "data:x/y;base64,="}', "wrong padding"),
        (b"data:text/html,<html>", "without a length"),
        (GIF, "without a length"),
        (b"GIF8 years ago it rained", "file of a known type"),
        (b"BMW makes cars, some of them", "file of a known type"),
        (b'{"data": ' + b"[" * 100, "levels deep"),
        (b"data:image/png;base64" + b"A" * 5000, "not a data URI"),
        (b" " * 70_000 + b"{}", "file of a known type"),
        (b'{"a": "' + b"x" * MAX_OTHER_JSON_BYTES + b'"}', "around the file"),
        (glb(b"abc")[:-1], "cut short"),
        (glb(b"abc") + b"d", "cut short"),
    ],
)
def test_what_is_wrong_is_said(wrong: bytes, why: str) -> None:
    """What is no whole file is refused with the request, the reason, and how the answer begins."""
    with pytest.raises(FlowMalformed, match=why) as caught:
        read(wrong)
    assert "GET /flows/r/outputs/a" in str(caught.value)
    assert f"{len(wrong)} bytes" in str(caught.value)
    assert len(str(caught.value)) < 1_200


def test_glb_that_does_not_end_is_stopped() -> None:
    """As soon as more comes than a GLB's header tells, no more of it is wanted."""
    incoming = DownloadSink(MemoryBuffer())
    incoming.on_response_start(200, {})
    assert incoming.feed(glb(b"abc"))
    assert not incoming.feed(b"d")


def test_answer_that_is_asked_for_again_begins_anew() -> None:
    """Nothing of an answer that broke off is in the next one."""
    content, kept = glb(b"abc"), MemoryBuffer()
    incoming = DownloadSink(kept)
    for piece in (body("json", content)[:40], b"<html>", body("raw", content)):
        incoming.on_response_start(200, {})
        incoming.feed(piece)
    assert (incoming.finish(GET, Response(200)), bytes(kept.data)) == (GLB, content)


def test_reading_stops_at_what_is_wrong() -> None:
    """As soon as it is clear that an answer is no file, no more of it is wanted."""
    incoming = DownloadSink(MemoryBuffer())
    incoming.on_response_start(200, {})
    assert incoming.feed(b'{"data": "data:image/png;base64,')
    assert not incoming.feed(b"?" * 100)
    assert not incoming.feed(b"AAAA")


class Broken(MemoryBuffer):
    """A target on which nothing can be written."""

    def write(self, data: bytes) -> None:
        """Fail as a full disk does, also where a ValueError would be an answer's fault."""
        raise ValueError(28, "No space left on device", len(data))


def test_error_of_the_target_is_not_the_answers() -> None:
    """What a target raises comes out as it is, whatever type it has, and not in the transport."""
    incoming = DownloadSink(Broken())
    incoming.on_response_start(200, {})
    assert not incoming.feed(body("json", glb(b"abc")))
    with pytest.raises(ValueError, match="No space left"):
        incoming.finish(GET, Response(200))
