"""The bytes of a run's outputs: downloads, images and the facts in a file's first bytes.

An output is identified by its number, never by a path. Access is checked before. But run id and URI are from
XComs, which users can write who may not read every file and every flow run. A file is therefore read from the
folder of its run's files only if the task has recorded it in Airflow's task state store, or, without records,
if its size and SHA-256 match before the first byte is sent. Otherwise it is downloaded from the service, if
the run is one of this task.

A thread for each download reads the source, at most a small buffer ahead of the reader. A response in
progress cannot be withdrawn: if a download breaks, its connection ends, so that no browser takes it for a
complete file.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.core.exceptions import FlowError, FlowNotFound
from airflow_provider_flows.core.flow_run import ERROR, FlowOutput
from airflow_provider_flows.core.gltf import (
    GLB_PREAMBLE,
    count_triangles,
    get_glb_header_size,
    get_object,
    get_objects,
    parse_glb_json,
)
from airflow_provider_flows.core.limits import (
    DOWNLOAD_CHUNK_BYTES,
    MAX_CHECKED_INFO_BYTES,
    MAX_IMAGE_BYTES,
    MAX_MODEL_BYTES,
    MAX_SERVED_BYTES,
)
from airflow_provider_flows.core.payload import data_uri
from airflow_provider_flows.core.retry import NO_RETRY
from airflow_provider_flows.core.service import Service
from airflow_provider_flows.plugin.airflow_internals import load_file_records
from airflow_provider_flows.plugin.present import (
    MAX_OUTPUTS_PER_PAGE,
    OUTPUT_PATH_HINT,
    SAFE_IMAGE_TYPES,
    ModelSchema,
    OutputInfoSchema,
    is_link,
)
from airflow_provider_flows.plugin.run_view import PAGE_TIMEOUT_SECONDS, Ownership, RunView, get_flows_hook
from airflow_provider_flows.plugin.texts import to_safe_line
from airflow_provider_flows.plugin.viewer import find_compression, has_other_files
from airflow_provider_flows.storage.atomic_file import open_stored_file
from airflow_provider_flows.storage.parallel import Pipe
from airflow_provider_flows.storage.paths import file_names, get_file_path, to_uri

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

    from airflow_provider_flows.hooks import FlowsHook

log = logging.getLogger(__name__)

SNIFF_BYTES = 64  # enough to detect a file's media type
MAX_GENERATOR_LENGTH = 200
# the names that tasks give to files; temporary files and saved responses start with a dot
STORED_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._~-]*")


class NoFileError(Exception):
    """The output does not exist or its file cannot be read; the message has the reason."""


class _EnoughDataError(Exception):
    """Ends a download early, once the header is complete."""


class _ChangedFileError(Exception):
    """A stored file is not the one that the task has stored."""


class OpenFile(Pipe):
    """An output on its way to one reader.

    :param name: the file's name.
    :param max_bytes: maximum size.
    """

    def __init__(self, name: str, max_bytes: int = MAX_SERVED_BYTES) -> None:
        super().__init__()
        self.name = name
        self._max_bytes = max_bytes

    def write(self, data: bytes) -> None:
        """Write the next bytes.

        :raises NoFileError: the file is too large.
        """
        if self.position + len(data) > self._max_bytes:
            raise NoFileError(
                f"This output exceeds the maximum of {self._max_bytes} bytes for a download from the service."
                f" {OUTPUT_PATH_HINT}"
            )
        super().write(data)


@dataclass(frozen=True)
class StoredFile:
    """A file in the folder of a run's files.

    :param is_recorded: whether size and digest are from the task's record, which no XCom can write.
    """

    path: ObjectStoragePath
    folder: ObjectStoragePath
    size: int
    sha256: str
    is_recorded: bool

    def open(self, max_checked_bytes: int = MAX_SERVED_BYTES) -> Any:
        """Open the file for reading. One without a record must have the digest.

        :param max_checked_bytes: maximum size of a file without a record.
        :raises _ChangedFileError: the file has another size or digest, or is too large to compute that.
        :raises Exception: any error of the store.
        """
        file = open_stored_file(self.path, self.folder)
        try:
            is_same = file.seek(0, os.SEEK_END) == self.size
            file.seek(0)
            if is_same and not self.is_recorded:
                is_same = self.size <= max_checked_bytes and _compute_sha256(file) == self.sha256
                file.seek(0)
        except BaseException:
            file.close()
            raise
        if not is_same:
            file.close()
            raise _ChangedFileError
        return file

    def write_to(self, target: OpenFile) -> None:
        """Write the file to a target. Its last chunk is written if the digest matches.

        :raises _ChangedFileError: the file is not the one that the task has stored.
        :raises Exception: any error of the store or of the target.
        """
        with self.open() as file:
            digest, chunk = hashlib.sha256(), b""
            target.restart()
            while following := file.read(DOWNLOAD_CHUNK_BYTES):
                target.write(chunk)
                digest.update(following)
                chunk = following
            if digest.hexdigest() != self.sha256:
                raise _ChangedFileError
            target.write(chunk)


def _compute_sha256(file: Any) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(DOWNLOAD_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def open_output(view: RunView, number: int, max_bytes: int = MAX_SERVED_BYTES) -> OpenFile:
    """Open an output: a text, a file that the task stored, or a file at the service.

    :param max_bytes: maximum size of a download from the service.
    :raises NoFileError: the output does not exist, cannot be read or is too large.
    """
    output, name = _get_output(view, number)
    stored = _find_stored_file(view, output)
    if stored is not None:
        file = OpenFile(name + data_uri.extension(output.media_type), stored.size)
        try:
            file.read_from(stored.write_to)
        except Exception as error:  # noqa: BLE001  # storage libraries raise exceptions of any type
            _log_unreadable(stored.path, error)
        else:
            file.size = stored.size
            return file
    elif output.value is not None and output.uri is None and not is_link(output):
        text = output.value.encode("utf-8", "replace")
        file = OpenFile(f"{name}.txt", len(text))
        file.read_from(lambda target: target.write(text))
        file.size = len(text)
        return file
    file = OpenFile(name, max_bytes)
    media_types: list[str | None] = []
    file.read_from(lambda target: media_types.append(_download_output(view, output, target)))
    media_type = next(iter(media_types), None) or data_uri.sniff(file.peek(SNIFF_BYTES)) or output.media_type
    file.name = name + data_uri.extension(media_type)
    return file


def open_image(view: RunView, number: int) -> tuple[OpenFile, str]:
    """Open an image, if its first bytes show that it has one of the safe types; return its media type, too.

    :raises NoFileError: the output does not exist, cannot be read or is not such an image.
    """
    file = open_output(view, number, MAX_IMAGE_BYTES)
    media_type = data_uri.sniff(file.peek(SNIFF_BYTES))
    if media_type not in SAFE_IMAGE_TYPES or (file.size or 0) > MAX_IMAGE_BYTES:
        file.close()
        raise NoFileError("This output is not an image that can be shown here. Download it instead.")
    return file, str(media_type)


def open_model(view: RunView, number: int) -> tuple[OpenFile, str]:
    """Open a 3D model, if its first bytes show that it is a GLB file; return its media type, too.

    :raises NoFileError: the output does not exist, cannot be read, is too large or is not such a model.
    """
    file = open_output(view, number, MAX_MODEL_BYTES)
    is_model = data_uri.sniff(file.peek(SNIFF_BYTES)) == data_uri.GLB
    if not is_model or (file.size or 0) > MAX_MODEL_BYTES:
        file.close()
        raise NoFileError("This output is not a 3D model that can be shown here. Download it instead.")
    return file, data_uri.GLB


def load_output_info(view: RunView, number: int) -> OutputInfoSchema:
    """Return the media type of an output's file, and the facts in a GLB file's header; no more is sent.

    :raises NoFileError: the output does not exist or cannot be read.
    """
    output, _ = _get_output(view, number)
    header = _HeaderTarget()
    stored = _find_stored_file(view, output)
    if stored is None or not _read_header(stored, header):
        with suppress(_EnoughDataError):
            _download_output(view, output, header)
    data = bytes(header.data)
    media_type = data_uri.sniff(data[:SNIFF_BYTES]) or output.media_type
    try:
        model = parse_glb_header(data) if media_type == data_uri.GLB else None
    except ValueError as error:
        log.info("The GLB header of output %s cannot be parsed: %s", output.name, error)
        model = None
    size = output.size
    if size is None and model is not None:
        size = GLB_PREAMBLE.unpack_from(data)[2]  # as the header has it
    return OutputInfoSchema(
        media_type=media_type, size=size, is_image=media_type in SAFE_IMAGE_TYPES, model=model
    )


def _get_output(view: RunView, number: int) -> tuple[FlowOutput, str]:
    """Return an output and its file's safe name, without extension."""
    if not 0 <= number < min(len(view.outputs), MAX_OUTPUTS_PER_PAGE):
        raise NoFileError(f"This flow run has no output with the number {number}.")
    output = view.outputs[number]
    if output.status == ERROR:
        raise NoFileError("This output was not created, or could not be downloaded.")
    stored_name = (output.uri or "").rpartition("/")[2]
    if STORED_FILE_NAME.fullmatch(stored_name):
        return output, stored_name.rpartition(".")[0] or stored_name
    return output, next(islice(file_names(view.outputs), number, None))


