"""Tests of the facts in the header of a GLB file."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from airflow_provider_flows.core.gltf import JSON_CHUNK_TYPE, MAX_TRIANGLES
from airflow_provider_flows.core.limits import MAX_GLB_HEADER_BYTES
from airflow_provider_flows.plugin.output_files import parse_glb_header


def glb_file(gltf: Any, *, size: int | None = None) -> bytes:
    """Return the first bytes of a GLB file."""
    header = gltf if isinstance(gltf, bytes) else json.dumps(gltf).encode()
    chunk_size = len(header) if size is None else size
    return struct.pack("<4sIIII", b"glTF", 2, 1000, chunk_size, JSON_CHUNK_TYPE) + header


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


NAMES = (
    *("asset", "generator", "meshes", "primitives", "mode", "indices", "attributes", "POSITION"),
    *("accessors", "count", "materials", "textures", "animations"),
)
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(4)
    | st.just(10**400)
    | st.floats()
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
    max_leaves=20,
)
# the right structure, with a value of any type in any place of it
PRIMITIVES = st.fixed_dictionaries(
    {"attributes": st.fixed_dictionaries({"POSITION": st.just(0) | JSON_VALUES}) | JSON_VALUES},
    optional={"mode": st.sampled_from([4, 5, 6]) | JSON_VALUES, "indices": st.just(0) | JSON_VALUES},
)
MODELS = st.fixed_dictionaries(
    {
        "accessors": st.lists(
            st.fixed_dictionaries({"count": st.just(9) | JSON_VALUES}), min_size=1, max_size=2
        ),
        "meshes": st.lists(
            st.fixed_dictionaries({"primitives": st.lists(PRIMITIVES) | JSON_VALUES}), max_size=2
        ),
    },
    optional=dict.fromkeys(("asset", "materials", "textures", "animations"), JSON_VALUES),
)


@given(st.one_of(MODELS, JSON_VALUES, st.dictionaries(st.sampled_from(NAMES), JSON_VALUES)))
@settings(max_examples=500, deadline=None)
@example({"meshes": [{"primitives": [{"mode": [], "indices": 0}]}], "accessors": [{"count": 3}]})
@example({"meshes": [{"primitives": [{"mode": {}, "indices": 0}]}], "accessors": [{"count": 3}]})
def test_any_value_in_a_header_gives_facts_or_is_rejected(gltf: Any) -> None:
    """A header of any JSON raises ValueError at most, and its facts can be sent as JSON."""
    try:
        model = parse_glb_header(glb_file(gltf))
    except ValueError:
        assert not isinstance(gltf, dict) or "Infinity" in json.dumps(gltf) or "NaN" in json.dumps(gltf)
        return
    assert 0 <= model.triangles <= MAX_TRIANGLES
    assert json.loads(model.model_dump_json())["meshes"] >= 0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"glTF",
        b"\x89PNG" + b"\0" * 40,
        glb_file({})[:-1],
        glb_file(b"[1]"),
        glb_file(b"{"),
        glb_file({}, size=MAX_GLB_HEADER_BYTES + 1),
    ],
)
def test_a_file_that_is_not_a_model_is_rejected(data: bytes) -> None:
    """Another type, a truncated file and a header above the maximum raise ValueError, and nothing else."""
    with pytest.raises(ValueError):  # noqa: PT011  # the messages differ
        parse_glb_header(data)
