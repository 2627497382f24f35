"""Where downloads are written: a file of any store, or a part of a temporary file.

The former is written atomically, in chunks, and can be cancelled: a file has its final name only once it is
complete.
"""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import re
import stat
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from tempfile import TemporaryFile
from threading import Event
from typing import IO, TYPE_CHECKING, Any, Self
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from airflow_provider_flows.core.limits import MAX_FETCHED_INPUT_BYTES
from airflow_provider_flows.core.payload.sink import TooLargeError
from airflow_provider_flows.storage.paths import LOCAL_SCHEMES, OBJECT_STORES

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

log = logging.getLogger(__name__)

# the buffer of an open file: the smallest part that S3 accepts; some file systems take 50 MiB by default
OUTPUT_BLOCK_BYTES = 5 * 1024 * 1024
OUTPUT_CHUNK_BYTES = 1024 * 1024
PROBE_NAME = "airflow-flows-write-test"
TEMPORARY_NAME = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.part", re.DOTALL)
PROBE_CONTENT = b"This file tests whether flow outputs can be written here. It can be deleted.\n"


class CancelledWriteError(Exception):
    """The write of a file was cancelled."""


class Cancellation:
    """A means to cancel writes from another thread.

    Airflow only calls `on_kill` for a killed task; the process continues until it is killed.
    """

    def __init__(self) -> None:
        self.event = Event()
        self._files: list[PartialFile] = []

    def register(self, file: PartialFile) -> None:
        """Register a file that `cancel` shall discard."""
        self._files.append(file)

    def cancel(self) -> None:
        """Cancel all writes, and remove the temporary files."""
        self.event.set()
        for file in self._files:
            file.discard()

    def raise_if_cancelled(self) -> None:
        """Raise CancelledWriteError if `cancel` was called."""
        if self.event.is_set():
            raise CancelledWriteError


class PartialFile:
    """A file with a temporary name, the target of a download: `restart`, `write`, then `commit` or `discard`.

    As a context manager it discards the file at the end of the block, unless the file is committed.
    """

    def __init__(
        self, folder: ObjectStoragePath, name: str, cancellation: Cancellation | None = None
    ) -> None:
        """Create a file that does not exist yet.

        :param folder: the folder of the file; `restart` creates it where stores have folders.
        :param name: the file's name without extension, because its type is known at the end only.
        :param cancellation: ends the writes and discards the file from another thread.
        """
        self.size = 0
        self._digest = hashlib.sha256()
        self._folder = folder
        self._name = name
        self._cancellation = cancellation or Cancellation()
        self._cancellation.register(self)
        self._path: ObjectStoragePath | None = None
        self._file: Any = None

    def __enter__(self) -> Self:
        """Return the file."""
        return self

    def __exit__(self, *_: object) -> None:
        """Discard the file, unless it is committed."""
        self.discard()

    @property
    def sha256(self) -> str:
        """The hexadecimal digest of the bytes written since the last restart."""
        return self._digest.hexdigest()

    def restart(self) -> None:
        """Open a new temporary file, and discard the one before.

        :raises OSError: the store does not accept the file.
        :raises CancelledWriteError: the write was cancelled.
        """
        self.discard()
        self._discard_if_cancelled()
        self.size, self._digest = 0, hashlib.sha256()
        self._path = path = self._folder / f".{self._name}.{uuid4().hex[:8]}.part"
        with _wrap_store_errors(path):
            if path.protocol not in OBJECT_STORES:
                self._folder.mkdir(parents=True, exist_ok=True)
            # not `path.open`, which would report the temporary file to Airflow's lineage
            self._file = path.fs.open(path.path, "wb", block_size=OUTPUT_BLOCK_BYTES)
        self._discard_if_cancelled()

    def write(self, data: bytes) -> None:
        """Write the next bytes.

        :raises OSError: the store does not accept them.
        :raises CancelledWriteError: the write was cancelled.
        """
        self._discard_if_cancelled()
        with _wrap_store_errors(self._path):
            self._file.write(data)
        self._digest.update(data)
        self.size += len(data)

    def _discard_if_cancelled(self) -> None:
        if self._cancellation.event.is_set():
            self.discard()
            raise CancelledWriteError

    def commit(self, path: ObjectStoragePath, *, may_replace: bool = False) -> None:
        """Move the complete file to its final path.

        In a local file system no file can appear in between. In any other store, one that another process
        creates at the same moment may be replaced, because not all stores have an operation that cannot.

        :param may_replace: whether to replace a file that is at the path.
        :raises FileExistsError: there is a file at the path; the temporary one can still be committed.
        :raises OSError: the store does not accept the file, or has stored less than was written.
        :raises CancelledWriteError: the write was cancelled.
        """
        self._discard_if_cancelled()
        temporary, file = self._path, self._file
        if temporary is None:  # discarded by another thread
            raise CancelledWriteError
        with _wrap_store_errors(path):
            if not file.closed:  # else a commit to another path has failed
                if temporary.protocol in LOCAL_SCHEMES:  # else data is lost if the machine fails
                    file.flush()
                    os.fsync(file.fileno())
                file.close()
            stored_size = temporary.stat().st_size
        if stored_size != self.size:
            raise OSError(f"{temporary} has {stored_size} bytes after {self.size} were written")
        if not may_replace and _exists(path):
            raise FileExistsError(errno.EEXIST, f"{path} exists already")
        with _wrap_store_errors(path):
            _rename(temporary, path, may_replace=may_replace)
        self._path = self._file = None

    def discard(self) -> None:
        """Remove the temporary file, if there is one. A committed file is not affected."""
        path, file = self._path, self._file
        self._path = self._file = None
        if file is not None:
            with suppress(Exception):  # a file whose write failed cannot be closed either
                _close_without_commit(path, file)
        try:
            if path is not None:
                path.unlink(missing_ok=True)
        except Exception as error:  # noqa: BLE001  # any error of the store; the first one matters more
            if file is None:  # it was not created
                return
            log.warning("The temporary file %s could not be removed (%s)", path, type(error).__name__)


