"""The exit codes of `airflow flows`, each with its meaning for the help and for scripts."""

from __future__ import annotations

from enum import IntEnum
from typing import Self


class Exit(IntEnum):
    """How a command ended."""

    DONE = 0, "success; for run and watch: the flow run completed"
    FAILED = 1, "the flow run failed, or another error occurred (the service, a file)"
    USAGE = 2, "an argument, an input or the connection is invalid; nothing was paid"
    ABORTED = 3, "the flow run was aborted"
    TIMEOUT = 4, "--timeout expired; the flow run continues"
    NOT_FOUND = 5, "the service has no such flow, flow run or output"
    AUTH_ERROR = 6, "the service rejected the key"
    HANGUP = 129, "the terminal was closed (SIGHUP); a started flow run continues"
    INTERRUPTED = 130, "Ctrl-C; a started flow run continues"
    TERMINATED = 143, "SIGTERM; a started flow run continues"

    meaning: str

    def __new__(cls, code: int, meaning: str) -> Self:
        """Create the member of a code, with its meaning."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member


EXIT_CODE_TABLE = "exit codes:\n" + "\n".join(f"  {code.value:>3}  {code.meaning}" for code in Exit)
