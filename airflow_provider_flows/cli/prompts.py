"""Questions to a person at a terminal.

What is done with the answer is not known here.
"""

from __future__ import annotations

import sys

from airflow_provider_flows.cli.terminal import harmless


def at_a_terminal() -> bool:
    """Whether there is somebody to ask."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def agreed(question: str) -> bool:
    """Ask; whatever is not yes is no.

    :raises KeyboardInterrupt: the answer is Ctrl-C.
    """
    try:
        sys.stderr.write(f"{harmless(question)} [y/N] ")
        sys.stderr.flush()
        return sys.stdin.readline().strip().lower() in {"y", "yes"}
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        raise
