"""The terminal: data on stdout in the requested format, messages and questions on stderr.

Text from a service is not trusted: nothing in it moves a cursor, changes a colour or hides a word.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from airflow.cli.simple_table import AirflowConsole, SimpleTable
from rich.text import Text
from tabulate import tabulate

INTERRUPTED_MESSAGE = "Interrupted."


def escape_control_chars(text: object) -> str:
    """Return a text with all unprintable characters escaped: control codes, text direction, line breaks."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text)
    )


def write_out(text: str, errors: str = "backslashreplace") -> None:
    """Write to stdout, with a replacement for each character that its encoding lacks.

    :param errors: the name of the codec error handler that replaces such characters.
    :raises BrokenPipeError: the reader no longer reads, or stdout is closed.
    """
    if sys.stdout is None or sys.stdout.closed:
        raise BrokenPipeError
    sys.stdout.write(_to_encodable(text, sys.stdout, errors))


def write_err(text: str) -> None:
    """Write to stderr as `write_out` does to stdout; what cannot be written changes nothing else."""
    # the errors of a stream that is full, closed, or None
    with suppress(OSError, ValueError, AttributeError), ignore_broken_pipe(sys.stderr):
        sys.stderr.write(_to_encodable(text, sys.stderr, "backslashreplace"))


def _to_encodable(text: str, stream: TextIO, errors: str) -> str:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, errors).decode(encoding)


def echo_err(line: object) -> None:
    """Write one line to stderr."""
    write_err(f"{escape_control_chars(line)}\n")


def is_interactive() -> bool:
    """Return whether a person can be asked."""
    return is_terminal(sys.stdin) and is_terminal(sys.stderr)


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a standard stream is a terminal; it may be closed, or None if it was never open."""
    return stream is not None and not stream.closed and stream.isatty()


def confirm(question: str) -> bool:
    """Ask a yes/no question; anything but yes is no.

    :raises KeyboardInterrupt: the person pressed Ctrl-C.
    """
    try:
        write_err(f"{escape_control_chars(question)} [y/N] ")
        return sys.stdin.readline().strip().lower() in {"y", "yes"}
    except KeyboardInterrupt:
        write_err("\n")
        raise


@contextmanager
def ignore_broken_pipe(stream: TextIO | None) -> Iterator[None]:
    """Write to stdout or stderr; once its reader has stopped (`| head`), discard all text.

    Neither what a command does nor its exit code changes.
    """
    try:
        yield
        if stream is not None and not stream.closed:
            stream.flush()
    except BrokenPipeError:
        with suppress(AttributeError, ValueError, OSError):  # the stream is closed already, or is no file
            # otherwise Python flushes the stream again at exit and fails
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())  # type: ignore[union-attr]  # None has no fileno: suppressed
            os.close(null)


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
    console = AirflowConsole()
    if output == "json" and not console.is_terminal:
        # the same text as from Airflow's console, which takes seconds for a long list
        write_out(f"{json.dumps(data)}\n")
    elif output in {"json", "yaml"}:
        with console.capture() as capture:
            print_data = console.print_as_json if output == "json" else console.print_as_yaml
            print_data(data)
        write_out(capture.get())
    elif not rows:
        echo_err("No data found")
    elif output == "plain":
        cells = [{name: _cell(value) for name, value in row.items()} for row in rows]
        # numbers are not parsed: 12e3 may be an id
        write_out(f"{tabulate(cells, headers='keys', tablefmt='plain', disable_numparse=True)}\n")
    else:
        table = SimpleTable(show_header=console.show_header)
        for name in rows[0]:
            table.add_column(name, overflow="fold")
        for row in rows:
            # Text, because rich parses markup in a str
            table.add_row(*(Text(_cell(value)) for value in row.values()))
        with console.capture() as capture:
            console.print(table)
        write_out(capture.get())


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
