"""Small GLB files, valid and broken ones, whose bytes tests choose."""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any

# the corners and the faces of a closed tetrahedron
CORNERS = ((0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
FACES = ((0, 2, 1), (0, 1, 3), (1, 2, 3), (0, 3, 2))


def create_png(width: int, height: int) -> bytes:
    """Return a PNG that states a size; its one pixel row is not decoded by any test."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" + b"\x80" * 3)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def create_model(*, faces: Any = FACES, texture: bytes | None = None) -> tuple[dict[str, Any], bytes]:
    """Return the JSON and the binary chunk of a tetrahedron, with a texture if there is one."""
    positions = b"".join(struct.pack("<fff", *corner) for corner in CORNERS)
    indices = b"".join(struct.pack("<HHH", *face) for face in faces)
    binary = _pad(positions, b"\0") + _pad(indices, b"\0")
    gltf: dict[str, Any] = {
        "asset": {"version": "2.0"},
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": len(positions)},
            {"buffer": 0, "byteOffset": len(positions), "byteLength": len(indices)},
        ],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "type": "VEC3", "count": len(CORNERS)},
            {"bufferView": 1, "componentType": 5123, "type": "SCALAR", "count": 3 * len(faces)},
        ],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
    }
    if texture is not None:
        view = {"buffer": 0, "byteOffset": len(binary), "byteLength": len(texture)}
        binary += _pad(texture, b"\0")
        gltf["bufferViews"].append(view)
        gltf["images"] = [{"bufferView": 2, "mimeType": "image/png"}]
        gltf["textures"] = [{"source": 0}]
        gltf["materials"] = [{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}]
        gltf["meshes"][0]["primitives"][0]["material"] = 0
    gltf["buffers"] = [{"byteLength": len(binary)}]
    return gltf, binary


def pack_glb(gltf: Any, binary: bytes) -> bytes:
    """Return the GLB file of a JSON value and a binary chunk."""
    text = _pad(json.dumps(gltf).encode(), b" ")
    chunks = struct.pack("<I4s", len(text), b"JSON") + text
    if binary:
        chunks += struct.pack("<I4s", len(binary), b"BIN\0") + _pad(binary, b"\0")
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def create_glb(**arguments: Any) -> bytes:
    """Return the GLB file of a tetrahedron."""
    return pack_glb(*create_model(**arguments))


def _pad(data: bytes, filling: bytes) -> bytes:
    return data + filling * (-len(data) % 4)
