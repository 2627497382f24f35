"""What a task saves for its next try in Airflow's task state store: its flow run's record, and its files.

Airflow has this store since version 3.3. Without it nothing is saved, and each try starts a new flow run.
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

    from airflow_provider_flows.core.flow_run import FlowRun
    from airflow_provider_flows.core.start_or_resume import RunRecord

log = logging.getLogger(__name__)

RECORD_KEY = "flow_run_record"
FILES_KEY = "flow_file_records"
PREVIOUS_RUNS_KEY = "flow_previous_runs"
MAX_PREVIOUS_RUNS = 50
RUN_ID_KEY = "flow_run_id"
RETRY_MAY_DOWNLOAD_AGAIN = "a retry may download files again"
OUTPUT_TOO_LARGE = (
    "It was too large to be saved when an earlier try ended early. Clear the task to run the flow again."
)


class TaskState:
    """The saved state of one task instance, and how many tries it has left.

    :param context: Airflow's context of the try.
    :param durable: whether a retry is to resume the same flow run; if not, nothing is read or saved.
    """

    def __init__(self, context: Context, *, durable: bool) -> None:
        from airflow_provider_flows.core.start_or_resume import (
            RunRecord,  # importing the operators stays cheap
        )

        self.durable = durable
        self._ti = context["ti"]
        self._store: Any = context.get("task_state_store") if durable else None
        self.record: RunRecord | None = (
            None if self._store is None else RunRecord.from_dict(self._store.get(RECORD_KEY))
        )
        self._earlier_record = self.record

    @property
    def generation(self) -> int:
        """Airflow's `max_tries`: the same number in all tries of one run of the task; clearing raises it."""
        return int(self._ti.max_tries or 0)

    @property
    def has_retry_left(self) -> bool:
        """Whether a failure of this try is followed by a try that can resume its flow run."""
        return self._store is not None and int(self._ti.try_number) <= self.generation

    @property
    def current_record(self) -> RunRecord | None:
        """The record of an earlier try, for whatever request; None if the task was cleared since then."""
        return self.record if self.record is not None and self.record.generation == self.generation else None

    @property
    def flow_run_id(self) -> str | None:
        """The id of the last flow run that this try or an earlier one has started; None if there is none."""
        return None if self.record is None else self.record.flow_run_id

    def matches(self, fingerprint: str) -> bool:
        """Return whether the record is from this run of the task and for the same request."""
        return self.record is not None and self.record.matches(fingerprint, self.generation)

    def may_have_started(self, fingerprint: str) -> bool:
        """Return whether an earlier try sent this request and did not get a response."""
        return self.record is not None and self.matches(fingerprint) and self.record.flow_run_id is None

    def create_record(self, fingerprint: str, deadline: float | None, conn_id: str) -> RunRecord:
        """Return the record of a new start; log a warning if this Airflow cannot save it.

        :param deadline: epoch seconds, or None.
        """
        from airflow_provider_flows.core.start_or_resume import RunRecord

        if self.durable and self._store is None:
            log.warning(
                "The task state store requires Airflow 3.3 or later. On this version a retry of this task "
                "cannot resume the flow run that starts now. It will start another one, with the full timeout"
            )
        return RunRecord(fingerprint, self.generation, deadline, conn_id=conn_id)

    def deadline(self, fingerprint: str, default: float | None) -> float | None:
        """Return the deadline set by the first try of this request, else the default (epoch seconds)."""
        return self.record.deadline if self.record is not None and self.matches(fingerprint) else default

    def will_be_resumed(self, now: float) -> bool:
        """Return whether a retry would resume the flow run: one is left, and the deadline has not passed.

        :param now: epoch seconds.
        """
        is_past_deadline = (
            self.record is not None and self.record.deadline is not None and now >= self.record.deadline
        )
        return self.has_retry_left and not is_past_deadline

    def forget_saved_run(self) -> None:
        """Delete a record with a complete run. A record with an id only remains for a cleared task."""
        if self._store is not None and self.record is not None and self.record.saved_run is not None:
            self._store.delete(RECORD_KEY)

    def save_run(self, run: FlowRun) -> bool:
        """Save a complete run before it is deleted at its service; return whether it may be deleted now.

        A run that is too large for the store is not saved at all. Without a store there is nothing to save
        for.
        """
        if self.record is None or self._store is None:
            return True
        record = replace(self.record, saved_run=run.to_record())
        if not _fits(record.to_dict()):
            log.warning(
                "The %s is too large for Airflow's task state store, which accepts %d bytes ([state_store] "
                "max_value_storage_bytes). A retry could not end this task without the service",
                run,
                _max_value_bytes(),
            )
            return False
        self.save(record)
        return True

    def save(self, record: RunRecord | None) -> None:
        """Save a record for the next try, and push its flow run id to XCom, where users see it early.

        :param record: None if this try certainly created no run: the record of the earlier tries applies
            again.
        """
        self.record = record = self._earlier_record if record is None else record
        if self._store is not None and record is None:
            self._store.delete(RECORD_KEY)
        elif self._store is not None and record is not None:
            self._store.set(RECORD_KEY, _truncate_saved_run(record).to_dict())
        if record is not None and record.flow_run_id is not None:
            self._ti.xcom_push(RUN_ID_KEY, record.flow_run_id)
            self._save_previous_run(record.flow_run_id)

    def _save_previous_run(self, flow_run_id: str) -> None:
        """Add the earlier tries' run to the list that the UI shows, if this try has another run."""
        previous_run_id = self._earlier_record.flow_run_id if self._earlier_record is not None else None
        if self._store is None or previous_run_id in {None, flow_run_id}:
            return
        with _log_store_errors("the UI will not show the flow run of the earlier tries"):
            stored = self._store.get(PREVIOUS_RUNS_KEY)
            previous_runs = stored if isinstance(stored, list) else []
            entry = {"flow_run_id": previous_run_id, "last_try": int(self._ti.try_number) - 1}
            if entry not in previous_runs:
                self._store.set(PREVIOUS_RUNS_KEY, [*previous_runs, entry][-MAX_PREVIOUS_RUNS:])


