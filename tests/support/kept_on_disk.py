"""A task state store in a file, which outlives the process that writes it, and one try of a task in a process of its own.

It asserts nothing; the process is killed by whoever started it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from airflow_provider_flows.operators import RunFlowOperator
from tests.support.task_instances import Store, context

TRY = """
import json, sys
from tests.support.kept_on_disk import tried
told = json.loads(sys.argv[1])
tried(told["store"], told["number"], told["given"])
"""


class DiskStore(Store):
    """A store that is whole in a file after each change."""

    def __init__(self, path: Path) -> None:
        super().__init__(json.loads(path.read_text()) if path.exists() else {})
        self._path = path

    def set(self, key: str, value: Any) -> None:
        """Keep a value."""
        super().set(key, value)
        self._write()

    def delete(self, key: str) -> None:
        """Drop a value."""
        super().delete(key)
        self._write()

    def _write(self) -> None:
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(self))
        new.replace(self._path)


def tried(store: str, number: int, given: dict[str, Any]) -> dict[str, Any]:
    """Run one try of a task, as a worker does."""
    return RunFlowOperator(task_id="t", poll_interval=0.1, **given).execute(
        context(DiskStore(Path(store)), number, 3)
    )


def first_try(store: Path, given: dict[str, Any]) -> subprocess.Popen[bytes]:
    """Run the first try in a process of its own."""
    told = json.dumps({"store": str(store), "number": 1, "given": given})
    return subprocess.Popen(
        [sys.executable, "-c", TRY, told], env=dict(os.environ), stdout=subprocess.DEVNULL
    )