def _exists(path: ObjectStoragePath) -> bool:
    """Return whether there is a file at a path now, whatever the store's library has cached."""
    path.fs.invalidate_cache(path.parent.path)
    try:
        path.stat()
    except FileNotFoundError:
        return False
    except PermissionError:  # what S3 returns for a missing object to a user who must not list the bucket
        return False
    return True


def _rename(temporary: ObjectStoragePath, path: ObjectStoragePath, *, may_replace: bool) -> None:
    if temporary.protocol in OBJECT_STORES:  # which cannot rename
        # not `temporary.replace`, which also lists objects and fails where deleting is not allowed
        temporary.fs.cp_file(temporary.path, path.path)
        _remove(temporary)
        return
    if temporary.protocol not in LOCAL_SCHEMES:
        temporary.replace(path)
        return
    if may_replace or not _link(temporary, path):
        Path(temporary.path).replace(path.path)
    with suppress(OSError):  # some file systems cannot sync a folder
        folder = os.open(path.parent.path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _link(temporary: ObjectStoragePath, path: ObjectStoragePath) -> bool:
    """Move a local file to a path at which there is none. Return False if the file system has no hard links.

    :raises FileExistsError: there is a file at the path.
    """
    try:
        os.link(temporary.path, path.path)
    except FileExistsError:
        raise
    except OSError:
        return False
    Path(temporary.path).unlink(missing_ok=True)
    return True


def _remove(path: ObjectStoragePath) -> None:
    """Remove a file that is not needed. A store that does not allow that is only a warning."""
    try:
        path.fs.rm_file(path.path)
    except Exception as error:  # noqa: BLE001  # any error of the store
        log.warning(
            "The temporary file %s could not be removed (%s). Remove it yourself, or allow to delete it.",
            path,
            type(error).__name__,
        )


def write_probe(folder: ObjectStoragePath) -> None:
    """Write a small file to a folder in the way that a download does, and remove it.

    A store that does not allow to remove it is only a warning.

    :raises OSError: the store does not accept the file.
    """
    with PartialFile(folder, PROBE_NAME) as file:
        file.restart()
        file.write(PROBE_CONTENT)
        path = folder / f".{PROBE_NAME}.{uuid4().hex}"
        file.commit(path, may_replace=True)  # no other file has this name
    _remove(path)


def _close_without_commit(path: ObjectStoragePath | None, file: Any) -> None:
    """Close a file that is not needed, in an object store without completing its upload first."""
    if path is None or path.protocol not in OBJECT_STORES or file.closed or not hasattr(file, "discard"):
        file.close()
        return
    try:
        file.discard()
    finally:
        file.closed = True  # otherwise its finalizer closes it, and so completes the upload


@contextmanager
def _wrap_store_errors(path: ObjectStoragePath | None) -> Iterator[None]:
    """Replace any error of a store's library by an OSError that names the file."""
    try:
        yield
    except Exception as error:
        message = f"{path} cannot be written: {error}"
        number = getattr(error, "errno", None)
        raise (OSError(message) if number is None else OSError(number, message)) from error


def open_stored_file(path: ObjectStoragePath, folder: ObjectStoragePath) -> Any:
    """Open a file in a folder for reading, on this machine without following a symbolic link there.

    The folder may be at a path with links, but is none itself.

    :raises OSError: there is no such file, or it is a link, a folder, a pipe or a device.
    :raises Exception: any other error of the store.
    """
    if path.protocol not in LOCAL_SCHEMES:
        return path.fs.open(path.path, "rb", block_size=OUTPUT_CHUNK_BYTES)
    parent = os.open(folder.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:  # without waiting for the writer of a pipe
        number = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=parent)
    finally:
        os.close(parent)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError(errno.EINVAL, f"{path} is not a regular file")
    return os.fdopen(number, "rb")


def compute_sha256(path: ObjectStoragePath, cancellation: Cancellation) -> str:
    """Return the SHA-256 of a file, read a chunk at a time.

    :raises CancelledWriteError: the task was cancelled.
    :raises Exception: any error of the store.
    """
    digest = hashlib.sha256()
    # not `path.open`, which would report the file to Airflow's lineage as an input of the task
    with path.fs.open(path.path, "rb", block_size=OUTPUT_BLOCK_BYTES) as file:
        while chunk := file.read(OUTPUT_CHUNK_BYTES):
            digest.update(chunk)
            cancellation.raise_if_cancelled()
    return digest.hexdigest()


def remove_stale_temporary_files(folder: ObjectStoragePath, names: Iterable[str]) -> None:
    """Remove the temporary files of killed tries.

    :param names: the names without extension of the files that are going to be written.
    """
    expected_names = set(names)
    with suppress(Exception):  # the folder does not exist yet, or the store does not allow to list it
        for path in list(folder.iterdir()):
            match = TEMPORARY_NAME.fullmatch(path.name)
            if match and match["name"] in expected_names:
                path.unlink(missing_ok=True)


class Spool:
    """A temporary file without a name, so that nothing remains of a killed process.

    It is closed when nothing refers to it any more.
    """

    def __init__(self) -> None:
        self.file: IO[bytes] = TemporaryFile()  # noqa: SIM115  # closed by the finalizer
        weakref.finalize(self, self.file.close)


class SpooledFile:
    """A file from a URL: the target of its download, and then what is used of an ObjectStoragePath.

    It is a part of a spool that it shares with others, because a process may open only a few files.
    """

    protocol = "https"

    def __init__(self, url: str, spool: Spool) -> None:
        """Create an empty file at the end of a spool."""
        self.name = unquote(PurePosixPath(urlsplit(url).path).name)
        self.media_type: str | None = None
        self._url, self._spool = url, spool
        self._start = self._end = spool.file.seek(0, os.SEEK_END)

    def __str__(self) -> str:
        """Return the URL."""
        return self._url

    def restart(self) -> None:
        """Discard what was written before."""
        self._spool.file.truncate(self._start)
        self._end = self._spool.file.seek(self._start)

    def write(self, data: bytes) -> None:
        """Write the next bytes.

        :raises TooLargeError: the files from URLs are too large together.
        """
        self._end += len(data)
        if self._end > MAX_FETCHED_INPUT_BYTES:
            raise TooLargeError(
                f"the files from URLs have more than {MAX_FETCHED_INPUT_BYTES} bytes together"
            )
        self._spool.file.write(data)

    def open(self, mode: str = "rb") -> IO[bytes]:  # noqa: ARG002  # the signature of a path
        """Open the file for reading."""
        self._spool.file.flush()
        return io.BufferedReader(_PartReader(self._spool, self._start, self._end))


class _PartReader(io.RawIOBase):
    """A reader of a part of a spool, with a position of its own."""

    def __init__(self, spool: Spool, start: int, end: int) -> None:
        super().__init__()
        self._spool, self._start, self._end, self._position = spool, start, end, start

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to another position."""
        base = {os.SEEK_SET: self._start, os.SEEK_CUR: self._position, os.SEEK_END: self._end}[whence]
        self._position = max(self._start, base + offset)
        return self._position - self._start

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes."""
        count = max(0, min(len(buffer), self._end - self._position))
        data = os.pread(self._spool.file.fileno(), count, self._position)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
