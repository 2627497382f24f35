"""The bytes of a run's outputs: downloads, images and the facts in a file's first bytes.

An output is identified by its number, never by a path. Its file is read from the folder to which the run's
task stores its files, or else downloaded from the service. Access is checked before.

The header of a GLB file is parsed as in the glTF 2.0 specification, section 4
(https://registry.khronos.org/glTF/specs/2.0/glTF-2.0.html#glb-file-format-specification).
"""

from __future__ import annotations

import logging
import struct
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.core.exceptions import FlowError, FlowNotFound
from airflow_provider_flows.core.flow_run import ERROR, FlowOutput
from airflow_provider_flows.core.payload import data_uri
from airflow_provider_flows.core.responses import parse_bounded_json
from airflow_provider_flows.plugin.present import (
    MAX_OUTPUTS_PER_PAGE,
    OUTPUT_PATH_HINT,
    SAFE_IMAGE_TYPES,
    is_link,
    to_safe_line,
)
from airflow_provider_flows.plugin.run_view import RunView, get_flows_hook
from airflow_provider_flows.plugin.schemas import ModelSchema, OutputInfoSchema
from airflow_provider_flows.storage.atomic_file import OUTPUT_BLOCK_BYTES, OUTPUT_CHUNK_BYTES
from airflow_provider_flows.storage.paths import file_names, get_file_path, get_run_folder, to_uri

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

log = logging.getLogger(__name__)

MAX_IN_MEMORY_BYTES = 4 * 1024 * 1024  # of a download from a service; a larger one is spooled to disk
MAX_OUTPUT_DOWNLOAD_BYTES = 2 * 1024**3  # of a download from a service, which is spooled on the API server
MAX_IMAGE_BYTES = 32 * 1024 * 1024
SNIFF_BYTES = 64  # enough to detect a file's media type
MAX_GLB_HEADER_BYTES = 8 * 1024 * 1024  # of the JSON chunk; models with thousands of parts have less
GLB_PREAMBLE = struct.Struct("<4sIIII")  # magic, version, file length; length and type of the first chunk
JSON_CHUNK_TYPE = 0x4E4F534A
MAX_TRIANGLES = 10**12  # an implausible count is reported as this one
MAX_GENERATOR_LENGTH = 200
TRIANGLE_LIST, TRIANGLE_STRIP, TRIANGLE_FAN = 4, 5, 6  # modes of a glTF primitive


class NoFileError(Exception):
    """The output does not exist or its file cannot be read; the message has the reason."""


class _EnoughDataError(Exception):
    """Ends a download early, once the header is complete."""


@dataclass(frozen=True)
class OpenFile:
    """An open file that can be read once.

    :param size: in bytes.
    """

    file: Any
    name: str
    size: int

    def iter_chunks(self) -> Iterator[bytes]:
        """Yield the file's chunks, and close it."""
        with self.file as file:
            while chunk := file.read(OUTPUT_CHUNK_BYTES):
                yield chunk


@dataclass(frozen=True)
class Image:
    """An image that a browser can safely display."""

    data: bytes
    media_type: str


def open_output(view: RunView, number: int, max_bytes: int = MAX_OUTPUT_DOWNLOAD_BYTES) -> OpenFile:
    """Open an output: a text, a file that the task stored, or a file at the service.

    :param max_bytes: maximum size of a download from the service.
    :raises NoFileError: the output does not exist, cannot be read or is too large.
    """
    output, name = _get_output(view, number)
    path = _get_own_path(view, output)
    if path is not None:
        try:
            size = path.stat().st_size
            file = path.fs.open(path.path, "rb", block_size=OUTPUT_BLOCK_BYTES)
        except Exception as error:  # noqa: BLE001  # storage libraries raise exceptions of any type
            _log_unreadable(path, error)
        else:
            return OpenFile(file, name + data_uri.extension(output.media_type), size)
    elif output.value is not None and output.uri is None and not is_link(output):
        return _spool_text(output.value.encode("utf-8", "replace"), f"{name}.txt")
    spool = _Spool(max_bytes)
    try:
        media_type = _download_output(view, output, spool)
    except BaseException:
        spool.file.close()
        raise
    spool.file.seek(0)
    return OpenFile(spool.file, name + data_uri.extension(media_type or output.media_type), spool.size)


