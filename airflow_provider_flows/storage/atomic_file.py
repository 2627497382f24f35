"""One file on its way to a store: a chunk at a time under a temporary name, with size and digest, final only when whole.

Where its bytes come from and what it is to be called it does not know.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from airflow_provider_flows.storage.file_source import LOCAL_SCHEMES, get_conn_id

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

log = logging.getLogger(__name__)

# stores where folders are only names, so that none need be made; s3fs would make the bucket too, even one that was misspelt
OBJECT_STORES = frozenset(
    {"s3", "s3a", "s3n", "gs", "gcs", "abfs", "abfss", "adl", "az", "wasb", "wasbs", "oss"}
)
OUTPUT_BLOCK_BYTES = (
    5 * 1024 * 1024
)  # bytes of a file that a store keeps in memory, the least that S3 takes; some keep 50 MiB if nobody says
OUTPUT_CHUNK_BYTES = 1024 * 1024


class CancelledWriteError(Exception):
    """Nobody waits for the file any more."""


class Cancellation:
    """Ends what is being written, from another thread: a killed task is only told so, and works on until it is shot."""

    def __init__(self) -> None:
        """Begin with nothing to end."""
        self.event = Event()
        self._partial_files: list[PartialFile] = []

    def register(self, partial_files: list[PartialFile]) -> None:
        """Take the files that are being written."""
        self._partial_files = partial_files

    def cancel(self) -> None:
        """Let nothing be written any more, and remove what has no final name yet."""
        self.event.set()
        for part in self._partial_files:
            part.discard()


class PartialFile:
    """A file under a temporary name, which takes the bytes of a download (flow/sink.py); a new one for each attempt at it."""

    def __init__(self, folder: ObjectStoragePath, name: str, cancel_event: Event | None = None) -> None:
        """Take where it is to be.

        :param name: of the file, without extension: what the file is will only be known in the end.
        :param cancel_event: is set by another thread when the file is not wanted any more.
        """
        self.size = 0
        self._digest = hashlib.sha256()
        self._folder = folder
        self._name = name
        self._cancel_event = cancel_event or Event()
        self._path: ObjectStoragePath | None = None
        self._file: Any = None

    @property
    def sha256(self) -> str:
        """The digest of what was written so far."""
        return self._digest.hexdigest()

    def restart(self) -> None:
        """Begin the file, without what was written of it before."""
        self.discard()
        self._raise_if_cancelled()
        self.size, self._digest = 0, hashlib.sha256()
        self._path = path = self._folder / f".{self._name}.{uuid4().hex[:8]}.part"
        with _wrap_store_errors(path):
            if path.protocol not in OBJECT_STORES:
                self._folder.mkdir(parents=True, exist_ok=True)
            # not by the path's own `open`: to Airflow's lineage the temporary name would be a file of its own
            self._file = path.fs.open(path.path, "wb", block_size=OUTPUT_BLOCK_BYTES)
        self._raise_if_cancelled()

    def write(self, data: bytes) -> None:
        """Write the next bytes."""
        self._raise_if_cancelled()
        with _wrap_store_errors(self._path):
            self._file.write(data)
        self._digest.update(data)
        self.size += len(data)

    def _raise_if_cancelled(self) -> None:
        if self._cancel_event.is_set():
            self.discard()
            raise CancelledWriteError

    def commit(self, path: ObjectStoragePath) -> None:
        """Give the file, which is whole, its final name; one that is there already is replaced.

        :raises OSError: the store does not take it, or keeps less than it was given.
        """
        self._raise_if_cancelled()
        temporary, file = self._path, self._file
        if temporary is None:
            raise CancelledWriteError
        with _wrap_store_errors(path):
            if (
                temporary.protocol in LOCAL_SCHEMES
            ):  # what the disk has not got yet is lost when the machine fails
                file.flush()
                os.fsync(file.fileno())
            file.close()
            stored_size = temporary.stat().st_size
        if stored_size != self.size:
            message = f"{temporary} has {stored_size} bytes after {self.size} were written"
            raise OSError(message)
        with _wrap_store_errors(path):
            _rename(temporary, path)
        self._path = self._file = None

    def discard(self) -> None:
        """Remove what there is under the temporary name; what is final stays."""
        path, file = self._path, self._file
        self._path = self._file = None
        if file is not None:
            with suppress(Exception):  # what could not be written cannot be closed either
                _close_without_commit(path, file)
        try:
            if path is not None:
                path.unlink(missing_ok=True)
        except Exception as error:  # noqa: BLE001  # whatever the store raises; why there is no file is what counts
            log.warning("The temporary file %s could not be removed (%s)", path, type(error).__name__)


def _rename(temporary: ObjectStoragePath, path: ObjectStoragePath) -> None:
    if temporary.protocol not in LOCAL_SCHEMES:
        temporary.replace(path)
        return
    Path(temporary.path).replace(path.path)
    with suppress(OSError):  # some disks do not take it for a folder
        folder = os.open(path.parent.path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _close_without_commit(path: ObjectStoragePath | None, file: Any) -> None:
    """Close a file that is not wanted; a store is told to drop what it was sent, for a close would make the file whole first."""
    if path is None or path.protocol not in OBJECT_STORES or file.closed or not hasattr(file, "discard"):
        file.close()
        return
    try:
        file.discard()
    finally:
        file.closed = True  # or Python closes it in the end, and so completes it


@contextmanager
def _wrap_store_errors(path: ObjectStoragePath | None) -> Iterator[None]:
    """Turn what a store's library raises, which may be anything, into an OSError that names the file."""
    try:
        yield
    except Exception as error:
        message = f"{path} cannot be written: {error}"
        raise OSError(getattr(error, "errno", None), message) from error


def write_atomically(path: ObjectStoragePath, data: bytes) -> None:
    """Write a file whole or not at all."""
    partial_file = PartialFile(path.parent, path.name)
    try:
        partial_file.restart()
        partial_file.write(data)
        partial_file.commit(path)
    finally:
        partial_file.discard()


def compute_sha256(path: ObjectStoragePath, cancel_event: Event) -> str:
    """Read a file, a piece at a time, and give its SHA-256.

    :raises CancelledWriteError: nobody waits for it any more; and whatever the store raises.
    """
    digest = hashlib.sha256()
    # not by the path's own `open`: to Airflow's lineage it would be an input of the task
    with path.fs.open(path.path, "rb", block_size=OUTPUT_BLOCK_BYTES) as file:
        while chunk := file.read(OUTPUT_CHUNK_BYTES):
            digest.update(chunk)
            if cancel_event.is_set():
                raise CancelledWriteError
    return digest.hexdigest()


def remove_stale_temporary_files(folder: ObjectStoragePath, names: Iterable[str]) -> None:
    """Remove what killed tries have left of files with these names."""
    pattern = re.compile(rf"\.(?:{'|'.join(map(re.escape, names))})\.[0-9a-f]{{8}}\.part")
    with suppress(
        Exception
    ):  # no folder yet, or a store that lists nothing to us: then there is nothing to be done
        for path in [path for path in folder.iterdir() if pattern.fullmatch(path.name)]:
            path.unlink(missing_ok=True)


def to_uri(path: ObjectStoragePath) -> str:
    """Give a file's URI: with its scheme also where the path was given without, and without Airflow's connection id."""
    scheme, found, rest = str(path).partition("://")
    if not found:
        return f"file://{path.absolute()}"
    return f"{scheme}://{rest.removeprefix(f'{get_conn_id(path)}@')}"
