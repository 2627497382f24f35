"""A stand-in for Generio and PromptChainer, for demos, examples and tests without an account.

It is no part of what runs in production, and it imports nothing else of this package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow_provider_flows.emulator.emulator import Emulator, MissingExtraError
    from airflow_provider_flows.emulator.faults import Fault
    from airflow_provider_flows.emulator.plans import Plan
    from airflow_provider_flows.emulator.request_log import RecordedRequest
    from airflow_provider_flows.emulator.switches import Switches

__all__ = ["Emulator", "Fault", "MissingExtraError", "Plan", "RecordedRequest", "Switches"]

# Looked up when first used: the pytest plugin lives in this package, and pytest imports it for people who never test a flow.
_MODULES = {
    "Emulator": "emulator",
    "Fault": "faults",
    "MissingExtraError": "emulator",
    "Plan": "plans",
    "RecordedRequest": "request_log",
    "Switches": "switches",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
