"""A program in a pseudo-terminal: a test reads its output and sends keys, also Ctrl-C."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from types import TracebackType
from typing import Self

TERMINAL_TIMEOUT_SECONDS = 60.0  # `airflow` takes several to start
CTRL_C = "\x03"
# sets the controlling terminal, so that Ctrl-C and SIGHUP reach the process, and then executes the program
_LAUNCHER = (
    "import fcntl, os, signal, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "signal.signal(signal.SIGHUP, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
)


_ESCAPE_SEQUENCES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")  # colors and cursor movements


class Terminal:
    """A Python program; it is killed at the end of the `with` block."""

    def __init__(self, *args: str) -> None:
        self.output = ""
        self._closed = False
        self._command = [sys.executable, "-c", _LAUNCHER, sys.executable, *args]

    def __enter__(self) -> Self:
        """Start it."""
        self._keys, screen = pty.openpty()
        environment = os.environ | {"TERM": "xterm", "COLUMNS": "180", "LINES": "40"}
        self._process = subprocess.Popen(
            self._command, stdin=screen, stdout=screen, stderr=screen, env=environment
        )
        os.close(screen)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        if not self._closed:
            os.close(self._keys)

    def close(self) -> int:
        """Close the terminal, as a window is closed, and return the program's exit code."""
        os.close(self._keys)
        self._closed = True
        return self._process.wait(TERMINAL_TIMEOUT_SECONDS)

    def press(self, keys: str) -> None:
        """Send keys."""
        os.write(self._keys, keys.encode())

    def wait_for(self, pattern: str) -> str:
        """Read until the output after the previous match has a match, and return it."""
        deadline = time.monotonic() + TERMINAL_TIMEOUT_SECONDS
        while not (found := re.search(pattern, self.output)):
            assert self._read(deadline), f"no {pattern!r} in {self.output!r}"
        self.output = self.output[found.end() :]
        return found[0]

    def wait_for_exit(self) -> int:
        """Read to the end, and return the exit code."""
        deadline = time.monotonic() + TERMINAL_TIMEOUT_SECONDS
        while self._read(deadline):
            pass
        return self._process.wait(TERMINAL_TIMEOUT_SECONDS)

    def _read(self, deadline: float) -> bool:
        if not select.select([self._keys], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return False
        try:
            data = os.read(self._keys, 65536)
        except OSError:  # Linux's error when no process has the terminal open
            return False
        self.output = _ESCAPE_SEQUENCES.sub("", self.output + data.decode("utf-8", "replace"))
        return bool(data)