def _find_stored_file(view: RunView, output: FlowOutput) -> StoredFile | None:
    """Return an output's file in the folder of this run's files, None if the task has not stored it there.

    If the task has records of the run's files, the file is one of them. Without any, the file must have the
    size and the digest in the XCom, which a user who cannot read the file does not know.
    """
    try:
        paths = _get_own_paths(view, output)
        if paths is None:
            return None
        if view.ownership is Ownership.CONTRADICTED:
            with closing(get_flows_hook(str(view.flows_conn_id), view.team_name)) as hook:
                _require_own_run(view, hook)
        records = {} if view.task_key is None else load_file_records(view.task_key, str(view.flow_run_id))
    except Exception as error:  # noqa: BLE001  # storage libraries raise exceptions of any type
        log.info("The API server cannot access the output folder of %s: %s", view.run, type(error).__name__)
        return None
    folder, path = paths
    size: Any = output.size
    sha256: Any = output.sha256
    if records:
        record = records.get(str(output.uri), {})
        size, sha256 = record.get("size"), record.get("sha256")
    if type(size) is not int or not isinstance(sha256, str):
        log.warning("The task has no complete record of the file %s, so it is not sent", path)
        return None
    return StoredFile(path, folder, size, sha256, is_recorded=bool(records))


def _get_own_paths(view: RunView, output: FlowOutput) -> tuple[ObjectStoragePath, ObjectStoragePath] | None:
    """Return the folder of a run's files and the path of an output there, None if it is not there.

    :raises Exception: any error of a storage library.
    """
    options, run = view.output_options, view.run
    if output.uri is None or run is None or options is None or options.output_path is None:
        return None
    name = output.uri.rpartition("/")[2]
    has_form = STORED_FILE_NAME.fullmatch(name) is not None and _has_run_id_form(view)
    if not has_form or run.flow_run_id != view.flow_run_id:
        return None
    folder = options.get_folder(run)
    if to_uri(folder / name) != output.uri:
        return None
    return folder, get_file_path(output.uri, options.output_path, options.output_conn_id)


