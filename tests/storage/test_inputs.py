"""Tests of the forms of `inputs`: what names a file, and how each is sent.

Files are real ones, on disk and in fsspec's memory; nothing is sent.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import ObjectStoragePath
from PIL import Image

from airflow_provider_flows.core.exceptions import FlowInputError, FlowNotFound
from airflow_provider_flows.core.flow_run import FlowInput, FlowOutput
from airflow_provider_flows.core.http import Body, to_body
from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.hooks import GenerioHook, PromptChainerHook
from airflow_provider_flows.storage.inputs import get_file_uris, parse_inputs
from tests.support.object_stores import attach_store
from tests.support.run_requests import start_and_record

HEADS = {
    "image/png": b"\x89PNG\r\n\x1a\n...",
    "image/jpeg": b"\xff\xd8\xff...",
    "image/tiff": b"II*\x00...",
    "image/webp": b"RIFF\x00\x00\x00\x00WEBP",
    "model/gltf-binary": b"glTF\x02\x00\x00\x00\x0c\x00\x00\x00",
}


def serialize_inputs(inputs: Any) -> list[str]:
    """Return what is sent for each input."""
    read = parse_inputs(inputs)
    assert isinstance(read, list)
    body = to_body([item.to_json() for item in read])
    return [item["data"] for item in json.loads(b"".join(body) if isinstance(body, Body) else body)]


def uri(media_type: str, content: bytes) -> str:
    """Write a data URI as documented."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def bitmap() -> bytes:
    """Draw a BMP."""
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(buffer, "BMP")
    return buffer.getvalue()


@pytest.mark.parametrize("text", ["BMW is a car. Make a model of it", "GIF89 was a format. Draw it", "BM"])
def test_text_file_with_the_prefix_of_a_picture_is_a_text(tmp_path: Path, text: str) -> None:
    """A few letters make no picture: a text file that begins with them is a prompt."""
    (tmp_path / "prompt.txt").write_text(text)
    assert serialize_inputs([tmp_path / "prompt.txt"]) == [text]


@pytest.fixture
def memory_store() -> Any:
    """Return fsspec's file system in memory, empty, as one that Airflow knows."""
    return attach_store("memory")


@pytest.mark.parametrize("media_type", HEADS)
def test_media_type_is_detected_by_content(tmp_path: Path, media_type: str) -> None:
    """A file's media type is that of its first bytes, also if its name says another kind of picture."""
    path = tmp_path / ("wrong.gif" if media_type.startswith("image/") else "wrong.bin")
    path.write_bytes(HEADS[media_type])
    assert serialize_inputs(path) == [uri(media_type, HEADS[media_type])]


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("a.pdf", "application/pdf"),
        ("a.STL", "model/stl"),
        ("a.heic", "image/heic"),
    ],
)
def test_media_type_is_detected_by_name_if_not_by_content(tmp_path: Path, name: str, media_type: str) -> None:
    """Unknown first bytes leave it to the name, if that is of a kind whose first bytes are not known."""
    (tmp_path / name).write_bytes(b"\x00\x01")
    assert serialize_inputs(tmp_path / name) == [uri(media_type, b"\x00\x01")]


def test_every_way_to_name_a_file(tmp_path: Path, memory_store: Any) -> None:
    """A pathlib.Path, an ObjectStoragePath and a dict with `uri` name a file."""
    png = HEADS["image/png"]
    path = tmp_path / "a b.png"
    path.write_bytes(png)
    memory_store.pipe("/bucket/chair.png", png)
    ways: list[Any] = [
        path,
        ObjectStoragePath("memory://bucket/chair.png"),
        ObjectStoragePath(f"file://{path}"),
        {"uri": "memory://bucket/chair.png"},
        {"uri": f"file://{path}", "additional": {"n": 1}},
    ]
    assert serialize_inputs(ways) == [uri("image/png", png)] * len(ways)
    assert [serialize_inputs(way) for way in ways] == [[uri("image/png", png)]] * len(ways)


def test_outputs_of_another_run_are_inputs(memory_store: Any) -> None:
    """The dict of an output that was written names its file, and its metadata goes with it."""
    memory_store.pipe("/out/chair.glb", HEADS["model/gltf-binary"])
    output = {
        "name": "chair", "asset_id": "a", "status": "ready", "media_type": "model/gltf-binary",
        "additional": {"n": 1},
        "uri": "memory://out/chair.glb", "size": 7,
        "sha256": hashlib.sha256(HEADS["model/gltf-binary"]).hexdigest(),
    }  # fmt: skip
    assert (
        serialize_inputs([output])
        == serialize_inputs(output)
        == [uri("model/gltf-binary", HEADS["model/gltf-binary"])]
    )
    (read,) = parse_inputs(output)
    assert isinstance(read, FlowInput)
    assert read.additional == {"n": 1}


