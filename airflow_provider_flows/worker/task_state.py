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
    from airflow_provider_flows.core.start import RunRecord, RunRequest

log = logging.getLogger(__name__)

RECORD_KEY = "flow_run"
FILES_KEY = "flow_files"
PREVIOUS_RUNS_KEY = "flow_previous_runs"
MAX_PREVIOUS_RUNS = 50
RUN_ID_KEY = "flow_run_id"
RETRY_MAY_DOWNLOAD_AGAIN = "a retry may fetch files again"
OUTPUT_TOO_LARGE = "It was too large to be kept when an earlier try ended before its time. Clear the task to run the flow again."


class TaskState:
    """The memory of one task instance; without a store (Airflow < 3.3), or when it is not wanted, it forgets."""

    def __init__(self, context: Context, *, durable: bool) -> None:
        """Read what an earlier try kept.

        :param durable: whether anything is to be remembered at all.
        """
        self._ti = context["ti"]
        self._store: Any = context.get("task_state_store") if durable else None
        from airflow_provider_flows.core.start import (
            RunRecord,
        )  # needed here only: importing the operators stays cheap

        self._durable = durable
        self.record: RunRecord | None = (
            None if self._store is None else RunRecord.from_dict(self._store.get(RECORD_KEY))
        )
        self._earlier_record = self.record

    @property
    def generation(self) -> int:
        """What all tries of one run of the task share, and what a Clear raises (airflow/models: clear_task_instances)."""
        return int(self._ti.max_tries or 0)

    @property
    def has_retry_left(self) -> bool:
        """Whether this try's failure would be followed by one that goes on with the same run."""
        return self._store is not None and int(self._ti.try_number) <= self.generation

    @property
    def current_record(self) -> RunRecord | None:
        """The record that an earlier try of this run of the task left, whatever it ordered."""
        return self.record if self.record is not None and self.record.generation == self.generation else None

    def matches(self, request: RunRequest) -> bool:
        """Whether an earlier try of this very order left a record."""
        return self.record is not None and self.record.matches(request, self.generation)

    def may_have_started(self, request: RunRequest) -> bool:
        """Whether an earlier try of this very order may have made a run that nobody was told of."""
        return self.record is not None and self.matches(request) and self.record.flow_run_id is None

    def create_record(self, request: RunRequest, deadline: float | None) -> RunRecord:
        """Make the record of a new start; say what is missing where something is to be remembered and this Airflow cannot.

        :param deadline: epoch seconds, or None.
        """
        if self._durable and self._store is None:
            log.warning(
                "This Airflow has no task state store (3.3 and later have one): a retry of this task will not know the flow "
                "run that it starts now, will start another one, and has the whole timeout again"
            )
        from airflow_provider_flows.core.start import RunRecord

        return RunRecord(request.fingerprint, self.generation, deadline)

    def deadline(self, request: RunRequest, default: float | None) -> float | None:
        """Give the deadline fixed by the first try of this order, else the fresh one (epoch seconds)."""
        return self.record.deadline if self.record is not None and self.matches(request) else default

    def will_be_resumed(self, now: float) -> bool:
        """Whether a next try goes on with the run at this moment (epoch seconds): one is left, and so is time for it."""
        is_past_deadline = (
            self.record is not None and self.record.deadline is not None and now >= self.record.deadline
        )
        return self.has_retry_left and not is_past_deadline

    def forget(self) -> None:
        """Drop an answer that was kept; a run with an id at the service is remembered, for a Clear that must know it."""
        if self._store is not None and self.record is not None and self.record.saved_run is not None:
            self._store.delete(RECORD_KEY)

    def save_run(self, run: FlowRun) -> bool:
        """Keep a run whole that the service will not be able to tell of a second time; gives whether it may forget it now.

        One that does not fit into the store is not kept at all. Where nothing is remembered anyway, there is nothing to lose.
        """
        if self.record is None or self._store is None:
            return True
        record, limit = replace(self.record, saved_run=run.to_record()), _max_value_bytes()
        if limit > 0 and _json_size(record.to_dict()) > limit:
            log.warning(
                "What is known of the %s is larger than %d bytes, which is all that Airflow's task state store takes "
                "([state_store] max_value_storage_bytes), so that a retry could not go on without the service",
                run,
                limit,
            )
            return False
        self.save(record)
        return True

    def save(self, record: RunRecord | None) -> None:
        """Make a record safe for the next try, and its run's id for whoever looks into XCom while the task waits.

        :param record: None where this try made no run: then what the tries before it kept holds again.
        """
        self.record = record = self._earlier_record if record is None else record
        if self._store is not None and record is None:
            self._store.delete(RECORD_KEY)
        elif self._store is not None and record is not None:
            self._store.set(RECORD_KEY, _truncate_record(record, _max_value_bytes()).to_dict())
        if record is not None and record.flow_run_id is not None:
            self._ti.xcom_push(RUN_ID_KEY, record.flow_run_id)
            self._save_previous_run(record.flow_run_id)

    def _save_previous_run(self, flow_run_id: str) -> None:
        """Remember the run of the tries before, where this try has another one: people look at it, and XCom has forgotten it."""
        previous_run_id = self._earlier_record.flow_run_id if self._earlier_record is not None else None
        if self._store is None or previous_run_id in {None, flow_run_id}:
            return
        with _log_store_errors("nobody will see what flow run the tries before had"):
            stored = self._store.get(PREVIOUS_RUNS_KEY)
            previous_runs = stored if isinstance(stored, list) else []
            entry = {"flow_run_id": previous_run_id, "last_try": int(self._ti.try_number) - 1}
            if entry not in previous_runs:
                self._store.set(PREVIOUS_RUNS_KEY, [*previous_runs, entry][-MAX_PREVIOUS_RUNS:])


