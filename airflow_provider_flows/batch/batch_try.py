"""One try of a batch's task, or a part of it between two deferrals: its records, its program and its end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for_futures
from contextlib import closing, suppress
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from threading import Thread
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowTaskTimeout

from airflow_provider_flows.batch.item_run import BatchTask, RunOptions
from airflow_provider_flows.batch.program import BatchProgram
from airflow_provider_flows.batch.records import HEADER_KEY, BatchHeader, BatchRecords
from airflow_provider_flows.batch.results import BatchResults
from airflow_provider_flows.compat import clear_deletes_task_state
from airflow_provider_flows.core.batch import BatchPolicy, ItemState
from airflow_provider_flows.core.exceptions import FlowError, FlowRunFailed
from airflow_provider_flows.core.start_or_resume import delete_created_runs
from airflow_provider_flows.storage.atomic_file import Cancellation
from airflow_provider_flows.storage.batch_items import BatchItems
from airflow_provider_flows.triggerer.kill_check import abort_killed_runs
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

    from airflow_provider_flows.hooks import FlowsHook
    from airflow_provider_flows.storage.output_options import OutputOptions

log = logging.getLogger(__name__)

CANCEL_SECONDS = 10.0  # for what is being written to end
KILL_GRACE_SECONDS = 3.0  # of a killed task, for the records that are being written
NO_STORE = (
    "The task state store requires Airflow 3.3 or later. On this version a retry of this task cannot resume "
    "the flow runs that start now. It will start all of them again"
)


class ProgramThread:
    """A program in a thread of its own, with an event loop of its own.

    Airflow interrupts a task with exceptions from signal handlers, which may be raised anywhere in the main
    thread: on an event loop there, they would be lost in any of its tasks.

    :param create: creates the program, on its event loop.
    """

    def __init__(self, create: Callable[[], BatchProgram]) -> None:
        self._create = create
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main_task: asyncio.Task[BatchProgram] | None = None
        self._executor = ThreadPoolExecutor(1, "flows-batch-program")
        self._future: Future[BatchProgram] | None = None

    def run(self) -> BatchProgram:
        """Run the program to its end, and return it.

        :raises BaseException: any error of the program, and any that interrupts this thread. Then the program
            is cancelled first.
        """
        self._future = future = self._executor.submit(copy_context().run, self._run)
        try:
            return future.result()
        except asyncio.CancelledError:
            raise FlowError("The batch was cancelled, because its task was killed.") from None
        except BaseException:
            self.cancel()
            with suppress(BaseException):
                future.result(timeout=CANCEL_SECONDS)
            raise
        finally:
            self._executor.shutdown(wait=False)

    def wait(self, seconds: float) -> None:
        """Wait until the program has ended, from another thread."""
        if self._future is not None:
            wait_for_futures([self._future], timeout=seconds)

    def cancel(self) -> None:
        """Cancel the program, from any thread; no request is sent after that."""
        loop, task = self._loop, self._main_task
        if loop is not None and task is not None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(task.cancel)

    def _run(self) -> BatchProgram:
        return asyncio.run(self._run_on_loop())

    async def _run_on_loop(self) -> BatchProgram:
        self._loop, self._main_task = asyncio.get_running_loop(), asyncio.current_task()
        program = self._create()
        try:
            await program.run()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        return program


@dataclass(slots=True)
class BatchTry:
    """One part of a try.

    :param context: Airflow's context of the try.
    :param hook: of the connection of the flow runs.
    :param create_hook: returns another hook of it, for the thread of `on_kill`.
    :param items: as `RunFlowBatchOperator` takes them, and `columns` too.
    :param skips_invalid_items: whether items that cannot be sent are left out.
    :param durable: whether anything is saved for a retry.
    :param is_first_part: whether the try was not deferred before.
    """

    context: Context
    hook: FlowsHook
    create_hook: Callable[[], FlowsHook]
    items: Any
    columns: Any
    policy: BatchPolicy
    options: RunOptions
    skips_invalid_items: bool = False
    durable: bool = True
    is_first_part: bool = True
    cancellation: Cancellation = field(default_factory=Cancellation)
    records: BatchRecords | None = None
    results: BatchResults | None = None
    _thread: ProgramThread | None = None

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
    def has_retry_left(self) -> bool:
        """Whether a failure of this try is followed by a try that can resume its flow runs."""
        return self.store is not None and self.try_number <= self.generation

    def run(self, *, defers: bool = False, final_run_ids: Collection[str] | None = None) -> BatchProgram:
        """Run the items until the batch has ended or can be deferred, and return its program.

        :param defers: whether active runs are left to a trigger.
        :param final_run_ids: see `BatchTask`.
        :raises BaseException: any error that has ended the program, or interrupts it. The active runs are
            aborted if no retry resumes them.
        """
        try:
            if self.is_first_part:
                self.options.output_options.validate(self.hook.service)
                if self.durable and self.store is None:
                    log.warning(NO_STORE)
            self.records = records = self._open_records()
            self.results = results = BatchResults(self.options.output_options)
            task = BatchTask(
                self.try_number,
                self.is_first_part,
                None if self._is_new() else self._get_stamp_of_all_tries(),
                self.skips_invalid_items,
                defers,
                final_run_ids,
            )
            source = self._create_source()
            checked_source = self._create_source(lambda item: self.options.find_problem(item, self.hook))

            def create_program() -> BatchProgram:
                return BatchProgram(
                    self.hook,
                    (source, checked_source),
                    self.policy,
                    self.options,
                    records=records,
                    results=results,
                    task=task,
                    cancellation=self.cancellation,
                )

            self._thread = ProgramThread(create_program)
            return self._thread.run()
        except (Exception, AirflowTaskTimeout) as error:
            self._on_error(error)
            raise

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

    def _create_source(self, find_problem: Any = None) -> BatchItems:
        return BatchItems(
            self.items,
            self.options.input_conn_id,
            columns=self.columns,
            hook=self.hook,
            find_problem=find_problem,
        )

    def _is_new(self) -> bool:
        """Return whether no earlier try can have started a flow run."""
        was_cleared = bool(getattr(self.context.get("dag_run"), "clear_number", None))
        return self.try_number <= 1 and not was_cleared

    def _get_stamp_of_all_tries(self) -> dict[str, Any]:
        stamp = get_own_stamp(self.context["ti"])
        return {name: value for name, value in stamp.items() if name != "try_number"}

    def _open_records(self) -> BatchRecords:
        """Return the records of this batch's earlier tries, or new ones.

        The active runs from before a Clear are aborted, and so are those of another connection.

        :raises FlowError: the records of earlier tries cannot be read.
        """
        conn_id, host = self.hook.flows_conn_id, self.hook.settings.base_url
        earlier = BatchRecords.load(self.store)
        if earlier is None:
            return BatchRecords(self.store, BatchHeader(self.generation, time.time(), conn_id, host))
        header = earlier.header
        is_same_account = (header.conn_id, header.host) == (conn_id, host)
        # where a Clear deletes the records, a person who keeps them wants the batch to continue
        is_kept = header.has_quota_error or clear_deletes_task_state(self.context["ti"])
        is_continued = header.generation == self.generation or is_kept
        if not is_continued or not is_same_account:
            reason = "was started over another connection" if is_continued else "was cleared"
            self._abort_earlier(earlier, reason)
        if not is_continued:
            return BatchRecords(self.store, BatchHeader(self.generation, time.time(), conn_id, host))
        if not is_same_account:
            for key, record in earlier.get_active().items():
                earlier.put(key, replace(record, state=ItemState.ABORTED))
        changes = {"generation": self.generation, "conn_id": conn_id, "host": host}
        earlier.change_header(**changes, has_quota_error=False)
        return earlier

    def _abort_earlier(self, earlier: BatchRecords, reason: str) -> None:
        """Abort the active runs of records over the connection that these name; log any failure."""
        run_ids = _get_run_ids(earlier)
        if not run_ids or not self.hook.service.supports("get_run"):
            return
        header = earlier.header
        try:
            count = self._abort_over_saved_connection(header, run_ids)
        except Exception as error:  # noqa: BLE001  # Airflow raises several types if there is no connection
            cause = str(error) if isinstance(error, FlowError) else type(error).__name__
            log.warning(
                "The batch %s. %d flow runs of it were not aborted (%s), over connection %r (%s). Those that "
                "are active continue, and are billed. Check them there",
                reason,
                len(run_ids),
                cause,
                header.conn_id,
                header.host,
            )
        else:
            log.info("The batch %s. %d of its flow runs were active, and were aborted", reason, count)

    def _abort_over_saved_connection(self, header: BatchHeader, run_ids: Collection[str]) -> int:
        """Abort flow runs over the connection that a header names, and return how many were active.

        :raises FlowError: they cannot be aborted.
        """
        if not self.options.abort_on_kill:
            raise FlowError("abort_on_kill is False")
        with closing(type(self.hook).get_hook(header.conn_id)) as saved_hook:
            if saved_hook.settings.base_url != header.host:
                raise FlowError(f"the connection leads to {saved_hook.settings.base_url} now")
            return asyncio.run(abort_killed_runs(saved_hook, run_ids))

    def _on_error(self, error: BaseException) -> None:
        """Save what is known, and abort the active runs if no retry resumes them."""
        self.cancellation.event.set()
        if self.records is None:
            return
        try:
            self.records.flush()
        except Exception as store_error:  # noqa: BLE001  # the first error matters more
            log.warning("The records of the batch could not be saved (%s)", type(store_error).__name__)
        if self.has_retry_left and allows_retry(self.context, error):
            count = len(_get_run_ids(self.records))
            log.info("The next try resumes the flow runs of this one, of which %d may be active", count)
        elif self.options.abort_on_kill:
            self._abort_all(self.hook)

    def _abort_all(
        self, hook: FlowsHook, earlier_ids: Collection[str] = (), *, is_last: bool = True
    ) -> Collection[str]:
        """Abort the active runs, and return their ids. Never raises.

        :param earlier_ids: of runs that were aborted before.
        :param is_last: whether no other run is created, so that those that were not started are deleted.
        """
        service = hook.service
        if self.records is None or not service.supports("get_run"):
            return ()
        run_ids = [run_id for run_id in _get_run_ids(self.records) if run_id not in earlier_ids]

        async def abort_all() -> int:
            count = await abort_killed_runs(hook, run_ids) if service.supports("abort") else 0
            if is_last:
                await hook.arun(delete_created_runs(service, self.options.stamp))
            return count

        try:
            count = asyncio.run(abort_all())
        except Exception:
            log.exception("The flow runs of the batch could not be aborted. Check them at the service")
            return ()
        if run_ids or not earlier_ids:
            log.info("%d of %d flow runs that may have been active were aborted", count, len(run_ids))
        return frozenset(run_ids)

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
            first_ids = () if hook is None else self._abort_all(hook, is_last=False)
            if self._thread is not None:
                self._thread.wait(KILL_GRACE_SECONDS)
            if hook is not None:
                self._abort_all(hook, first_ids)
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

    def finish(self, program: BatchProgram) -> dict[str, Any]:
        """Return the dict that the task returns.

        :raises Exception: the error that has ended the batch early.
        :raises FlowRunFailed: too few items have completed.
        """
        if self.records is None or self.results is None:
            raise FlowError("The batch has not been run")
        if program.error is not None:
            raise program.error
        failure = program.state.find_failure()
        if failure is not None:
            raise FlowRunFailed(
                f"The batch of flow {self.options.flow} has failed: {failure}. The manifest is "
                f"{self.results.manifest_uri}; the items that failed are in {self.results.failed_items_uri}, "
                "and can be the items of another batch."
            )
        result = {
            **program.state.to_result(),
            "manifest": self.results.manifest_uri,
            "failed_items": self.results.failed_items_uri,
            "duration": round(max(0.0, time.time() - self.records.header.started_at), 3),
            "flow": self.options.flow,
            "service": self.hook.service.name,
        }
        add_batch_event_extra(self.context, result)
        return result


def create_stamp(context: Context) -> dict[str, Any]:
    """Return what the stamp of each flow run says about a try."""
    return {name: value for name, value in get_own_stamp(context["ti"]).items() if value is not None}


def create_output_options(output_path: str, output_conn_id: str | None) -> OutputOptions:
    """Return the options for the outputs of each run. Texts are in the manifest, except for large ones."""
    from airflow_provider_flows.storage.output_options import OutputOptions

    return OutputOptions(output_path, output_conn_id, MAX_LINE_BYTES, file_log_level=logging.DEBUG)


def _get_run_ids(records: BatchRecords) -> list[str]:
    """Return the ids of the runs that may be active."""
    return [record.flow_run_id for record in records.get_active().values() if record.flow_run_id]


MAX_LINE_BYTES = 16 * 1024  # of the outputs of an item in the manifest; larger texts are stored in files
