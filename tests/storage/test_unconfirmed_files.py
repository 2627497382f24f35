"""Tests of files that contradict their header or their type, or that come without a length.

Every kind arrives twice the same, different each time, and truncated, over a socket.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from threading import Lock

import pytest
from airflow.sdk import ObjectStoragePath

from airflow_provider_flows.core.exceptions import FlowMalformed, FlowUnreachable
from airflow_provider_flows.core.flow_run import FlowOutput, FlowRun
from airflow_provider_flows.core.payload.data_uri import GLB, Content
from airflow_provider_flows.storage.output_options import OutputOptions
from airflow_provider_flows.storage.outputs import fetch_outputs
from tests.support.downloads import FileRecords, hook_to, list_files
from tests.support.servers import HttpHandler, HttpServer

pytestmark = pytest.mark.usefixtures("no_proxy")

OCTETS = "application/octet-stream"
ZIP = "application/zip"
OBJ = b"o chair\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n# "
NO_LENGTH = "came without a length"
DECLARED_PNG = "declared as image/png and does not start like one"
DECLARED_GLB = f"declared as {GLB} and does not start like one"


def glb(content: bytes, surplus: int = 0) -> bytes:
    """Return a GLB that has more bytes than its header says, or less."""
    return b"glTF\x02\x00\x00\x00" + (12 + len(content) - surplus).to_bytes(4, "little") + content


def webp(content: bytes, surplus: int = 0) -> bytes:
    """Return a WebP file that has more bytes than its header says, or less."""
    return b"RIFF" + struct.pack("<I", 4 + len(content) - surplus) + b"WEBP" + content


def png(content: bytes, end: bytes = b"\x00\x00\x00\x00IEND\xaeB`\x82") -> bytes:
    """Return bytes that start and end like a PNG."""
    return b"\x89PNG\r\n\x1a\n" + content + end


def zip_of(content: bytes) -> bytes:
    """Return a ZIP file."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("chair.obj"), content)
    return buffer.getvalue()


def in_json(content: bytes, media_type: str) -> bytes:
    """Return the documented response with a file."""
    return b'{"data": "data:%s;base64,%s"}' % (media_type.encode(), base64.b64encode(content))


@dataclass(frozen=True)
class Kind:
    """A kind of file, and how it is stored.

    :param content: the file, of which there are as many variants as there are texts.
    :param to_body: the response that has it; as it is by default.
    :param listed: its media type in the list of outputs.
    """

    content: Callable[[bytes], bytes]
    stored_type: str
    suffix: str
    problem: str
    to_body: Callable[[bytes], bytes] = bytes
    listed: str | None = GLB


