"""The terminal: data on stdout in the requested format, messages and questions on stderr.

Text from a service is not trusted: nothing in it moves a cursor, changes a colour or hides a word.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TextIO

from airflow.cli.simple_table import AirflowConsole, SimpleTable
from rich.text import Text
from tabulate import tabulate

INTERRUPTED_MESSAGE = "Interrupted."


def escape_control_chars(text: object) -> str:
    """Return a text with all unprintable characters escaped: control codes, text direction, line breaks."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text)
    )


def echo_err(line: object) -> None:
    """Write one line to stderr."""
    with ignore_broken_pipe(sys.stderr):
        sys.stderr.write(f"{escape_control_chars(line)}\n")


def is_interactive() -> bool:
    """Return whether a person can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def confirm(question: str) -> bool:
    """Ask a yes/no question; anything but yes is no.

    :raises KeyboardInterrupt: the person pressed Ctrl-C.
    """
    try:
        sys.stderr.write(f"{escape_control_chars(question)} [y/N] ")
        sys.stderr.flush()
        return sys.stdin.readline().strip().lower() in {"y", "yes"}
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        raise


@contextmanager
def ignore_broken_pipe(stream: TextIO) -> Iterator[None]:
    """Write to stdout or stderr; once its reader has stopped (`| head`), discard all text.

    Neither what a command does nor its exit code changes.
    """
    try:
        yield
        stream.flush()
    except BrokenPipeError:
        # otherwise Python flushes the stream again at exit and fails
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


class _Console(AirflowConsole):
    """Airflow's console, without rich's own exit code 1 on a broken pipe."""

    def on_broken_pipe(self) -> NoReturn:
        """Raise the error that `ignore_broken_pipe` expects."""
        raise BrokenPipeError


def show_one(data: Mapping[str, Any], output: str) -> None:
    """Print an object: as such in JSON and YAML, otherwise one row for each property.

    :param output: `table`, `json`, `yaml` or `plain`, as in Airflow's own commands.
    """
    rows = [{"property_name": name, "property_value": value} for name, value in _flatten(data)]
    _show(data, rows, output)


def show_many(data: Sequence[Mapping[str, Any]], output: str, columns: Iterable[str]) -> None:
    """Print a list: an array of objects in JSON and YAML, otherwise one row for each, with these columns."""
    _show(data, [{name: row.get(name) for name in columns} for row in data], output)


def _show(data: Any, rows: Sequence[Mapping[str, Any]], output: str) -> None:
    with ignore_broken_pipe(sys.stdout):
        _print(data, rows, output)


def _print(data: Any, rows: Sequence[Mapping[str, Any]], output: str) -> None:
    console = _Console()
    if output == "json" and not console.is_terminal:
        # the same text as from Airflow's console, which takes seconds for a long list
        sys.stdout.write(f"{json.dumps(data)}\n")
    elif output == "json":
        console.print_as_json(data)
    elif output == "yaml":
        console.print_as_yaml(data)
    elif not rows:
        echo_err("No data found")
    elif output == "plain":
        cells = [{name: _cell(value) for name, value in row.items()} for row in rows]
        # numbers are not parsed: 12e3 may be an id
        sys.stdout.write(f"{tabulate(cells, headers='keys', tablefmt='plain', disable_numparse=True)}\n")
    else:
        table = SimpleTable(show_header=console.show_header)
        for name in rows[0]:
            table.add_column(name, overflow="fold")
        for row in rows:
            # Text, because rich parses markup in a str
            table.add_row(*(Text(_cell(value)) for value in row.values()))
        console.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (list, tuple, Mapping)):
        return ", ".join(map(_cell, value))
    return escape_control_chars(value)


def _flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested values with names such as `outer.inner`."""
    children: Iterable[tuple[Any, Any]]
    if isinstance(value, Mapping) and value:
        children = value.items()
    elif isinstance(value, (list, tuple)):
        children = enumerate(value)
    else:
        yield escape_control_chars(name), value
        return
    for key, child in children:
        yield from _flatten(child, f"{name}.{key}" if name else str(key))
