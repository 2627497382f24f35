"""Reading of GLB, the binary form of a glTF 2.0 model: its header, its facts, and what is wrong with it.

This is the one place that knows the format; the pages of Airflow's UI and the checks of outputs use it. It
reads the header, the JSON chunk and the headers of embedded textures, never the geometry. All numbers in a
file are untrusted.

The format is that of the glTF 2.0 specification, section 4
(https://registry.khronos.org/glTF/specs/2.0/glTF-2.0.html#glb-file-format-specification).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from airflow_provider_flows.core.limits import MAX_GLB_HEADER_BYTES
from airflow_provider_flows.core.payload.data_uri import GLB_MAGIC, describe_content
from airflow_provider_flows.core.payload.picture_size import PictureSize, Read, read_picture_size
from airflow_provider_flows.core.responses import parse_bounded_json

GLB_PREAMBLE = struct.Struct("<4sIIII")  # magic, version, file length; length and type of the first chunk
CHUNK_HEADER = struct.Struct("<II")  # length and type
JSON_CHUNK_TYPE, BINARY_CHUNK_TYPE = 0x4E4F534A, 0x004E4942
MAX_TRIANGLES = 10**12  # an implausible count is reported as this one
MAX_PROBLEMS = 10  # of one file; a broken file may have one for each of its parts
MAX_TEXTURE_IMAGES = 1000  # whose headers are read
MAX_MATERIAL_DEPTH = 4  # of the objects in a material that may name a texture
TRIANGLE_LIST, TRIANGLE_STRIP, TRIANGLE_FAN = 4, 5, 6  # modes of a primitive
COMPONENT_BYTES = {5120: 1, 5121: 1, 5122: 2, 5123: 2, 5125: 4, 5126: 4}  # by the type of an accessor
COMPONENTS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
MESHOPT_EXTENSIONS = ("EXT_meshopt_compression", "KHR_meshopt_compression")
COMPRESSIONS = {"KHR_draco_mesh_compression": "Draco", **dict.fromkeys(MESHOPT_EXTENSIONS, "meshopt")}
IMAGE_EXTENSIONS = ("KHR_texture_basisu", "EXT_texture_webp", "EXT_texture_avif")  # of a texture

Json = Mapping[str, Any]


def get_glb_header_size(head: bytes) -> int:
    """Return the number of bytes from the start of a GLB file to the end of its JSON chunk.

    :param head: the first bytes of the file.
    :raises ValueError: the file is not a GLB file of version 2, or its header is too large.
    """
    if len(head) < GLB_PREAMBLE.size:
        return GLB_PREAMBLE.size
    magic, version, _, chunk_size, chunk_type = GLB_PREAMBLE.unpack_from(head)
    if (magic, version, chunk_type) != (GLB_MAGIC, 2, JSON_CHUNK_TYPE):
        raise ValueError("not a GLB file of version 2")
    if chunk_size > MAX_GLB_HEADER_BYTES:
        raise ValueError(
            f"its header has {chunk_size} bytes, more than the maximum of {MAX_GLB_HEADER_BYTES}"
        )
    return GLB_PREAMBLE.size + int(chunk_size)


def parse_glb_json(head: bytes) -> Json:
    """Return the JSON chunk of a GLB file.

    :param head: the first bytes of the file, at least `get_glb_header_size` of them.
    :raises ValueError: it cannot be parsed.
    """
    end = get_glb_header_size(head)
    if len(head) < end:
        raise ValueError(f"truncated after {len(head)} bytes, inside its header")
    gltf = parse_bounded_json(head[GLB_PREAMBLE.size : end])
    if not isinstance(gltf, Mapping):
        raise ValueError("its header is not a JSON object")  # noqa: TRY004  # the file is invalid, not the argument
    return gltf


def count_triangles(gltf: Json) -> int:
    """Return the number of triangles of all meshes, each counted once however often the scene shows it."""
    accessors, total = get_objects(gltf, "accessors"), 0
    for mesh in get_objects(gltf, "meshes"):
        for primitive in get_objects(mesh, "primitives"):
            # one element per corner, in the accessor of the indices or else in that of the positions
            accessor = primitive.get("indices", get_object(primitive, "attributes").get("POSITION"))
            is_valid = type(accessor) is int and 0 <= accessor < len(accessors)
            corners = accessors[accessor].get("count") if is_valid else 0
            if type(corners) is int:
                total += _count_primitive_triangles(primitive.get("mode", TRIANGLE_LIST), corners)
    return min(total, MAX_TRIANGLES)


def _count_primitive_triangles(mode: object, corners: int) -> int:
    if type(mode) is not int:  # any JSON value may be there
        return 0
    if mode == TRIANGLE_LIST:
        return max(0, corners // 3)
    # a tuple, because a mode that is no number may not even be hashable
    return max(0, corners - 2) if mode in (TRIANGLE_STRIP, TRIANGLE_FAN) else 0


def get_object(parent: Json, name: str) -> Json:
    """Return an object of JSON, an empty one if there is none."""
    value = parent.get(name)
    return value if isinstance(value, Mapping) else {}


def get_objects(parent: Json, name: str) -> list[Json]:
    """Return the objects in an array of JSON, without anything else in it."""
    rows = parent.get(name)
    return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []


@dataclass(frozen=True, slots=True)
class Model:
    """A GLB file.

    :param size: bytes.
    :param problems: what is wrong with it, at most `MAX_PROBLEMS`, each as the rest of "the file ...".
    :param gltf: its JSON chunk, empty if that cannot be read.
    :param binary_start: the offset of the content of its binary chunk.
    :param binary_size: bytes of that chunk, 0 without one.
    :param textures: the sizes of its embedded images, None for one whose header cannot be read.
    :param has_texture: whether a part of a mesh has a material with a texture.
    """

    size: int
    problems: tuple[str, ...]
    gltf: Json = field(default_factory=dict, repr=False)
    binary_start: int = 0
    binary_size: int = 0
    textures: tuple[PictureSize | None, ...] = ()
    has_texture: bool = False

    @property
    def triangles(self) -> int:
        """The number of triangles, as the header has it."""
        return count_triangles(self.gltf)

    @property
    def compression(self) -> str | None:
        """How the geometry is compressed, None if it is not."""
        extensions = self.gltf.get("extensionsUsed")
        names = extensions if isinstance(extensions, list) else []
        return next((label for name, label in COMPRESSIONS.items() if name in names), None)


def read_model(read: Read, size: int) -> Model:
    """Read a file that should be a GLB model, and find what is wrong with it.

    Memory and time are bounded by `MAX_GLB_HEADER_BYTES`, whatever the file says.

    :param read: reads the file.
    :param size: of the file, in bytes.
    """
    head = read(0, GLB_PREAMBLE.size)
    if (problem := _find_preamble_problem(head, size)) is not None:
        return Model(size, (problem,))
    json_end = get_glb_header_size(head)
    try:
        gltf = parse_glb_json(head + read(len(head), json_end - len(head)))
    except ValueError as error:
        return Model(size, (f"has a JSON chunk that cannot be parsed: {error}",))
    finder = _ProblemFinder(read, size, gltf, json_end)
    finder.search()
    return Model(
        size,
        tuple(finder.problems),
        gltf,
        finder.binary_start,
        finder.binary_size,
        tuple(finder.textures),
        finder.has_texture,
    )


def _find_preamble_problem(head: bytes, size: int) -> str | None:
    """Return why nothing but the first bytes of a file can be read, None if the rest can be."""
    if not head.startswith(GLB_MAGIC):
        return f"is no GLB model, but {describe_content(head)}" if head else "is empty"
    if len(head) < GLB_PREAMBLE.size:
        return f"is truncated: it has {size} bytes, and the header of a GLB file has {GLB_PREAMBLE.size}"
    _, version, length, chunk_size, chunk_type = GLB_PREAMBLE.unpack(head)
    rest, wrong_length = size - GLB_PREAMBLE.size, f"has a wrong chunk length: {chunk_size:,} bytes of JSON"
    problems = (
        (version != 2, f"is glTF of version {version}, not 2"),
        (length > size, f"is truncated: it has {size:,} bytes, {length:,} by its header"),
        (length < size, f"is longer than its header says: it has {size:,} bytes, {length:,} by its header"),
        (chunk_type != JSON_CHUNK_TYPE, "has a first chunk that is not JSON"),
        (chunk_size > rest, f"{wrong_length}, but only {rest:,} bytes follow"),
        (chunk_size % 4, f"{wrong_length}, which is no multiple of 4"),
        (
            chunk_size > MAX_GLB_HEADER_BYTES,
            f"has {chunk_size:,} bytes of JSON, more than can be checked ({MAX_GLB_HEADER_BYTES:,})",
        ),
    )
    return next((text for is_wrong, text in problems if is_wrong), None)


class _ProblemFinder:
    """Searches what is wrong with a GLB file whose JSON chunk was read."""

    def __init__(self, read: Read, size: int, gltf: Json, json_end: int) -> None:
        self._read, self._size, self._gltf, self._json_end = read, size, gltf, json_end
        self.problems: list[str] = []
        self.binary_start = self.binary_size = 0
        self.textures: list[PictureSize | None] = []
        self.has_texture = False
        self._buffer_sizes: list[int | None] = []  # None for one that is not in the file
        self._views = get_objects(gltf, "bufferViews")
        self._accessors = get_objects(gltf, "accessors")
        self._images = get_objects(gltf, "images")

    def search(self) -> None:
        for find in (
            self._find_version,
            self._find_binary_chunk,
            self._find_buffers,
            self._find_views,
            self._find_accessors,
            self._find_meshes,
            self._find_images,
        ):
            for problem in find():
                if len(self.problems) == MAX_PROBLEMS:
                    return
                self.problems.append(problem)

    def _find_version(self) -> Iterator[str]:
        version = get_object(self._gltf, "asset").get("version")
        if not isinstance(version, str) or not version.startswith("2."):
            yield "does not state a version 2 of glTF in `asset`"

    def _find_binary_chunk(self) -> Iterator[str]:
        rest = self._size - self._json_end
        if not rest:
            return
        if rest < CHUNK_HEADER.size:
            yield f"has a wrong chunk length: {rest} bytes follow its JSON chunk, too few for another chunk"
            return
        length, kind = CHUNK_HEADER.unpack(self._read(self._json_end, CHUNK_HEADER.size))
        rest -= CHUNK_HEADER.size
        if length > rest:
            yield f"has a wrong chunk length: its second chunk has {length:,} bytes, but {rest:,} follow"
        if kind == BINARY_CHUNK_TYPE:
            self.binary_start = self._json_end + CHUNK_HEADER.size
            self.binary_size = min(length, rest)

    def _find_buffers(self) -> Iterator[str]:
        for index, buffer in enumerate(get_objects(self._gltf, "buffers")):
            size, uri = _get_count(buffer, "byteLength"), buffer.get("uri")
            extensions = get_object(buffer, "extensions")
            is_fallback = any(
                get_object(extensions, name).get("fallback") is True for name in MESHOPT_EXTENSIONS
            )
            self._buffer_sizes.append(size)
            if size is None:
                yield f"has a buffer {index} without a length"
            elif is_fallback:
                continue
            elif isinstance(uri, str) and not uri.startswith("data:"):
                self._buffer_sizes[index] = None
                yield f"has its buffer {index} in another file, which is not stored with it"
            elif uri is None and (index or size > self.binary_size):
                found = 0 if index else self.binary_size
                yield f"has a buffer {index} of {size:,} bytes, but only {found:,} bytes of it"

    def _find_views(self) -> Iterator[str]:
        for index, view in enumerate(self._views):
            buffer, length = view.get("buffer"), _get_count(view, "byteLength")
            if not _is_index(buffer, self._buffer_sizes) or length is None:
                yield f"has a buffer view {index} without a buffer or a length"
                continue
            end, size = (_get_count(view, "byteOffset") or 0) + length, self._buffer_sizes[buffer]
            if size is not None and end > size:
                yield (
                    f"has a buffer view {index} that is out of range: it ends at byte {end:,} of buffer "
                    f"{buffer}, which has {size:,}"
                )

    def _find_accessors(self) -> Iterator[str]:
        for index, accessor in enumerate(self._accessors):
            layout = get_layout(accessor)
            if layout is None:
                yield f"has an accessor {index} without a valid type or count"
                continue
            view = accessor.get("bufferView")
            if view is None:  # zeros, or compressed
                continue
            if not _is_index(view, self._views):
                yield f"has an accessor {index} whose buffer view {view!r} does not exist"
                continue
            end, length = layout.get_end(self._views[view]), _get_count(self._views[view], "byteLength")
            if length is not None and end > length:
                yield (
                    f"has an accessor {index} that is out of range: it ends at byte {end:,} of buffer view "
                    f"{view}, which has {length:,}"
                )

    def _find_meshes(self) -> Iterator[str]:
        materials, textured = get_objects(self._gltf, "materials"), dict[int, bool]()
        meshes = get_objects(self._gltf, "meshes")
        for number, mesh in enumerate(meshes):
            for part, primitive in enumerate(get_objects(mesh, "primitives")):
                where = f"primitive {part} of mesh {number}"
                positions = get_object(primitive, "attributes").get("POSITION")
                if positions is None:
                    yield f"has no POSITION in {where}"
                elif not _is_index(positions, self._accessors):
                    yield f"has a POSITION in {where} whose accessor does not exist"
                if "indices" in primitive and not _is_index(primitive["indices"], self._accessors):
                    yield f"has indices in {where} whose accessor does not exist"
                material = primitive.get("material")
                if _is_index(material, materials):
                    if material not in textured:
                        textured[material] = self._has_texture(materials[material])
                    self.has_texture = self.has_texture or textured[material]
        if not count_triangles(self._gltf):
            yield "has no triangles"

    def _has_texture(self, material: Json) -> bool:
        """Return whether a material names a texture that has an image."""
        textures = get_objects(self._gltf, "textures")
        return any(
            _is_index(index, textures) and any(map(self._is_image, _iter_sources(textures[index])))
            for index in _iter_texture_indexes(material)
        )

    def _is_image(self, index: object) -> bool:
        return _is_index(index, self._images)

    def _find_images(self) -> Iterator[str]:
        if len(self._images) > MAX_TEXTURE_IMAGES:
            yield f"has {len(self._images):,} images, more than {MAX_TEXTURE_IMAGES:,}"
        for index, image in enumerate(self._images[:MAX_TEXTURE_IMAGES]):
            uri, view = image.get("uri"), image.get("bufferView")
            if isinstance(uri, str):
                self.textures.append(None)
                if not uri.startswith("data:"):
                    yield f"has its image {index} in another file, which is not stored with it"
                continue
            size = self._read_image_size(view) if _is_index(view, self._views) else None
            self.textures.append(size)
            if size is None:
                yield f"has an image {index} that cannot be read"

    def _read_image_size(self, view: int) -> PictureSize | None:
        start, length = get_view_range(self._views[view])
        if length is None or self._views[view].get("buffer") != 0 or start + length > self.binary_size:
            return None

        def read(offset: int, count: int) -> bytes:
            return self._read(self.binary_start + start + offset, max(0, min(count, length - offset)))

        return read_picture_size(read)


@dataclass(frozen=True, slots=True)
class AccessorLayout:
    """How the values of an accessor lie in a buffer view.

    :param count: of elements; each has `components` numbers of `component_bytes` bytes.
    :param offset: of the first element in the view.
    """

    count: int
    components: int
    component_bytes: int
    component_type: int
    offset: int

    @property
    def element_bytes(self) -> int:
        """The bytes of one element, without padding."""
        return self.components * self.component_bytes

    def get_stride(self, view: Json) -> int:
        """Return the bytes between the starts of two elements."""
        return _get_count(view, "byteStride") or self.element_bytes

    def get_end(self, view: Json) -> int:
        """Return the offset behind the last element."""
        return self.offset + self.get_stride(view) * (self.count - 1) + self.element_bytes


def get_layout(accessor: Json) -> AccessorLayout | None:
    """Return the layout of an accessor, None if it is not valid."""
    kind, shape, count = accessor.get("componentType"), accessor.get("type"), _get_count(accessor, "count")
    size = COMPONENT_BYTES.get(kind) if type(kind) is int else None
    components = COMPONENTS.get(shape) if isinstance(shape, str) else None
    if size is None or components is None or type(kind) is not int or not count:
        return None
    return AccessorLayout(count, components, size, kind, _get_count(accessor, "byteOffset") or 0)


def get_view_range(view: Json) -> tuple[int, int | None]:
    """Return the offset and the length of a buffer view in its buffer."""
    return _get_count(view, "byteOffset") or 0, _get_count(view, "byteLength")


def _get_count(parent: Json, name: str) -> int | None:
    """Return a number that is not negative, None for anything else."""
    value = parent.get(name)
    return value if type(value) is int and value >= 0 else None


def _is_index(index: object, rows: list[Any]) -> TypeGuard[int]:
    return type(index) is int and 0 <= index < len(rows)


def _iter_texture_indexes(material: Any, depth: int = MAX_MATERIAL_DEPTH) -> Iterator[object]:
    """Yield the numbers of the textures that a material names, also in extensions."""
    if not isinstance(material, Mapping) or not depth:
        return
    for name, value in material.items():
        if isinstance(value, Mapping):
            if str(name).lower().endswith("texture"):
                yield value.get("index")
            yield from _iter_texture_indexes(value, depth - 1)


def _iter_sources(texture: Json) -> Iterator[object]:
    """Yield the numbers of the images that a texture names."""
    yield texture.get("source")
    extensions = get_object(texture, "extensions")
    for name in IMAGE_EXTENSIONS:
        yield get_object(extensions, name).get("source")