@pytest.mark.parametrize(
    "variables", [{"color": "red"}, {"data": "x", "color": "y"}, {"uri": "s3://not/a/file", "item": "z"}, {}]
)
def test_other_mapping_has_variables(variables: dict[str, str]) -> None:
    """A mapping that is no input is a mapping of variables, and stays one, also with names such as `data`."""
    assert parse_inputs(variables) == variables


def test_text_file_is_a_prompt(tmp_path: Path) -> None:
    """A text is sent as the bare string that the service takes."""
    (tmp_path / "prompt.txt").write_text("Ein grüner Stuhl", encoding="utf-8")
    assert serialize_inputs(tmp_path / "prompt.txt") == ["Ein grüner Stuhl"]
    (tmp_path / "prompt.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(FlowInputError, match="not UTF-8"):
        parse_inputs(tmp_path / "prompt.txt")


@pytest.mark.parametrize(
    "given",
    [
        "data:image/jpg,base64;/9j_",
        "data:IMAGE/JPG;base64,/9j/",
        " data:image/jpeg;base64,\n/9 j/",
        "data:image/pjpeg;base64,_9j_",
    ],
)
def test_data_uri_is_written_in_the_documented_form(given: str) -> None:
    """However a data URI was written, it goes out as `;base64,`, padded, standard alphabet, image/jpeg."""
    assert serialize_inputs([{"data": given}]) == ["data:image/jpeg;base64,/9j/"]


def test_bitmap_becomes_a_png(tmp_path: Path) -> None:
    """A BMP, which the service does not accept, is converted, as a file and as a data URI."""
    (tmp_path / "a.bmp").write_bytes(bitmap())
    for given in (tmp_path / "a.bmp", {"data": uri("image/bmp", bitmap())}):
        head, _, payload = serialize_inputs([given])[0].partition(",")
        image = Image.open(io.BytesIO(base64.b64decode(payload)))
        assert (head, image.format, image.size, image.getpixel((0, 0))) == (
            "data:image/png;base64",
            "PNG",
            (3, 2),
            (255, 0, 0),
        )


def test_broken_bitmap_is_rejected(tmp_path: Path) -> None:
    """A BMP that cannot be read is an error that names the item."""
    (tmp_path / "a.bmp").write_bytes(bitmap()[:40])
    with pytest.raises(FlowInputError, match=r"inputs\[0\] is a BMP image that cannot be read"):
        parse_inputs(tmp_path / "a.bmp")


def test_error_about_missing_pillow_names_the_package(tmp_path: Path) -> None:
    """Without Pillow, a BMP is an error that names the extra to install, and other files are accepted."""
    (tmp_path / "a.bmp").write_bytes(bitmap())
    (tmp_path / "a.png").write_bytes(HEADS["image/png"])
    script = (
        "import sys; sys.modules['PIL'] = None\n"
        "from pathlib import Path\n"
        "from airflow_provider_flows.storage.inputs import parse_inputs\n"
        "from airflow_provider_flows.core.exceptions import FlowInputError\n"
        f"assert parse_inputs(Path({str(tmp_path / 'a.png')!r}))\n"
        f"try: parse_inputs(Path({str(tmp_path / 'a.bmp')!r}))\n"
        "except FlowInputError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    assert "install Pillow (pip install pillow)" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("item", "data"),
    [
        (5, "must be a prompt.*not int"),
        (b"bytes", "not bytes"),
        (None, "not NoneType"),
        (["nested"], "not list"),
        ("", "is blank"),
        (" \n", "is blank"),
        ({"data": ""}, "is blank"),
        ({"data": 5}, r"\['data'\] must be a string, not int"),
        ({"uri": 5}, r"\['uri'\] must be a string, not int"),
        ({"data": "x", "uri": "s3://x/y"}, "exactly one of 'data' and 'uri'"),
        ({"additional": 1}, r"not a dict with \['additional'\]"),
        ({"data": "x", "additional": {1, 2}}, "cannot be sent as JSON"),
        ({"data": "x", "additional": float("nan")}, "cannot be sent as JSON"),
        ({"uri": "file:///no/such/file.png"}, "cannot be read.*/no/such/file.png"),
        ({"uri": "nosuchstore://bucket/file.png"}, "cannot be read"),
        (Path("/no/such/file.png"), "cannot be read"),
    ],
)  # fmt: skip
def test_invalid_item_is_named(item: Any, data: str) -> None:
    """An item that cannot be sent is an error with its index, the problem and the accepted forms."""
    with pytest.raises(FlowInputError, match=rf"(?s)inputs\[1\].*{data}|inputs\[1\]{data}"):
        parse_inputs(["a chair", item])


def test_empty_unknown_and_folder_are_rejected(tmp_path: Path) -> None:
    """An empty file, a file of an unknown type and a folder are rejected by name."""
    (tmp_path / "empty.png").touch()
    (tmp_path / "unknown").write_bytes(b"\x00\x01")
    for name, data in (("empty.png", "empty file"), ("unknown", "usual name"), ("", "cannot be read")):
        with pytest.raises(FlowInputError, match=data):
            parse_inputs([tmp_path / name])


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("parameters", {"when": object()}),
        ("additional", float("inf")),
        ("parameters", [1]),
        ("flow", ""),
        ("flow", None),
    ],
)
def test_argument_that_cannot_be_sent_is_named_before_anything_is_sent(
    flow_emulator: Emulator, argument: str, value: Any
) -> None:
    """A value that JSON cannot represent is an error that names the argument, and no run is created."""
    known: dict[str, Any] = {"flow": "model_generate_fromprompt", "inputs": "a chair", argument: value}
    with pytest.raises(FlowInputError, match=f"(^|: ){argument} "):
        GenerioHook("generio_default").start(**known)
    assert {request.method for request in flow_emulator.requests} <= {"GET"}  # for what else may be wrong


