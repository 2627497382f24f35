"""What differs between the supported versions of Airflow, and between Airflow's pre-releases.

Each difference is a feature that this module detects; no other module asks which Airflow is installed.
tests/support/versions.py names the versions, for the tests.
"""

from __future__ import annotations

from typing import Any


def clear_deletes_task_state(ti: Any) -> bool:
    """Return whether Airflow deletes the task state store of a task that a person clears.

    Airflow does so since 3.4, unless the person chooses to keep the state. A worker has no sign of it, but
    the same version added the regions of task instances, which are public attributes.

    :param ti: a task instance, as in Airflow's context.
    """
    return hasattr(ti, "region_id")
