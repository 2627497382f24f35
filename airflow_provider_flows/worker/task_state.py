"""What a task saves for its next try in Airflow's task state store: its flow run's record, and its files.

Airflow has this store since version 3.3. Without it nothing is saved, and a retry finds its flow run only in
the list of the service.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from airflow_provider_flows.compat import clear_deletes_task_state
from airflow_provider_flows.core.exceptions import FlowError, FlowInputError
from airflow_provider_flows.core.limits import MAX_ERROR_LENGTH
from airflow_provider_flows.core.redaction import redact_text, strip_signatures
from airflow_provider_flows.core.safe_text import to_line
from airflow_provider_flows.worker.run_tracking import get_own_stamp, push_run_id
from airflow_provider_flows.worker.saved_run import (
    SavedRunStorage,
    fits,
    get_digest,
    is_reference,
    is_same_place,
)

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_flows.core.flow_run import FlowRun
    from airflow_provider_flows.core.start_or_resume import RunRecord
    from airflow_provider_flows.storage.output_options import OutputOptions

log = logging.getLogger(__name__)

RECORD_KEY = "flow_run_record"
FILES_KEY = "flow_file_records"
PREVIOUS_RUNS_KEY = "flow_previous_runs"
INPUT_ERROR_KEY = "flow_input_error"
PROMPTS_KEY = "flow_prompts"  # what the UI shows of the inputs of @task.flow after a deferral
MAX_PREVIOUS_RUNS = 50
FILE_RECORDS_SECONDS = 10.0  # of downloads that a killed task may have to repeat
STORE_NAME = "task state store"
RETRY_MAY_DOWNLOAD_AGAIN = "a retry may download files again"


class TaskState:
    """The saved state of one task instance, and how many tries it has left.

    Each access to the store is a request to Airflow's API server, so a record is read when it is needed.

    :param context: Airflow's context of the try.
    :param durable: whether a retry is to resume the same flow run; if not, nothing is read or saved.
    :param options: where files are stored: if the store fails, a paid response is saved there.
    :param is_new: whether this is the start of the first try, before which nothing can have been saved.
    :ivar is_listable: whether a retry may find the flow run in the list of the service, by its stamp.
    :ivar was_kept: whether the task was cleared with its state kept, so that this try resumes its flow run.
    :ivar was_rejected: whether this try replaces a run whose outputs were rejected.
    :ivar is_adopted: whether the record is not from the store, but from the stamp of a listed flow run.
    """

    def __init__(
        self, context: Context, *, durable: bool, options: OutputOptions | None = None, is_new: bool = False
    ) -> None:
        self.durable = durable
        self.is_new = is_new
        self._ti = context["ti"]
        self._store: Any = context.get("task_state_store") if durable else None
        self._saved_runs = SavedRunStorage(
            self._store,
            RECORD_KEY,
            None if options is None else options.output_path,
            None if options is None else options.output_conn_id,
        )
        self._reference: Mapping[str, Any] | None = None  # to what is stored apart from the record
        self._unreadable_run: str | None = None  # where a complete run was saved that cannot be read
        self._record: RunRecord | None = None
        self._earlier_record: RunRecord | None = None
        self.is_loaded = self._store is None or is_new
        self._has_unsaved_record = self._is_deleted = False
        self.is_listable = self.was_kept = self.is_adopted = self.was_rejected = False

    @property
    def has_store(self) -> bool:
        """Whether the record of a try can be saved."""
        return self._store is not None

    @property
    def record(self) -> RunRecord | None:
        """The record of this try, or else of an earlier one; None if there is none.

        :raises Exception: any error of the store.
        """
        self._load()
        return self._record

    @record.setter
    def record(self, record: RunRecord | None) -> None:
        self._record = record

    def _load(self) -> None:
        if not self.is_loaded:
            self._record = self._earlier_record = self._load_record()
            self.is_loaded = True

    def _load_record(self) -> RunRecord | None:
        from airflow_provider_flows.core.start_or_resume import RunRecord  # importing operators stays cheap

        stored = self._store.get(RECORD_KEY)
        is_other_generation = isinstance(stored, Mapping) and stored.get("generation") != self.generation
        if is_other_generation and clear_deletes_task_state(self._ti):
            self.was_kept, stored = True, {**stored, "generation": self.generation}
        if not isinstance(stored, Mapping) or not is_reference(stored.get("saved_run")):
            return RunRecord.from_dict(stored)
        record = RunRecord.from_dict({**stored, "saved_run": None})
        self._reference = reference = stored["saved_run"]
        if record is None or record.generation != self.generation:  # no try needs the run any more
            return record
        run = self._saved_runs.load(reference)
        with_run = None if run is None else RunRecord.from_dict({**stored, "saved_run": run})
        if with_run is None:
            self._unreadable_run = (
                f"in {reference['uri']}" if "uri" in reference else "in the task state store"
            )
        return with_run or record

    @property
    def stamp_of_this_try(self) -> dict[str, Any]:
        """What the stamp of a flow run that this try starts says about the try."""
        return {name: value for name, value in get_own_stamp(self._ti).items() if value is not None}

    @property
    def stamp_of_all_tries(self) -> dict[str, Any]:
        """What the stamps of all flow runs of the task instance have in common; None stands for no region."""
        return {name: value for name, value in get_own_stamp(self._ti).items() if name != "try_number"}

    @property
    def generation(self) -> int:
        """Airflow's `max_tries`: the same number in all tries of one run of the task; clearing raises it."""
        return int(self._ti.max_tries or 0)

    @property
    def has_retry_left(self) -> bool:
        """Whether a failure of this try is followed by a try that can resume its flow run."""
        is_listable = self.durable and self.is_listable and self.flow_run_id is not None
        return (self.has_store or is_listable) and int(self._ti.try_number) <= self.generation

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

    def adopt_record(self, record: RunRecord) -> None:
        """Use a record that was found at the service, in place of one that an earlier try has saved."""
        self._record, self._earlier_record, self.is_adopted = record, record, True

    def on_clear(self) -> bool:
        """Return whether the person who has cleared this running task kept its state. Blocks.

        If Airflow has deleted it, this try saves nothing more: the next one would resume an unwanted run.
        """
        if self._store is None or not clear_deletes_task_state(self._ti):
            return False
        self._is_deleted = self._store.get(RECORD_KEY) is None
        return not self._is_deleted

    def deadline(self, fingerprint: str, default: float | None) -> float | None:
        """Return the deadline set by the first try of this request, else the default (epoch seconds).

        A person who has cleared the task and kept its state wants its flow run, also after the deadline.
        """
        if self.record is None or not self.matches(fingerprint):
            return default
        return default if self.was_kept and self._is_past_deadline(time.time()) else self.record.deadline

    def will_be_resumed(self, now: float) -> bool:
        """Return whether a retry would resume the flow run: one is left, and the deadline has not passed.

        :param now: epoch seconds.
        """
        return self.has_retry_left and not self._is_past_deadline(now)

    def _is_past_deadline(self, now: float) -> bool:
        return self.record is not None and self.record.deadline is not None and now >= self.record.deadline

    def delete_saved_run(self) -> None:
        """Delete a record with a complete run. A record with an id only remains for a cleared task."""
        has_run = self.record is not None and self.record.saved_run is not None
        if self._store is None or not (has_run or self._unreadable_run):
            return
        try:
            self._store.delete(RECORD_KEY)
        finally:
            self._delete_reference(self._reference)
            self._reference = None

    def load_saved_file(self) -> None:
        """Load the response of an earlier try that could save it in a file only.

        Its record says that its request was sent, and nothing about a response.
        """
        if self.record is None or self.record.generation != self.generation or self.record.flow_run_id:
            return
        found = self._saved_runs.find_file(self.record.token)
        if found is not None:
            run, self._reference = found
            self.record = replace(self.record, flow_run_id=str(run["flow_run_id"]), saved_run=run)
            self._earlier_record = self.record
            log.info("The response of an earlier try was found in %s", self._reference["uri"])

    def raise_if_unreadable(self, fingerprint: str) -> None:
        """Raise an error if an earlier try saved the complete run of this request, and it cannot be read.

        :raises FlowError: a new run would be billed a second time.
        """
        if self._unreadable_run is not None and self.matches(fingerprint):
            message = (
                f"The response with flow run {self.flow_run_id}, which is paid for, was saved "
                f"{self._unreadable_run}, and cannot be read there. Restore it and run the task again, or "
                "clear the task to run the flow again, which is billed again."
            )
            raise FlowError(message)

    def save_run(self, run: FlowRun) -> bool:
        """Save a complete run before it is deleted at its service; return whether it may be deleted now.

        Without a store there is nothing to save for.
        """
        if self.record is None or self._store is None:
            return True
        record, reference = self.record, self._reference
        try:
            self.save(replace(record, saved_run=run.to_record()))
        except Exception as error:  # noqa: BLE001  # a store may raise anything
            if self._reference is not reference:  # a file that the record in the store does not name
                self._delete_reference(self._reference)
            self.record, self._reference = record, reference
            log.warning(
                "The %s could not be saved for a retry: Airflow's task state store failed (%s)",
                run,
                type(error).__name__,
            )
            return False
        return True

    def save_started(self, record: RunRecord) -> None:
        """Save the record of a run that may be billed already, and push its id to XCom. Never raises.

        An error would end the try, and lose the response that this try has. It is logged.
        """
        previous = self._reference
        try:
            self._save(record)
        except Exception as error:  # noqa: BLE001  # a store may raise anything
            if self._reference is previous:
                self._log_unsaved(record, error)
            else:
                log.warning(
                    "Airflow's task state store failed again (%s). A retry finds flow run %s in the file",
                    type(error).__name__,
                    record.flow_run_id,
                )
        self._push(record)

    def _log_unsaved(self, record: RunRecord, error: Exception) -> None:
        hint = "" if self._saved_runs.output_path else "; with an output_path it could be saved there"
        log.error(
            "Flow run %s is paid for, and could not be saved for a retry (%s: %s). This try continues with "
            "it. If this try fails, a retry runs the flow again, which is billed again. Check Airflow's API "
            "servers and their task state store%s",
            record.flow_run_id,
            type(error).__name__,
            redact_text(str(error)),
            hint,
        )

    def save_at_start(self, record: RunRecord | None, *, is_staged: bool) -> None:
        """Save the record of a start, before the request that creates a run and after it, or discard it.

        A run that is created in a stage of its own is not billed before it is started. So the first save can
        be omitted in a first try: there is nothing to replace, and the next try finds a run whose id was lost
        by its stamp, which names the task instance.

        :raises Exception: any error of the store, unless the run may be billed already.
        """
        has_id = record is not None and record.flow_run_id is not None
        if record is not None and has_id and not is_staged:
            self.save_started(record)
        elif record is not None and not has_id and is_staged and self.is_new:
            self.record, self._has_unsaved_record = record, True
        else:
            self.save(record)

    def save_after_error(self) -> None:
        """Save the record of a run that could not be created, for the next try's deadline. Never raises."""
        if self._has_unsaved_record:
            with _log_errors(STORE_NAME, "the next try has the full timeout"):
                self._save(self._record)

    def save(self, record: RunRecord | None) -> None:
        """Save a record for the next try, and push its flow run id to XCom, where users see it early.

        :param record: None if this try certainly created no run: the record of the earlier tries applies
            again.
        :raises Exception: any error of the store.
        """
        self._save(record)
        self._push(self.record)

    def _save(self, record: RunRecord | None) -> None:
        self._load()  # with the reference to what an earlier try has stored apart
        earlier = self._earlier_record
        if record is None and earlier is not None and earlier.generation == self.generation:
            record = earlier
        self.record = record
        self._has_unsaved_record = False
        if self._store is None or self._is_deleted:
            return
        if record is not None:
            self._store_record(record)
        else:
            self._store.delete(RECORD_KEY)
            self._delete_reference(self._reference)
            self._reference = None

    def _push(self, record: RunRecord | None) -> None:
        if record is not None and record.flow_run_id is not None:
            push_run_id(self._ti, record.flow_run_id)
            self._save_previous_run(record.flow_run_id)

    def _store_record(self, record: RunRecord) -> None:
        """Store a record, with its complete run apart if the record is too large with it.

        If the store fails, the run is stored in a file below `output_path`, and the record again.
        """
        previous, value, run = self._reference, record.to_dict(), record.saved_run
        reference: Mapping[str, Any] | None = None
        if previous is not None and run is not None and self._unreadable_run is None:
            reference = previous if previous["sha256"] == get_digest(run) else None
        is_stored = reference is not None
        try:
            if run is not None and not is_stored and not fits(value):
                reference = self._saved_runs.save_in_parts(run)
            self._store.set(RECORD_KEY, value if reference is None else {**value, "saved_run": reference})
        except Exception as error:
            if run is None or is_stored:
                raise
            self._delete_reference(reference)
            if self._saved_runs.output_path is None:
                raise
            log.warning(
                "Airflow's task state store failed (%s: %s), so flow run %s is saved below output_path until "
                "the task has succeeded",
                type(error).__name__,
                redact_text(str(error)),
                record.flow_run_id,
            )
            self._reference = reference = self._saved_runs.save_in_file(record.token, run)
            self._store.set(RECORD_KEY, {**value, "saved_run": reference})
        self._reference, self._unreadable_run = reference, None
        if previous is not None and not (reference and is_same_place(previous, reference)):
            self._delete_reference(previous)

    def _delete_reference(self, reference: Mapping[str, Any] | None) -> None:
        if reference is not None:
            self._saved_runs.delete(reference)

    def _save_previous_run(self, flow_run_id: str) -> None:
        """Add the earlier tries' run to the list that the UI shows, if this try has another run."""
        previous_run_id = self._earlier_record.flow_run_id if self._earlier_record is not None else None
        if self._store is None or previous_run_id in {None, flow_run_id}:
            return
        with _log_errors(STORE_NAME, "the UI will not show the flow run of the earlier tries"):
            stored, number = self._store.get(PREVIOUS_RUNS_KEY), self._ti.try_number
            previous_runs = stored if isinstance(stored, list) else []
            entry = {"flow_run_id": previous_run_id, "last_try": number - (not self.was_rejected)}
            if entry not in previous_runs:
                self._store.set(PREVIOUS_RUNS_KEY, [*previous_runs, entry][-MAX_PREVIOUS_RUNS:])


