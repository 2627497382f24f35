"""What the header of a GLB file tells of its model: how many meshes, triangles, materials.

Source: the glTF 2.0 specification, section 4 (https://registry.khronos.org/glTF/specs/2.0/glTF-2.0.html#glb-file-format-specification).
It reads no geometry, and asks nobody for the file.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from airflow_provider_flows.core.responses import parse_bounded_json
from airflow_provider_flows.plugin.schemas import ModelSchema, to_safe_line

MAX_JSON_CHUNK_BYTES = 8 * 1024 * 1024  # bytes of the JSON chunk; a model with thousands of parts has less
GLB_PREAMBLE = struct.Struct("<4sIIII")  # magic, version, length; then the first chunk's length and type
JSON_CHUNK_TYPE = 0x4E4F534A
MAX_TRIANGLES = 10**12  # triangles; what is more is no number of anything
# corners a triangle, by the specification's modes of primitives: a list of triangles, a strip, a fan
TRIANGLE_LIST, TRIANGLE_STRIP, TRIANGLE_FAN = 4, 5, 6


def get_header_size(head: bytes) -> int:
    """Give how many bytes from the file's beginning tell of its model.

    :raises ValueError: this is no GLB file of version 2, or one whose header is larger than any.
    """
    if len(head) < GLB_PREAMBLE.size:
        return GLB_PREAMBLE.size
    magic, version, _, size, kind = GLB_PREAMBLE.unpack_from(head)
    if (magic, version, kind) != (b"glTF", 2, JSON_CHUNK_TYPE):
        message = "it does not begin like a GLB file of version 2"
        raise ValueError(message)
    if size > MAX_JSON_CHUNK_BYTES:
        message = f"its header has {size} bytes; {MAX_JSON_CHUNK_BYTES} are the most that are read"
        raise ValueError(message)
    return GLB_PREAMBLE.size + int(size)


def parse_header(head: bytes) -> ModelSchema:
    """Read the header.

    :param head: at least as many bytes as `get_header_size` says.
    :raises ValueError: it cannot be read.
    """
    end = get_header_size(head)
    if len(head) < end:
        message = f"it ends after {len(head)} bytes, within its header"
        raise ValueError(message)
    gltf = parse_bounded_json(head[GLB_PREAMBLE.size : end])
    if not isinstance(gltf, Mapping):
        message = "its header holds no JSON object"
        raise ValueError(message)  # noqa: TRY004  # it is the file that is wrong, not the argument
    generator = _as_mapping(gltf.get("asset")).get("generator")
    return ModelSchema(
        meshes=len(_get_mappings(gltf, "meshes")),
        triangles=_count_triangles(gltf),
        materials=len(_get_mappings(gltf, "materials")),
        textures=len(_get_mappings(gltf, "textures")),
        animations=len(_get_mappings(gltf, "animations")),
        generator=to_safe_line(generator)[:200] if isinstance(generator, str) else None,
    )


def _count_triangles(gltf: Mapping[str, Any]) -> int:
    accessors, total = _get_mappings(gltf, "accessors"), 0
    for mesh in _get_mappings(gltf, "meshes"):
        for primitive in _get_mappings(mesh, "primitives"):
            corners = primitive.get("indices", _as_mapping(primitive.get("attributes")).get("POSITION"))
            is_valid = type(corners) is int and 0 <= corners < len(accessors)
            count = accessors[corners].get("count") if is_valid else 0
            total += (
                _count_primitive_triangles(primitive.get("mode", TRIANGLE_LIST), count)
                if type(count) is int
                else 0
            )
    return min(total, MAX_TRIANGLES)


def _count_primitive_triangles(mode: Any, corners: int) -> int:
    if mode == TRIANGLE_LIST:
        return max(0, corners // 3)
    return max(0, corners - 2) if mode in {TRIANGLE_STRIP, TRIANGLE_FAN} else 0


def _get_mappings(value: Any, name: str) -> list[Mapping[str, Any]]:
    rows = _as_mapping(value).get(name)
    return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []


def _as_mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
