"""One try of a task with a batch: what it takes from Airflow, and what a kill of the task does."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from hashlib import sha256
from threading import Thread
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowTaskTimeout

from airflow_provider_flows.batch.batch_try import BatchTry
from airflow_provider_flows.batch.records import HEADER_KEY, BatchRecords
from airflow_provider_flows.compat import clear_deletes_task_state
from airflow_provider_flows.storage.batch_manifest import STATE_FOLDER, FileStore
from airflow_provider_flows.worker.finish import add_batch_event_extra
from airflow_provider_flows.worker.kill_check import (
    FINISHED_STATES,
    ON_KILL_SECONDS,
    RESTARTING,
    read_task_state,
)
from airflow_provider_flows.worker.run_tracking import get_own_stamp
from airflow_provider_flows.worker.task_try import allows_retry

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_flows.batch.program import BatchProgram

log = logging.getLogger(__name__)

DIGEST_LENGTH = 16  # characters of a folder name
KILL_GRACE_SECONDS = 3.0  # of a killed task, for the records that are being written
NO_STORE = (
    "The task state store requires Airflow 3.3 or later. On this version a retry of this task cannot resume "
    "the flow runs that start now. It will start all of them again"
)


@dataclass(kw_only=True)
class BatchTaskTry(BatchTry):
    """One part of a try of a task.

    :param context: Airflow's context of the try.
    :param durable: whether anything is saved for a retry.
    """

    context: Context
    durable: bool = True

    @property
    def store(self) -> Any:
        """Airflow's task state store, None if nothing is saved."""
        return self.context.get("task_state_store") if self.durable else None

    @property
    def generation(self) -> int:
        """Airflow's `max_tries`: the same number in all tries of one run of the task; clearing raises it."""
        ti: Any = self.context["ti"]
        return int(ti.max_tries or 0)

    @property
    def try_number(self) -> int:
        """The number of the try."""
        ti: Any = self.context["ti"]
        return int(ti.try_number)

    @property
    def started_at(self) -> float:
        """The start of the try, in epoch seconds."""
        ti: Any = self.context["ti"]
        return float(ti.start_date.timestamp())

    @property
    def earlier_stamp(self) -> dict[str, Any] | None:
        """What the stamps of all tries have in common; None if no earlier one can have started a run."""
        was_cleared = bool(getattr(self.context.get("dag_run"), "clear_number", None))
        if self.try_number <= 1 and not was_cleared:
            return None
        stamp = get_own_stamp(self.context["ti"])
        return {name: value for name, value in stamp.items() if name != "try_number"}

    @property
    def is_state_of_clear_kept(self) -> bool:
        """Whether a Clear deletes records: then a person who keeps them wants the batch to continue."""
        return clear_deletes_task_state(self.context["ti"])

    def load_records(self) -> BatchRecords | None:
        """Return the records of earlier tries, also those that a Clear has deleted after a used up quota."""
        records = super().load_records()
        if not self._loses_records or self.earlier_stamp is None or not self.is_first_part:
            return records
        copy = BatchRecords.load(self._create_quota_store())
        if copy is not None:
            records = records or copy.copy_to(self.store)
            copy.delete()
        return records

    @property
    def _loses_records(self) -> bool:
        """Whether a Clear leaves no records of this task in Airflow, although they are to be saved."""
        return self.durable and (self.store is None or clear_deletes_task_state(self.context["ti"]))

    def _create_quota_store(self) -> FileStore:
        """Return the store of the records of a batch that has ended because the quota was used up."""
        stamp = {name: value for name, value in create_stamp(self.context).items() if name != "try_number"}
        digest = sha256(json.dumps(stamp, sort_keys=True).encode()).hexdigest()[:DIGEST_LENGTH]
        options = self.options.output_options
        return FileStore(str(options.output_path), options.output_conn_id, f"{STATE_FOLDER}-{digest}")

    def _save_for_clear(self) -> None:
        """Save the records where no Clear deletes them, if only a Clear continues the batch. Never raises."""
        if self.records is None or self.records.header.quota_error is None or not self._loses_records:
            return
        try:
            self.records.copy_to(self._create_quota_store())
        except Exception as error:  # noqa: BLE001  # any error of the store
            log.warning("The batch could not be saved for a Clear (%s): it would start again, and is billed "
                        "again", type(error).__name__)  # fmt: skip

    def is_resumed_after(self, error: BaseException) -> bool:
        """Return whether a failure of this try is followed by a try that can resume its flow runs."""
        has_retry_left = self.store is not None and self.try_number <= self.generation
        return has_retry_left and allows_retry(self.context, error)

    def run(self, *, defers: bool = False, final_run_ids: Collection[str] | None = None) -> BatchProgram:
        """Run the items, see `BatchTry`, after a warning if no retry can resume them."""
        if self.is_first_part and self.durable and self.store is None:
            log.warning(NO_STORE)
        return super().run(defers=defers, final_run_ids=final_run_ids)

    def can_defer(self) -> bool:
        """Return whether the task can be deferred: what it needs after that is saved."""
        if self.store is None:
            log.warning("Without a task state store the task cannot be deferred, so it waits in this worker")
        return self.store is not None and self.hook.service.supports("get_run")

    def raise_if_past(self, ends_at: float) -> None:
        """Raise Airflow's error if the execution_timeout has passed while the task was deferred.

        :param ends_at: epoch seconds.
        :raises AirflowTaskTimeout: it has.
        """
        if time.time() >= ends_at:
            error = AirflowTaskTimeout("The execution_timeout passed while the task was deferred")
            self.fail(error)
            raise error

    def fail(self, error: BaseException) -> None:
        """Abort the active runs of this task, unless a retry resumes them after an error."""
        self.records = BatchRecords.load(self.store)
        self._on_error(error)

    def on_kill(self) -> None:
        """Abort all active runs only if Airflow has ended the task. Never raises.

        If that is uncertain, leave the runs for the next try.
        """
        # A thread, because Airflow calls this in a signal handler, which may have interrupted a request to
        # the supervisor.
        thread = Thread(target=self._abort_if_finished, daemon=True)
        thread.start()
        thread.join(ON_KILL_SECONDS)

    def _abort_if_finished(self) -> None:
        try:
            state = read_task_state(self.context["ti"])
            if state not in FINISHED_STATES:
                log.info("The task is not finished in Airflow; its flow runs continue")
                return
            if state == RESTARTING and self._is_state_kept():
                log.info("The task was cleared with its state kept; its flow runs continue")
                return
            self.cancellation.cancel()  # before the ids are read: a start that saves an id checks it later
            if self._thread is not None:
                self._thread.cancel()
            hook = self.create_hook() if self.options.abort_on_kill else None
            # at once, because Airflow 3.3 ends the process five seconds after its first signal
            first_ids = frozenset[str]() if hook is None else self.abort_all(hook, is_last=False).run_ids
            if self._thread is not None:
                self._thread.wait(KILL_GRACE_SECONDS)
            if hook is not None:
                self.abort_all(hook, first_ids)
        except Exception:  # nothing may escape from a kill
            log.exception("The flow runs of the killed task could not be aborted. Check them at the service")

    def _is_state_kept(self) -> bool:
        """Return whether the person who has cleared this running task kept its state.

        If Airflow has deleted it, this try saves nothing more: the next one would resume unwanted runs.

        :raises Exception: any error of the store.
        """
        if self.store is None or not clear_deletes_task_state(self.context["ti"]):
            return False
        is_kept = self.store.get(HEADER_KEY) is not None
        if not is_kept and self.records is not None:
            self.records.close()
        return is_kept

    def finish(self, program: BatchProgram, result: Mapping[str, Any]) -> None:
        """Add what the task returns to the events of its assets, if the batch has not failed.

        :raises Exception: the error that has ended the batch early.
        :raises FlowRunFailed: too few items have completed.
        """
        self._save_for_clear()
        self.raise_if_failed(program, result)
        add_batch_event_extra(self.context, result)


def create_stamp(context: Context) -> dict[str, Any]:
    """Return what the stamp of each flow run says about a try."""
    return {name: value for name, value in get_own_stamp(context["ti"]).items() if value is not None}
