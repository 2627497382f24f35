"""What `airflow flows` is made of: its commands, their arguments and their help.

Airflow imports it at every start of `airflow`, so it imports nothing that Airflow has not imported already; what the commands do
is in the other modules of this package, which are imported when a command is run.
"""

from __future__ import annotations

import argparse
import json
from typing import Any, NoReturn

from airflow.cli.cli_config import (
    ARG_OUTPUT,
    ARG_VERBOSE,
    ARG_YES,
    ActionCommand,
    Arg,
    GroupCommand,
    lazy_load_command,
)

from airflow_provider_flows.cli.exit_codes import EXIT_CODE_TABLE

CLI_PACKAGE = __name__.rpartition(".")[0]


def _parse_name_value(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name.strip():
        message = f"{text!r} is not NAME=VALUE"
        raise argparse.ArgumentTypeError(message)
    return name.strip(), value


def _parse_strict_json(text: str) -> Any:
    def reject_constant(constant: str) -> NoReturn:
        raise ValueError(constant)

    return json.loads(
        text, parse_constant=reject_constant
    )  # NaN and Infinity, which Python reads and nobody else


def _parse_parameter_argument(text: str) -> tuple[str, Any]:
    name, value = _parse_name_value(text)
    try:
        return name, _parse_strict_json(value)
    except ValueError:
        return name, value


def _parse_json_argument(text: str) -> Any:
    try:
        return _parse_strict_json(text)
    except ValueError as error:
        message = f"{text!r} is no JSON ({error})"
        raise argparse.ArgumentTypeError(message) from error


def _parse_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not 0 <= seconds < float("inf"):
        message = f"{text!r} is no number of seconds"
        raise argparse.ArgumentTypeError(message)
    return seconds


def _parse_run_count(text: str) -> int:
    if not text.isdecimal():
        message = f"{text!r} is no number of flow runs"
        raise argparse.ArgumentTypeError(message)
    return int(text)


class _Remainder(Arg):
    """All arguments that follow, also those that begin with a dash and --help, for a command with a parser of its own."""

    def add_to_parser(self, parser: argparse.ArgumentParser) -> None:
        """Let nothing look like an option here; argparse.REMAINDER alone takes no option as the first argument."""
        parser.prefix_chars = "\0"
        parser.add_argument(*self.flags, **self.kwargs)


CONN_ID = Arg(
    ("--conn-id",),
    default="flows_default",
    help="Airflow connection; its type picks the service (default: flows_default)",
)
FLOW = Arg(("flow",), help="Name or id of the flow")
RUN = Arg(("flow_run_id",), metavar="RUN", help="Id of the flow run")
STATE = Arg(
    ("--state",),
    help="Only those in this state: created, starting, running, aborting, completed, failed or aborted",
)
LIMIT = Arg(
    ("--limit",),
    type=_parse_run_count,
    default=100,
    metavar="N",
    help="The most that are printed, the newest; 0 for all (default: 100)",
)
INPUT = Arg(
    ("-i", "--input"),
    action="append",
    metavar="INPUT",
    help="What the flow works on; may be repeated, the order is kept. One of\n"
    "  a prompt:               -i 'A modern office chair'\n"
    "  @PATH, a local file:    -i @chair.png\n"
    "  the URI of a file:      -i s3://bucket/chair.png\n"
    '  a JSON object with data (a prompt) or uri (a file), and perhaps additional: -i \'{"data": "A chair", "additional": 7}\'',
)
VARIABLE = Arg(
    ("--variable",),
    action="append",
    type=_parse_name_value,
    metavar="NAME=VALUE",
    help="A variable of a flow that has variables (PromptChainer), in place of --input; may be repeated",
)
PARAM = Arg(
    ("-p", "--param"),
    action="append",
    type=_parse_parameter_argument,
    metavar="NAME=VALUE",
    help="A parameter of the flow; may be repeated. JSON where it can be read as such (a number, true, ...), else a text:\n"
    "-p seed=7, -p quality=low; for the text 7: -p 'label=\"7\"'",
)
ADDITIONAL = Arg(
    ("--additional",),
    type=_parse_json_argument,
    metavar="JSON",
    help="Metadata of yours, stored with the flow run (Generio)",
)
OUTPUT_PATH_HELP = (
    "Where files are written, a path or the URI of any object storage, below it a folder a flow run"
)
RUN_OUTPUT_PATH = Arg(("--output-path",), help=f"{OUTPUT_PATH_HELP} (default: they stay at the service)")
DOWNLOAD_OUTPUT_PATH = Arg(
    ("--output-path",), default=".", help=f"{OUTPUT_PATH_HELP} (default: the current folder)"
)
OUTPUT_CONN_ID = Arg(("--output-conn-id",), help="Airflow connection of the storage of --output-path")
INPUT_CONN_ID = Arg(
    ("--input-conn-id",), help="Airflow connection of the storage that file URIs among the inputs lie in"
)
NO_VALIDATE = Arg(
    ("--no-validate",), action="store_true", help="Do not check first whether all this fits the flow"
)
NO_WAIT = Arg(("--no-wait",), action="store_true", help="End when the flow run is started")
TIMEOUT = Arg(
    ("--timeout",),
    type=_parse_seconds,
    metavar="SECONDS",
    help="Wait no longer; the flow run goes on (default: no limit)",
)
POLL_INTERVAL = Arg(
    ("--poll-interval",),
    type=_parse_seconds,
    default=5.0,
    metavar="SECONDS",
    help="The most often that it looks (default: 5)",
)
ON_INTERRUPT = Arg(
    ("--on-interrupt",),
    choices=("ask", "abort", "leave"),
    default="ask",
    help="What Ctrl-C does: ask whether to abort the flow run, abort it, or leave it going. Without a terminal nothing is\n"
    "asked and the flow run is left going (default: ask). SIGTERM, and SIGHUP where the terminal is closed, ask nothing either",
)
ASSET = Arg(
    ("--asset",),
    action="append",
    metavar="ASSET",
    help="Asset id or name of an output that is wanted; may be repeated (default: all)",
)
FLOW_OR_FILE = Arg(
    ("flow",), help="Id of a PromptChainer flow, or the path of an exported file (it ends with .json)"
)
FILE = Arg(
    ("--file",),
    metavar="FILE",
    help="The file that PromptChainer's editor exported, if it is not found by the flow's id",
)
FORMAT = Arg(
    ("--format",), choices=("svg", "mermaid"), help="What is written (default: what --to ends with, else svg)"
)
TO = Arg(("--to",), metavar="FILE", help="Where it is written (default: stdout)")
OPTIONS = _Remainder(("options",), nargs=argparse.REMAINDER)  # type: ignore[no-untyped-call]
COMMON_ARGS = (CONN_ID, ARG_OUTPUT, ARG_VERBOSE)


def _build_command(
    name: str, module: str, help_text: str, *args: Arg, common_args: tuple[Arg, ...] = COMMON_ARGS
) -> ActionCommand:
    function = lazy_load_command(f"{CLI_PACKAGE}.{module}.{name}")
    return ActionCommand(
        name=name, help=help_text, func=function, args=(*args, *common_args), epilog=EXIT_CODE_TABLE
    )


def get_commands() -> list[GroupCommand]:
    """Give the group of commands to Airflow (provider info, `cli`; Airflow 3.2 and later asks for it)."""
    wait_args = (TIMEOUT, POLL_INTERVAL, ON_INTERRUPT)
    commands = (
        _build_command("list", "query", "List the flows that can be run"),
        _build_command("describe", "query", "Tell what a flow takes and gives", FLOW),
        _build_command("runs", "query", "List the account's flow runs, newest first", STATE, LIMIT),
        _build_command("get", "query", "Tell how a flow run is now", RUN),
        _build_command("outputs", "query", "List the outputs of a flow run that is over", RUN),
        _build_command(
            "run",
            "run",
            "Run a flow, wait for it and fetch what it made",
            *(
                FLOW,
                INPUT,
                VARIABLE,
                PARAM,
                ADDITIONAL,
                INPUT_CONN_ID,
                RUN_OUTPUT_PATH,
                OUTPUT_CONN_ID,
                NO_VALIDATE,
                NO_WAIT,
            ),
            *wait_args,
        ),
        _build_command(
            "watch", "run", "Wait for a flow run, whoever started it, with a progress bar", RUN, *wait_args
        ),
        _build_command(
            "download",
            "download",
            "Write a flow run's outputs into files",
            RUN,
            DOWNLOAD_OUTPUT_PATH,
            OUTPUT_CONN_ID,
            ASSET,
        ),
        _build_command("abort", "manage", "Ask that a flow run be stopped", RUN),
        _build_command(
            "delete", "manage", "Delete a flow run with its inputs and outputs, for ever", RUN, ARG_YES
        ),
        _build_command(
            "draw",
            "draw",
            "Draw a flow's graph",
            FLOW_OR_FILE,
            FILE,
            FORMAT,
            TO,
            common_args=(CONN_ID, ARG_VERBOSE),
        ),
        _build_command(
            "emulator", "emulator", "Start a stand-in for Generio and PromptChainer", OPTIONS, common_args=()
        ),
    )
    description = "Run flows at Generio, PromptChainer, or any service that a connection type stands for"
    return [
        GroupCommand(
            name="flows",
            help=description,
            description=f"{description}\n\n{EXIT_CODE_TABLE}",
            subcommands=commands,
        )
    ]
