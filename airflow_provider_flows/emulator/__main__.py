"""The command `python -m airflow_provider_flows.emulator`, which runs an emulator until it is interrupted."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from airflow_provider_flows.emulator.emulator import Emulator, MissingExtraError
from airflow_provider_flows.emulator.switches import Switches, switch_choices, switch_names, validate_switch


def main(argv: Sequence[str] | None = None, prog: str = "python -m airflow_provider_flows.emulator") -> int:
    """Run an emulator until SIGINT or SIGTERM, and return the exit code.

    :param prog: name of the command in its help.
    """
    arguments = _parser(prog).parse_args(argv)
    try:
        switches = Switches(**dict(arguments.switch))
        emulator = Emulator(arguments.key, arguments.run_seconds, arguments.port, arguments.host, switches)
        for path in arguments.graph:
            emulator.add_graph(path.stem, json.loads(path.read_text(encoding="utf-8")))
        emulator.start()
    except (OSError, ValueError, MissingExtraError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    stop_event = _install_signal_handlers()
    _print_connections(emulator)
    stop_event.wait()
    emulator.stop()
    return 0


def _print_connections(emulator: Emulator) -> None:
    """Print the address, and the connections as one command for a shell a line."""
    lines = [
        f"Generio and PromptChainer, emulated at {emulator.url} until Ctrl-C. Paste to connect a shell:",
        *(f"export {name}={shlex.quote(value)}" for name, value in emulator.connections.items()),
    ]
    try:
        sys.stdout.write("\n".join([*lines, ""]))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has stopped (`| head`); continue to serve, and discard the text
        with open(os.devnull, "w", encoding="utf-8") as null:  # noqa: PTH123  # not a file
            os.dup2(null.fileno(), sys.stdout.fileno())


def _install_signal_handlers() -> threading.Event:
    """Return an event that SIGINT and SIGTERM set."""
    stop_event = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop_event.set())
    return stop_event


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        usage="%(prog)s [options]",  # before an error, and before the help, which lists the options anyway
        description="Emulate Generio and PromptChainer on one port.",
        epilog="Switches, for provider developers: "
        + "; ".join(f"{name} ({switch_choices(name)})" for name in switch_names()),
    )
    parser.add_argument("--port", type=int, default=8084, help="0 chooses a free one (default: %(default)s)")
    parser.add_argument(
        "--host", default="127.0.0.1",
        help="address to listen on; one that other machines can reach requires --key (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--key", default="emulator", help="accepted API key (default: %(default)s)")
    parser.add_argument(
        "--run-seconds",
        type=float,
        default=6.0,
        help="duration of a flow run in seconds (default: %(default)s)",
    )
    parser.add_argument(
        "--graph", type=Path, action="append", default=[], metavar="FILE",
        help="a PromptChainer flow graph; the file's name without .json is the flow's id; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--switch", type=_parse_switch, action="append", default=[], metavar="NAME=VALUE",
        help="set a switch, for provider developers; may be repeated",
    )  # fmt: skip
    return parser


def _parse_switch(text: str) -> tuple[str, Any]:
    name, _, raw_value = text.partition("=")
    try:
        value = json.loads(raw_value)
    except ValueError:
        value = raw_value
    try:
        validate_switch(name, value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return name, value


if __name__ == "__main__":
    sys.exit(main())
