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

TRY_SCRIPT = """
import json, sys
from tests.support.disk_store import run_try
arguments = json.loads(sys.argv[1])
run_try(arguments["store"], arguments["try_number"], arguments["arguments"])
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


def run_try(store: str, try_number: int, arguments: dict[str, Any]) -> dict[str, Any]:
    """Run one try of a task, as a worker does."""
    return RunFlowOperator(task_id="t", poll_interval=0.1, **arguments).execute(
        context(DiskStore(Path(store)), try_number, 3)
    )


def start_first_try(store: Path, arguments: dict[str, Any]) -> subprocess.Popen[bytes]:
    """Run the first try in a process of its own."""
    payload = json.dumps({"store": str(store), "try_number": 1, "arguments": arguments})
    return subprocess.Popen(
        [sys.executable, "-c", TRY_SCRIPT, payload], env=dict(os.environ), stdout=subprocess.DEVNULL
    )
