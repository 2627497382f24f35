"""Takes the openlineage provider and its library away from a Python, as if nobody had installed them: `-p tests.support.without_openlineage`.

It must be imported before Airflow is; what must work all the same is asserted by who uses it.
"""

from __future__ import annotations

import importlib.metadata
import sys
from types import ModuleType
from typing import Any

import importlib_metadata

HIDDEN_MODULES = ("openlineage", "airflow.providers.openlineage")


def is_hidden(name: str) -> bool:
    """Tell whether a module is one of those taken away."""
    return any(name == hidden or name.startswith(f"{hidden}.") for hidden in HIDDEN_MODULES)


class _HidingFinder:
    """Finds that there is no such module, before anybody finds that there is."""

    @staticmethod
    def find_spec(name: str, *_: Any) -> None:
        if is_hidden(name):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _hide_distributions(metadata: ModuleType) -> None:
    """Leave the two out where Airflow looks for providers and plugins."""
    distributions = metadata.distributions
    metadata.distributions = lambda **given: (
        one for one in distributions(**given) if "openlineage" not in one.name
    )  # type: ignore[attr-defined]


_hide_distributions(importlib.metadata)
_hide_distributions(importlib_metadata)
sys.meta_path.insert(0, _HidingFinder)  # type: ignore[arg-type]
