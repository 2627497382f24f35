"""The command that starts the emulator.

What it can do, and its options, the emulator itself knows.
"""

from __future__ import annotations

from argparse import Namespace


def emulator(args: Namespace) -> None:
    """Serve until told to stop.

    :raises SystemExit: with a code that is not 0.
    """
    from airflow_provider_flows.emulator.__main__ import main

    code = main(args.options, prog="airflow flows emulator")
    if code:
        raise SystemExit(code)
