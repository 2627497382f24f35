"""The report of a benchmark: a table, targets with the reached figures, notes, and the machine."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil

PACKAGES = (
    "apache-airflow",
    "aiohttp",
    "apache-airflow-providers-airbyte",
    "apache-airflow-providers-dbt-cloud",
    "apache-airflow-providers-http",
    "apache-airflow-providers-openai",
)
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its heading, the key of its figure, and the format."""

    heading: str
    key: str
    form: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """A target for a figure, as text, and the figure."""

    what: str
    actual: float
    aim: str


@dataclass(slots=True)
class Report:
    """The figures of one benchmark."""

    name: str
    title: str
    columns: Sequence[Column]
    rows: list[dict[str, Any]] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_text(self) -> str:
        """Return the report for a terminal."""
        lines = [f"\n{self.title}", *format_table(self.columns, self.rows)]
        lines += [
            f"  target: {target.what}: {target.actual:.3g} (aim {target.aim})" for target in self.targets
        ]
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])

    def to_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return {
            "title": self.title,
            "rows": self.rows,
            "targets": [asdict(target) for target in self.targets],
            "notes": self.notes,
        }


def format_table(columns: Sequence[Column], rows: Sequence[Row]) -> list[str]:
    """Return the lines of a table; a missing figure is a dash."""
    cells = [[column.heading for column in columns]]
    cells += [[_cell(row.get(column.key), column.form) for column in columns] for row in rows]
    widths = [max(len(line[at]) for line in cells) for at in range(len(columns))]
    text = [not any(isinstance(row.get(column.key), (int, float)) for row in rows) for column in columns]

    def line(values: Sequence[str]) -> str:
        return "  " + "  ".join(
            value.ljust(width) if left else value.rjust(width)
            for value, width, left in zip(values, widths, text, strict=True)
        )

    return [line(cells[0]), "  " + "  ".join("-" * width for width in widths), *map(line, cells[1:])]


def _cell(value: Any, form: str) -> str:
    return "-" if value is None else format(value, form)


def ratio(value: float, reference: float) -> float | None:
    """Return a value as a part of a reference, or None if that is zero."""
    return value / reference if reference else None


def machine() -> dict[str, Any]:
    """Return the properties of the machine that explain the figures."""
    return {
        "date": datetime.now(tz=UTC).isoformat(timespec="seconds"),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_before": round(psutil.getloadavg()[0], 2),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
