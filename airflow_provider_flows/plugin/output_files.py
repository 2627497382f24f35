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
from airflow_provider_flows.plugin.run_view import Sight, hook_of
from airflow_provider_flows.plugin.schemas import KEEP, MOST_OUTPUTS, SAFE_IMAGES, AboutShown, is_link
from airflow_provider_flows.storage.atomic_file import BLOCK, PIECE, uri_of
from airflow_provider_flows.storage.output_download import place_of
from airflow_provider_flows.storage.outputs import folder_of
from airflow_provider_flows.storage.paths import file_names

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

log = logging.getLogger(__name__)

IN_MEMORY = 4 * 1024 * 1024  # bytes of a download; a larger one lies on the disk meanwhile
LARGEST = 2 * 1024**3  # bytes of a download from a service; on its way it lies on the API server's disk
LARGEST_IMAGE = 32 * 1024 * 1024
SNIFFED = 64  # bytes that tell what a file is


class NoFileError(Exception):
    """There is no such output, or no file of it can be had; says why."""


class _EnoughError(Exception):
    """All that is wanted of a file has come."""


@dataclass(frozen=True)
class Opened:
    """A file that can be read once; `size` is in bytes."""

    file: Any
    name: str
    size: int

    def pieces(self) -> Iterator[bytes]:
        """Give its bytes, a piece at a time, and close it."""
        with self.file as file:
            while piece := file.read(PIECE):
                yield piece


@dataclass(frozen=True)
class Image:
    """A picture that a browser may show."""

    data: bytes
    media_type: str


def opened(sight: Sight, number: int, most: int = LARGEST) -> Opened:
    """Open an output as it was recorded: a text, a file that the task has written, or one at the service.

    :param most: bytes that are fetched from a service.
    :raises NoFileError: there is none, or it is larger.
    """
    output, name = _output(sight, number)
    path = _place(sight, output)
    if path is not None:
        try:
            size = path.stat().st_size
            file = path.fs.open(path.path, "rb", block_size=BLOCK)
        except Exception as error:  # noqa: BLE001  # whatever the store's library raises
            log.info("%s cannot be read by the API server (%s)", path, type(error).__name__)
        else:
            return Opened(file, name + data_uri.extension(output.media_type), size)
    elif output.value is not None and output.uri is None and not is_link(output):
        return _held(output.value.encode("utf-8", "replace"), f"{name}.txt")
    spool = _Spool(most)
    try:
        kind = _from_service(sight, output, spool)
    except BaseException:
        spool.file.close()
        raise
    spool.file.seek(0)
    return Opened(spool.file, name + data_uri.extension(kind or output.media_type), spool.size)


def image(sight: Sight, number: int) -> Image:
    """Read a picture, which its own first bytes must tell to be of a harmless kind.

    :raises NoFileError: there is none, or it is something else.
    """
    found = opened(sight, number, LARGEST_IMAGE)
    with found.file as file:
        data = file.read(LARGEST_IMAGE + 1)
    kind = data_uri.sniff(data[:SNIFFED])
    if kind not in SAFE_IMAGES or len(data) > LARGEST_IMAGE:
        message = "This output is no picture that can be shown here; download it"
        raise NoFileError(message)
    return Image(data, str(kind))


def about(sight: Sight, number: int) -> AboutShown:
    """Look at the beginning of an output's file, and of a model at its header; no more than that is read.

    :raises NoFileError: there is no such output, or no file of it can be had.
    """
    output, _ = _output(sight, number)
    begin = _Beginning()
    path = _place(sight, output)
    if path is None or not _begun(path, begin):
        with suppress(_EnoughError):
            _from_service(sight, output, begin)
    data = bytes(begin.data)
    kind = data_uri.sniff(data[:SNIFFED]) or output.media_type
    try:
        model = glb_header.facts(data) if kind == data_uri.GLB else None
    except ValueError as error:
        log.info("The model %s cannot be read: %s", output.name, error)
        model = None
    return AboutShown(media_type=kind, image=kind in SAFE_IMAGES, model=model)


