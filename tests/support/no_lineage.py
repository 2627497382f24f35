"""Takes the openlineage provider and its library away from a Python, as if nobody had installed them: `-p tests.support.no_lineage`.

It must be imported before Airflow is; what must work all the same is asserted by who uses it.
"""

from __future__ import annotations

import importlib.metadata
import sys
from types import ModuleType
from typing import Any

import importlib_metadata

TAKEN = ("openlineage", "airflow.providers.openlineage")


def belongs(name: str) -> bool:
    """Tell whether a module is one of those taken away."""
    return any(name == taken or name.startswith(f"{taken}.") for taken in TAKEN)


class _Nowhere:
    """Finds that there is no such module, before anybody finds that there is."""

    @staticmethod
    def find_spec(name: str, *_: Any) -> None:
        if belongs(name):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _hide(metadata: ModuleType) -> None:
    """Leave the two out where Airflow looks for providers and plugins."""
    known = metadata.distributions
    metadata.distributions = lambda **given: (one for one in known(**given) if "openlineage" not in one.name)  # type: ignore[attr-defined]


_hide(importlib.metadata)
_hide(importlib_metadata)
sys.meta_path.insert(0, _Nowhere)  # type: ignore[arg-type]
