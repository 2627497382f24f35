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
from dataclasses import replace
from itertools import pairwise
from types import MappingProxyType
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from airflow_provider_flows.core.exceptions import FlowMalformed
from airflow_provider_flows.core.http import Request
from airflow_provider_flows.core.payload.data_uri import GLB, sniff
from airflow_provider_flows.core.payload.data_uri import decode as decode_data_uri
from airflow_provider_flows.core.payload.decoders import UnknownFileTypeError
from airflow_provider_flows.core.payload.download import DownloadSink
from airflow_provider_flows.core.payload.integrity import UnconfirmedFileError
from airflow_provider_flows.core.payload.json_stream import MAX_OTHER_JSON_BYTES
from airflow_provider_flows.core.payload.sink import MemoryBuffer, WriteFailedError
from airflow_provider_flows.transport.response_reader import ResponseReader
from airflow_provider_flows.transport.settings import Settings

GET = Request("GET", "/flows/r/outputs/a")
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
MANY = settings(max_examples=100, deadline=None, derandomize=True, database=None)


def glb(rest: bytes) -> bytes:
    """Return a valid GLB with this content after its header."""
    return b"glTF\x02\x00\x00\x00" + (12 + len(rest)).to_bytes(4, "little") + rest


def to_data_uri(content: bytes) -> str:
    """Return the usual data URI of a GLB."""
    return f"data:{GLB};base64,{base64.b64encode(content).decode()}"


def escape_json(text: str) -> str:
    """Escape every character of a JSON string."""
    return "".join(f"\\u{ord(character):04x}" for character in text)


def break_lines(text: str, end: str) -> str:
    """Break a text into short lines."""
    return end.join(text[at : at + 5] for at in range(0, len(text), 5))


def to_base64(content: bytes) -> str:
    """Return base64 without the head of a data URI."""
    return base64.b64encode(content).decode()


# how a service might send a file: the documented form, and others that exist or are usual elsewhere
SHAPES: dict[str, Callable[[bytes], str | bytes]] = {
    "json": lambda c: json.dumps({"data": to_data_uri(c)}),
    "more keys": lambda c: json.dumps(
        {"id": 1, "additional": {"data": "no", "l": [{"data": "no"}]}, "data": to_data_uri(c), "z": [0.5]}
    ),
    "file last": lambda c: json.dumps(
        {"name": 'a "quote" and a \\', "data": None, "file_data": to_data_uri(c)}
    ),
    "nested": lambda c: json.dumps({"data": {"file_data": to_data_uri(c), "type": "x"}}),
    "string": lambda c: json.dumps(to_data_uri(c)),
    "indented": lambda c: "\n " + json.dumps({"a": {}, "data": to_data_uri(c)}, indent=3) + "\r\n ",
    "slashes": lambda c: json.dumps({"data": to_data_uri(c)}).replace("/", "\\/"),
    "escaped": lambda c: f'{{"{escape_json("data")}": "{escape_json(to_data_uri(c))}"}}',
    "lines": lambda c: json.dumps(
        {"data": f"  data:{GLB};base64,{break_lines(to_base64(c), chr(13) + chr(10))}\n"}
    ),
    "raw lines": lambda c: f'{{"data": "data:{GLB};base64,\n{break_lines(to_base64(c), chr(10))}"}}',
    "twice": lambda c: json.dumps({"data": to_data_uri(c), "file_data": to_data_uri(c)}),
    "swapped": lambda c: json.dumps({"data": f"data:{GLB},base64;{to_base64(c)}"}),
    "no padding": lambda c: json.dumps({"data": to_data_uri(c).rstrip("=")}),
    "url-safe": lambda c: json.dumps({"data": f"data:{GLB};base64,{base64.urlsafe_b64encode(c).decode()}"}),
    "parameters": lambda c: json.dumps({"data": f"DATA:{GLB};name=a.glb;BASE64,{to_base64(c)}"}),
    "percent": lambda c: json.dumps({"data": f"data:{GLB},{quote_from_bytes(c)}"}),
    "bare": lambda c: f"\n{to_data_uri(c)}\n",
    "bare percent": lambda c: f"data:{GLB},{quote_from_bytes(c)}",
    "raw": lambda c: c,
}


def noise(size: int) -> bytes:
    """Return bytes without a pattern, the same ones each time."""
    return hashlib.shake_256(b"noise").digest(size)


def build_body(shape: str, content: bytes) -> bytes:
    """Return the body of a response that sends a file in this shape."""
    text = SHAPES[shape](content)
    return text if isinstance(text, bytes) else text.encode()


