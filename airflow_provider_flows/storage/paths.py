"""File names out of whatever a service calls its outputs: harmless on every store, and never the same one twice.

It touches no file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from airflow_provider_flows.core.run import FlowOutput

MAX_FILE_NAME_LENGTH = 100
RESERVED_FILE_NAMES = frozenset(
    {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
)


def file_names(outputs: Iterable[FlowOutput]) -> Iterator[str]:
    """Give each output a safe file name without extension, the same one never twice, however the service calls them."""
    used_names: set[str] = set()
    for output in outputs:
        plain = safe_name(output.name)
        name, number = plain, 1
        while name.lower() in used_names:
            number += 1
            name = f"{plain}-{number}"
        used_names.add(name.lower())
        yield name


def safe_name(name: str) -> str:
    """Make a name that is one harmless path segment on every store: letters, digits, dot, dash, underscore."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-")[:MAX_FILE_NAME_LENGTH].rstrip("._-")
    return f"_{plain}" if plain.lower().partition(".")[0] in RESERVED_FILE_NAMES or not plain else plain
