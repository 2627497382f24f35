"""Tests of `GlbCheck`: each way in which a model can be broken or unwanted is rejected, and named."""

from __future__ import annotations

import io
import json
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_flows.checks import GlbCheck
from airflow_provider_flows.checks.files import check_outputs
from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.flow_run import FlowOutput, FlowRun, FlowState
from airflow_provider_flows.core.gltf import MAX_PROBLEMS, read_model
from airflow_provider_flows.core.limits import MAX_GLB_HEADER_BYTES
from airflow_provider_flows.storage.output_options import OutputOptions
from tests.support.glb_files import FACES, create_glb, create_model, create_png, pack_glb

Change = Callable[[dict[str, Any]], object]
GLB = "model/gltf-binary"


def check_file(folder: Path, data: bytes, check: Any, media_type: str | None = GLB) -> dict[str, Any]:
    """Check one stored file as a task does, and return the verdict of its output."""
    path = folder / "run" / "model.glb"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    output = FlowOutput("model", media_type=media_type, uri=path.as_uri(), size=len(data))
    run = FlowRun("run", "generio", state=FlowState.COMPLETED, outputs=(output,))
    checked = check_outputs(run, OutputOptions(str(folder), check_outputs=check))
    assert checked.verdict is not None
    verdict = checked.outputs[0].verdict
    assert verdict is not None
    assert checked.verdict["accepted"] is verdict["accepted"]
    assert checked.verdict["problems"] == [f"model {problem}" for problem in verdict["problems"]]
    return dict(verdict)


def change_model(change: Change, **arguments: Any) -> bytes:
    """Return a GLB file whose JSON was changed."""
    gltf, binary = create_model(**arguments)
    change(gltf)
    return pack_glb(gltf, binary)


def set_header(data: bytes, offset: int, value: int) -> bytes:
    """Return a file with another number of four bytes."""
    return data[:offset] + struct.pack("<I", value) + data[offset + 4 :]