def _has_run_id_form(view: RunView) -> bool:
    """Return whether a run's id has the form of its service's ids, unlike the name of another folder."""
    pattern = Service.run_id_pattern
    if view.flows_conn_id is not None:
        # the connection may be deleted, or invalid
        with suppress(Exception), closing(get_flows_hook(view.flows_conn_id, view.team_name)) as hook:
            pattern = hook.service.run_id_pattern
    return pattern.fullmatch(str(view.flow_run_id)) is not None


def _require_own_run(view: RunView, hook: FlowsHook) -> None:
    """Raise an error unless Airflow or the service has recorded that the run is one of this task.

    :raises NoFileError: it is not known to be one.
    :raises FlowError: the service cannot be reached.
    """
    if view.ownership is Ownership.CONFIRMED:
        return
    if view.ownership is not Ownership.FOREIGN and hook.service.supports("get_run"):
        conversation = hook.service.get_run(str(view.flow_run_id))
        if view.is_stamped_on(hook.run(conversation, retry=NO_RETRY, timeout=PAGE_TIMEOUT_SECONDS)):
            return
    raise NoFileError(
        "Neither Airflow nor the service has a record that this task started this flow run, so its files "
        "cannot be downloaded here. Users who may read the connection find them on the Flow runs page."
    )


def _read_header(stored: StoredFile, header: _HeaderTarget) -> bool:
    """Read the first bytes of a stored file; return whether it could be opened."""
    try:
        file = stored.open(MAX_CHECKED_INFO_BYTES)
    except Exception as error:  # noqa: BLE001  # storage libraries raise exceptions of any type
        _log_unreadable(stored.path, error)
        return False
    with file, suppress(_EnoughDataError):
        while chunk := file.read(SNIFF_BYTES if len(header.data) < SNIFF_BYTES else DOWNLOAD_CHUNK_BYTES):
            header.write(chunk)
    return True


def _log_unreadable(path: ObjectStoragePath, error: Exception) -> None:
    if isinstance(error, _ChangedFileError):
        log.warning("The file %s is not sent, because it is not the one that the task has stored", path)
    else:
        log.info("The API server cannot read the output file %s: %s", path, type(error).__name__)


def _download_output(view: RunView, output: FlowOutput, target: OpenFile | _HeaderTarget) -> str | None:
    """Download an output from its service; return its media type."""
    if view.flows_conn_id is None or view.flow_run_id is None or output.asset_id is None:
        raise NoFileError(
            "The API server cannot read the file of this output. "
            "It was deleted, or only workers can access it."
        )
    try:
        with closing(get_flows_hook(view.flows_conn_id, view.team_name)) as hook:
            _require_own_run(view, hook)
            return hook.save_output(view.flow_run_id, output.asset_id, target, media_type=output.media_type)
    except FlowNotFound as error:
        raise NoFileError(
            "The API server cannot read the file of this output, and the service no longer has it."
        ) from error
    except FlowError as error:
        raise NoFileError(
            f"The file of this output could not be downloaded. {view.to_error_text(error)}"
        ) from error


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


def parse_glb_header(head: bytes) -> ModelSchema:
    """Return the facts in the header of a GLB file. The geometry is not read.

    :param head: the first bytes of the file, at least `get_glb_header_size` of them.
    :raises ValueError: the header cannot be parsed.
    """
    gltf = parse_glb_json(head)
    generator = get_object(gltf, "asset").get("generator")
    return ModelSchema(
        meshes=len(get_objects(gltf, "meshes")),
        triangles=count_triangles(gltf),
        materials=len(get_objects(gltf, "materials")),
        textures=len(get_objects(gltf, "textures")),
        animations=len(get_objects(gltf, "animations")),
        generator=to_safe_line(generator)[:MAX_GENERATOR_LENGTH] if isinstance(generator, str) else None,
        compression=find_compression(gltf),
        has_other_files=has_other_files(gltf),
    )
