"""Makes the tables of the documentation that come from the code, so that nobody has to type them again.

It writes no page: docs/conf.py hands each table to the page that names it between double braces.
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
from airflow_provider_flows.emulator.__main__ import main as emulate
from airflow_provider_flows.emulator.switches import Switches, switch_choices, switch_names


def tables() -> dict[str, str]:
    """Give each table, as Markdown, by the name that pages call it by."""
    return {
        "generio_fields": _fields(GENERIO_FIELDS),
        "promptchainer_fields": _fields(PROMPTCHAINER_FIELDS),
        "emulator_switches": _switches(),
        "emulator_help": f"```text\n{emulator_help()}\n```",
    }


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _fields(table: Mapping[str, Field]) -> str:
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
    return _table(("field", "in the form", "type", "default", "at least", "meaning"), rows)


def _switches() -> str:
    """Give the switches with their defaults, what they can be, and the remark that stands above each of them in the code."""
    remarks = _remarks(inspect.getsource(Switches))
    default = Switches()
    rows = (
        (f"`{name}`", _format_value(getattr(default, name)), switch_choices(name), remarks.get(name, ""))
        for name in switch_names()
    )
    return _table(("switch", "default", "can be", "what it is about"), rows)


def emulator_help() -> str:
    """Give what the emulator's `--help` says, but for the switches, which have a table of their own."""
    out = io.StringIO()
    with redirect_stdout(out), suppress(SystemExit):
        emulate(["--help"])
    return out.getvalue().partition("\nSwitches, for provider developers:")[0].strip()


def _remarks(source: str) -> dict[str, str]:
    """Read the comment lines above each attribute; a line of dashes is a headline, not a remark."""
    found: dict[str, str] = {}
    remark: list[str] = []
    for line in source.splitlines():
        if comment := re.match(r"    # (.*?)(-{5,})?$", line):
            remark = [] if comment[2] else [*remark, comment[1]]
        elif attribute := re.match(r"    (\w+): ", line):
            found[attribute[1]], remark = " ".join(remark), []
    return found


def _format_value(value: Any) -> str:
    return "" if value is None else f"`{value if isinstance(value, str) else json.dumps(value)}`"
