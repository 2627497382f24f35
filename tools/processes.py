"""Starts programs that belong to us, watches them, and ends them with all that they started.

It knows nothing of Airflow or of the services; it only handles processes, their logs, and ports.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psutil

LOOPBACK = "127.0.0.1"
_POLL_SECONDS = 0.1


class ProcessDied(RuntimeError):
    """A program ended although it was needed; the message carries the end of its log."""


def free_port(preferred: int = 0) -> int:
    """Find a port of the loopback address that nobody listens on: the preferred one where that is free."""
    for candidate in (preferred, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            # Without this the port counts as taken for a minute after the last server on it went away.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((LOOPBACK, candidate))
            return int(probe.getsockname()[1])
    raise OSError(f"no free port on {LOOPBACK}")


def tail(path: Path, lines: int = 30) -> str:
    """Read the last lines of a log."""
    if not path.exists():
        return "(no log)"
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


class Program:
    """One program of ours, in a session of its own, with its output in one file."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        """Keep what is needed to start it, and to start it again."""
        self.name = name
        self.log = log
        self._command = list(command)
        self._environment = dict(environment)
        self._popen: subprocess.Popen[bytes] | None = None
        self._sessions: list[int] = []

    @property
    def popen(self) -> subprocess.Popen[bytes]:
        """The running process: for its id, and for signals."""
        if self._popen is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._popen

    def start(self) -> None:
        """Start it; what it writes is added to its log."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as out:
            # A session of its own: Ctrl-C reaches us alone and we end it in order, and every process that
            # descends from it can be found, even after it has died itself.
            self._popen = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._sessions.append(self._popen.pid)

    def check(self) -> None:
        """Raise if it has ended."""
        if (code := self.popen.poll()) is not None:
            raise ProcessDied(
                f"{self.name} ended with exit code {code}. The end of {self.log}:\n{tail(self.log)}"
            )

    def terminate(self) -> None:
        """Send it SIGTERM, without waiting."""
        if self._popen is not None and self._popen.poll() is None:
            self._popen.send_signal(signal.SIGCONT)  # one that a test has stopped could not answer
            self._popen.terminate()

    def end(self, grace: float = 5.0) -> None:
        """End the process itself, asked first, by force after the grace; what it started is left as it is."""
        if self._popen is None:
            return
        self.terminate()
        try:
            self._popen.wait(grace)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()

    def stop(self, grace: float = 5.0) -> None:
        """End it and all that it started, in any of its lives."""
        pids = {pid for session in self._sessions for pid in _session_processes(session)}
        self.end(grace)
        for pid in pids.union(*map(_session_processes, self._sessions)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def stop_all(programs: Iterable[Program]) -> None:
    """End several programs: all are asked at once, so that they end side by side."""
    ours = list(programs)
    for program in ours:
        program.terminate()
    for program in ours:
        program.stop()


def wait_until(ready: Callable[[], bool], programs: Iterable[Program], timeout: float, what: str) -> None:
    """Wait for a condition; give up when a program it needs has died, or when time is up."""
    needed = list(programs)
    deadline = time.monotonic() + timeout
    while not ready():
        for program in needed:
            program.check()
        if time.monotonic() > deadline:
            logs = "\n".join(f"--- {program.log}\n{tail(program.log, 10)}" for program in needed)
            raise TimeoutError(f"{what} took longer than {timeout:.0f} s.\n{logs}")
        time.sleep(_POLL_SECONDS)


def exit_on_sigterm() -> None:
    """Let SIGTERM unwind this program as Ctrl-C does, so that what it started is ended too."""

    def leave(_signal: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, leave)


def _session_processes(session: int) -> set[int]:
    """Find who is left of a session that we opened, and the children of those.

    Going by the process group would miss Airflow's task processes, and going by the session alone what a task
    starts in a session of its own, as BashOperator does.
    """
    found: set[int] = set()
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.Error):
            if os.getsid(pid) == session:
                found.update(child.pid for child in psutil.Process(pid).children(recursive=True))
                found.add(pid)
    return found