def load_image(view: RunView, number: int) -> Image:
    """Return an image, if its first bytes show that it has one of the safe types.

    :raises NoFileError: the output does not exist, cannot be read or is not such an image.
    """
    open_file = open_output(view, number, MAX_IMAGE_BYTES)
    with open_file.file as file:
        data = file.read(MAX_IMAGE_BYTES + 1)
    media_type = data_uri.sniff(data[:SNIFF_BYTES])
    if media_type not in SAFE_IMAGE_TYPES or len(data) > MAX_IMAGE_BYTES:
        raise NoFileError("This output is not an image that can be shown here. Download it instead.")
    return Image(data, str(media_type))


def load_output_info(view: RunView, number: int) -> OutputInfoSchema:
    """Return the media type of an output's file, and the facts in a GLB file's header; nothing else is read.

    :raises NoFileError: the output does not exist or cannot be read.
    """
    output, _ = _get_output(view, number)
    header = _HeaderTarget()
    path = _get_own_path(view, output)
    if path is None or not _read_header(path, header):
        with suppress(_EnoughDataError):
            _download_output(view, output, header)
    data = bytes(header.data)
    media_type = data_uri.sniff(data[:SNIFF_BYTES]) or output.media_type
    try:
        model = parse_glb_header(data) if media_type == data_uri.GLB else None
    except ValueError as error:
        log.info("The GLB header of output %s cannot be parsed: %s", output.name, error)
        model = None
    return OutputInfoSchema(media_type=media_type, is_image=media_type in SAFE_IMAGE_TYPES, model=model)


def _get_output(view: RunView, number: int) -> tuple[FlowOutput, str]:
    """Return an output and its file's safe name, without extension."""
    if not 0 <= number < min(len(view.outputs), MAX_OUTPUTS_PER_PAGE):
        raise NoFileError(f"This flow run has no output with the number {number}.")
    output = view.outputs[number]
    if output.status == ERROR:
        raise NoFileError("This output was not created, or could not be downloaded.")
    return output, next(islice(file_names(view.outputs), number, None))


def _get_own_path(view: RunView, output: FlowOutput) -> ObjectStoragePath | None:
    """Return the path of an output's file, None if it is not in the folder of this run's files.

    Users who may edit the DAG's runs can write any URI into an XCom, which must not give them access to other
    files.
    """
    options = view.output_options
    if output.uri is None or view.run is None or options is None or options.output_path is None:
        return None
    name = output.uri.rpartition("/")[2]
    if name in {"", ".", ".."} or "\\" in name or "\x00" in name:
        return None
    try:
        folder = get_run_folder(view.run, options.output_path, options.output_conn_id)
        if to_uri(folder / name) != output.uri:
            return None
        return get_file_path(output.uri, options.output_path, options.output_conn_id)
    except Exception as error:  # noqa: BLE001  # storage libraries raise exceptions of any type
        log.info("The API server cannot access the output folder of %s: %s", view.run, type(error).__name__)
        return None


def _read_header(path: ObjectStoragePath, header: _HeaderTarget) -> bool:
    """Read the first bytes of a stored file; return whether it could be opened."""
    try:
        file = path.fs.open(path.path, "rb", block_size=OUTPUT_BLOCK_BYTES)
    except Exception as error:  # noqa: BLE001  # storage libraries raise exceptions of any type
        _log_unreadable(path, error)
        return False
    with file, suppress(_EnoughDataError):
        while chunk := file.read(SNIFF_BYTES if len(header.data) < SNIFF_BYTES else OUTPUT_CHUNK_BYTES):
            header.write(chunk)
    return True


def _log_unreadable(path: ObjectStoragePath, error: Exception) -> None:
    log.info("The API server cannot read the output file %s: %s", path, type(error).__name__)


def _download_output(view: RunView, output: FlowOutput, target: _Spool | _HeaderTarget) -> str | None:
    """Download an output from its service; return its media type."""
    if view.flows_conn_id is None or view.flow_run_id is None or output.asset_id is None:
        raise NoFileError(
            "The API server cannot read the file of this output. "
            "It was deleted, or only workers can access it."
        )
    try:
        with closing(get_flows_hook(view.flows_conn_id, view.team_name)) as hook:
            return hook.save_output(view.flow_run_id, output.asset_id, target, media_type=output.media_type)
    except FlowNotFound as error:
        raise NoFileError(
            "The API server cannot read the file of this output, and the service no longer has it."
        ) from error
    except FlowError as error:
        raise NoFileError(
            f"The file of this output could not be downloaded. {view.to_error_text(error)}"
        ) from error


def _spool_text(data: bytes, name: str) -> OpenFile:
    spool = _Spool()
    spool.write(data)
    spool.file.seek(0)
    return OpenFile(spool.file, name, spool.size)


