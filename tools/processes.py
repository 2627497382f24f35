"""Starts programs, monitors them, and stops them with all processes that they started; finds free ports.

Also how a command of the project ends: by SIGTERM, or because its reader has stopped.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psutil

LOOPBACK = "127.0.0.1"
_POLL_SECONDS = 0.1


class ProcessDied(RuntimeError):
    """A program ended although it was needed; the message contains the end of its log."""


def free_port(preferred: int = 0) -> int:
    """Return a free port of the loopback address: the preferred one if it is free."""
    for candidate in (preferred, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            # Without this option the port counts as taken for a minute after the last server on it has ended.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((LOOPBACK, candidate))
            return int(probe.getsockname()[1])
    raise OSError(f"{LOOPBACK} has no free port")


def tail(path: Path, lines: int = 30) -> str:
    """Return the last lines of a log."""
    if not path.exists():
        return "(no log)"
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


class Program:
    """A program that runs in its own session, with its output in one file."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        """Save the command, which may be started several times."""
        self.name = name
        self.log = log
        self._command = list(command)
        self._environment = dict(environment)
        self._popen: subprocess.Popen[bytes] | None = None
        self._sessions: list[int] = []

    @property
    def popen(self) -> subprocess.Popen[bytes]:
        """The process that was started last."""
        if self._popen is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._popen

    def start(self) -> None:
        """Start the program; its output is appended to the log."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as out:
            # In a new session Ctrl-C does not reach the program, so it can be stopped in order. Also, all
            # processes that it started can be found, even after it has died.
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
        """Raise ProcessDied if the program has ended."""
        if (code := self.popen.poll()) is not None:
            raise ProcessDied(
                f"{self.name} ended with exit code {code}. The end of {self.log}:\n{tail(self.log)}"
            )

    def terminate(self) -> None:
        """Send SIGTERM without waiting."""
        if self._popen is not None and self._popen.poll() is None:
            self._popen.send_signal(signal.SIGCONT)  # a process that a test has paused cannot react
            self._popen.terminate()

    def end(self, grace: float = 5.0) -> None:
        """Terminate the process, or kill it after `grace` seconds; its child processes continue to run."""
        if self._popen is None:
            return
        self.terminate()
        try:
            self._popen.wait(grace)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()

    def stop(self, grace: float = 5.0) -> None:
        """Terminate the process, and kill all processes that the program started since its first start."""
        pids = {pid for session in self._sessions for pid in _session_processes(session)}
        self.end(grace)
        for pid in pids.union(*map(_session_processes, self._sessions)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def stop_all(programs: Iterable[Program]) -> None:
    """Stop several programs, which terminate at the same time."""
    programs = list(programs)
    for program in programs:
        program.terminate()
    for program in programs:
        program.stop()


def wait_until(ready: Callable[[], bool], programs: Iterable[Program], timeout: float, what: str) -> None:
    """Wait until a condition is true.

    :param programs: the programs that the condition depends on.
    :param what: subject of the message when the time is up.
    :raises ProcessDied: one of the programs has ended.
    :raises TimeoutError: the condition was not true within `timeout` seconds.
    """
    needed = list(programs)
    deadline = time.monotonic() + timeout
    while not ready():
        for program in needed:
            program.check()
        if time.monotonic() > deadline:
            logs = "\n".join(f"--- {program.log}\n{tail(program.log, 10)}" for program in needed)
            raise TimeoutError(
                f"{what} took longer than {timeout:.0f} s. If the machine is busy, run the command again. "
                f"The ends of the logs:\n{logs}"
            )
        time.sleep(_POLL_SECONDS)


def exit_on_sigterm() -> None:
    """Make SIGTERM raise SystemExit, so that processes that this program started are stopped as on Ctrl-C."""

    def raise_exit(_signal: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, raise_exit)


def run_command(main: Callable[[], int | None]) -> int:
    """Run a command, and return its exit code.

    If the reader of its output has stopped (`| head`), the command ends at its next line, as a program that
    SIGPIPE kills, but after it has stopped its own processes.
    """
    try:
        code = main() or 0
        sys.stdout.flush()
    except BrokenPipeError:
        with open(os.devnull, "wb") as null:  # noqa: PTH123  # for Python's last flush
            os.dup2(null.fileno(), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return code


def _session_processes(session: int) -> set[int]:
    """Return the ids of the processes of a session, and of their descendants.

    The process group does not contain Airflow's task processes. The session does not contain processes that a
    task starts in a new session, as BashOperator does.
    """
    found: set[int] = set()
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.Error):
            if os.getsid(pid) == session:
                found.update(child.pid for child in psutil.Process(pid).children(recursive=True))
                found.add(pid)
    return found