def decode(
    *chunks: bytes, listed: str | None = None, headers: Mapping[str, str] = NO_HEADERS
) -> tuple[str, bytes]:
    """Return the media type and the content of the file in a response that arrives in these chunks."""
    buffer = MemoryBuffer()
    sink = DownloadSink(buffer, listed)
    reader = ResponseReader(
        Settings("https://service.test", {}),
        replace(GET, sink=sink),
        200,
        headers.items(),
    )
    for chunk in chunks:
        reader.feed(chunk)
    reader.finish("")
    assert sink.media_type is not None
    return sink.media_type, bytes(buffer.data)


def try_decode(*chunks: bytes) -> tuple[str, bytes] | None:
    """Return what `decode` returns, None for a response that is rejected."""
    try:
        return decode(*chunks)
    except FlowMalformed:
        return None


def split_at(body: bytes, offsets: list[int]) -> list[bytes]:
    """Split a body at these offsets, each modulo its length."""
    bounds = sorted({0, len(body), *(offset % (len(body) + 1) for offset in offsets)})
    return [body[start:end] for start, end in pairwise(bounds)] or [b""]


def png(rest: bytes = b"noise") -> bytes:
    """Return bytes with the start and the end of a PNG."""
    return (
        b"\x89PNG\r\n\x1a\n" + rest + struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    )


GIF = b"GIF89a" + bytes(40)
CONTENTS = st.binary(max_size=90).map(glb)
OFFSETS = st.lists(st.integers(0, 10_000), max_size=12)


@pytest.mark.parametrize("shape", SHAPES)
@MANY
@given(content=CONTENTS, offsets=OFFSETS)
def test_file_is_the_same_for_any_shape_and_chunks(shape: str, content: bytes, offsets: list[int]) -> None:
    """In whatever shape a file is sent, and wherever the network splits it, its content is the same."""
    assert decode(*split_at(build_body(shape, content), offsets)) == (GLB, content)


@pytest.mark.parametrize("shape", SHAPES)
def test_chunks_of_one_byte(shape: str) -> None:
    """A body that arrives in chunks of one byte is the same file."""
    content = glb(noise(200))
    assert decode(*(bytes([one]) for one in build_body(shape, content))) == (GLB, content)


@pytest.mark.parametrize("shape", SHAPES)
def test_large_file_in_large_chunks(shape: str) -> None:
    """A large body that arrives in chunks of the size that a transport reads is the same file."""
    content = glb(noise(700_001))
    body = build_body(shape, content)
    assert decode(*(body[at : at + 262_144] for at in range(0, len(body), 262_144))) == (GLB, content)


@pytest.mark.parametrize("shape", SHAPES)
def test_truncated_body_is_rejected(shape: str) -> None:
    """A body truncated anywhere is rejected, unless only white space or padding is missing."""
    content = glb(b"\xff\xfe+/ abc" * 3)
    body = build_body(shape, content)
    for end in range(len(body)):
        found = try_decode(body[:end])
        assert found in {None, (GLB, content)}, (shape, end)
        assert found is None or not body[end:].strip(b" \r\n=")
        if body.lstrip()[:1] in {b"{", b'"'}:
            assert found is None or not body[end:].strip()


@pytest.mark.parametrize("shape", SHAPES)
def test_data_after_the_file_is_rejected(shape: str) -> None:
    """A body with a further byte after the file's end is no file."""
    assert try_decode(build_body(shape, glb(b"abc")) + b"?") is None


@MANY
@given(
    content=CONTENTS,
    shape=st.sampled_from(sorted(SHAPES)),
    corruptions=st.lists(
        st.tuples(
            st.integers(0, 300),
            st.sampled_from([b"", b'"', b"\\", b"=", b"{", b"}", b",", b"\xc3", b"\\ud83d"]),
        ),
        max_size=3,
    ),
    offsets=OFFSETS,
)
@example(content=glb(b""), shape="escaped", corruptions=[(12, b"\\")], offsets=[13])
@example(content=glb(b"ab"), shape="json", corruptions=[(300, b"=")], offsets=[70, 71, 72])
def test_corrupt_body_has_the_same_result_for_any_chunks(
    content: bytes, shape: str, corruptions: list[tuple[int, bytes]], offsets: list[int]
) -> None:
    """The result for a body with a few corrupt bytes does not depend on where it is split."""
    body = build_body(shape, content)
    for offset, wrong in corruptions:
        at = offset % len(body)
        body = body[:at] + wrong + body[at + 1 :]
    assert try_decode(*split_at(body, offsets)) == try_decode(body)


