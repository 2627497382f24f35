"""Object stores for tests, attached to Airflow the public way: fsspec's memory, and one whose writes break off.

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
    pseudo_dirs = [""]  # noqa: RUF012

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        """Open a file; one that is written is there at once, as on a disk."""
        if "w" not in mode:
            return super()._open(path, mode, **kwargs)
        made = FragileFile(self, path)
        self.store[path] = made
        return made


def attached(protocol: str) -> Any:
    """Attach a store to Airflow and give its file system, empty."""
    fsspec.register_implementation("fragile", FragileFileSystem, clobber=True)
    register_implementation("fragile", MemoryPath, clobber=True)
    files = fsspec.filesystem(protocol)
    attach(protocol=protocol, fs=files)
    files.store.clear()
    return files
