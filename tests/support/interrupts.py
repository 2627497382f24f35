"""Ctrl-C and SIGTERM at a certain moment of a command in this process, and what is typed at a terminal."""

from __future__ import annotations

import os
import pty
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread, main_thread

from airflow_provider_flows.emulator import Emulator


@contextmanager
def ctrl_c_when(condition: Callable[[], bool], number: signal.Signals = signal.SIGINT) -> Iterator[None]:
    """Interrupt this process once, as soon as a condition holds; a command that ignores it ends the tests."""

    def interrupt() -> None:
        end = time.monotonic() + 30
        while not condition() and time.monotonic() < end:
            time.sleep(0.005)
        signal.pthread_kill(main_thread().ident or 0, number)

    thread = Thread(target=interrupt)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def has_request(emulator: Emulator, method: str, end: str) -> Callable[[], bool]:
    """Return a condition: the emulator has received a request whose path ends so."""
    return lambda: any(
        request.method == method and request.path.endswith(end) for request in emulator.requests
    )


@contextmanager
def type_at_terminal(text: str) -> Iterator[None]:
    """Replace stdin and stderr by a terminal, and type a text there."""
    previous = sys.stdin, sys.stderr
    keys, screen = pty.openpty()
    with (
        os.fdopen(keys, "wb", buffering=0) as typed,
        os.fdopen(screen) as stdin,
        os.fdopen(os.dup(screen), "w") as stderr,
    ):
        sys.stdin, sys.stderr = stdin, stderr
        try:
            typed.write(text.encode())
            yield
        finally:
            sys.stdin, sys.stderr = previous