@MANY
@given(
    text=st.text(min_size=1, max_size=60).filter(lambda text: not text.lstrip().lower().startswith("data:")),
    ascii_only=st.booleans(),
    offsets=OFFSETS,
)
@example(text="\U0001f600\U0001f600", ascii_only=True, offsets=list(range(40)))
def test_text_is_the_same_for_any_chunks(text: str, ascii_only: bool, offsets: list[int]) -> None:
    """A text in JSON is decoded to UTF-8 without escapes and surrogates, wherever it is split."""
    body = json.dumps({"data": text}, ensure_ascii=ascii_only).encode()
    assert decode(*split_at(body, offsets), listed="text/markdown") == ("text/markdown", text.encode())


@MANY
@given(
    content=st.binary(min_size=1, max_size=60).filter(lambda content: sniff(content) is None),
    offsets=OFFSETS,
    kind=st.sampled_from(["", "image/x-own", "application/octet-stream"]),
)
def test_content_of_any_type_is_decoded_from_base64(content: bytes, offsets: list[int], kind: str) -> None:
    """A file of any unknown type in a data URI is decoded as by the decoder of complete texts."""
    uri = f"data:{kind or 'text/x-own'};base64,{to_base64(content)}"
    assert (
        decode(*split_at(json.dumps({"data": uri}).encode(), offsets))[1]
        == content
        == decode_data_uri(uri).data
    )


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
        (glb(b"abc") + b"d", "longer than its header says"),
    ],
)
def test_message_about_an_incomplete_file(wrong: bytes, why: str) -> None:
    """The error about an incomplete file has the request, the reason, and the start of the response."""
    with pytest.raises(FlowMalformed, match=why) as caught:
        decode(wrong)
    assert "GET /flows/r/outputs/a" in str(caught.value)
    assert f"{len(wrong)} bytes" in str(caught.value)
    assert len(str(caught.value)) < 1_200


def create_sink(target: MemoryBuffer | None = None) -> DownloadSink:
    """Return a sink to which a response has started."""
    sink = DownloadSink(MemoryBuffer() if target is None else target)
    sink.on_response_start(200, {})
    return sink


def test_glb_longer_than_its_header_says_is_received_completely() -> None:
    """A GLB that is longer than its header says is rejected at its end, with its size and digest."""
    buffer, content = MemoryBuffer(), glb(b"abc") + b"d"
    sink = create_sink(buffer)
    for byte in content:
        sink.feed(bytes([byte]))
    with pytest.raises(UnconfirmedFileError, match="longer than its header says") as caught:
        sink.finish()
    digest = hashlib.sha256(content).hexdigest()
    assert (caught.value.media_type, caught.value.size, caught.value.sha256) == (GLB, len(content), digest)
    assert bytes(buffer.data) == content


def test_second_response_replaces_an_incomplete_one() -> None:
    """Nothing of an incomplete response is in the next one."""
    content, buffer = glb(b"abc"), MemoryBuffer()
    sink = create_sink(buffer)
    sink.feed(build_body("json", content)[:40])
    sink.on_response_start(200, {})
    with pytest.raises(UnknownFileTypeError):
        sink.feed(b"<html>no file</html>")
    sink.on_response_start(200, {})
    assert sink.media_type is None
    sink.feed(build_body("raw", content))
    sink.finish()
    assert (sink.media_type, bytes(buffer.data)) == (GLB, content)


def test_body_that_cannot_be_a_file_is_rejected_before_its_end() -> None:
    """The first chunk that shows that a response is no file is an error."""
    sink = create_sink()
    sink.feed(b'{"data": "data:image/png;base64,')
    with pytest.raises(ValueError, match="broken base64"):
        sink.feed(b"?" * 100)


class FullTarget(MemoryBuffer):
    """A target on which nothing can be written."""

    def write(self, data: bytes) -> None:
        """Fail as a full disk does, with a type that otherwise means a broken response."""
        raise ValueError(28, "No space left on device", len(data))


def test_error_of_the_target_is_no_fault_of_the_response() -> None:
    """What a target raises has a type of its own, from which the transport restores the target's error."""
    sink = create_sink(FullTarget())
    with pytest.raises(WriteFailedError) as caught:
        sink.feed(build_body("json", glb(b"abc")))
    assert isinstance(caught.value.cause, ValueError)
    assert caught.value.cause.args[:2] == (28, "No space left on device")
