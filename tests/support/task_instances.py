"""A task instance and a task state store, as a worker passes them to an operator."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any


class Store(dict[str, Any]):
    """A task state store for plain JSON only."""

    def set(self, key: str, value: Any) -> None:
        """Store a value."""
        self[key] = json.loads(json.dumps(value))

    def delete(self, key: str) -> None:
        """Delete a value."""
        self.pop(key, None)


def context(store: Store, try_number: int = 1, max_tries: int = 0, state: str = "failed") -> Any:
    """Return the context of a try, whose task has a state in Airflow."""
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
    return {"ti": ti, "task_state_store": store}