VALID = create_glb()
JSON_SIZE = struct.unpack_from("<I", VALID, 12)[0]
BROKEN = {
    "empty": (b"", "is empty"),
    "HTML": (b"<!DOCTYPE html><html></html>", "is no GLB model, but an HTML page"),
    "truncated in its header": (VALID[:11], "is truncated: it has 11 bytes"),
    "truncated in its JSON": (VALID[:100], f"is truncated: it has 100 bytes, {len(VALID)} by its header"),
    "truncated by a byte": (VALID[:-1], f"is truncated: it has {len(VALID) - 1} bytes"),
    "trailing bytes": (VALID + b"\0" * 4, "is longer than its header says"),
    "version 1": (set_header(VALID, 4, 1), "is glTF of version 1, not 2"),
    "JSON chunk beyond the file": (
        set_header(VALID, 12, 2**32 - 4),
        "has a wrong chunk length: 4,294,967,292 bytes of JSON, but only",
    ),
    "JSON chunk not aligned": (set_header(VALID, 12, JSON_SIZE - 1), "which is no multiple of 4"),
    "binary chunk beyond the file": (
        set_header(VALID, 20 + JSON_SIZE, 5000),
        "has a wrong chunk length: its second chunk has 5,000 bytes, but",
    ),
    "first chunk is binary": (set_header(VALID, 16, 0x004E4942), "has a first chunk that is not JSON"),
    "JSON is none": (pack_glb("", b"")[:20] + b"{{{{", "has a JSON chunk that cannot be parsed"),
    "JSON is a list": (pack_glb([], b""), "its header is not a JSON object"),
    "JSON is too deep": (
        pack_glb(json.loads("[" * 900 + "]" * 900), b""),
        "has a JSON chunk that cannot be parsed",
    ),
    "no version": (change_model(lambda gltf: gltf.pop("asset")), "does not state a version 2 of glTF"),
    "buffer beyond its chunk": (
        change_model(lambda gltf: gltf["buffers"][0].update(byteLength=10**6)),
        "has a buffer 0 of 1,000,000 bytes, but only 72 bytes of it",
    ),
    "buffer in another file": (
        change_model(lambda gltf: gltf["buffers"][0].update(uri="model.bin")),
        "has its buffer 0 in another file",
    ),
    "buffer view out of range": (
        change_model(lambda gltf: gltf["bufferViews"][1].update(byteOffset=4096)),
        "has a buffer view 1 that is out of range: it ends at byte 4,120 of buffer 0, which has 72",
    ),
    "buffer view without a buffer": (
        change_model(lambda gltf: gltf["bufferViews"][0].update(buffer=7)),
        "has a buffer view 0 without a buffer",
    ),
    "accessor out of range": (
        change_model(lambda gltf: gltf["accessors"][0].update(count=2**31)),
        "has an accessor 0 that is out of range: it ends at byte 25,769,803,776 of buffer view 0",
    ),
    "accessor of a missing view": (
        change_model(lambda gltf: gltf["accessors"][0].update(bufferView=9)),
        "has an accessor 0 whose buffer view 9 does not exist",
    ),
    "accessor of an unknown type": (
        change_model(lambda gltf: gltf["accessors"][0].update(type="VEC9")),
        "has an accessor 0 without a valid type or count",
    ),
    "no POSITION": (
        change_model(lambda gltf: gltf["meshes"][0]["primitives"][0].update(attributes={"NORMAL": 0})),
        "has no POSITION in primitive 0 of mesh 0",
    ),
    "POSITION without an accessor": (
        change_model(lambda gltf: gltf["meshes"][0]["primitives"][0]["attributes"].update(POSITION=5)),
        "has a POSITION in primitive 0 of mesh 0 whose accessor does not exist",
    ),
    "indices without an accessor": (
        change_model(lambda gltf: gltf["meshes"][0]["primitives"][0].update(indices=-1)),
        "has indices in primitive 0 of mesh 0 whose accessor does not exist",
    ),
    "no mesh": (change_model(lambda gltf: gltf.pop("meshes")), "has no triangles"),
    "texture is no picture": (create_glb(texture=b"not a picture"), "has an image 0 that cannot be read"),
    "texture in another file": (
        change_model(lambda gltf: gltf["images"][0].update(uri="t.png"), texture=create_png(8, 8)),
        "has its image 0 in another file",
    ),
}  # fmt: skip
UNWANTED = {
    "triangles": (VALID, {"max_triangles": 3}, "has 4 triangles, more than max_triangles (3)"),
    "size": (VALID, {"max_bytes": 100}, f"has {len(VALID):,} bytes, more than max_bytes (100)"),
    "no texture": (VALID, {"needs_texture": True}, "has no texture (needs_texture)"),
    "huge texture": (
        create_glb(texture=create_png(60_000, 40_000)),
        {},
        "has a texture of 60,000 x 40,000 pixels, more than max_texture_size (16,384)",
    ),
    "texture above its bound": (
        create_glb(texture=create_png(16, 2049)),
        {"max_texture_size": 2048},
        "has a texture of 16 x 2,049 pixels, more than max_texture_size (2,048)",
    ),
    "unused texture": (
        change_model(
            lambda gltf: gltf["meshes"][0]["primitives"][0].pop("material"), texture=create_png(8, 8)
        ),
        {"needs_texture": True},
        "has no texture (needs_texture)",
    ),
    "a hole": (create_glb(faces=FACES[:3]), {"is_watertight": True}, "is not closed: mesh 0 has holes"),
    "compressed with Draco": (
        change_model(lambda gltf: gltf.update(extensionsUsed=["KHR_draco_mesh_compression"])),
        {"is_watertight": True},
        "is compressed with Draco, so is_watertight cannot be checked",
    ),
    "compressed with meshopt": (
        change_model(
            lambda gltf: gltf.update(
                extensionsUsed=["KHR_meshopt_compression"],
                buffers=[
                    *gltf["buffers"],
                    {"byteLength": 10**6, "extensions": {"KHR_meshopt_compression": {"fallback": True}}},
                ],
            )
        ),
        {"is_watertight": True},
        "is compressed with meshopt, so is_watertight cannot be checked",
    ),
    "index of a vertex that does not exist": (
        create_glb(faces=((0, 1, 999), (0, 1, 2))),
        {"is_watertight": True},
        "has an index of a vertex that does not exist in mesh 0",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_model_is_rejected_and_named(tmp_path: Path, name: str) -> None:
    """Whatever a check demands, a file that is no valid model is rejected, and its first problem says why."""
    data, expected = BROKEN[name]
    verdict = check_file(tmp_path, data, GlbCheck(max_texture_size=None))
    assert verdict["accepted"] is False
    assert expected in " | ".join(verdict["problems"]), verdict


@pytest.mark.parametrize("name", UNWANTED)
def test_unwanted_model_is_rejected_and_named(tmp_path: Path, name: str) -> None:
    """Each argument rejects a valid model beyond its bound."""
    data, arguments, expected = UNWANTED[name]
    verdict = check_file(tmp_path, data, GlbCheck(**arguments))
    assert verdict["accepted"] is False
    (problem,) = verdict["problems"]
    assert expected in problem


@pytest.mark.parametrize("media_type", [GLB, None, "application/octet-stream"])
def test_valid_model_is_accepted_with_its_facts(tmp_path: Path, media_type: str | None) -> None:
    """A closed, textured model within all bounds passes, also if only its content shows what it is."""
    check = GlbCheck(
        max_triangles=4, max_bytes=2000, needs_texture=True, max_texture_size=16, is_watertight=True
    )
    verdict = check_file(tmp_path, create_glb(texture=create_png(16, 8)), check, media_type)
    assert verdict == {
        "accepted": True,
        "problems": [],
        "facts": {"triangles": 4, "textures": 1, "texture_size": 16, "is_watertight": True},
    }


def test_seams_do_not_open_a_model(tmp_path: Path) -> None:
    """A model whose faces have vertices of their own at the same places is closed."""
    corners = [corner for face in FACES for corner in face]
    gltf, _ = create_model()
    positions = b"".join(
        struct.pack("<fff", *((0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))[corner])
        for corner in corners
    )
    gltf["bufferViews"] = [{"buffer": 0, "byteLength": len(positions)}]
    gltf["buffers"] = [{"byteLength": len(positions)}]
    gltf["accessors"] = [{"bufferView": 0, "componentType": 5126, "type": "VEC3", "count": 12}]
    del gltf["meshes"][0]["primitives"][0]["indices"]
    verdict = check_file(tmp_path, pack_glb(gltf, positions), GlbCheck(is_watertight=True))
    assert verdict["accepted"], verdict


@pytest.mark.parametrize(
    "mode",
    [
        pytest.param((5, (0, 1, 2, 3)), id="strip"),
        pytest.param((6, (0, 1, 2, 3)), id="fan"),
    ],
)
def test_strips_and_fans_are_triangles(tmp_path: Path, mode: tuple[int, tuple[int, ...]]) -> None:
    """Other forms of triangles are counted and loaded as such; these are open."""
    number, indices = mode
    gltf, binary = create_model(faces=())
    data = struct.pack("<4H", *indices)
    gltf["bufferViews"][1]["byteLength"] = len(data)
    gltf["accessors"][1]["count"] = len(indices)
    gltf["buffers"][0]["byteLength"] = len(binary) + len(data)
    gltf["meshes"][0]["primitives"][0]["mode"] = number
    verdict = check_file(tmp_path, pack_glb(gltf, binary + data), GlbCheck(is_watertight=True))
    assert verdict["facts"]["triangles"] == 2
    assert "is not closed" in verdict["problems"][0]


def test_another_kind_of_output_does_not_satisfy_the_check(tmp_path: Path) -> None:
    """A run without any model is rejected, because the check has nothing that it accepts."""
    run = FlowRun("run", "generio", state=FlowState.COMPLETED, outputs=(FlowOutput("text", value="a poem"),))
    checked = check_outputs(run, OutputOptions(str(tmp_path), check_outputs=GlbCheck()))
    assert checked.verdict == {"accepted": False, "problems": ["no output is a 3D model (GlbCheck)"]}
    assert checked.outputs[0].verdict is None


HOSTILE = {
    "many broken parts": pack_glb(
        {"asset": {"version": "2.0"}, "bufferViews": [{"buffer": 9}] * 200_000}, b""
    ),
    "many images": pack_glb({"asset": {"version": "2.0"}, "images": [{"bufferView": 0}] * 200_000}, b""),
    "large JSON": pack_glb({"asset": {"version": "2.0"}, "x": "y" * (MAX_GLB_HEADER_BYTES + 1)}, b""),
    "huge counts": change_model(lambda gltf: gltf["accessors"][1].update(count=10**18)),
    "huge stride": change_model(lambda gltf: gltf["bufferViews"][0].update(byteStride=10**15)),
    "zeros without a view": change_model(
        lambda gltf: gltf["accessors"][0].pop("bufferView") and gltf["accessors"][0].update(count=10**9)
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_model_takes_bounded_time_and_memory(tmp_path: Path, name: str) -> None:
    """What a file claims does not determine what its check costs."""
    tracemalloc.start()
    started_at = time.process_time()
    try:
        verdict = check_file(tmp_path, HOSTILE[name], GlbCheck(is_watertight=True))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert verdict["accepted"] is False
    assert len(verdict["problems"]) <= MAX_PROBLEMS
    assert time.process_time() - started_at < 20
    assert peak < 300 * 1024 * 1024


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["asset", "buffers", "bufferViews", "accessors", "meshes", "images", "textures"]),
    JSON_VALUES,
    st.integers(0, 400),
)
def test_any_value_in_a_model_is_read_or_rejected(name: str, value: Any, cut: int) -> None:
    """No JSON value and no end of a file raises an error."""
    gltf, binary = create_model(texture=create_png(4, 4))
    gltf[name] = value
    data = pack_glb(gltf, binary)
    for content in (data, data[: len(data) - cut]):
        file = io.BytesIO(content)

        def read(offset: int, count: int, file: io.BytesIO = file) -> bytes:
            file.seek(offset)
            return file.read(count)

        list(GlbCheck(needs_texture=True).find_problems(read_model(read, len(content))))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"max_triangles": 0}, "max_triangles"),
        ({"max_bytes": "5 MB"}, "max_bytes"),
        ({"max_texture_size": 1.5}, "max_texture_size"),
        ({"needs_texture": "yes"}, "needs_texture"),
        ({"is_watertight": 1}, "is_watertight"),
    ],
)
def test_invalid_argument_is_named(arguments: dict[str, Any], named: str) -> None:
    """A value that makes no sense is rejected when the DAG file is parsed."""
    with pytest.raises(FlowInputError, match=f"GlbCheck: {named} must be"):
        GlbCheck(**arguments)
