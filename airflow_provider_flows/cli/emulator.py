"""The command that starts the emulator."""

from __future__ import annotations

from argparse import Namespace


def emulator(args: Namespace) -> None:
    """Serve until interrupted.

    :raises SystemExit: with a code other than 0.
    """
    from airflow_provider_flows.emulator.__main__ import main

    code = main(args.options, prog="airflow flows emulator")
    if code:
        raise SystemExit(code)
