"""What differs between the supported versions of Airflow, and between Airflow's pre-releases.

Each difference is a feature that this module detects; no other module asks which Airflow is installed, and
tests/test_architecture.py checks that. tests/support/versions.py names the versions, for the tests.

Importing this module is cheap, so what is slow to import is imported in the functions: a worker does not need
what a triggerer or an API server needs.
"""

from __future__ import annotations

import asyncio
import inspect
from functools import cache
from typing import TYPE_CHECKING, Any
from uuid import UUID

try:
    from airflow.sdk import RetryDecision, RetryPolicy
except ImportError:  # before Airflow 3.3
    RetryDecision = RetryPolicy = object  # type: ignore[misc, assignment]
    HAS_RETRY_POLICIES = False
else:
    HAS_RETRY_POLICIES = True

if TYPE_CHECKING:
    from collections.abc import Callable

METASTORE_BACKEND = "airflow.state.metastore.MetastoreBackend"
NO_REGION = UUID(int=0)  # of a task instance in a worker that is in no region

__all__ = [
    "HAS_RETRY_POLICIES",
    "RetryDecision",
    "RetryPolicy",
    "clear_deletes_task_state",
    "connections_have_teams",
    "get_asset_state",
    "get_region",
    "has_attempts",
    "load_state_backend",
    "set_asset_state",
    "triggers_have_on_kill",
]


# In a worker


def clear_deletes_task_state(ti: Any) -> bool:
    """Return whether Airflow deletes the task state store of a task that a person clears.

    Airflow does so since 3.4, unless the person chooses to keep the state. A worker has no sign of it, but
    the same version added the regions of task instances, which are public attributes. It deletes only what is
    in its own database, not what another backend of the store has.

    :param ti: a task instance, as in Airflow's context.
    """
    from airflow.providers.common.compat.sdk import conf

    backend = conf.get("state_store", "backend", fallback=None) or METASTORE_BACKEND
    return hasattr(ti, "region_id") and backend == METASTORE_BACKEND


def get_region(ti: Any) -> dict[str, Any]:
    """Return `region_id` and `region_index` of a task instance as plain JSON; empty if it is in no region.

    Mapped tasks and task loops have regions since Airflow 3.4: executions of one task with the same map index
    differ in them.

    :param ti: a task instance, as in Airflow's context.
    """
    region_id = getattr(ti, "region_id", None)
    if region_id in {None, NO_REGION}:
        return {}
    return {"region_id": str(region_id), "region_index": ti.region_index}


# In a triggerer


@cache
def triggers_have_on_kill() -> bool:
    """Return whether Airflow calls a trigger's `on_kill`: Airflow 3.3 and later."""
    from airflow.triggers.base import BaseTrigger

    return hasattr(BaseTrigger, "on_kill")


async def get_asset_state(store: Any, key: str) -> Any:
    """Return a value of an asset's state store, which is asynchronous in Airflow 3.3.2 and later."""
    if hasattr(store, "aget"):
        return await store.aget(key)
    return await asyncio.to_thread(store.get, key)


async def set_asset_state(store: Any, key: str, value: Any) -> None:
    """Save a value in an asset's state store, which is asynchronous in Airflow 3.3.2 and later."""
    if hasattr(store, "aset"):
        await store.aset(key, value)
    else:
        await asyncio.to_thread(store.set, key, value)


# In the API server


def load_state_backend() -> tuple[type, Callable[[], Any]] | None:
    """Return the class of a task's scope and Airflow's `get_state_backend`; None without a task state store.

    Airflow 3.3 and later have one.
    """
    try:
        from airflow.state import TaskScope, get_state_backend
    except ImportError:
        return None
    return TaskScope, get_state_backend


@cache
def connections_have_teams() -> bool:
    """Return whether a connection may belong to a team: Airflow 3.2 and later, if it is configured."""
    from airflow.models.connection import Connection

    return "team_name" in inspect.signature(Connection.get_connection_from_secrets).parameters


def has_attempts(task_instance: type) -> bool:
    """Return whether each try of a task is a row of its own, with XComs and rendered arguments of its own.

    That is so in Airflow 3.4 and later, where a task instance has a region as well. Before, a task instance
    is one row, and its XComs are those of its latest try.

    :param task_instance: Airflow's model.
    """
    return hasattr(task_instance, "working_set")
