"""The check whether a killed task is really finished, so that its flow run may be aborted.

Airflow also calls `on_kill` when a trigger moves to another triggerer or a worker is evicted. The task is not
finished then, and its next try or the other triggerer continues with the same flow run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.compat import get_region

if TYPE_CHECKING:
    from airflow.sdk.types import RuntimeTaskInstanceProtocol

ON_KILL_SECONDS = 19.0  # time limit of `on_kill` in a worker
# Within `[triggerer] on_kill_timeout` there must be time for the log line after the last reply.
REPLY_FRACTION = 0.9
# of a running task that was cleared: its next try starts a new flow run, unless its state was kept
RESTARTING = "restarting"
REMOVED = "removed"
FINISHED_STATES = frozenset({"failed", "success", "skipped", REMOVED, "upstream_failed", RESTARTING})
ABORTED_BY_KILL = "The task was killed, so flow run %s was aborted (deleted if it had not started)"
NOTHING_TO_ABORT = "The task was killed; flow run %s had already ended, is being aborted, or is gone"


def on_kill_timeout() -> float:
    """Return the seconds for which Airflow's triggerer waits for the `on_kill` of a trigger."""
    from airflow.providers.common.compat.sdk import conf

    return float(conf.getfloat("triggerer", "on_kill_timeout", fallback=30.0))


def max_reply_seconds() -> float:
    """Return the seconds for which a killed trigger waits for Airflow's reply about its task."""
    return REPLY_FRACTION * on_kill_timeout()


def read_task_state(ti: RuntimeTaskInstanceProtocol) -> str:
    """Return the state of the task instance in Airflow (`get_state_in`). Blocks; called in a worker."""
    return get_state_in(_get_states(ti), ti)


def _get_states(ti: Any) -> Mapping[str, Any]:
    """Return the state of a task instance, in the form of Airflow's `get_task_states`.

    In a task loop that method returns the states of the latest iteration. Which instances have ended, in any
    iteration, is in the list that Airflow uses as Sentry's breadcrumbs; of the others, only one that is
    restarting is distinguished here.
    """
    region = get_region(ti)
    if not region or "loop" not in ti.get_template_context():
        states: Mapping[str, Any] = ti.get_task_states(**to_state_query([ti]))
        return states
    query = to_state_query([ti])
    query.pop("map_index", None)  # the latest iteration may have fewer instances of a mapped task
    states = ti.get_task_states(**query)
    if ti.run_id not in states:
        return {}  # the task or its DAG run was deleted
    key = _to_keys(ti)[0]
    latest = states[ti.run_id].get(key)
    state = latest if _to_text(latest) == RESTARTING else None
    own = {"task_id": ti.task_id, **region}
    for ended in ti.get_task_breadcrumbs(ti.dag_id, ti.run_id):
        if {name: _to_text(ended.get(name)) for name in own} == {name: str(own[name]) for name in own}:
            state = ended["state"]
    return {ti.run_id: {key: state}}


def to_state_query(tis: Sequence[Any]) -> dict[str, Any]:
    """Return the arguments of a request for the states of task instances of one DAG, at least one.

    For several of them Airflow returns the states of all these tasks in all these DAG runs.
    """
    only = tis[0] if len(tis) == 1 else None
    mapped = {"map_index": only.map_index} if only is not None and is_mapped(only) else {}
    return {
        "dag_id": tis[0].dag_id,
        "task_ids": list(dict.fromkeys(ti.task_id for ti in tis)),
        "run_ids": list(dict.fromkeys(ti.run_id for ti in tis)),
        **mapped,
    }


def is_finished_in(states: Mapping[str, Any], ti: Any) -> bool:
    """Return whether a task instance is finished, by its state as `get_state_in` returns it."""
    return get_state_in(states, ti) in FINISHED_STATES


def get_state_in(states: Mapping[str, Any], ti: Any) -> str:
    """Return the state of a task instance.

    One without an entry no longer exists: it or its DAG run was deleted, or a Clear has replaced it. It is
    REMOVED, because it has no next try. "None" means that it was cleared or is about to run again.

    :param states: `{run_id: {task_id or task_id_<map_index>: state}}`.
    """
    run_states = states.get(ti.run_id, {})
    for key in _to_keys(ti):
        if key in run_states:
            state = run_states[key]
            return _to_text(state)
    return REMOVED


def _to_text(value: Any) -> str:
    return str(getattr(value, "value", value))


def _to_keys(ti: Any) -> tuple[str, ...]:
    """Return the keys under which Airflow returns the state of a task instance, the likelier one first."""
    return (f"{ti.task_id}_{ti.map_index}", ti.task_id) if is_mapped(ti) else (ti.task_id,)


def is_mapped(ti: Any) -> bool:
    """Return whether a task instance is one of several of a mapped task."""
    return ti.map_index is not None and ti.map_index >= 0
