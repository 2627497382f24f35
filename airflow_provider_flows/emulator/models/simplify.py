"""A model with fewer polygons: the one that was sent, really reduced.

Colours are kept; a texture is not, because the reduction moves the points it was pinned to.
"""

# mypy: allow-untyped-calls
# (trimesh says that it is typed, and is so in part)

from __future__ import annotations

import io
import sys

import fast_simplification
import numpy as np
import trimesh

from airflow_provider_flows.emulator.models.colours import CLAY
from airflow_provider_flows.emulator.models.glb import colour_visual, to_glb
from airflow_provider_flows.emulator.models.make import UnreadableInputError

MIN_FACES = 4


def open_model(content: bytes) -> list[trimesh.Trimesh]:
    """Return the model's meshes in their places, or raise UnreadableInputError."""
    if content[:4] != b"glTF":
        raise UnreadableInputError("not a GLB: it does not begin with glTF")
    if int.from_bytes(content[8:12], "little") != len(content):
        raise UnreadableInputError("not a whole GLB: its header tells another length")
    try:
        scene = trimesh.load_scene(io.BytesIO(content), file_type="glb")
        meshes = [item for item in scene.dump() if isinstance(item, trimesh.Trimesh) and len(item.faces)]
    # A broken file makes trimesh raise whatever the reading stumbled over.
    except Exception as error:
        raise UnreadableInputError(f"not a GLB that can be read: {error}") from error
    if not meshes:
        raise UnreadableInputError("a GLB without a mesh")
    return meshes


def simplify(content: bytes, polygon_count: int) -> bytes:
    """Return a GLB with at most that many polygons; one that has no more is returned as it came."""
    meshes = open_model(content)
    total = sum(len(mesh.faces) for mesh in meshes)
    if total <= polygon_count:
        return content
    # The biggest first: where the count is too small for all parts, the small parts go.
    smaller: list[trimesh.Trimesh] = []
    remaining = polygon_count
    for mesh in sorted(meshes, key=lambda item: len(item.faces), reverse=True):
        share = min(remaining, max(MIN_FACES, len(mesh.faces) * polygon_count // total))
        if share <= 0:
            break
        smaller.append(_simplify_mesh(mesh, share))
        remaining -= len(smaller[-1].faces)
    return to_glb(*smaller)


def _simplify_mesh(mesh: trimesh.Trimesh, max_faces: int) -> trimesh.Trimesh:
    """Return the mesh with at most that many faces."""
    visual = colour_visual(_colour(mesh))
    bare = trimesh.Trimesh(mesh.vertices, mesh.faces, process=True)
    points, faces = np.asarray(bare.vertices, dtype=np.float32), np.asarray(bare.faces, dtype=np.int32)
    # Now and then the library stops early; then it is asked again, harder.
    for eagerness in (3, 7, 10, 10):
        if len(faces) <= max_faces:
            break
        points, faces = fast_simplification.simplify(points, faces, target_count=max_faces, agg=eagerness)
    if len(faces) > max_faces:
        # A promise is a promise: what cannot be merged is cut.
        faces = faces[:max_faces]
    return trimesh.Trimesh(points, faces, visual=visual, process=True)


def _colour(mesh: trimesh.Trimesh) -> tuple[int, int, int]:
    """Return the mesh's main colour."""
    material = getattr(mesh.visual, "material", None)
    main = getattr(material, "main_color", None)
    if main is None:
        main = getattr(mesh.visual, "main_color", None)
    return CLAY if main is None else (int(main[0]), int(main[1]), int(main[2]))


if __name__ == "__main__":
    sys.stdout.buffer.write(simplify(sys.stdin.buffer.read(), int(sys.argv[1])))
