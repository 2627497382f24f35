"""The hooks: what users and the other modules call to work with a service over an Airflow connection.

Importing Airflow loads the metadata of all installed providers, and with it the modules of those that add a
service; these import this module. Therefore it is complete before Airflow is imported.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_flows.hooks.flows_hook import FlowsHook, GenerioHook, PromptChainerHook

__all__ = ["FlowsHook", "GenerioHook", "PromptChainerHook"]


def __getattr__(name: str) -> Any:
    """Import a hook on first use, after Airflow."""
    if name not in __all__:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    import_module("airflow")
    return getattr(import_module(f"{__name__}.flows_hook"), name)
