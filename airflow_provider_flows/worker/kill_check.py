"""The check whether a killed task is really finished, so that its flow run may be aborted.

Airflow also calls `on_kill` when a trigger moves to another triggerer or a worker is evicted. The task is not
finished then, and its next try or the other triggerer continues with the same flow run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.sdk.types import RuntimeTaskInstanceProtocol

# time limit of `on_kill`; the first request to Airflow in a new triggerer may take ten seconds alone
ON_KILL_SECONDS = 19.0
# `restarting` is a running task that was cleared: its next try starts a new flow run
FINISHED_STATES = frozenset({"failed", "success", "skipped", "removed", "upstream_failed", "restarting"})
ABORTED_BY_KILL = "The task was killed, so flow run %s was aborted (deleted if it had not started)"


def is_task_finished(ti: RuntimeTaskInstanceProtocol) -> bool:
    """Return whether the task instance is finished in Airflow. Blocks; called in a worker."""
    return _is_finished(ti.get_task_states(**_task_states_query(ti)), ti)


async def is_task_finished_async(ti: Any) -> bool:
    """Return whether the task instance is finished in Airflow. Called in a triggerer.

    Airflow has no public API that gets a task's state without blocking the event loop, so this function sends
    Airflow's internal message `GetTaskStates`. tests/worker/test_kill_check.py fails if Airflow moves it.
    """
    from airflow.sdk.execution_time.comms import GetTaskStates, TaskStatesResult
    from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS

    response: Any = await SUPERVISOR_COMMS.asend(GetTaskStates(**_task_states_query(ti)))
    return isinstance(response, TaskStatesResult) and _is_finished(response.task_states, ti)


def _task_states_query(ti: Any) -> dict[str, Any]:
    mapped = {} if ti.map_index is None or ti.map_index < 0 else {"map_index": ti.map_index}
    return {"dag_id": ti.dag_id, "task_ids": [ti.task_id], "run_ids": [ti.run_id], **mapped}


def _is_finished(states: Mapping[str, Any], ti: Any) -> bool:
    """Return whether a task instance is finished.

    A task instance without an entry no longer exists (it or its DAG run was deleted), and is finished. The
    state None means that it was cleared or is about to run again.

    :param states: `{run_id: {task_id or task_id_<map_index>: state}}`.
    """
    run_states = states.get(ti.run_id, {})
    for key in (ti.task_id, f"{ti.task_id}_{ti.map_index}"):
        if key in run_states:
            state = run_states[key]
            return str(getattr(state, "value", state)) in FINISHED_STATES
    return True
