"""Questions to a person at a terminal.

What is done with the answer is not known here.
"""

from __future__ import annotations

import sys

from airflow_provider_flows.cli.terminal import escape_control_chars


def is_interactive() -> bool:
    """Whether there is somebody to ask."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def confirm(question: str) -> bool:
    """Ask; whatever is not yes is no.

    :raises KeyboardInterrupt: the answer is Ctrl-C.
    """
    try:
        sys.stderr.write(f"{escape_control_chars(question)} [y/N] ")
        sys.stderr.flush()
        return sys.stdin.readline().strip().lower() in {"y", "yes"}
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        raise
