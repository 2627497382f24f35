"""What differs between the supported versions of Airflow, and between Airflow's pre-releases.

Each difference is a feature that this module detects; no other module asks which Airflow is installed.
tests/support/versions.py names the versions, for the tests.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

METASTORE_BACKEND = "airflow.state.metastore.MetastoreBackend"
NO_REGION = UUID(int=0)  # of a task instance in a worker that is in no region


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
