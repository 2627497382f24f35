"""Whether the meshes of a 3D model are closed. This loads their geometry, with trimesh (the extra `checks`).

trimesh gets positions and faces only: no texture is decoded, and no file of the model is opened by it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.core.gltf import (
    TRIANGLE_FAN,
    TRIANGLE_LIST,
    TRIANGLE_STRIP,
    get_layout,
    get_object,
    get_objects,
    get_view_range,
)
from airflow_provider_flows.core.limits import MAX_MESH_BYTES, MAX_MESH_TRIANGLES

if TYPE_CHECKING:
    from airflow_provider_flows.core.gltf import Model
    from airflow_provider_flows.core.payload.picture_size import Read

REQUIRED_MODULES = ("numpy", "trimesh")
INSTALL_HINT = "pip install 'airflow-provider-flows[checks]'"
DTYPES = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}  # by the component type


class UnreadableMeshError(ValueError):
    """The geometry of a mesh cannot be loaded; the message is the rest of "the file ..."."""


def find_missing_modules() -> list[str]:
    """Return the modules that this needs and that are not installed."""
    return [name for name in REQUIRED_MODULES if find_spec(name) is None]


def find_open_meshes(model: Model, read: Read) -> Iterator[str]:
    """Yield which meshes are not closed, or cannot be checked, each as the rest of "the file ...".

    Vertices at the same place are one, because models repeat them along the seams of a texture.

    :param model: one without problems.
    :param read: reads the file.
    """
    if model.compression is not None:
        yield f"is compressed with {model.compression}, so is_watertight cannot be checked"
        return
    if model.size > MAX_MESH_BYTES or model.triangles > MAX_MESH_TRIANGLES:
        yield (
            f"is too large for is_watertight: it has {model.size:,} bytes and {model.triangles:,} triangles, "
            f"and at most {MAX_MESH_BYTES:,} and {MAX_MESH_TRIANGLES:,} are loaded"
        )
        return
    for number, mesh in enumerate(get_objects(model.gltf, "meshes")):
        try:
            is_closed = _is_closed(model, read, mesh)
        except UnreadableMeshError as error:
            yield f"{error} in mesh {number}, so is_watertight cannot be checked"
        else:
            if not is_closed:
                yield f"is not closed: mesh {number} has holes or open edges (is_watertight)"


def _is_closed(model: Model, read: Read, mesh: Mapping[str, Any]) -> bool:
    import numpy as np
    import trimesh

    all_positions, all_faces, count = [], [], 0
    for primitive in get_objects(mesh, "primitives"):
        positions = _load(model, read, get_object(primitive, "attributes")["POSITION"])
        if positions.shape[1] != 3:
            raise UnreadableMeshError("has a POSITION that is no VEC3")
        indices = np.arange(len(positions))
        if "indices" in primitive:
            indices = _load(model, read, primitive["indices"]).reshape(-1).astype(np.int64)
        if len(indices) and indices.max() >= len(positions):
            raise UnreadableMeshError("has an index of a vertex that does not exist")
        all_positions.append(positions.astype(np.float64))
        all_faces.append(_to_faces(indices, primitive.get("mode", TRIANGLE_LIST)) + count)
        count += len(positions)
    if not all_faces:
        return False
    loaded = trimesh.Trimesh(np.concatenate(all_positions), np.concatenate(all_faces), process=False)
    loaded.merge_vertices()
    faces = loaded.faces
    is_flat = (faces[:, 0] == faces[:, 1]) | (faces[:, 1] == faces[:, 2]) | (faces[:, 0] == faces[:, 2])
    loaded.update_faces(~is_flat)
    return bool(loaded.is_watertight)


def _to_faces(indices: Any, mode: int) -> Any:
    """Return the triangles of a primitive, three indices each."""
    import numpy as np

    if mode == TRIANGLE_LIST:
        return indices[: len(indices) // 3 * 3].reshape(-1, 3)
    if mode not in {TRIANGLE_STRIP, TRIANGLE_FAN}:
        return np.empty((0, 3), np.int64)
    first = np.full(max(0, len(indices) - 2), indices[0]) if mode == TRIANGLE_FAN else indices[:-2]
    return np.stack([first, indices[1:-1], indices[2:]], axis=1)


def _load(model: Model, read: Read, index: int) -> Any:
    """Return the values of an accessor, a row for each element."""
    import numpy as np

    accessor = get_objects(model.gltf, "accessors")[index]
    layout, number = get_layout(accessor), accessor.get("bufferView")
    if layout is None or number is None or "sparse" in accessor:
        raise UnreadableMeshError("has positions or indices that are not stored as plain numbers")
    view = get_objects(model.gltf, "bufferViews")[number]
    if view.get("buffer") != 0 or get_objects(model.gltf, "buffers")[0].get("uri") is not None:
        raise UnreadableMeshError("has geometry outside of its binary chunk")
    start, stride = get_view_range(view)[0] + layout.offset, layout.get_stride(view)
    size = layout.get_end(view) - layout.offset
    data = read(model.binary_start + start, size)
    if len(data) < size or stride < layout.element_bytes:
        raise UnreadableMeshError("has geometry that is cut short")
    dtype = np.dtype(DTYPES[layout.component_type])
    return np.ndarray(
        (layout.count, layout.components), dtype, data, strides=(stride, layout.component_bytes)
    ).copy()
