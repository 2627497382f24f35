"""Whether a killed task is really over, so that its flow run may be aborted: one rule for operator and trigger.

It aborts nothing itself. Airflow calls `on_kill` also when a trigger moves to another triggerer or a worker is evicted; then the
task is not over, and the next try or the other triggerer goes on with the same run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.sdk.types import RuntimeTaskInstanceProtocol

ON_KILL_SECONDS = (
    19.0  # all that a kill may take; Airflow's first answer in a new triggerer alone may take ten
)
# `restarting` is a running task that somebody cleared: its next try starts anew
FINISHED_STATES = frozenset({"failed", "success", "skipped", "removed", "upstream_failed", "restarting"})


def is_task_finished(ti: RuntimeTaskInstanceProtocol) -> bool:
    """Ask Airflow, blocking, whether the task instance has ended; for a worker."""
    return _is_finished(ti.get_task_states(**_task_states_query(ti)), ti)


async def ais_task_finished(ti: Any) -> bool:
    """Ask Airflow whether the task instance has ended; for a triggerer.

    A trigger has no public way to ask for a task's state without blocking the loop, so this is the one place that sends
    Airflow's own message (`GetTaskStates`) itself; tests/worker/test_kill_check.py notices when Airflow moves it.
    """
    from airflow.sdk.execution_time.comms import GetTaskStates, TaskStatesResult
    from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS

    response: Any = await SUPERVISOR_COMMS.asend(GetTaskStates(**_task_states_query(ti)))
    return isinstance(response, TaskStatesResult) and _is_finished(response.task_states, ti)


def _task_states_query(ti: Any) -> dict[str, Any]:
    mapped = {} if ti.map_index is None or ti.map_index < 0 else {"map_index": ti.map_index}
    return {"dag_id": ti.dag_id, "task_ids": [ti.task_id], "run_ids": [ti.run_id], **mapped}


def _is_finished(states: Mapping[str, Any], ti: Any) -> bool:
    """Read `{run_id: {task_id or task_id_<map_index>: state}}`, which holds what there is of that which was asked for.

    So a task instance that is not in it is gone (it or its DAG run was deleted), and over; one without a state, None, was
    cleared or is about to run again, and is not over.
    """
    of_run = states.get(ti.run_id, {})
    keys = [ti.task_id, f"{ti.task_id}_{ti.map_index}"]
    found = [of_run[key] for key in keys if key in of_run]
    return not found or str(getattr(found[0], "value", found[0])) in FINISHED_STATES
