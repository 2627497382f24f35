"""Creates the tables of the documentation that are derived from the code.

docs/conf.py inserts each table into the page that has its name between double braces.
"""

from __future__ import annotations

import inspect
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from typing import Any

from airflow_provider_flows.connection import GENERIO_FIELDS, PROMPTCHAINER_FIELDS, Field
from airflow_provider_flows.emulator.__main__ import main as run_emulator
from airflow_provider_flows.emulator.switches import Switches, switch_choices, switch_names


def tables() -> dict[str, str]:
    """Return each table as Markdown, by the name that pages use."""
    return {
        "generio_fields": _fields_table(GENERIO_FIELDS),
        "promptchainer_fields": _fields_table(PROMPTCHAINER_FIELDS),
        "emulator_switches": _switches_table(),
        "emulator_help": f"```text\n{emulator_help()}\n```",
    }


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _fields_table(table: Mapping[str, Field]) -> str:
    rows = (
        (
            f"`{name}`",
            field.label,
            field.kind,
            _format_value(field.default),
            _format_value(field.minimum),
            field.description,
        )
        for name, field in table.items()
    )
    return _table(("field", "label in the form", "type", "default", "minimum", "meaning"), rows)


def _switches_table() -> str:
    """Return the switches with default, values, and the comment above each of them in the code."""
    comments = _parse_comments(inspect.getsource(Switches))
    default = Switches()
    rows = (
        (f"`{name}`", _format_value(getattr(default, name)), switch_choices(name), comments.get(name, ""))
        for name in switch_names()
    )
    return _table(("switch", "default", "values", "meaning"), rows)


def emulator_help() -> str:
    """Return the emulator's `--help` without the switches, which have a separate table."""
    out = io.StringIO()
    with redirect_stdout(out), suppress(SystemExit):
        run_emulator(["--help"])
    return out.getvalue().partition("\nSwitches, for provider developers:")[0].strip()


def _parse_comments(source: str) -> dict[str, str]:
    """Return the comment above each attribute; a comment that ends with dashes is a heading."""
    comments: dict[str, str] = {}
    lines: list[str] = []
    for line in source.splitlines():
        if comment := re.match(r"    # (.*?)(-{5,})?$", line):
            lines = [] if comment[2] else [*lines, comment[1]]
        elif attribute := re.match(r"    (\w+): ", line):
            comments[attribute[1]], lines = " ".join(lines), []
    return comments


def _format_value(value: Any) -> str:
    return "" if value is None else f"`{value if isinstance(value, str) else json.dumps(value)}`"
