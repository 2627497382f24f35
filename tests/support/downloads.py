"""What the tests of downloads share: a service that answers as told, connection by connection, and a process that fetches.

It asserts nothing; what is fetched goes through the package's own hook.
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

from airflow_provider_flows.core.run import FlowOutput, FlowRun
from airflow_provider_flows.hooks import GenerioHook

ConnectionAction = Callable[[socket.socket], None]
FETCH_SCRIPT = """
import sys
from airflow_provider_flows.storage.output_options import OutputOptions
from airflow_provider_flows.storage.outputs import fetch_outputs_or_raise
from tests.support.downloads import hook_to, run_of
fetch_outputs_or_raise(hook_to(sys.argv[1]), run_of("chair"), OutputOptions(sys.argv[2]))
"""


def glb(size: int) -> bytes:
    """Make a whole GLB of noise."""
    return (
        b"glTF\x02\x00\x00\x00" + size.to_bytes(4, "little") + hashlib.shake_256(b"noise").digest(size - 12)
    )


def data_uri_body(content: bytes) -> bytes:
    """Give the documented answer with a file."""
    return b'{"data": "data:model/gltf-binary;base64,' + base64.b64encode(content) + b'"}'


def send_body(body: bytes, *, part: int | None = None) -> ConnectionAction:
    """Answer with a body, or with the first part of it under its whole length, and close."""
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    return lambda connection: connection.sendall(head + body[:part])


def send_and_stall(body: bytes, part: int, until: Event) -> ConnectionAction:
    """Answer with a part of a body, and then say nothing for as long as the test likes."""

    def act(connection: socket.socket) -> None:
        send_body(body, part=part)(connection)
        until.wait(60)

    return act


class ActionSequence:
    """What to do with each connection, one after the other; the last is done for ever."""

    def __init__(self, *actions: ConnectionAction) -> None:
        self._actions = list(actions)
        self._lock = Lock()
        self.calls = 0

    def __call__(self, connection: socket.socket) -> None:
        """Answer."""
        with self._lock:
            act = self._actions[min(self.calls, len(self._actions) - 1)]
            self.calls += 1
        act(connection)


class FileRecords:
    """The memory of a task, as `fetch` sees it."""

    def __init__(self) -> None:
        self.records: dict[str, Mapping[str, Any]] = {}

    def get_file_record(self, asset_id: str) -> Mapping[str, Any] | None:
        """Tell what was kept."""
        return self.records.get(asset_id)

    def save_file_record(self, asset_id: str, entry: Mapping[str, Any]) -> None:
        """Keep it."""
        self.records[asset_id] = dict(entry)


def hook_to(url: str, **extra: Any) -> GenerioHook:
    """Give a hook to a service, without a lookup."""
    hook = GenerioHook("own")
    hook._connection = Connection(
        conn_id="own", conn_type="generio", host=url, password="k", extra=json.dumps(extra)
    )
    return hook


def run_of(*names: str) -> FlowRun:
    """Give a flow run that is over and has made these."""
    return FlowRun("r", "generio", outputs=tuple(FlowOutput(name, asset_id=f"id-{name}") for name in names))


def list_files(folder: Path) -> list[str]:
    """List all files below a folder, hidden ones too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def start_fetch_process(url: str, folder: Path) -> subprocess.Popen[bytes]:
    """Fetch in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", FETCH_SCRIPT, url, str(folder)],
        env=dict(os.environ),
        stdout=subprocess.DEVNULL,
    )


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process as the kernel does when memory runs out."""
    process.send_signal(signal.SIGKILL)
    process.wait(10)


class KilledError(BaseException):
    """What a signal's handler raises in the main thread."""


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
