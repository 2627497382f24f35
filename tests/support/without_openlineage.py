"""A pytest plugin that hides the openlineage provider and its library, as if they were not installed.

Use it as `-p tests.support.without_openlineage`; it must be imported before Airflow.
"""

from __future__ import annotations

import importlib.metadata
import sys
from types import ModuleType
from typing import Any

import importlib_metadata

HIDDEN_MODULES = ("openlineage", "airflow.providers.openlineage")


def is_hidden(name: str) -> bool:
    """Return whether a module is hidden."""
    return any(name == hidden or name.startswith(f"{hidden}.") for hidden in HIDDEN_MODULES)


class _HidingFinder:
    """A finder in front of all others that raises for hidden modules."""

    @staticmethod
    def find_spec(name: str, *_: Any) -> None:
        if is_hidden(name):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _hide_distributions(metadata: ModuleType) -> None:
    """Hide the distributions from Airflow's search for providers and plugins."""
    distributions = metadata.distributions
    metadata.distributions = lambda **given: (
        one for one in distributions(**given) if "openlineage" not in one.name
    )


_hide_distributions(importlib.metadata)
_hide_distributions(importlib_metadata)
sys.meta_path.insert(0, _HidingFinder)
