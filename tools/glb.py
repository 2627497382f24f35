"""Checks that a GLB file, the binary form of a glTF 3D model, is complete, and counts its triangles.

Only the header and the JSON chunk are read.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

_HEADER = struct.Struct("<4sII")
_CHUNK = struct.Struct("<I4s")
_TRIANGLES_MODE = 4


class BrokenModelError(ValueError):
    """A file is not a complete GLB model."""


def count_triangles(path: Path) -> int:
    """Check that a file is a complete GLB model, and return its number of triangles.

    :raises BrokenModelError: it is not.
    """
    data = path.read_bytes()
    if len(data) < _HEADER.size + _CHUNK.size:
        raise BrokenModelError(f"{path}: {len(data)} bytes are too few for a GLB file")
    magic, version, length = _HEADER.unpack_from(data)
    if (magic, version) != (b"glTF", 2):
        raise BrokenModelError(f"{path}: not a GLB file of version 2: it starts with {data[:8]!r}")
    if length != len(data):
        raise BrokenModelError(f"{path}: its header says {length} bytes, it has {len(data)}")
    size, kind = _CHUNK.unpack_from(data, _HEADER.size)
    if kind != b"JSON":
        raise BrokenModelError(f"{path}: its first chunk is {kind!r}, not JSON")
    start = _HEADER.size + _CHUNK.size
    return _sum_triangles(json.loads(data[start : start + size]))


def _sum_triangles(gltf: dict[str, Any]) -> int:
    accessors = gltf.get("accessors", [])
    total = 0
    for mesh in gltf.get("meshes", []):
        for primitive in mesh["primitives"]:
            if primitive.get("mode", _TRIANGLES_MODE) == _TRIANGLES_MODE:
                corners = primitive.get("indices", primitive["attributes"]["POSITION"])
                total += int(accessors[corners]["count"]) // 3
    return total
