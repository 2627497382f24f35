"""What a task remembers over its tries: the flow run that it started, until when it may take, and for which order.

It decides nothing (flow/starting.py does); it reads and writes Airflow's task state store, where Airflow has one.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_flows.flow.starting import Order, Record

log = logging.getLogger(__name__)

KEY = "flow_run"
RUN_ID_KEY = "flow_run_id"


class Memory:
    """The memory of one task instance; without a store (Airflow < 3.3), or when it is not wanted, it forgets."""

    def __init__(self, context: Context, order: Order, *, durable: bool) -> None:
        """Read what an earlier try kept.

        :param durable: whether anything is to be remembered at all.
        """
        self._ti = context["ti"]
        self._store: Any = context.get("task_state_store") if durable else None
        self._order = order
        self.durable = durable
        if durable and self._store is None:
            log.warning(
                "This Airflow has no task state store (3.3 and later have one): a retry of this task will not know the flow "
                "run that it starts now, and will start another one"
            )
        from airflow_provider_flows.flow.starting import Record  # needed here only: importing the operators stays cheap

        self.record: Record | None = None if self._store is None else Record.from_dict(self._store.get(KEY))

    @property
    def lineage(self) -> int:
        """What all tries of one run of the task share, and what a Clear raises (airflow/models: clear_task_instances)."""
        return int(self._ti.max_tries or 0)

    def deadline(self, fresh: float | None) -> float | None:
        """Give the deadline fixed by the first try of this order, else the fresh one (epoch seconds)."""
        record = self.record
        return record.deadline if record is not None and record.fits(self._order, self.lineage) else fresh

    def keep(self, flow_run_id: str, deadline: float | None, *, findable: bool) -> None:
        """Make the run's id safe: for the next try, and for whoever looks into XCom while the task waits.

        :param findable: whether the service can tell of the run by this id; otherwise a retry could do nothing with it.
        """
        if self._store is not None and findable:
            from airflow_provider_flows.flow.starting import Record

            self.record = Record(flow_run_id, self._order.fingerprint, self.lineage, deadline)
            self._store.set(KEY, self.record.as_dict())
        self._ti.xcom_push(RUN_ID_KEY, flow_run_id)
