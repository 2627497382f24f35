"""What ends a command from outside: SIGTERM, and SIGHUP where its terminal is closed, end it as Ctrl-C does.

What is said and done then the commands know; only Ctrl-C has somebody at a terminal who may be asked.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from airflow_provider_flows.cli.exit_codes import Exit

SIGNAL_EXIT_CODES = {signal.SIGTERM: Exit.TERMINATED, signal.SIGHUP: Exit.HANGUP}


class SignalReceived(KeyboardInterrupt):
    """A signal that is not Ctrl-C; `code` is the exit code that stands for it."""

    def __init__(self, code: Exit) -> None:
        super().__init__()
        self.code = code


@contextmanager
def raise_on_signals() -> Iterator[list[Exit]]:
    """Let these signals raise `Ended` in the block; gives the exit codes of those that came.

    One that is ignored (nohup) stays so.
    """
    received_codes: list[Exit] = []
    terminals = [stream.fileno() for stream in (sys.stdout, sys.stderr) if stream.isatty()]

    def on_signal(number: int, _: FrameType | None) -> NoReturn:
        received_codes.append(SIGNAL_EXIT_CODES[signal.Signals(number)])
        if number == signal.SIGHUP:
            for terminal in (
                terminals
            ):  # it is gone, and whatever is written to it would be an error in place of this one
                os.dup2(os.open(os.devnull, os.O_WRONLY), terminal)
        raise SignalReceived(received_codes[-1])

    previous = {number: signal.getsignal(number) for number in SIGNAL_EXIT_CODES}
    handlers = {
        number: handler for number, handler in previous.items() if handler not in {signal.SIG_IGN, None}
    }
    for number in handlers:
        signal.signal(number, on_signal)
    try:
        yield received_codes
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
