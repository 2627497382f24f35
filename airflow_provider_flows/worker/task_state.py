"""What a task remembers over its tries: what it ordered, until when it may take, its flow run, and the files that it wrote.

It decides nothing (flow/starting.py does); it reads and writes Airflow's task state store, where Airflow has one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import conf

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_flows.core.run import FlowRun
    from airflow_provider_flows.core.start import Order, Record

log = logging.getLogger(__name__)

KEY = "flow_run"
FILES_KEY = "flow_files"
BEFORE_KEY = "flow_runs_before"
MOST_BEFORE = 50
RUN_ID_KEY = "flow_run_id"
FETCHED_AGAIN = "a retry may fetch files again"
TOO_LARGE = "It was too large to be kept when an earlier try ended before its time. Clear the task to run the flow again."


class Memory:
    """The memory of one task instance; without a store (Airflow < 3.3), or when it is not wanted, it forgets."""

    def __init__(self, context: Context, *, durable: bool) -> None:
        """Read what an earlier try kept.

        :param durable: whether anything is to be remembered at all.
        """
        self._ti = context["ti"]
        self._store: Any = context.get("task_state_store") if durable else None
        from airflow_provider_flows.core.start import (
            Record,
        )  # needed here only: importing the operators stays cheap

        self._durable = durable
        self.record: Record | None = None if self._store is None else Record.from_dict(self._store.get(KEY))
        self._earlier = self.record

    @property
    def lineage(self) -> int:
        """What all tries of one run of the task share, and what a Clear raises (airflow/models: clear_task_instances)."""
        return int(self._ti.max_tries or 0)

    @property
    def serves_a_next_try(self) -> bool:
        """Whether this try's failure would be followed by one that goes on with the same run."""
        return self._store is not None and int(self._ti.try_number) <= self.lineage

    @property
    def of_this_lineage(self) -> Record | None:
        """The record that an earlier try of this run of the task left, whatever it ordered."""
        return self.record if self.record is not None and self.record.lineage == self.lineage else None

    def fits(self, order: Order) -> bool:
        """Whether an earlier try of this very order left a record."""
        return self.record is not None and self.record.fits(order, self.lineage)

    def in_doubt(self, order: Order) -> bool:
        """Whether an earlier try of this very order may have made a run that nobody was told of."""
        return self.record is not None and self.fits(order) and self.record.flow_run_id is None

    def fresh(self, order: Order, deadline: float | None) -> Record:
        """Make the record of a new start; say what is missing where something is to be remembered and this Airflow cannot.

        :param deadline: epoch seconds, or None.
        """
        if self._durable and self._store is None:
            log.warning(
                "This Airflow has no task state store (3.3 and later have one): a retry of this task will not know the flow "
                "run that it starts now, will start another one, and has the whole timeout again"
            )
        from airflow_provider_flows.core.start import Record

        return Record(order.fingerprint, self.lineage, deadline)

    def deadline(self, order: Order, fresh: float | None) -> float | None:
        """Give the deadline fixed by the first try of this order, else the fresh one (epoch seconds)."""
        return self.record.deadline if self.record is not None and self.fits(order) else fresh

    def outlives(self, now: float) -> bool:
        """Whether a next try goes on with the run at this moment (epoch seconds): one is left, and so is time for it."""
        over = self.record is not None and self.record.deadline is not None and now >= self.record.deadline
        return self.serves_a_next_try and not over

    def forget(self) -> None:
        """Drop an answer that was kept; a run with an id at the service is remembered, for a Clear that must know it."""
        if self._store is not None and self.record is not None and self.record.answer is not None:
            self._store.delete(KEY)

    def keep_answer(self, run: FlowRun) -> bool:
        """Keep a run whole that the service will not be able to tell of a second time; gives whether it may forget it now.

        One that does not fit into the store is not kept at all. Where nothing is remembered anyway, there is nothing to lose.
        """
        if self.record is None or self._store is None:
            return True
        record, limit = replace(self.record, answer=run.as_kept()), _limit()
        if limit > 0 and _size(record.as_dict()) > limit:
            log.warning(
                "What is known of the %s is larger than %d bytes, which is all that Airflow's task state store takes "
                "([state_store] max_value_storage_bytes), so that a retry could not go on without the service",
                run,
                limit,
            )
            return False
        self.keep(record)
        return True

    def keep(self, record: Record | None) -> None:
        """Make a record safe for the next try, and its run's id for whoever looks into XCom while the task waits.

        :param record: None where this try made no run: then what the tries before it kept holds again.
        """
        self.record = record = self._earlier if record is None else record
        if self._store is not None and record is None:
            self._store.delete(KEY)
        elif self._store is not None and record is not None:
            self._store.set(KEY, _fitting(record, _limit()).as_dict())
        if record is not None and record.flow_run_id is not None:
            self._ti.xcom_push(RUN_ID_KEY, record.flow_run_id)
            self._keep_before(record.flow_run_id)

    def _keep_before(self, flow_run_id: str) -> None:
        """Remember the run of the tries before, where this try has another one: people look at it, and XCom has forgotten it."""
        before = self._earlier.flow_run_id if self._earlier is not None else None
        if self._store is None or before in {None, flow_run_id}:
            return
        with _only_told("nobody will see what flow run the tries before had"):
            told = self._store.get(BEFORE_KEY)
            known = told if isinstance(told, list) else []
            entry = {"flow_run_id": before, "last_try": int(self._ti.try_number) - 1}
            if entry not in known:
                self._store.set(BEFORE_KEY, [*known, entry][-MOST_BEFORE:])


