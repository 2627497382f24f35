"""Airflow's XCom and state store backends, configured for the tests of one Airflow process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from airflow.providers.common.io.xcom import backend
from airflow.sdk.execution_time import context, task_runner, xcom

BACKEND = "airflow.providers.common.io.xcom.backend.XComObjectStorageBackend"


@contextmanager
def use_object_storage_xcoms(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Path]:
    """Store every XCom in a file below a folder, as with `xcom_objectstorage_threshold = 0`."""
    caches = (backend._get_base_path, backend._get_compression, backend._get_threshold)
    with monkeypatch.context() as patch:
        patch.setenv("AIRFLOW__CORE__XCOM_BACKEND", BACKEND)
        patch.setenv("AIRFLOW__COMMON_IO__XCOM_OBJECTSTORAGE_PATH", folder.as_uri())
        patch.setenv("AIRFLOW__COMMON_IO__XCOM_OBJECTSTORAGE_THRESHOLD", "0")
        for cached in caches:
            cached.cache_clear()
        # Airflow reads the setting when it imports these
        patch.setattr(xcom, "XCom", xcom.resolve_xcom_backend())
        patch.setattr(task_runner, "XCom", xcom.XCom)
        yield folder
    for cached in caches:
        cached.cache_clear()


@contextmanager
def use_referenced_states(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Path]:
    """Store every value of a task's state store in a file below a folder, by a worker's own backend."""

    class FileBackend:
        """A backend of `[workers] state_store_backend`, as far as workers use it."""

        def serialize_task_state_store_to_ref(self, *, value: Any, key: str, scope: object) -> str:  # noqa: ARG002  # Airflow's signature
            """Store a value, and return the reference to it."""
            path = folder / f"{key}-{uuid4().hex}"
            path.write_text(json.dumps(value))
            return str(path)

        def deserialize_task_state_store_from_ref(self, ref: str) -> Any:
            """Return the value of a reference."""
            return json.loads(Path(ref).read_text())

        def delete(self, scope: object, key: str) -> None:
            """Leave the files: no test looks at them."""

    folder.mkdir()
    backend_of_workers = FileBackend()
    with monkeypatch.context() as patch:
        patch.setattr(context, "_get_worker_state_store_backend", lambda: backend_of_workers)
        yield folder