class FileState:
    """The complete files of a flow run's outputs, so that a retry need not download them again.

    They are stored in several values, each as large as the store should hold. A value is complete in itself.
    The records of small files are saved together, at the end of a `with` block at the latest.

    :param context: Airflow's context of the try.
    :param flow_run_id: the flow run; files saved for another run are ignored.
    :param clock: returns seconds.
    """

    def __init__(
        self, context: Context, flow_run_id: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._saved_at: float | None = None
        self._unsaved: dict[str, Any] = {}  # values by their keys
        ti: Any = context["ti"]
        self._store: Any = context.get("task_state_store")
        self._flow_run_id = flow_run_id
        self._files: dict[str, Any] = {}
        self._part: dict[str, Any] = {}  # the files in the last value, to which new ones are added
        self._part_number = 1
        if self._store is None or int(ti.try_number) <= 1:  # no earlier try can have stored a file
            return
        with _log_errors(STORE_NAME, RETRY_MAY_DOWNLOAD_AGAIN):
            for number, files in enumerate(iter_file_records(self._store.get, flow_run_id), 1):
                self._part_number, self._part = number, files
                self._files.update(files)

    def get_file_record(self, asset_id: str) -> Mapping[str, Any] | None:
        """Return what was saved about an output's file; None if nothing was."""
        file_record = self._files.get(asset_id)
        return file_record if isinstance(file_record, Mapping) else None

    def save_file_record(self, asset_id: str, entry: Mapping[str, Any]) -> None:
        """Save the `FILE_FIELDS` of a stored file: the first one at once, others within a few seconds."""
        self._files[asset_id] = dict(entry)
        if self._part and not fits(self._to_value({**self._part, asset_id: dict(entry)})):
            self._part, self._part_number = {}, self._part_number + 1
        self._part[asset_id] = dict(entry)
        self._unsaved[_part_key(self._part_number)] = self._to_value(self._part)
        if self._saved_at is None or self._clock() - self._saved_at >= FILE_RECORDS_SECONDS:
            self._save()

    def __enter__(self) -> Self:
        """Return the state."""
        return self

    def __exit__(self, *_: object) -> None:
        """Save what is not saved yet; what the store rejects is tried once more."""
        self._save()
        self._save()

    def _save(self) -> None:
        self._saved_at = self._clock()
        for key, value in list(self._unsaved.items()):
            with _log_errors(STORE_NAME, RETRY_MAY_DOWNLOAD_AGAIN):
                if self._store is not None:
                    self._store.set(key, value)
                del self._unsaved[key]

    def _to_value(self, files: Mapping[str, Any]) -> dict[str, Any]:
        return {"flow_run_id": self._flow_run_id, "files": files}


def iter_file_records(get: Callable[[str], Any], flow_run_id: str) -> Iterator[dict[str, Any]]:
    """Yield the `FILE_FIELDS` of a flow run's files, by asset id or name, one value of the store at a time.

    :param get: returns the value of a key of the task's store, None if there is none.
    """
    number = 1
    while True:
        stored = get(_part_key(number))
        if not isinstance(stored, Mapping) or stored.get("flow_run_id") != flow_run_id:
            return
        files = stored.get("files")
        if not isinstance(files, Mapping) or not files:
            return
        yield dict(files)
        number += 1


def _part_key(number: int) -> str:
    return FILES_KEY if number == 1 else f"{FILES_KEY}_part_{number}"


@contextmanager
def save_input_error(context: Context) -> Iterator[None]:
    """Save why a try starts no flow run, if its arguments are invalid, for the tab of the task instance."""
    try:
        yield
    except FlowInputError as error:
        store: Any = context.get("task_state_store")
        if store is not None:
            text = to_line(strip_signatures(str(error)))[:MAX_ERROR_LENGTH]
            with _log_errors(STORE_NAME, "the tab of the task does not show the error"):
                store.set(INPUT_ERROR_KEY, {"try_number": context["ti"].try_number, "error": text})
        raise


@contextmanager
def _log_errors(name: str, consequence: str) -> Iterator[None]:
    """Log any error of Airflow's store, and its consequence, where the store only saves work."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  # a backend may raise anything, and the files are stored
        log.warning("Airflow's %s failed (%s); %s", name, type(error).__name__, consequence)
