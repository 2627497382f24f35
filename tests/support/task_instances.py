"""A task instance and a task state store, as a worker passes them to an operator."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, NamedTuple
from uuid import UUID


class Store(dict[str, Any]):
    """A task state store for plain JSON only."""

    def set(self, key: str, value: Any) -> None:
        """Store a value."""
        self[key] = json.loads(json.dumps(value))

    def delete(self, key: str) -> None:
        """Delete a value."""
        self.pop(key, None)


class AirflowKind(NamedTuple):
    """What an Airflow has for the next try of a task."""

    has_store: bool = True
    clear_deletes_state: bool = False


WITH_STORE = AirflowKind()
AIRFLOW_KINDS = {
    "store that a Clear empties": AirflowKind(clear_deletes_state=True),
    "store": WITH_STORE,
    "no store": AirflowKind(has_store=False),
}


def context(
    store: Store,
    try_number: int = 1,
    max_tries: int = 0,
    state: str = "failed",
    *,
    kind: AirflowKind = WITH_STORE,
    clear_number: int = 0,
) -> Any:
    """Return the context of a try, whose task has a state in Airflow.

    :param clear_number: how often the DAG run was cleared.
    """
    ti = SimpleNamespace(
        dag_id="d",
        task_id="t",
        run_id="r",
        map_index=-1,
        max_tries=max_tries,
        try_number=try_number,
        xcom_push=lambda *_: None,
        start_date=datetime.now(UTC),
        get_task_states=lambda **_: {"r": {"t": state}},
    )
    if kind.clear_deletes_state:  # as in a worker of an Airflow with regions, of a task in none
        ti.region_id, ti.region_index = UUID(int=0), -1
    dag_run = SimpleNamespace(clear_number=clear_number)
    return {"ti": ti, "dag_run": dag_run} | ({"task_state_store": store} if kind.has_store else {})
