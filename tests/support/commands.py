"""Run `airflow flows` in the test's own process, through Airflow's parser."""

from __future__ import annotations

import json
import shlex
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

PROMPT_FLOW = "model_generate_fromprompt"


@dataclass(frozen=True)
class CommandResult:
    """The exit code of a command, and its output."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The JSON on stdout."""
        return json.loads(self.out)


FlowsCommand = Callable[..., CommandResult]


def call(line: list[str]) -> int:
    """Run `airflow` with these arguments, and return the exit code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Airflow's parts use deprecated parts of each other
        from airflow.cli.cli_parser import get_parser
    try:
        args = get_parser().parse_args(line)
        if line[0] == "flows":
            args.func(args)
        else:
            _run_quietly(args.func, args)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    return 0


def _run_quietly(function: Callable[[Any], None], args: Any) -> None:
    """Run a command of Airflow itself without its warnings about deprecated parts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        function(args)


def flows_command(capsys: pytest.CaptureFixture[str]) -> FlowsCommand:
    """Return a function that runs `airflow flows ...` with one string or with words as its arguments."""

    def flows(*words: str) -> CommandResult:
        line = shlex.split(words[0]) if len(words) == 1 else list(words)
        capsys.readouterr()
        code = call(["flows", *line])
        written = capsys.readouterr()
        return CommandResult(code, written.out, written.err)

    return flows


def add_connection(conn_id: str, host: str, key: str) -> None:
    """Add a connection to Airflow's database with `airflow connections add`."""
    assert (
        call(
            [
                "connections",
                "add",
                conn_id,
                "--conn-type",
                "generio",
                "--conn-host",
                host,
                "--conn-password",
                key,
            ]
        )
        == 0
    )
