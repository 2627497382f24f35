"""The commands of `airflow flows`: their arguments, their help and their exit codes.

Airflow imports this module at every start of `airflow`, so it imports nothing new.
The commands are in the other modules of this folder, which are imported when a command runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NoReturn, Self

from airflow.cli.cli_config import (
    ARG_OUTPUT,
    ARG_VERBOSE,
    ARG_YES,
    ActionCommand,
    Arg,
    GroupCommand,
    lazy_load_command,
)

from airflow_provider_flows.cli.values import (
    parse_age,
    parse_count,
    parse_json_argument,
    parse_name_value,
    parse_parameter_argument,
    parse_ratio,
    parse_reuse,
    parse_run_count,
    parse_seconds,
)

CLI_PACKAGE = __name__.rpartition(".")[0]


class Exit(IntEnum):
    """How a command ended."""

    DONE = 0, "success; for run and watch: the flow run completed; for batch: enough items completed"
    FAILED = 1, "the flow run failed, too few items completed, or another error (the service, a file)"
    USAGE = 2, "an argument, an input or the connection is invalid; nothing was paid"
    ABORTED = 3, "the flow run was aborted; for batch: Ctrl-C aborted the active flow runs"
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


class _Remainder(Arg):
    """All further arguments, options and --help included, for a command that parses them itself."""

    def add_to_parser(self, parser: argparse.ArgumentParser) -> None:
        """Add the argument. Disable option prefixes: argparse.REMAINDER cannot start with an option."""
        parser.prefix_chars = "\0"
        parser.add_argument(*self.flags, **self.kwargs)


class _ShortErrors(Arg):
    """No argument: makes a command's parser explain a wrong command line in two lines.

    Airflow's parser (`DefaultHelpParser`) prints the whole help instead, and ends before an unknown option is
    found by the command's own parser. Airflow passes that parser to each of the command's arguments.

    :param operands: the names of the command's arguments that are no options.
    """

    def __init__(self, operands: Sequence[str]) -> None:
        super().__init__(("short_errors",))  # type: ignore[no-untyped-call]  # see OPTIONS
        self._operands = operands

    def add_to_parser(self, parser: argparse.ArgumentParser) -> None:
        """Replace how the parser reports an error, and let it report unknown arguments itself."""
        usage = " ".join((f"usage: {parser.prog} [options]", *self._operands))
        parse_known_args = parser.parse_known_args

        def error(message: str) -> NoReturn:
            advice = f'"{parser.prog} --help" lists the arguments'
            parser.exit(int(Exit.USAGE), f"{usage}\n{parser.prog}: error: {message} ({advice})\n")

        def parse_all_args(args: Any = None, namespace: Any = None) -> Any:
            parsed, unknown = parse_known_args(args, namespace)
            if unknown:
                error(f"unrecognized arguments: {' '.join(unknown)}")
            return parsed, unknown

        # on the instance, because the class is Airflow's choice
        vars(parser).update(error=error, parse_known_args=parse_all_args)


CONN_ID = Arg(
    ("--conn-id",),
    default="flows_default",
    help="Airflow connection; its type selects the service (default: flows_default)",
)
FLOW = Arg(("flow",), help="Name or id of the flow")
RUN = Arg(("flow_run_id",), metavar="RUN", help="Id of the flow run")
STATE = Arg(
    ("--state",),
    help="Only flow runs in this state: created, starting, running, aborting, completed, failed or aborted",
)
LIMIT = Arg(
    ("--limit",),
    type=parse_run_count,
    default=100,
    metavar="N",
    help="Maximum number of flow runs to print, newest first; 0 for all (default: 100)",
)
INPUT = Arg(
    ("-i", "--input"),
    action="append",
    metavar="INPUT",
    help="The flow's input data; may be repeated. One of\n"
    "  a prompt:               -i 'A modern office chair'\n"
    "  @PATH, a local file:    -i @chair.png\n"
    "  @URI, a stored file:    -i @s3://bucket/chair.png\n"
    "  a JSON object with data (a prompt) or uri (a file), optionally additional:\n"
    '    -i \'{"data": "A chair", "additional": 7}\'',
)
VARIABLE = Arg(
    ("--variable",),
    action="append",
    type=parse_name_value,
    metavar="NAME=VALUE",
    help="A variable of the flow (PromptChainer), instead of --input; may be repeated",
)
PARAM = Arg(
    ("-p", "--param"),
    action="append",
    type=parse_parameter_argument,
    metavar="NAME=VALUE",
    help="A parameter of the flow; may be repeated. JSON if possible (a number, true, ...), otherwise a "
    "string:\n"
    "-p seed=7, -p quality=low; for the string 7: -p 'label=\"7\"'",
)
ADDITIONAL = Arg(
    ("--additional",),
    type=parse_json_argument,
    metavar="JSON",
    help="Your metadata, stored with the flow run (Generio)",
)
OUTPUT_PATH_HELP = "Where to write files: a path or an object storage URI; each flow run gets a folder there"
RUN_OUTPUT_PATH = Arg(("--output-path",), help=f"{OUTPUT_PATH_HELP} (default: they remain at the service)")
DOWNLOAD_OUTPUT_PATH = Arg(
    ("--output-path",), default=".", help=f"{OUTPUT_PATH_HELP} (default: the current folder)"
)
OUTPUT_NAME = Arg(
    ("--output-name",),
    help="How files are called, without extension, such as {input.key}-{index}; by default as their outputs",
)
OUTPUT_CONN_ID = Arg(("--output-conn-id",), help="Airflow connection of the storage of --output-path")
INPUT_CONN_ID = Arg(("--input-conn-id",), help="Airflow connection of the storage of input files")
NO_VALIDATE = Arg(
    ("--no-validate",),
    action="store_true",
    help="Do not validate inputs and parameters against the flow first",
)
REUSE = Arg(
    ("--reuse",),
    type=parse_reuse,
    default=False,
    metavar="AGE",
    help="Print the outputs of an earlier flow run of the same request, if there is one of at most so\n"
    "many days (30, or a time such as 12h, or any) whose files are still there, and start no flow run",
)
REUSE_PATH = Arg(
    ("--reuse-path",), help="Where the index of outputs for --reuse is (default: below --output-path)"
)
INDEX_PATH = Arg(("path",), metavar="PATH", help="The --reuse-path, or else the --output-path")
INDEX_CONN_ID = Arg(("--output-conn-id",), help="Airflow connection of the storage of PATH")
INDEX_FLOW = Arg(("--flow",), help="Only outputs of this flow")
OLDER_THAN = Arg(
    ("--older-than",),
    type=parse_age,
    metavar="AGE",
    help="Only outputs that were saved before so many days (30, or a time such as 12h)",
)
NO_WAIT = Arg(("--no-wait",), action="store_true", help="Exit as soon as the flow run has started")
TIMEOUT = Arg(
    ("--timeout",),
    type=parse_seconds,
    metavar="SECONDS",
    help="Maximum time to wait; the flow run continues afterwards (default: no limit)",
)
POLL_INTERVAL = Arg(
    ("--poll-interval",),
    type=parse_seconds,
    default=5.0,
    metavar="SECONDS",
    help="Minimum time between two polls (default: 5)",
)
ON_INTERRUPT = Arg(
    ("--on-interrupt",),
    choices=("ask", "abort", "leave"),
    default="ask",
    help="What Ctrl-C does to the flow run: ask whether to abort it, abort it, or leave it running\n"
    "(default: ask). Without a terminal, and on SIGTERM, ask means leave",
)
ITEMS = Arg(
    ("items",),
    help="A .jsonl, .csv or .parquet file with an item in each line or row, or a pattern for one item per\n"
    "file, such as 'photos/*.png'; a path or a URI",
)
BATCH_OUTPUT_PATH = Arg(
    ("--output-path", "--output"),
    required=True,
    metavar="PATH",
    help="Where to write the files of each item, manifest.jsonl and failed.jsonl: a path or an object\n"
    "storage URI. The same command with the same folder continues the batch",
)
BATCH_FORMAT = Arg(
    ("-o", "--format"),
    dest="output",
    choices=ARG_OUTPUT.kwargs["choices"],
    default=ARG_OUTPUT.kwargs["default"],
    help="Output format (default: table)",
)
MAX_ACTIVE = Arg(
    ("--max-active",),
    type=parse_count,
    default=50,
    metavar="N",
    help="How many flow runs are active at the same time (default: 50)",
)
MIN_SUCCESS_RATIO = Arg(
    ("--min-success-ratio",),
    type=parse_ratio,
    default=1.0,
    metavar="RATIO",
    help="The part of the items that must complete, from 0 to 1 (default: 1)",
)
STOP_AFTER_FAILURES = Arg(
    ("--stop-after-failures",),
    type=parse_count,
    default=20,
    metavar="N",
    help="Start no other flow run after so many failures in a row; 0 for any number (default: 20)",
)
ITEM_RETRIES = Arg(
    ("--item-retries",),
    type=parse_count,
    default=0,
    metavar="N",
    help="How often one call runs a failed item again (default: 0)",
)
COLUMN = Arg(
    ("--column",),
    action="append",
    type=parse_name_value,
    metavar="COLUMN=FIELD",
    help="The field of an item for a column of a CSV or Parquet file, such as chair_prompt=inputs; may be\n"
    "repeated. Without a field (notes=) the column is left out",
)
SKIP_INVALID = Arg(
    ("--skip-invalid",),
    action="store_true",
    help="List items that cannot be sent in failed.jsonl, and run the others",
)
BATCH_TIMEOUT = Arg(
    ("--timeout",),
    type=parse_seconds,
    default=3600.0,
    metavar="SECONDS",
    help="Maximum time of one flow run; then it is aborted, and its item has failed (default: 3600)",
)
BATCH_ON_INTERRUPT = Arg(
    ("--on-interrupt",),
    choices=("ask", "abort", "leave"),
    default="ask",
    help="What Ctrl-C does to the active flow runs: ask whether to abort them, abort them, or leave them\n"
    "running, so that the same command resumes them (default: ask). Without a terminal, and on SIGTERM, ask\n"
    "means leave",
)
ASSET = Arg(
    ("--asset",),
    action="append",
    metavar="ASSET",
    help="Asset id or name of an output to download; may be repeated (default: all)",
)
FLOW_OR_FILE = Arg(("flow",), help="Id of a PromptChainer flow, or the path of an exported file (.json)")
FILE = Arg(
    ("--file",),
    metavar="FILE",
    help="The file exported from PromptChainer's editor, if it cannot be found by the flow's id",
)
FORMAT = Arg(
    ("--format",),
    choices=("svg", "mermaid"),
    help="Format of the picture (default: by the suffix of --to, otherwise svg)",
)
TO = Arg(("--to",), metavar="FILE", help="File to write to (default: stdout)")
OPTIONS = _Remainder(("options",), nargs=argparse.REMAINDER)  # type: ignore[no-untyped-call]  # Airflow's Arg is not annotated
REUSE_HELP = "Manage the index of outputs that are reused (--reuse)"
COMMON_ARGS = (CONN_ID, ARG_OUTPUT, ARG_VERBOSE)


def _build_command(
    name: str, module: str, help_text: str, *args: Arg, common_args: tuple[Arg, ...] = COMMON_ARGS
) -> ActionCommand:
    function = lazy_load_command(f"{CLI_PACKAGE}.{module}.{name}")
    operands = [arg.kwargs.get("metavar", arg.flags[0]) for arg in args if not arg.flags[0].startswith("-")]
    all_args = (_ShortErrors(operands), *args, *common_args)
    return ActionCommand(name=name, help=help_text, func=function, args=all_args, epilog=EXIT_CODE_TABLE)


def get_commands() -> list[GroupCommand]:
    """Return the group of commands (provider info, `cli`; called by Airflow 3.2 and later)."""
    wait_args = (TIMEOUT, POLL_INTERVAL, ON_INTERRUPT)
    commands = (
        _build_command("list", "flow_runs", "List the available flows"),
        _build_command("describe", "flow_runs", "Show the inputs, parameters and outputs of a flow", FLOW),
        _build_command("runs", "flow_runs", "List the account's flow runs, newest first", STATE, LIMIT),
        _build_command("get", "flow_runs", "Show the current state of a flow run", RUN),
        _build_command("outputs", "flow_runs", "List the outputs of a finished flow run", RUN),
        _build_command(
            "run",
            "run",
            "Run a flow, wait for it and fetch its outputs",
            *(
                FLOW,
                INPUT,
                VARIABLE,
                PARAM,
                ADDITIONAL,
                INPUT_CONN_ID,
                RUN_OUTPUT_PATH,
                OUTPUT_NAME,
                OUTPUT_CONN_ID,
                REUSE,
                REUSE_PATH,
                NO_VALIDATE,
                NO_WAIT,
            ),
            *wait_args,
        ),
        _build_command(
            "batch",
            "batch",
            "Run a flow for each item of a file, and continue where an earlier call has ended",
            *(
                FLOW,
                ITEMS,
                BATCH_OUTPUT_PATH,
                MAX_ACTIVE,
                PARAM,
                COLUMN,
                INPUT_CONN_ID,
                OUTPUT_CONN_ID,
                REUSE,
                REUSE_PATH,
                MIN_SUCCESS_RATIO,
                STOP_AFTER_FAILURES,
                ITEM_RETRIES,
                NO_VALIDATE,
                SKIP_INVALID,
            ),
            *(BATCH_TIMEOUT, POLL_INTERVAL, BATCH_ON_INTERRUPT),
            common_args=(CONN_ID, BATCH_FORMAT, ARG_VERBOSE),
        ),
        _build_command("watch", "run", "Wait for any flow run, with a progress bar", RUN, *wait_args),
        _build_command(
            "download",
            "flow_runs",
            "Write the outputs of a flow run to files",
            RUN,
            DOWNLOAD_OUTPUT_PATH,
            OUTPUT_NAME,
            OUTPUT_CONN_ID,
            ASSET,
        ),
        _build_command("abort", "flow_runs", "Abort a flow run", RUN),
        _build_command(
            "delete", "flow_runs", "Delete a flow run with its inputs and outputs permanently", RUN, ARG_YES
        ),
        _build_command(
            "draw",
            "flow_runs",
            "Draw a flow's graph",
            FLOW_OR_FILE,
            FILE,
            FORMAT,
            TO,
            common_args=(CONN_ID, ARG_VERBOSE),
        ),
        _build_command(
            "emulator", "command", "Start an emulator of Generio and PromptChainer", OPTIONS, common_args=()
        ),
    )
    index_args = (INDEX_PATH, INDEX_FLOW, OLDER_THAN, INDEX_CONN_ID)
    reuse_commands = (
        _build_command(
            "list",
            "reuse",
            "List the outputs that can be reused",
            *index_args,
            common_args=(ARG_OUTPUT, ARG_VERBOSE),
        ),
        _build_command(
            "forget",
            "reuse",
            "Remove outputs from the index; their files remain",
            *index_args,
            ARG_YES,
            common_args=(ARG_OUTPUT, ARG_VERBOSE),
        ),
    )
    description = "Run flows at Generio, PromptChainer, or any service with a connection type"
    return [
        GroupCommand(
            name="flows",
            help=description,
            description=f"{description}\n\n{EXIT_CODE_TABLE}",
            subcommands=(*commands, GroupCommand("reuse", REUSE_HELP, reuse_commands)),
        )
    ]