class FileState:
    """Which files of a flow run are whole in their place, so that a retry need not fetch them again; forgets without a store."""

    def __init__(self, context: Context, flow_run_id: str) -> None:
        """Read what an earlier try kept of this run."""
        self._store: Any = context.get("task_state_store")
        self._flow_run_id = flow_run_id
        stored: Any = None
        with _log_store_errors(RETRY_MAY_DOWNLOAD_AGAIN):
            stored = None if self._store is None else self._store.get(FILES_KEY)
        is_same_run = (
            isinstance(stored, Mapping)
            and stored.get("flow_run_id") == flow_run_id
            and isinstance(stored.get("files"), Mapping)
        )
        self._files: dict[str, Any] = dict(stored["files"]) if is_same_run else {}

    def get_file_record(self, asset_id: str) -> Mapping[str, Any] | None:
        """Tell of an output's file `uri, size, sha256, media_type`, None if nothing is known of it."""
        found = self._files.get(asset_id)
        return found if isinstance(found, Mapping) else None

    def save_file_record(self, asset_id: str, entry: Mapping[str, Any]) -> None:
        """Keep that of a file that is whole in its place, if the store takes so much."""
        self._files[asset_id] = dict(entry)
        value = {"flow_run_id": self._flow_run_id, "files": self._files}
        with _log_store_errors(RETRY_MAY_DOWNLOAD_AGAIN):
            limit = _max_value_bytes()
            if self._store is not None and (limit <= 0 or _json_size(value) <= limit):
                self._store.set(FILES_KEY, value)


@contextmanager
def _log_store_errors(consequence: str) -> Iterator[None]:
    """Log whatever the store raises where it only saves work, and what is lost."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  # whatever it is, the files are there
        log.warning("Airflow's task state store does not work (%s); %s", type(error).__name__, consequence)


def _json_size(value: Any) -> int:
    return len(json.dumps(value))


def _max_value_bytes() -> int:
    """Give the bytes that the store takes for one value, 0 for any number."""
    return int(conf.getint("state_store", "max_value_storage_bytes", fallback=0))


def _truncate_record(record: RunRecord, limit: int) -> RunRecord:
    """Give the record with as much of a kept answer as the store takes, the smallest outputs first; say what is left out.

    :param limit: bytes; 0 for none.
    """
    if record.saved_run is None or limit <= 0 or _json_size(record.to_dict()) <= limit:
        return record
    outputs = [dict(output) for output in record.saved_run["outputs"]]
    for output in sorted(
        (output for output in outputs if not output.get("uri")), key=_json_size, reverse=True
    ):
        if _json_size(replace(record, saved_run={**record.saved_run, "outputs": outputs}).to_dict()) <= limit:
            break
        output.update(value=None, status="error", error=OUTPUT_TOO_LARGE, is_url=False)
        log.warning(
            "The output %s is too large for Airflow's task state store ([state_store] max_value_storage_bytes). Should this "
            "task be killed before its end, its retry does not run the flow again, but lacks this output",
            output["name"],
        )
    return replace(record, saved_run={**record.saved_run, "outputs": outputs})
