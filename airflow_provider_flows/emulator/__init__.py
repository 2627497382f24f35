"""An emulator of Generio and PromptChainer, for demos, examples and tests without an account.

It is not used in production and imports nothing else of this package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow_provider_flows.emulator.emulator import Emulator, MissingExtraError
    from airflow_provider_flows.emulator.scripting import Fault, Plan
    from airflow_provider_flows.emulator.state import RecordedRequest
    from airflow_provider_flows.emulator.switches import Switches

__all__ = ["Emulator", "Fault", "MissingExtraError", "Plan", "RecordedRequest", "Switches"]

# Imported on first use: the pytest plugin is in this package, and pytest loads it also for users who do not
# test flows.
_MODULES = {
    "Emulator": "emulator",
    "Fault": "scripting",
    "MissingExtraError": "emulator",
    "Plan": "scripting",
    "RecordedRequest": "state",
    "Switches": "switches",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
