"""What goes to the terminal: data to stdout in the form that was asked for, lines for a person to stderr.

What comes from a service is not trusted: nothing in it moves a cursor, changes a colour or hides a word.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from airflow.cli.simple_table import AirflowConsole, SimpleTable
from rich.text import Text
from tabulate import tabulate

INTERRUPTED_MESSAGE = "Interrupted."


def escape_control_chars(text: object) -> str:
    """Give a text with every character written out that a terminal would obey or not show: control, direction, line ends."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text)
    )


def echo_err(line: object) -> None:
    """Write one line to stderr."""
    sys.stderr.write(f"{escape_control_chars(line)}\n")
    sys.stderr.flush()


@contextmanager
def ignore_broken_pipe() -> Iterator[None]:
    """Print as long as somebody reads it: that `head` has seen enough changes neither what a command does nor how it ends."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # else Python itself tries again at its end


class _Console(AirflowConsole):
    """Airflow's console, which leaves it to us what a broken pipe means; rich would end the process with code 1."""

    def on_broken_pipe(self) -> NoReturn:
        """Say that it is broken."""
        raise BrokenPipeError


def show_one(data: Mapping[str, Any], output: str) -> None:
    """Print one thing: an object in JSON and YAML, else a row for each of its properties.

    :param output: table, json, yaml or plain, as Airflow's own commands have it.
    """
    rows = [{"property_name": name, "property_value": value} for name, value in _flatten(data)]
    _show(data, rows, output)


def show_many(data: Sequence[Mapping[str, Any]], output: str, columns: Iterable[str]) -> None:
    """Print a list: an array of objects in JSON and YAML, else a row for each, of these columns."""
    _show(data, [{name: row.get(name) for name in columns} for row in data], output)


def _show(data: Any, rows: Sequence[Mapping[str, Any]], output: str) -> None:
    with ignore_broken_pipe():
        _write(data, rows, output)


def _write(data: Any, rows: Sequence[Mapping[str, Any]], output: str) -> None:
    console = _Console()
    if output == "json" and not console.is_terminal:
        sys.stdout.write(
            f"{json.dumps(data)}\n"
        )  # what Airflow's console prints, and that takes seconds for a long list
    elif output == "json":
        console.print_as_json(data)
    elif output == "yaml":
        console.print_as_yaml(data)
    elif not rows:
        echo_err("No data found")
    elif output == "plain":
        cells = [{name: _cell(value) for name, value in row.items()} for row in rows]
        sys.stdout.write(
            f"{tabulate(cells, headers='keys', tablefmt='plain', disable_numparse=True)}\n"
        )  # 12e3 may be an id
    else:
        table = SimpleTable(show_header=console.show_header)
        for name in rows[0]:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(
                *(Text(_cell(value)) for value in row.values())
            )  # a Text, for in a str rich would see its markup
        console.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (list, tuple, Mapping)):
        return ", ".join(map(_cell, value))
    return escape_control_chars(value)


def _flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Give what is nested as `outer.inner`."""
    inner = (
        value.items()
        if isinstance(value, Mapping)
        else enumerate(value)
        if isinstance(value, (list, tuple))
        else ()
    )
    if not inner:
        yield escape_control_chars(name), value
    for key, each in inner:
        yield from _flatten(each, f"{name}.{key}" if name else str(key))
