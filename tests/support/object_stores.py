"""Object stores for tests, attached to Airflow: fsspec's memory, stores that fail, one with a connection.

They are real fsspec file systems; nothing of the package is replaced.
"""

from __future__ import annotations

from typing import Any

import fsspec
from airflow.sdk.io import attach
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from upath.implementations.memory import MemoryPath
from upath.registry import register_implementation


class FragileFile(MemoryFile):
    """A file that takes four bytes and then no more."""

    def write(self, data: Any) -> int:
        """Write a little, then fail as a full disk does."""
        super().write(bytes(data)[:4])
        raise OSError(28, "No space left on device")


class FragileFileSystem(MemoryFileSystem):
    """A store in memory on which every write breaks off half-way."""

    protocol = "fragile"
    store: dict[str, Any] = {}  # noqa: RUF012  # fsspec's own way
    pseudo_dirs = [""]  # noqa: RUF012  # fsspec's own way
    kind: type[MemoryFile] = FragileFile

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        """Open a file; one that is written is there at once, as on a disk."""
        if "w" not in mode:
            return super()._open(path, mode, **kwargs)
        file = self.kind(self, path)
        self.store[path] = file
        return file


class FaultyFile(MemoryFile):
    """A file that can be read only up to its first chunk."""

    def read(self, size: int = -1) -> bytes:
        """Read the first chunk, then fail as an unavailable store does."""
        if self.tell():
            raise OSError(5, "The store went away: https://key:s3cret@store.test/a.png?sig=s3cret")
        return super().read(size)


class ConnectionFileSystem(MemoryFileSystem):
    """A separate store in memory, which only one Airflow connection opens, and which can fail."""

    protocol = "memory"
    store: dict[str, Any] = {}  # noqa: RUF012  # fsspec's own way
    pseudo_dirs = [""]  # noqa: RUF012  # fsspec's own way
    faulty = False

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        """Open a file."""
        opened = super()._open(path, mode, **kwargs)
        return FaultyFile(self, path, opened.getvalue()) if self.faulty else opened


def attach_for_connection(conn_id: str) -> ConnectionFileSystem:
    """Return the empty store of a connection: `memory://` with that connection, and not without."""
    files: Any = attach(
        protocol="memory", conn_id=conn_id, fs=ConnectionFileSystem(skip_instance_cache=True)
    ).fs
    files.store.clear()
    files.faulty = False
    return files


class ClosingFile(MemoryFile):
    """A file that fails when it is closed, as one whose last block is sent then."""

    has_failed = False

    def close(self) -> None:
        """Fail, once: Python 3.14 also reports an error of the call with which it finalizes the file."""
        if not self.has_failed:
            self.has_failed = True
            raise OSError(28, "No space left on device")


class ForgetfulFile(MemoryFile):
    """A file that silently drops everything after its first four bytes."""

    def write(self, data: Any) -> int:
        """Write the first bytes only."""
        super().write(bytes(data)[: max(0, 4 - self.tell())])
        return len(data)

    def close(self) -> None:
        """Leave it where it is."""


class ClosingFileSystem(FragileFileSystem):
    """A store in memory on which no file can be closed."""

    protocol = "closing"
    store: dict[str, Any] = {}  # noqa: RUF012  # fsspec's own way
    kind = ClosingFile


class ForgetfulFileSystem(FragileFileSystem):
    """A store in memory that keeps less than it took."""

    protocol = "forgetful"
    store: dict[str, Any] = {}  # noqa: RUF012  # fsspec's own way
    kind = ForgetfulFile


class ConsoleFileSystem(FragileFileSystem):
    """A sound store in memory, under the name of a store that has a console."""

    protocol = "gs"
    store: dict[str, Any] = {}  # noqa: RUF012  # fsspec's own way
    pseudo_dirs = ["", "bucket"]  # noqa: RUF012  # fsspec's own way
    root_marker = ""
    kind = MemoryFile

    @classmethod
    def _strip_protocol(cls, path: str) -> Any:
        """Return a path without its scheme, which the memory's own class does for its own only."""
        return str(super()._strip_protocol(path.removeprefix("gs://"))).lstrip("/")


FILE_SYSTEMS: dict[str, type[FragileFileSystem]] = {
    "fragile": FragileFileSystem,
    "closing": ClosingFileSystem,
    "forgetful": ForgetfulFileSystem,
}


def attach_store(protocol: str) -> Any:
    """Attach a store to Airflow and return its empty file system."""
    for name, kind in FILE_SYSTEMS.items():
        fsspec.register_implementation(name, kind, clobber=True)
        register_implementation(name, MemoryPath, clobber=True)
    files = fsspec.filesystem(protocol)
    attach(protocol=protocol, fs=files)
    files.store.clear()
    return files


def attach_bucket_store() -> None:
    """Attach a store of buckets to Airflow, with one bucket in it, empty."""
    fsspec.register_implementation("gs", ConsoleFileSystem, clobber=True)
    ConsoleFileSystem.store.clear()
    attach(protocol="gs", fs=fsspec.filesystem("gs"))
