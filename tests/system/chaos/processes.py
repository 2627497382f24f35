"""Find the process at the other end of a connection, check that it is a task's, and send signals."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable

import psutil

KILL_TIMEOUT_SECONDS = 10.0


def owner_of(port: int, server_port: int) -> int | None:
    """Return the id of the process with a TCP connection from one port to the other."""
    for _ in range(5):  # a list that is read while processes start and end may be incomplete
        for connection in psutil.net_connections(kind="tcp"):
            ends = [end.port for end in (connection.laddr, connection.raddr) if end]
            if ends == [port, server_port] and connection.pid:
                return int(connection.pid)
    return None


def is_task(pid: int, schedulers: Iterable[int]) -> bool:
    """Return whether a process runs a task: its parent is a worker, the worker's a scheduler."""
    try:
        worker = psutil.Process(pid).parent()
        executor = worker.parent() if worker else None
    except psutil.Error:
        return False
    return executor is not None and executor.pid in set(schedulers)


def kill(*pids: int, number: int = signal.SIGKILL) -> None:
    """Send a signal; after SIGKILL, wait until the processes have ended."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    if number != signal.SIGKILL:
        return
    deadline = time.monotonic() + KILL_TIMEOUT_SECONDS
    while any(is_alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{pids} still run after SIGKILL")
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def process_tree(pid: int) -> list[int]:
    """Return the ids of a process and of its descendants, its own first."""
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.Error:
        return [pid]


def parent_pid(pid: int) -> int:
    """Return the id of a process's parent."""
    return int(psutil.Process(pid).ppid())
