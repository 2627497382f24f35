"""Tests of the facts in the header of a GLB file."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest

from airflow_provider_flows.plugin import output_files
from airflow_provider_flows.plugin.output_files import parse_glb_header


def glb_file(gltf: Any, *, size: int | None = None) -> bytes:
    """Return the first bytes of a GLB file."""
    header = gltf if isinstance(gltf, bytes) else json.dumps(gltf).encode()
    chunk_size = len(header) if size is None else size
    return struct.pack("<4sIIII", b"glTF", 2, 1000, chunk_size, output_files.JSON_CHUNK_TYPE) + header


def test_the_header_of_a_model_has_its_facts() -> None:
    """Triangles are counted in lists, strips and fans, with and without indices."""
    accessors = [{"count": 12}, {"count": 30}]
    primitives = [
        {"attributes": {"POSITION": 0}, "indices": 1},  # 10
        {"attributes": {"POSITION": 0}},  # 4
        {"attributes": {"POSITION": 0}, "mode": 5},  # 10
        {"attributes": {"POSITION": 0}, "mode": 6},  # 10
        {"attributes": {"POSITION": 0}, "mode": 1},  # lines
    ]
    gltf = {
        "asset": {"generator": "a\ntool"},
        "accessors": accessors,
        "meshes": [{"primitives": primitives}],
        "materials": [{}, {}],
    }
    model = parse_glb_header(glb_file(gltf))
    assert (model.meshes, model.triangles, model.materials, model.textures) == (1, 34, 2, 0)
    assert model.generator == "a\N{REPLACEMENT CHARACTER}tool"


@pytest.mark.parametrize(
    "gltf",
    [
        {"meshes": 7, "accessors": {"count": 3}, "asset": []},
        {
            "meshes": [
                {"primitives": [{"indices": True}, {"indices": -1}, {"indices": 9}, {"attributes": 4}, 5]},
                None,
            ]
        },
        {"meshes": [{"primitives": [{"indices": 0, "mode": []}]}], "accessors": [{"count": "many"}]},
    ],
)
def test_values_of_wrong_types_in_a_header_are_ignored(gltf: Any) -> None:
    """A value that is not a number or a list counts as zero."""
    assert parse_glb_header(glb_file(gltf)).triangles == 0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"glTF",
        b"\x89PNG" + b"\0" * 40,
        glb_file({})[:-1],
        glb_file(b"[1]"),
        glb_file(b"{"),
        glb_file({}, size=output_files.MAX_GLB_HEADER_BYTES + 1),
    ],
)
def test_a_file_that_is_not_a_model_is_rejected(data: bytes) -> None:
    """Another type, a truncated file and a header above the maximum raise ValueError, and nothing else."""
    with pytest.raises(ValueError):  # noqa: PT011  # the messages differ
        parse_glb_header(data)
