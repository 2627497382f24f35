"""Writing one mesh as a GLB file: glTF 2.0 with positions, normals, indices and a material with a colour.

What shape the mesh has is decided elsewhere.
"""

# mypy: allow-untyped-calls
# (trimesh says that it is typed, and is so in part)

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import trimesh
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

if TYPE_CHECKING:
    from PIL.Image import Image


def colour_visual(
    colour: tuple[int, int, int], *, metallic: float = 0.1, rough: float = 0.7
) -> TextureVisuals:
    """Return one plain colour for a whole mesh."""
    material = PBRMaterial(
        name="paint",
        baseColorFactor=[*colour, 255],
        metallicFactor=metallic,
        roughnessFactor=rough,
        doubleSided=True,
    )
    return TextureVisuals(material=material)


def image_visual(uv: object, picture: Image) -> TextureVisuals:
    """Return a picture laid over a mesh."""
    material = PBRMaterial(
        name="picture",
        baseColorFactor=[255, 255, 255, 255],
        baseColorTexture=picture,
        metallicFactor=0.0,
        roughnessFactor=0.9,
        doubleSided=True,
    )
    return TextureVisuals(uv=uv, material=material)


def to_glb(*meshes: trimesh.Trimesh) -> bytes:
    """Return the GLB file."""
    for mesh in meshes:
        mesh.vertex_normals = _normals(mesh)  # type: ignore[method-assign]  # trimesh gives it a setter of its own
    content = trimesh.Scene(list(meshes)).export(file_type="glb", include_normals=True)
    if not isinstance(content, bytes):
        raise TypeError("trimesh gave no bytes for a GLB")
    return content


def _normals(mesh: trimesh.Trimesh) -> np.ndarray:
    """Return each point's normal; trimesh's own way to them needs scipy, which is not worth its size here."""
    corners = np.asarray(mesh.triangles)
    of_faces = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    summed = np.zeros((len(mesh.vertices), 3))
    np.add.at(summed, np.asarray(mesh.faces).ravel(), of_faces.repeat(3, axis=0))
    lengths = np.linalg.norm(summed, axis=1, keepdims=True)
    return np.where(lengths > 0, summed / np.where(lengths > 0, lengths, 1.0), [0.0, 0.0, 1.0])
