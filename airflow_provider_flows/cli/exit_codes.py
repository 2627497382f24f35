"""The exit codes of `airflow flows`, each with its meaning for the help and for scripts.

Which error means which code stands in frame.py.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Self


class Exit(IntEnum):
    """How a command ended."""

    DONE = 0, "done; for run and watch: the flow run completed"
    FAILED = 1, "the flow run failed, or something else went wrong (the service, a file)"
    USAGE = 2, "an argument, an input or the connection cannot be used; nothing was paid"
    ABORTED = 3, "the flow run was aborted"
    TIMEOUT = 4, "--timeout passed; the flow run goes on"
    NOT_FOUND = 5, "the service knows no such flow, flow run or output"
    AUTH_ERROR = 6, "the service refuses the key"
    HANGUP = 129, "the terminal was closed (SIGHUP); a flow run that was started goes on"
    INTERRUPTED = 130, "Ctrl-C; a flow run that was started goes on"
    TERMINATED = 143, "SIGTERM; a flow run that was started goes on"

    meaning: str

    def __new__(cls, code: int, meaning: str) -> Self:
        """Keep the meaning beside the code."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member


EXIT_CODE_TABLE = "exit codes:\n" + "\n".join(f"  {code.value:>3}  {code.meaning}" for code in Exit)