class _Spool:
    """A target that stores a complete download, because a response in progress cannot be withdrawn."""

    def __init__(self, max_bytes: int = MAX_OUTPUT_DOWNLOAD_BYTES) -> None:
        self._max_bytes = max_bytes
        self.file = tempfile.SpooledTemporaryFile(MAX_IN_MEMORY_BYTES)  # noqa: SIM115  # the sender closes it
        self.size = 0

    def restart(self) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.size = 0

    def write(self, data: bytes) -> None:
        self.size += len(data)
        if self.size > self._max_bytes:
            raise NoFileError(
                f"This output exceeds the maximum of {self._max_bytes} bytes for a download from the service."
                f" {OUTPUT_PATH_HINT}"
            )
        self.file.write(data)


class _HeaderTarget:
    """A target that ends the download after a file's first bytes, or after the header of a GLB file."""

    def __init__(self) -> None:
        self.data = bytearray()

    def restart(self) -> None:
        self.data.clear()

    def write(self, data: bytes) -> None:
        self.data += data
        if len(self.data) >= self._get_required_bytes():
            raise _EnoughDataError

    def _get_required_bytes(self) -> int:
        if not self.data.startswith(data_uri.GLB_MAGIC):
            return SNIFF_BYTES
        try:
            return get_glb_header_size(bytes(self.data[: GLB_PREAMBLE.size]))
        except ValueError:  # the header will not be parsed
            return SNIFF_BYTES


def get_glb_header_size(head: bytes) -> int:
    """Return the number of bytes from the start of a GLB file to the end of its header.

    :raises ValueError: the file is not a GLB file of version 2, or its header is too large.
    """
    if len(head) < GLB_PREAMBLE.size:
        return GLB_PREAMBLE.size
    magic, version, _, chunk_size, chunk_type = GLB_PREAMBLE.unpack_from(head)
    if (magic, version, chunk_type) != (b"glTF", 2, JSON_CHUNK_TYPE):
        raise ValueError("not a GLB file of version 2")
    if chunk_size > MAX_GLB_HEADER_BYTES:
        raise ValueError(
            f"its header has {chunk_size} bytes, more than the maximum of {MAX_GLB_HEADER_BYTES}"
        )
    return GLB_PREAMBLE.size + int(chunk_size)


def parse_glb_header(head: bytes) -> ModelSchema:
    """Return the facts in the header of a GLB file. The geometry is not read.

    :param head: the first bytes of the file, at least `get_glb_header_size` of them.
    :raises ValueError: the header cannot be parsed.
    """
    end = get_glb_header_size(head)
    if len(head) < end:
        raise ValueError(f"truncated after {len(head)} bytes, inside its header")
    gltf = parse_bounded_json(head[GLB_PREAMBLE.size : end])
    if not isinstance(gltf, Mapping):
        raise ValueError("its header is not a JSON object")  # noqa: TRY004  # the file is invalid, not the argument
    generator = _get_mapping(gltf, "asset").get("generator")
    return ModelSchema(
        meshes=len(_get_mappings(gltf, "meshes")),
        triangles=_count_triangles(gltf),
        materials=len(_get_mappings(gltf, "materials")),
        textures=len(_get_mappings(gltf, "textures")),
        animations=len(_get_mappings(gltf, "animations")),
        generator=to_safe_line(generator)[:MAX_GENERATOR_LENGTH] if isinstance(generator, str) else None,
    )


def _count_triangles(gltf: Mapping[str, Any]) -> int:
    accessors, total = _get_mappings(gltf, "accessors"), 0
    for mesh in _get_mappings(gltf, "meshes"):
        for primitive in _get_mappings(mesh, "primitives"):
            # one element per corner, in the accessor of the indices or else in that of the positions
            accessor = primitive.get("indices", _get_mapping(primitive, "attributes").get("POSITION"))
            is_valid = type(accessor) is int and 0 <= accessor < len(accessors)
            corners = accessors[accessor].get("count") if is_valid else 0
            if type(corners) is int:
                total += _count_primitive_triangles(primitive.get("mode", TRIANGLE_LIST), corners)
    return min(total, MAX_TRIANGLES)


def _count_primitive_triangles(mode: Any, corners: int) -> int:
    if mode == TRIANGLE_LIST:
        return max(0, corners // 3)
    # a tuple, because a mode that is no number may not even be hashable
    return max(0, corners - 2) if mode in (TRIANGLE_STRIP, TRIANGLE_FAN) else 0


def _get_mapping(parent: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = parent.get(name)
    return value if isinstance(value, Mapping) else {}


def _get_mappings(parent: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    rows = parent.get(name)
    return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
