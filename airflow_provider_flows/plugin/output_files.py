"""The bytes of a run's recorded outputs: from the folder that its task writes to, else from its service; nothing else is opened.

Which output is wanted is told by its number, never by a path; who may have it was decided before (inside.py).
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.core.exceptions import FlowError, FlowNotFound
from airflow_provider_flows.core.payload import data_uri
from airflow_provider_flows.core.run import ERROR, FlowOutput
from airflow_provider_flows.plugin import glb_header
from airflow_provider_flows.plugin.run_view import RunView, get_flows_hook
from airflow_provider_flows.plugin.schemas import (
    MAX_OUTPUTS_PER_PAGE,
    OUTPUT_PATH_HINT,
    SAFE_IMAGE_TYPES,
    OutputInfoSchema,
    is_link,
)
from airflow_provider_flows.storage.atomic_file import OUTPUT_BLOCK_BYTES, OUTPUT_CHUNK_BYTES
from airflow_provider_flows.storage.paths import file_names, get_file_path, get_run_folder, to_uri

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

log = logging.getLogger(__name__)

MAX_IN_MEMORY_BYTES = 4 * 1024 * 1024  # bytes of a download; a larger one lies on the disk meanwhile
MAX_OUTPUT_DOWNLOAD_BYTES = (
    2 * 1024**3
)  # bytes of a download from a service; on its way it lies on the API server's disk
MAX_IMAGE_BYTES = 32 * 1024 * 1024
SNIFF_BYTES = 64  # bytes that tell what a file is


class NoFileError(Exception):
    """There is no such output, or no file of it can be had; says why."""


class _EnoughError(Exception):
    """All that is wanted of a file has come."""


@dataclass(frozen=True)
class OpenFile:
    """A file that can be read once; `size` is in bytes."""

    file: Any
    name: str
    size: int

    def iter_chunks(self) -> Iterator[bytes]:
        """Give its bytes, a piece at a time, and close it."""
        with self.file as file:
            while chunk := file.read(OUTPUT_CHUNK_BYTES):
                yield chunk


@dataclass(frozen=True)
class Image:
    """A picture that a browser may show."""

    data: bytes
    media_type: str


def open_output(view: RunView, number: int, max_bytes: int = MAX_OUTPUT_DOWNLOAD_BYTES) -> OpenFile:
    """Open an output as it was recorded: a text, a file that the task has written, or one at the service.

    :param max_bytes: bytes that are fetched from a service.
    :raises NoFileError: there is none, or it is larger.
    """
    output, name = _get_output(view, number)
    path = _get_own_path(view, output)
    if path is not None:
        try:
            size = path.stat().st_size
            file = path.fs.open(path.path, "rb", block_size=OUTPUT_BLOCK_BYTES)
        except Exception as error:  # noqa: BLE001  # whatever the store's library raises
            log.info("%s cannot be read by the API server (%s)", path, type(error).__name__)
        else:
            return OpenFile(file, name + data_uri.extension(output.media_type), size)
    elif output.value is not None and output.uri is None and not is_link(output):
        return _spool_text(output.value.encode("utf-8", "replace"), f"{name}.txt")
    spool = _Spool(max_bytes)
    try:
        kind = _download_output(view, output, spool)
    except BaseException:
        spool.file.close()
        raise
    spool.file.seek(0)
    return OpenFile(spool.file, name + data_uri.extension(kind or output.media_type), spool.size)


def load_image(view: RunView, number: int) -> Image:
    """Read a picture, which its own first bytes must tell to be of a harmless kind.

    :raises NoFileError: there is none, or it is something else.
    """
    open_file = open_output(view, number, MAX_IMAGE_BYTES)
    with open_file.file as file:
        data = file.read(MAX_IMAGE_BYTES + 1)
    kind = data_uri.sniff(data[:SNIFF_BYTES])
    if kind not in SAFE_IMAGE_TYPES or len(data) > MAX_IMAGE_BYTES:
        message = "This output is no picture that can be shown here; download it"
        raise NoFileError(message)
    return Image(data, str(kind))


def load_output_info(view: RunView, number: int) -> OutputInfoSchema:
    """Look at the beginning of an output's file, and of a model at its header; no more than that is read.

    :raises NoFileError: there is no such output, or no file of it can be had.
    """
    output, _ = _get_output(view, number)
    header = _HeaderTarget()
    path = _get_own_path(view, output)
    if path is None or not _read_header(path, header):
        with suppress(_EnoughError):
            _download_output(view, output, header)
    data = bytes(header.data)
    kind = data_uri.sniff(data[:SNIFF_BYTES]) or output.media_type
    try:
        model = glb_header.parse_header(data) if kind == data_uri.GLB else None
    except ValueError as error:
        log.info("The model %s cannot be read: %s", output.name, error)
        model = None
    return OutputInfoSchema(media_type=kind, is_image=kind in SAFE_IMAGE_TYPES, model=model)


def _get_output(view: RunView, number: int) -> tuple[FlowOutput, str]:
    """Give an output, and the safe name of its file without extension."""
    if not 0 <= number < min(len(view.outputs), MAX_OUTPUTS_PER_PAGE):
        message = f"This flow run has no output number {number}"
        raise NoFileError(message)
    output = view.outputs[number]
    if output.status == ERROR:
        message = "This output was not made, or could not be fetched"
        raise NoFileError(message)
    return output, next(islice(file_names(view.outputs), number, None))


def _get_own_path(view: RunView, output: FlowOutput) -> ObjectStoragePath | None:
    """Give the path of an output's file, None if it has none in the very folder that its task writes this run's files to.

    An XCom can be written by whoever may change the DAG's runs: what it says must not open any other file to them.
    """
    output_options = view.output_options
    if output.uri is None or view.run is None or output_options is None or output_options.output_path is None:
        return None
    name = output.uri.rpartition("/")[2]
    if name in {"", ".", ".."} or "\\" in name or "\x00" in name:
        return None
    try:
        is_own_file = (
            to_uri(get_run_folder(view.run, output_options.output_path, output_options.output_conn_id) / name)
            == output.uri
        )
        if not is_own_file:
            return None
        return get_file_path(output.uri, output_options.output_path, output_options.output_conn_id)
    except Exception as error:  # noqa: BLE001  # whatever the store's library raises
        log.info(
            "The folder of the %s cannot be reached by the API server (%s)", view.run, type(error).__name__
        )
        return None


def _read_header(path: ObjectStoragePath, header: _HeaderTarget) -> bool:
    """Read the beginning of a file; gives whether it could be read."""
    try:
        file = path.fs.open(path.path, "rb", block_size=OUTPUT_BLOCK_BYTES)
    except Exception as error:  # noqa: BLE001  # whatever the store's library raises
        log.info("%s cannot be read by the API server (%s)", path, type(error).__name__)
        return False
    with file, suppress(_EnoughError):
        while chunk := file.read(SNIFF_BYTES if len(header.data) < SNIFF_BYTES else OUTPUT_CHUNK_BYTES):
            header.write(chunk)
    return True


def _download_output(view: RunView, output: FlowOutput, target: _Spool | _HeaderTarget) -> str | None:
    """Download an output from its service; gives its media type."""
    if view.flows_conn_id is None or view.flow_run_id is None or output.asset_id is None:
        message = "The file of this output cannot be read from here: it lies where only the workers reach it, or it is gone"
        raise NoFileError(message)
    try:
        hook = get_flows_hook(view.flows_conn_id)
        try:
            return hook.save_output(view.flow_run_id, output.asset_id, target, media_type=output.media_type)
        finally:
            hook.close()
    except FlowNotFound as error:
        message = (
            "The file of this output cannot be read from here, and the service does not have it any more"
        )
        raise NoFileError(message) from error
    except FlowError as error:
        message = f"The file of this output could not be fetched. {view.to_error_text(error)}"
        raise NoFileError(message) from error


def _spool_text(data: bytes, name: str) -> OpenFile:
    spool = _Spool()
    spool.write(data)
    spool.file.seek(0)
    return OpenFile(spool.file, name, spool.size)


class _Spool:
    """A target that keeps a download until it is whole: what has begun to be sent cannot be taken back."""

    def __init__(self, max_bytes: int = MAX_OUTPUT_DOWNLOAD_BYTES) -> None:
        self._max_bytes = max_bytes
        self.file = tempfile.SpooledTemporaryFile(MAX_IN_MEMORY_BYTES)  # noqa: SIM115  # whoever sends it closes it
        self.size = 0

    def restart(self) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.size = 0

    def write(self, data: bytes) -> None:
        self.size += len(data)
        if self.size > self._max_bytes:
            message = f"This output is larger than the {self._max_bytes} bytes that are fetched from its service here. {OUTPUT_PATH_HINT}"
            raise NoFileError(message)
        self.file.write(data)


class _HeaderTarget:
    """A target that takes what tells of a file, of a GLB file its header, and ends the download then."""

    def __init__(self) -> None:
        self.data = bytearray()

    def restart(self) -> None:
        self.data.clear()

    def write(self, data: bytes) -> None:
        self.data += data
        try:
            required_bytes = (
                glb_header.get_header_size(bytes(self.data[: glb_header.GLB_PREAMBLE.size]))
                if self.data.startswith(data_uri.GLB_MAGIC)
                else SNIFF_BYTES
            )
        except ValueError:  # a header that nobody reads
            required_bytes = SNIFF_BYTES
        if len(self.data) >= required_bytes:
            raise _EnoughError
