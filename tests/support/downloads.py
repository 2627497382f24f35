"""Helpers for tests of downloads: a server that acts by connection, and a process that fetches outputs.

Outputs are fetched by the package's own hook.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Lock
from types import FrameType
from typing import Any, NoReturn

from airflow.sdk import Connection

from airflow_provider_flows.core.flow_run import FlowOutput, FlowRun
from airflow_provider_flows.hooks import FlowsHook, GenerioHook
from airflow_provider_flows.storage.output_options import OutputOptions
from airflow_provider_flows.storage.outputs import FileRecordStore, fetch_outputs

ConnectionAction = Callable[[socket.socket], None]
FETCH_SCRIPT = """
import sys
from airflow_provider_flows.storage.output_options import OutputOptions
from tests.support.downloads import fetch_or_raise, hook_to, run_of
fetch_or_raise(hook_to(sys.argv[1]), run_of("chair"), OutputOptions(sys.argv[2]))
"""


def glb(size: int) -> bytes:
    """Return a valid GLB of noise."""
    return (
        b"glTF\x02\x00\x00\x00" + size.to_bytes(4, "little") + hashlib.shake_256(b"noise").digest(size - 12)
    )


def data_uri_body(content: bytes) -> bytes:
    """Return the documented response body with a file."""
    return b'{"data": "data:model/gltf-binary;base64,' + base64.b64encode(content) + b'"}'


def send_body(body: bytes, *, part: int | None = None) -> ConnectionAction:
    """Respond with a body, or with a part of it and the length of all of it, and close."""
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    return lambda connection: connection.sendall(head + body[:part])


def send_and_stall(body: bytes, part: int, until: Event) -> ConnectionAction:
    """Respond with a part of a body, and then stall until the test sets an event."""

    def act(connection: socket.socket) -> None:
        send_body(body, part=part)(connection)
        until.wait(60)

    return act


class ActionSequence:
    """Actions for consecutive connections, the last one for all others."""

    def __init__(self, *actions: ConnectionAction) -> None:
        self._actions = list(actions)
        self._lock = Lock()
        self.calls = 0

    def __call__(self, connection: socket.socket) -> None:
        """Run the next action."""
        with self._lock:
            act = self._actions[min(self.calls, len(self._actions) - 1)]
            self.calls += 1
        act(connection)


class FileRecords:
    """File records in memory."""

    def __init__(self) -> None:
        self.records: dict[str, Mapping[str, Any]] = {}

    def get_file_record(self, asset_id: str) -> Mapping[str, Any] | None:
        """Return a record."""
        return self.records.get(asset_id)

    def save_file_record(self, asset_id: str, entry: Mapping[str, Any]) -> None:
        """Save a record."""
        self.records[asset_id] = dict(entry)


def fetch_or_raise(
    hook: FlowsHook,
    run: FlowRun,
    output_options: OutputOptions,
    file_records: FileRecordStore | None = None,
) -> FlowRun:
    """Fetch a run's outputs, and raise the first error of a download, as a task does."""
    run, error = fetch_outputs(hook, run, output_options, file_records)
    if error is not None:
        raise error
    return run


def hook_to(url: str, **extra: Any) -> GenerioHook:
    """Return a hook for a URL, without a connection lookup."""
    hook = GenerioHook("own")
    hook._connection = Connection(
        conn_id="own", conn_type="generio", host=url, password="k", extra=json.dumps(extra)
    )
    return hook


def run_of(*names: str) -> FlowRun:
    """Return a flow run with outputs of these names."""
    return FlowRun("r", "generio", outputs=tuple(FlowOutput(name, asset_id=f"id-{name}") for name in names))


def list_files(folder: Path) -> list[str]:
    """List all files below a folder, hidden ones too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def start_fetch_process(url: str, folder: Path) -> subprocess.Popen[bytes]:
    """Start a process that fetches outputs."""
    return subprocess.Popen(
        [sys.executable, "-c", FETCH_SCRIPT, url, str(folder)],
        env=dict(os.environ),
        stdout=subprocess.DEVNULL,
    )


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process with SIGKILL."""
    process.send_signal(signal.SIGKILL)
    process.wait(10)


class KilledError(BaseException):
    """The exception of a signal handler in the main thread."""


@contextmanager
def raise_after(seconds: float) -> Iterator[None]:
    """Raise in the main thread after so many seconds, as Airflow does when a task's time is over."""

    def handler(_signal: int, _frame: FrameType | None) -> NoReturn:
        raise KilledError

    previous = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