CONTRADICTORY = {
    "glb-longer": Kind(lambda n: glb(n, 1), GLB, ".glb", "longer than its header says"),
    "glb-cut": Kind(lambda n: glb(n, -1), GLB, ".glb", "cut short"),
    "glb-zero": Kind(lambda n: glb(n, 12 + len(n)), GLB, ".glb", "longer than its header says"),
    "glb-header-only": Kind(lambda n: b"glTF" + n[:7], GLB, ".glb", "cut short"),
    "glb-json": Kind(lambda n: glb(n, 1), GLB, ".glb", "longer than", lambda c: in_json(c, GLB)),
    "glb-bare": Kind(
        lambda n: glb(n, 1), GLB, ".glb", "longer than", lambda c: b'{"data": "%s"}' % base64.b64encode(c)
    ),
    "glb-uri": Kind(lambda n: glb(n, 1), GLB, ".glb", "longer", lambda c: in_json(c, GLB)[10:-2]),
    "webp-longer": Kind(lambda n: webp(n, 2), "image/webp", ".webp", "longer than", listed=None),
    "webp-cut": Kind(lambda n: webp(n, -2), "image/webp", ".webp", "cut short", listed=None),
    "png-as-glb": Kind(png, "image/png", ".png", DECLARED_GLB, lambda c: in_json(c, GLB)),
    "png-listed-as-glb": Kind(png, "image/png", ".png", DECLARED_GLB),
    "noise-as-png": Kind(
        lambda n: b"\x00\x01" + n, OCTETS, ".bin", DECLARED_PNG, lambda c: in_json(c, "image/png"), None
    ),
    "text-as-glb": Kind(lambda n: b"<html>" + n, OCTETS, ".bin", DECLARED_GLB, lambda c: in_json(c, GLB)),
    "own-type-as-glb": Kind(
        lambda n: b"\x00" + n, "model/x-own", ".bin", DECLARED_GLB, lambda c: in_json(c, "model/x-own")
    ),
    "zip-as-glb": Kind(zip_of, OCTETS, ".bin", DECLARED_GLB),
    "bare-zip-as-glb": Kind(
        zip_of, OCTETS, ".bin", DECLARED_GLB, lambda c: b'{"data": "%s"}' % base64.b64encode(c)
    ),
    "unlisted-zip": Kind(zip_of, OCTETS, ".bin", "its type is unknown", listed=None),
    "untyped-uri": Kind(zip_of, OCTETS, ".bin", "type is unknown", lambda c: in_json(c, ""), None),
    "text-as-obj": Kind(lambda n: OBJ + n, "model/obj", ".obj", "text of a message", listed="model/obj"),
}  # fmt: skip
WITHOUT_LENGTH = {
    "png-without-end": Kind(lambda n: png(n, b""), "image/png", ".png", NO_LENGTH, listed=None),
    "png-with-more": Kind(lambda n: png(n) + n, "image/png", ".png", NO_LENGTH, listed=None),
    "jpeg-without-end": Kind(lambda n: b"\xff\xd8\xff" + n, "image/jpeg", ".jpg", NO_LENGTH, listed=None),
    "gif": Kind(lambda n: b"GIF89a" + n, "image/gif", ".gif", NO_LENGTH, listed=None),
    "zip": Kind(zip_of, "application/zip", ".zip", NO_LENGTH, listed="application/zip"),
    "text": Kind(lambda n: n + b"\xff", "text/plain", ".txt", NO_LENGTH, listed="text/plain"),
}
# complete, and not contradicted: stored at the first arrival
UNDISPUTED = {
    "glb": Kind(glb, GLB, ".glb", ""),
    "png-with-more": replace(WITHOUT_LENGTH["png-with-more"], problem=""),
    "png-without-end": replace(WITHOUT_LENGTH["png-without-end"], problem=""),
    "gif": replace(WITHOUT_LENGTH["gif"], problem=""),
    "zip": replace(WITHOUT_LENGTH["zip"], problem=""),
    "bare-zip": Kind(
        zip_of, ZIP, ".zip", "", lambda c: b'{"data": "%s"}' % base64.b64encode(c), ZIP
    ),
    "text-not-in-utf-8": replace(WITHOUT_LENGTH["text"], problem=""),
}  # fmt: skip
# no file: what a service or a gateway sends in place of one, and what cannot be decoded
NO_FILE = {
    "page": b"<!DOCTYPE html><title>try later</title>" + bytes(3),
    "message": b"The file is not ready, try again later",
    "json-message": b'{"data": "The file is not ready"}',
    "bare-message": b'{"data": "FILE_IS_NOT_READY_YET__"}',
    "refusal": b'{"success": false, "data": "data:model/gltf-binary;base64,Z2xURg=="}',
    "empty": b"",
    "empty-uri": b'{"data": "data:model/gltf-binary;base64,"}',
    "wrong-base64": b'{"data": "data:model/gltf-binary;base64,!!!!"}',
    "open-json": b'{"data": "data:model/gltf-binary;base64,Z2xURg=="',
}
FRAMINGS = ("length", "chunked", "close")