class FileState:
    """The complete files of a flow run's outputs, so that a retry need not download them again.

    :param context: Airflow's context of the try.
    :param flow_run_id: the flow run; files saved for another run are ignored.
    """

    def __init__(self, context: Context, flow_run_id: str) -> None:
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
        """Return what was saved about an output's file; None if nothing was."""
        file_record = self._files.get(asset_id)
        return file_record if isinstance(file_record, Mapping) else None

    def save_file_record(self, asset_id: str, entry: Mapping[str, Any]) -> None:
        """Save the `FILE_FIELDS` of a stored file, unless that is too large for the store."""
        self._files[asset_id] = dict(entry)
        value = {"flow_run_id": self._flow_run_id, "files": self._files}
        with _log_store_errors(RETRY_MAY_DOWNLOAD_AGAIN):
            if self._store is not None and _fits(value):
                self._store.set(FILES_KEY, value)


@contextmanager
def _log_store_errors(consequence: str) -> Iterator[None]:
    """Log any error of the store, and its consequence, where the store only saves work."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  # a backend may raise anything, and the files are stored
        log.warning("Airflow's task state store failed (%s); %s", type(error).__name__, consequence)


def _truncate_saved_run(record: RunRecord) -> RunRecord:
    """Return the record as the store accepts it: without its run's largest texts, which are logged."""
    if record.saved_run is None or _fits(record.to_dict()):
        return record
    outputs = [dict(output) for output in record.saved_run["outputs"]]
    record = replace(record, saved_run={**record.saved_run, "outputs": outputs})
    texts = [output for output in outputs if not output.get("uri")]
    for output in sorted(texts, key=_json_size, reverse=True):
        output.update(value=None, status="error", error=OUTPUT_TOO_LARGE, is_url=False)
        log.warning(
            "The output %s is too large for Airflow's task state store ([state_store] "
            "max_value_storage_bytes). If this task is killed early, its retry will not run the flow again, "
            "but will lack this output",
            output["name"],
        )
        if _fits(record.to_dict()):
            break
    return record


def _fits(value: Any) -> bool:
    """Return whether the store accepts a value of this size."""
    limit = _max_value_bytes()
    return limit <= 0 or _json_size(value) <= limit


def _json_size(value: Any) -> int:
    return len(json.dumps(value))


def _max_value_bytes() -> int:
    """Return the size of the largest value that the store accepts, in bytes; 0 for no limit."""
    return int(conf.getint("state_store", "max_value_storage_bytes", fallback=0))