class FileMemory:
    """Which files of a flow run are whole in their place, so that a retry need not fetch them again; forgets without a store."""

    def __init__(self, context: Context, flow_run_id: str) -> None:
        """Read what an earlier try kept of this run."""
        self._store: Any = context.get("task_state_store")
        self._flow_run_id = flow_run_id
        told: Any = None
        with _only_told(FETCHED_AGAIN):
            told = None if self._store is None else self._store.get(FILES_KEY)
        mine = (
            isinstance(told, Mapping)
            and told.get("flow_run_id") == flow_run_id
            and isinstance(told.get("files"), Mapping)
        )
        self._files: dict[str, Any] = dict(told["files"]) if mine else {}

    def known(self, asset_id: str) -> Mapping[str, Any] | None:
        """Tell of an output's file `uri, size, sha256, media_type`, None if nothing is known of it."""
        found = self._files.get(asset_id)
        return found if isinstance(found, Mapping) else None

    def note(self, asset_id: str, told: Mapping[str, Any]) -> None:
        """Keep that of a file that is whole in its place, if the store takes so much."""
        self._files[asset_id] = dict(told)
        value = {"flow_run_id": self._flow_run_id, "files": self._files}
        with _only_told(FETCHED_AGAIN):
            limit = _limit()
            if self._store is not None and (limit <= 0 or _size(value) <= limit):
                self._store.set(FILES_KEY, value)


@contextmanager
def _only_told(lost: str) -> Iterator[None]:
    """Log whatever the store raises where it only saves work, and what is lost."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  # whatever it is, the files are there
        log.warning("Airflow's task state store does not work (%s); %s", type(error).__name__, lost)


def _size(value: Any) -> int:
    return len(json.dumps(value))


def _limit() -> int:
    """Give the bytes that the store takes for one value, 0 for any number."""
    return int(conf.getint("state_store", "max_value_storage_bytes", fallback=0))


def _fitting(record: Record, limit: int) -> Record:
    """Give the record with as much of a kept answer as the store takes, the smallest outputs first; say what is left out.

    :param limit: bytes; 0 for none.
    """
    if record.answer is None or limit <= 0 or _size(record.as_dict()) <= limit:
        return record
    outputs = [dict(output) for output in record.answer["outputs"]]
    for output in sorted((output for output in outputs if not output.get("uri")), key=_size, reverse=True):
        if _size(replace(record, answer={**record.answer, "outputs": outputs}).as_dict()) <= limit:
            break
        output.update(value=None, status="error", error=TOO_LARGE, link=False)
        log.warning(
            "The output %s is too large for Airflow's task state store ([state_store] max_value_storage_bytes). Should this "
            "task be killed before its end, its retry does not run the flow again, but lacks this output",
            output["name"],
        )
    return replace(record, answer={**record.answer, "outputs": outputs})