def frame(body: bytes, framing: str, *, is_truncated: bool = False) -> bytes:
    """Return the bytes of a response; a truncated one lacks its last third."""
    sent = body[: len(body) * 2 // 3] if is_truncated else body
    head, end = b"HTTP/1.1 200 OK\r\nConnection: close\r\n", b""
    if framing == "length":
        head += f"Content-Length: {len(body)}\r\n".encode()
    if framing == "chunked":
        head += b"Transfer-Encoding: chunked\r\n"
        sent = b"%x\r\n%s\r\n" % (len(sent), sent) if sent else b""
        end = b"" if is_truncated else b"0\r\n\r\n"
    return head + b"\r\n" + sent + end


class SequenceServer(HttpServer):
    """A server of outputs, with a sequence of responses for each; the last one is repeated."""

    def __init__(self, responses: Mapping[str, list[bytes]]) -> None:
        super().__init__(_SequenceHandler)
        self.calls: Counter[str] = Counter()
        self._responses = responses
        self._lock = Lock()

    def next_response(self, path: str) -> bytes:
        """Return the next response for an output."""
        name = path.rpartition("/")[2]
        with self._lock:
            number = self.calls[name]
            self.calls[name] += 1
        return self._responses[name][min(number, len(self._responses[name]) - 1)]


class _SequenceHandler(HttpHandler):
    server: SequenceServer

    def respond(self) -> None:
        self.wfile.write(self.server.next_response(self.path))
        self.close_connection = True


def variants(number: int) -> list[bytes]:
    """Return texts that all have the same length."""
    return [b"variant %d " % index * 20 for index in range(number)]


def run_with(kinds: Mapping[str, Kind]) -> FlowRun:
    """Return a run with an output of each kind."""
    outputs = (FlowOutput(name, asset_id=name, media_type=kind.listed) for name, kind in kinds.items())
    return FlowRun("r", "generio", outputs=tuple(outputs))


def kinds_for(framing: str) -> dict[str, Kind]:
    """Return the kinds that are not accepted at once in a framing."""
    return CONTRADICTORY | (WITHOUT_LENGTH if framing == "close" else {})


@pytest.mark.parametrize("framing", FRAMINGS)
def test_file_that_arrives_twice_is_stored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, framing: str
) -> None:
    """The second identical arrival is stored under a type that fits, with a field and one log line."""
    kinds, (text,) = kinds_for(framing), variants(1)
    responses = {name: [frame(kind.to_body(kind.content(text)), framing)] for name, kind in kinds.items()}
    options, records = OutputOptions(str(tmp_path)), FileRecords()
    with SequenceServer(responses) as server, caplog.at_level(logging.WARNING):
        hook = hook_to(server.url, retries=0)
        run, error = fetch_outputs(hook, run_with(kinds), options, records)
        assert error is None
        assert server.calls == dict.fromkeys(kinds, 2)
        warnings = [record.getMessage() for record in caplog.records]
        again, _ = fetch_outputs(hook, run_with(kinds), options, records)
        assert server.calls == dict.fromkeys(kinds, 2)
    assert again.to_dict() == run.to_dict()
    for output, (name, kind) in zip(run.to_dict()["outputs"], kinds.items(), strict=True):
        content = kind.content(text)
        assert (output["status"], output["media_type"]) == ("ready", kind.stored_type), name
        assert output["uri"] == f"file://{tmp_path}/r/{name}{kind.suffix}"
        assert ObjectStoragePath(output["uri"]).read_bytes() == content
        assert (output["size"], output["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
        assert kind.problem in output["warning"], name
        assert sum(f"Output {name} " in warning for warning in warnings) == 1
    assert len(warnings) == len(kinds)


@pytest.mark.parametrize("framing", FRAMINGS)
def test_file_that_differs_each_time_is_an_error(tmp_path: Path, framing: str) -> None:
    """Three arrivals that all differ are an error, and leave no file."""
    kinds, texts = kinds_for(framing), variants(3)
    responses = {
        name: [frame(kind.to_body(kind.content(text)), framing) for text in texts]
        for name, kind in kinds.items()
    }
    kinds.pop("glb-header-only")  # has no room for a difference
    with SequenceServer(responses) as server:
        run, error = fetch_outputs(
            hook_to(server.url, retries=0), run_with(kinds), OutputOptions(str(tmp_path))
        )
    assert isinstance(error, FlowMalformed)
    assert server.calls == dict.fromkeys(kinds, 3)
    assert {(output.status, output.uri, output.warning) for output in run.outputs} == {("error", None, None)}
    assert list_files(tmp_path) == []


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_truncated_transfer_is_an_error_also_if_it_repeats(tmp_path: Path, framing: str) -> None:
    """What the transport cuts is never stored, although the same bytes arrive each time."""
    kinds, (text,) = kinds_for(framing), variants(1)
    responses = {
        name: [frame(kind.to_body(kind.content(text)), framing, is_truncated=True)]
        for name, kind in kinds.items()
    }
    with SequenceServer(responses) as server:
        run, error = fetch_outputs(
            hook_to(server.url, retries=1), run_with(kinds), OutputOptions(str(tmp_path))
        )
    assert isinstance(error, FlowMalformed | FlowUnreachable)
    assert {(output.status, output.uri) for output in run.outputs} == {("error", None)}
    assert list_files(tmp_path) == []


@pytest.mark.parametrize("order", ["ABA", "A-A", "AB*"])
def test_two_of_three_arrivals_decide(tmp_path: Path, order: str) -> None:
    """The identical arrivals need not be consecutive; a confirmed file is stored without a warning."""
    bodies = {
        "A": glb(b"first", 1),
        "B": glb(b"other", 1),
        "-": b"<html>try later</html>",
        "*": glb(b"good"),
    }
    with SequenceServer({"chair": [frame(bodies[name], "length") for name in order]}) as server:
        run, error = fetch_outputs(
            hook_to(server.url, retries=0),
            run_with({"chair": CONTRADICTORY["glb-longer"]}),
            OutputOptions(str(tmp_path)),
        )
        assert server.calls == {"chair": 3}
    assert error is None
    assert (tmp_path / "r/chair.glb").read_bytes() == bodies[order[-1]]
    assert bool(run.outputs[0].warning) == (order[-1] == "A")


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_undisputed_file_is_stored_at_its_first_arrival(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, framing: str
) -> None:
    """A complete file that contradicts nothing is downloaded once, and has no warning."""
    (text,) = variants(1)
    responses = {
        name: [frame(kind.to_body(kind.content(text)), framing)] for name, kind in UNDISPUTED.items()
    }
    with SequenceServer(responses) as server, caplog.at_level(logging.WARNING):
        run, error = fetch_outputs(
            hook_to(server.url, retries=0), run_with(UNDISPUTED), OutputOptions(str(tmp_path))
        )
        assert server.calls == dict.fromkeys(UNDISPUTED, 1)
    assert (error, caplog.records) == (None, [])
    for output, (name, kind) in zip(run.to_dict()["outputs"], UNDISPUTED.items(), strict=True):
        assert "warning" not in output
        assert (output["media_type"], output["uri"][-4:]) == (kind.stored_type, kind.suffix)
        assert (tmp_path / f"r/{name}{kind.suffix}").read_bytes() == kind.content(text)


@pytest.mark.parametrize("framing", FRAMINGS)
def test_response_without_a_file_is_an_error_also_if_it_repeats(tmp_path: Path, framing: str) -> None:
    """A page, a message, a refusal, an empty file and what cannot be decoded are never stored."""
    responses = {name: [frame(body, framing)] for name, body in NO_FILE.items()}
    kinds = dict.fromkeys(NO_FILE, CONTRADICTORY["glb-longer"])
    with SequenceServer(responses) as server:
        run, error = fetch_outputs(
            hook_to(server.url, retries=0), run_with(kinds), OutputOptions(str(tmp_path))
        )
        assert server.calls == dict.fromkeys(NO_FILE, 3)
    assert isinstance(error, FlowMalformed)
    assert {(output.status, output.uri) for output in run.outputs} == {("error", None)}
    assert list_files(tmp_path) == []


def test_download_into_memory_accepts_a_repeated_file(caplog: pytest.LogCaptureFixture) -> None:
    """`download_output` returns a file that arrives twice the same, and logs one warning."""
    content = glb(b"model", 1)
    with SequenceServer({"chair": [frame(content, "length")]}) as server, caplog.at_level(logging.WARNING):
        given = hook_to(server.url, retries=0).download_output("r", "chair")
        assert server.calls == {"chair": 2}
    assert given == Content(content, GLB)
    (record,) = caplog.records
    assert "longer than its header says" in record.getMessage()


def test_linked_picture_that_contradicts_its_header_is_stored(tmp_path: Path) -> None:
    """A picture at a link is stored with a warning as well, once it has arrived twice."""
    content = webp(b"picture", 2)
    with SequenceServer({"made": [frame(content, "length")]}) as server:
        output = FlowOutput("made", value=f"{server.url}/made", is_url=True)
        run = FlowRun("r", "promptchainer", outputs=(output,))
        run, error = fetch_outputs(hook_to(server.url, retries=0), run, OutputOptions(str(tmp_path)))
        assert server.calls == {"made": 2}
    assert error is None
    assert (tmp_path / "r/made.webp").read_bytes() == content
    assert "longer than its header says" in json.dumps(run.to_dict()["outputs"][0]["warning"])