def test_flow_without_inputs_is_rejected_before_anything_is_sent(flow_emulator: Emulator) -> None:
    """A Generio run without inputs, or with variables, is rejected, because it would never start."""
    hook = GenerioHook("generio_default")
    for inputs, data in (
        (None, "at least one"),
        ([], "at least one"),
        ({"color": "red"}, "for PromptChainer"),
    ):
        with pytest.raises(FlowInputError, match=data):
            hook.start("model_generate_fromprompt", inputs, validate=False)
        with pytest.raises(FlowInputError, match=data):
            start_and_record(
                hook, request=hook.build_request("model_generate_fromprompt", inputs, None, None)
            )
    assert flow_emulator.requests == ()


def test_content_of_inputs_is_in_no_repr(tmp_path: Path) -> None:
    """An input's content does not reach a log by way of its repr."""
    (tmp_path / "a.png").write_bytes(HEADS["image/png"] + b"secret")
    assert "secret" not in repr(parse_inputs(["secret chair", tmp_path / "a.png"]))


# variables whose names are those of the keys of an input, an output or a task's result
VARIABLES: dict[str, dict[str, Any]] = {
    "data": {"data": "red"},
    "uri": {"uri": "s3://no-file/x.png"},
    "data and additional": {"data": "red", "additional": "ball"},
    "data and uri": {"data": "red", "uri": "x"},
    "name": {"name": "Ada"},
    "an input": {"data": "red", "name": "Ada", "media_type": "x", "size": 1, "sha256": "y", "status": "z"},
    "an output": {"name": "n", "asset_id": "7", "status": "ready", "media_type": "text/plain", "value": "v"},
    "a result": {"flow_run_id": "7", "outputs": "none"},
    "an operator's arguments": {"flow": "f", "inputs": "i", "parameters": "p"},
    "a dict's methods": {"keys": "k", "items": "i", "get": "g"},
    "a number's name": {"0": "zero"},
}


@pytest.mark.parametrize("name", VARIABLES)
def test_mapping_is_a_mapping_for_a_service_with_variables(
    chain_hook: PromptChainerHook, emulator: Emulator, name: str
) -> None:
    """Variables of PromptChainer have any name: the mapping is sent as it is, and names no file."""
    with pytest.raises(FlowNotFound):  # after the request
        chain_hook.start("unknown", VARIABLES[name], validate=False)
    (request,) = [one for one in emulator.requests if one.method == "POST"]
    assert json.loads(request.body)["variables"] == {
        key: str(value) for key, value in VARIABLES[name].items()
    }
    assert get_file_uris(VARIABLES[name], has_variables=True) == []


def test_result_of_a_task_is_no_mapping_of_variables(chain_hook: PromptChainerHook) -> None:
    """All outputs of a task, whose names are unknown, are no variables; the error shows the form."""
    result = {"flow_run_id": "7", "state": "completed", "outputs": [FlowOutput("x", value="y").to_dict()]}
    with pytest.raises(FlowInputError, match="must be a mapping of variable names to values"):
        chain_hook.start("unknown", result, validate=False)


MARKED = b"\xef\xbb\xbfA chair"


def test_byte_order_mark_is_not_part_of_a_text(tmp_path: Path) -> None:
    """The mark at the start of a text file or a data URI is dropped; the file's digest includes it."""
    path = tmp_path / "a.txt"
    path.write_bytes(MARKED)
    output = FlowOutput("x", "a1", media_type="text/plain", status="ready", uri=path.as_uri())
    digest = hashlib.sha256(MARKED).hexdigest()
    encoded = base64.b64encode(MARKED).decode()
    inputs = [
        path,
        {"uri": path.as_uri()},
        replace(output, sha256=digest).to_dict(),
        {"data": f"data:text/plain;base64,{encoded}"},
    ]
    assert [item.data for item in parse_inputs(inputs)] == ["A chair"] * 4
    assert parse_inputs({"color": {"uri": path.as_uri()}}) == {"color": "A chair"}
    assert parse_inputs({"color": inputs[2]}) == {"color": "A chair"}
    with pytest.raises(FlowInputError, match="changed since its task wrote it"):
        parse_inputs({"color": replace(output, sha256="0" * 64).to_dict()})