def _output(sight: Sight, number: int) -> tuple[FlowOutput, str]:
    """Give an output, and the safe name of its file without extension."""
    if not 0 <= number < min(len(sight.outputs), MOST_OUTPUTS):
        message = f"This flow run has no output number {number}"
        raise NoFileError(message)
    output = sight.outputs[number]
    if output.status == ERROR:
        message = "This output was not made, or could not be fetched"
        raise NoFileError(message)
    return output, next(islice(file_names(sight.outputs), number, None))


def _place(sight: Sight, output: FlowOutput) -> ObjectStoragePath | None:
    """Give the path of an output's file, None if it has none in the very folder that its task writes this run's files to.

    An XCom can be written by whoever may change the DAG's runs: what it says must not open any other file to them.
    """
    delivery = sight.delivery
    if output.uri is None or sight.run is None or delivery is None or delivery.output_path is None:
        return None
    name = output.uri.rpartition("/")[2]
    if name in {"", ".", ".."} or "\\" in name or "\x00" in name:
        return None
    try:
        lies_there = (
            uri_of(folder_of(sight.run, delivery.output_path, delivery.output_conn_id) / name) == output.uri
        )
        return place_of(output, delivery) if lies_there else None
    except Exception as error:  # noqa: BLE001  # whatever the store's library raises
        log.info(
            "The folder of the %s cannot be reached by the API server (%s)", sight.run, type(error).__name__
        )
        return None


def _begun(path: ObjectStoragePath, begin: _Beginning) -> bool:
    """Read the beginning of a file; gives whether it could be read."""
    try:
        file = path.fs.open(path.path, "rb", block_size=BLOCK)
    except Exception as error:  # noqa: BLE001  # whatever the store's library raises
        log.info("%s cannot be read by the API server (%s)", path, type(error).__name__)
        return False
    with file, suppress(_EnoughError):
        while piece := file.read(SNIFFED if len(begin.data) < SNIFFED else PIECE):
            begin.write(piece)
    return True


def _from_service(sight: Sight, output: FlowOutput, target: _Spool | _Beginning) -> str | None:
    """Download an output from its service; gives its media type."""
    if sight.flows_conn_id is None or sight.flow_run_id is None or output.asset_id is None:
        message = "The file of this output cannot be read from here: it lies where only the workers reach it, or it is gone"
        raise NoFileError(message)
    try:
        hook = hook_of(sight.flows_conn_id)
        try:
            return hook.save_output(sight.flow_run_id, output.asset_id, target, media_type=output.media_type)
        finally:
            hook.close()
    except FlowNotFound as error:
        message = (
            "The file of this output cannot be read from here, and the service does not have it any more"
        )
        raise NoFileError(message) from error
    except FlowError as error:
        message = f"The file of this output could not be fetched. {sight.words_of(error)}"
        raise NoFileError(message) from error


def _held(data: bytes, name: str) -> Opened:
    spool = _Spool()
    spool.write(data)
    spool.file.seek(0)
    return Opened(spool.file, name, spool.size)


class _Spool:
    """A target that keeps a download until it is whole: what has begun to be sent cannot be taken back."""

    def __init__(self, most: int = LARGEST) -> None:
        self._most = most
        self.file = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115  # whoever sends it closes it
        self.size = 0

    def restart(self) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.size = 0

    def write(self, data: bytes) -> None:
        self.size += len(data)
        if self.size > self._most:
            message = f"This output is larger than the {self._most} bytes that are fetched from its service here. {KEEP}"
            raise NoFileError(message)
        self.file.write(data)


class _Beginning:
    """A target that takes what tells of a file, of a GLB file its header, and ends the download then."""

    def __init__(self) -> None:
        self.data = bytearray()

    def restart(self) -> None:
        self.data.clear()

    def write(self, data: bytes) -> None:
        self.data += data
        try:
            wanted = (
                glb_header.needed(bytes(self.data[: glb_header.HEAD.size]))
                if self.data.startswith(data_uri.GLB_MAGIC)
                else SNIFFED
            )
        except ValueError:  # a header that nobody reads
            wanted = SNIFFED
        if len(self.data) >= wanted:
            raise _EnoughError
