"""Finds the process at the other end of a connection, makes sure that it is a task's, and ends or stops processes.

It only touches processes that descend from the Airflow that it is given, and goes by process ids alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable

import psutil

KILL_TIMEOUT_SECONDS = 10.0


def owner_of(port: int, server_port: int) -> int | None:
    """Tell the id of the process that has a TCP connection from the one port to the other."""
    for _ in range(5):  # a list that is read while processes come and go may have gaps
        for connection in psutil.net_connections(kind="tcp"):
            ends = [end.port for end in (connection.laddr, connection.raddr) if end]
            if ends == [port, server_port] and connection.pid:
                return int(connection.pid)
    return None


def is_task(pid: int, schedulers: Iterable[int]) -> bool:
    """Tell whether a process runs a task: its parent is a worker of LocalExecutor, whose parent is a scheduler."""
    try:
        worker = psutil.Process(pid).parent()
        executor = worker.parent() if worker else None
    except psutil.Error:
        return False
    return executor is not None and executor.pid in set(schedulers)


def kill(*pids: int, number: int = signal.SIGKILL) -> None:
    """Send a signal; if it is SIGKILL, wait until the processes are gone."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    if number != signal.SIGKILL:
        return
    deadline = time.monotonic() + KILL_TIMEOUT_SECONDS
    while any(is_alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{pids} still live after SIGKILL")
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Tell whether a process still runs; a zombie does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def process_tree(pid: int) -> list[int]:
    """Tell the ids of a process and of all that descend from it, itself first."""
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.Error:
        return [pid]


def parent_pid(pid: int) -> int:
    """Tell the id of a process's parent."""
    return int(psutil.Process(pid).ppid())
