"""What the header of a GLB file tells of its model: how many meshes, triangles, materials.

Source: the glTF 2.0 specification, section 4 (https://registry.khronos.org/glTF/specs/2.0/glTF-2.0.html#glb-file-format-specification).
It reads no geometry, and asks nobody for the file.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from airflow_provider_flows.core.bounded_json import parse
from airflow_provider_flows.plugin.schemas import ModelShown, line

LARGEST = 8 * 1024 * 1024  # bytes of the JSON chunk; a model with thousands of parts has less
HEAD = struct.Struct("<4sIIII")  # magic, version, length; then the first chunk's length and type
JSON = 0x4E4F534A
MOST = 10**12  # triangles; what is more is no number of anything
# corners a triangle, by the specification's modes of primitives: a list of triangles, a strip, a fan
TRIANGLES, STRIP, FAN = 4, 5, 6


def needed(begin: bytes) -> int:
    """Give how many bytes from the file's beginning tell of its model.

    :raises ValueError: this is no GLB file of version 2, or one whose header is larger than any.
    """
    if len(begin) < HEAD.size:
        return HEAD.size
    magic, version, _, size, kind = HEAD.unpack_from(begin)
    if (magic, version, kind) != (b"glTF", 2, JSON):
        message = "it does not begin like a GLB file of version 2"
        raise ValueError(message)
    if size > LARGEST:
        message = f"its header has {size} bytes; {LARGEST} are the most that are read"
        raise ValueError(message)
    return HEAD.size + int(size)


def facts(begin: bytes) -> ModelShown:
    """Read the header.

    :param begin: at least as many bytes as `needed` says.
    :raises ValueError: it cannot be read.
    """
    end = needed(begin)
    if len(begin) < end:
        message = f"it ends after {len(begin)} bytes, within its header"
        raise ValueError(message)
    gltf = parse(begin[HEAD.size : end])
    if not isinstance(gltf, Mapping):
        message = "its header holds no JSON object"
        raise ValueError(message)  # noqa: TRY004  # it is the file that is wrong, not the argument
    made_with = _mapping(gltf.get("asset")).get("generator")
    return ModelShown(
        meshes=len(_rows(gltf, "meshes")),
        triangles=_triangles(gltf),
        materials=len(_rows(gltf, "materials")),
        textures=len(_rows(gltf, "textures")),
        animations=len(_rows(gltf, "animations")),
        made_with=line(made_with)[:200] if isinstance(made_with, str) else None,
    )


def _triangles(gltf: Mapping[str, Any]) -> int:
    accessors, total = _rows(gltf, "accessors"), 0
    for mesh in _rows(gltf, "meshes"):
        for primitive in _rows(mesh, "primitives"):
            corners = primitive.get("indices", _mapping(primitive.get("attributes")).get("POSITION"))
            known = type(corners) is int and 0 <= corners < len(accessors)
            count = accessors[corners].get("count") if known else 0
            total += _of_corners(primitive.get("mode", TRIANGLES), count) if type(count) is int else 0
    return min(total, MOST)


def _of_corners(mode: Any, corners: int) -> int:
    if mode == TRIANGLES:
        return max(0, corners // 3)
    return max(0, corners - 2) if mode in {STRIP, FAN} else 0


def _rows(value: Any, name: str) -> list[Mapping[str, Any]]:
    rows = _mapping(value).get(name)
    return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
