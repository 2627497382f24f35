"""One try of a batch, or a part of it between two deferrals: its records, its program and its end.

A batch is that of a task (`batch/task.py`) or of a command (`cli/batch.py`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for_futures
from contextlib import closing, suppress
from contextvars import copy_context
from dataclasses import KW_ONLY, dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow.providers.common.compat.sdk import AirflowTaskTimeout

from airflow_provider_flows.batch.options import BatchTask, RunOptions
from airflow_provider_flows.batch.program import BatchProgram
from airflow_provider_flows.batch.records import BatchHeader, BatchRecords
from airflow_provider_flows.batch.results import BatchResults
from airflow_provider_flows.core.batch import BatchPolicy, BatchState, ItemState
from airflow_provider_flows.core.exceptions import FlowError, FlowOutputRejected, FlowRunFailed
from airflow_provider_flows.core.start_or_resume import delete_created_runs
from airflow_provider_flows.storage.atomic_file import Cancellation
from airflow_provider_flows.storage.batch_items import BatchItems
from airflow_provider_flows.triggerer.kill_check import abort_killed_runs

if TYPE_CHECKING:
    from airflow_provider_flows.hooks import FlowsHook
    from airflow_provider_flows.storage.output_options import OutputOptions

log = logging.getLogger(__name__)

CANCEL_SECONDS = 10.0  # for what is being written to end
MAX_LINE_BYTES = 16 * 1024  # of the outputs of an item in the manifest; larger texts are stored in files


class AbortedRuns(NamedTuple):
    """The runs that a batch has tried to abort, and how many of them were active."""

    run_ids: frozenset[str] = frozenset()
    active: int = 0


class ProgramThread:
    """A program in a thread of its own, with an event loop of its own.

    Airflow interrupts a task with exceptions from signal handlers, which may be raised anywhere in the main
    thread: on an event loop there, they would be lost in any of its tasks.

    :param create: creates the program, on its event loop.
    :param cancellation: is set when this thread is interrupted: then downloads end, and no run is started.
    """

    def __init__(self, create: Callable[[], BatchProgram], cancellation: Cancellation) -> None:
        self._create, self._cancellation = create, cancellation
        self.program: BatchProgram | None = None
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
            self._cancellation.event.set()
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
        self.program = program = self._create()
        try:
            await program.run()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        return program


@dataclass
class BatchTry(ABC):
    """One part of a try.

    :param hook: of the connection of the flow runs.
    :param items: as `RunFlowBatchOperator` takes them, and `columns` too.
    :param create_hook: returns another hook of the same connection, which is looked up again.
    :param skips_invalid_items: whether items that cannot be sent are left out.
    :param is_first_part: whether the try was not deferred before.
    :param on_change: called on the event loop of the batch whenever the state of an item has changed.
    """

    hook: FlowsHook
    items: Any
    columns: Any
    policy: BatchPolicy
    options: RunOptions
    _: KW_ONLY
    create_hook: Callable[[], FlowsHook]
    skips_invalid_items: bool = False
    is_first_part: bool = True
    on_change: Callable[[BatchState], None] = lambda _: None
    cancellation: Cancellation = field(default_factory=Cancellation)
    records: BatchRecords | None = None
    results: BatchResults | None = None
    _thread: ProgramThread | None = None

    @property
    def program(self) -> BatchProgram | None:
        """The program of this part, once it is created."""
        return None if self._thread is None else self._thread.program

    @property
    @abstractmethod
    def store(self) -> Any:
        """The store of the records, None if nothing is saved."""

    @property
    @abstractmethod
    def generation(self) -> int:
        """The same number in all tries of one batch."""

    @property
    @abstractmethod
    def try_number(self) -> int:
        """The number of the try."""

    @property
    @abstractmethod
    def earlier_stamp(self) -> dict[str, Any] | None:
        """What the stamps of all earlier tries have in common; None if there is none that started a run."""

    @property
    def is_state_of_clear_kept(self) -> bool:
        """Whether records that a Clear has left are to be continued."""
        return False

    def load_records(self) -> BatchRecords | None:
        """Return the records of earlier tries; None if there are none.

        :raises FlowError: they cannot be read.
        :raises Exception: any error of the store.
        """
        return BatchRecords.load(self.store)

    @abstractmethod
    def is_resumed_after(self, error: BaseException) -> bool:
        """Return whether the active runs are left to a next try after an error."""

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
            self.records = records = self._open_records()
            self.results = results = BatchResults(self.options.output_options)
            task = BatchTask(
                self.try_number,
                self.is_first_part,
                self.earlier_stamp,
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
                    reload_hook=self._reload_hook,
                    on_change=self.on_change,
                )

            self._thread = ProgramThread(create_program, self.cancellation)
            return self._thread.run()
        except (Exception, AirflowTaskTimeout) as error:
            self._on_error(error)
            raise

    def _reload_hook(self) -> FlowsHook:
        """Look the connection up again, and use it for aborts as well."""
        self.hook = self.create_hook()
        return self.hook

    def _create_source(self, find_problem: Any = None) -> BatchItems:
        return BatchItems(
            self.items,
            self.options.input_conn_id,
            columns=self.columns,
            hook=self.hook,
            find_problem=find_problem,
        )

    def _open_records(self) -> BatchRecords:
        """Return the records of this batch's earlier tries, or new ones.

        The active runs from before a Clear are aborted, and so are those of another connection.

        :raises FlowError: the records of earlier tries cannot be read.
        """
        conn_id, host = self.hook.flows_conn_id, self.hook.settings.base_url
        earlier = self.load_records()
        if earlier is None:
            return BatchRecords(self.store, BatchHeader(self.generation, time.time(), conn_id, host))
        header = earlier.header
        is_same_account = (header.conn_id, header.host) == (conn_id, host)
        is_kept = header.quota_error is not None or self.is_state_of_clear_kept
        is_continued = header.generation == self.generation or is_kept
        if not is_continued or not is_same_account:
            reason = "was started over another connection" if is_continued else "was cleared"
            self._abort_earlier(earlier, reason)
        if not is_continued:
            return BatchRecords(self.store, BatchHeader(self.generation, time.time(), conn_id, host))
        if not is_same_account:
            for key, record in earlier.get_active().items():
                earlier.put(key, replace(record, state=ItemState.ABORTED))
        earlier.change_header(generation=self.generation, conn_id=conn_id, host=host)
        if self.is_first_part:
            earlier.change_header(quota_error=None)
        return earlier

    def _abort_earlier(self, earlier: BatchRecords, reason: str) -> None:
        """Abort the active runs of records over the connection that these name; log any failure."""
        run_ids = earlier.get_active_run_ids()
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
        if self.is_resumed_after(error):
            count = len(self.records.get_active_run_ids())
            log.info("The next try resumes the flow runs of this one, of which %d may be active", count)
        elif self.options.abort_on_kill:
            self.abort_all(self.hook)

    def abort_all(
        self, hook: FlowsHook, earlier_ids: Collection[str] = (), *, is_last: bool = True
    ) -> AbortedRuns:
        """Abort the active runs, and delete those that were created and not started. Never raises.

        :param earlier_ids: of runs that were aborted before.
        :param is_last: whether no other run is created, so that those that were not started are deleted.
        """
        service = hook.service
        if self.records is None or not service.supports("get_run"):
            return AbortedRuns()
        run_ids = frozenset(self.records.get_active_run_ids()).difference(earlier_ids)

        async def abort_all() -> int:
            count = await abort_killed_runs(hook, run_ids) if service.supports("abort") else 0
            if is_last:
                await hook.arun(delete_created_runs(service, self.options.stamp))
            return count

        try:
            count = asyncio.run(abort_all())
        except Exception:
            log.exception("The flow runs of the batch could not be aborted. Check them at the service")
            return AbortedRuns()
        if run_ids or not earlier_ids:
            log.info("%d of %d flow runs that may have been active were aborted", count, len(run_ids))
        return AbortedRuns(run_ids, count)

    def get_result(self, program: BatchProgram) -> dict[str, Any]:
        """Return the dict that the task returns.

        :raises FlowError: the batch has not been run.
        """
        if self.records is None or self.results is None:
            raise FlowError("The batch has not been run")
        checked = {}
        if self.options.output_options.check_outputs is not None:
            paid_runs = sum(record.attempts for _, record in self.records)
            checked = {"rejected": program.state.rejected, "paid_runs": paid_runs}
        return {
            **program.state.to_result(),
            **checked,
            "manifest": self.results.manifest_uri,
            "failed_items": self.results.failed_items_uri,
            "duration": round(max(0.0, time.time() - self.records.header.started_at), 3),
            "flow": self.options.flow,
            "service": self.hook.service.name,
        }

    def raise_if_failed(self, program: BatchProgram, result: Mapping[str, Any]) -> None:
        """Raise an error if the batch has failed.

        :raises Exception: the error that has ended the batch early.
        :raises FlowRunFailed: too few items have completed.
        :raises FlowOutputRejected: the same, and the checks have rejected each item that has failed.
        """
        if program.error is not None:
            raise program.error
        failure = program.state.find_failure()
        if failure is not None:
            has_only_rejections = program.state.has_only_rejections
            raise (FlowOutputRejected if has_only_rejections else FlowRunFailed)(
                f"The batch of flow {self.options.flow} has failed: {failure}. The manifest is "
                f"{result['manifest']}; the items that failed are in {result['failed_items']}, and can be "
                "the items of another batch."
            )


def create_output_options(
    output_path: str,
    output_conn_id: str | None,
    *,
    reuse: bool | timedelta = False,
    reuse_path: Any = None,
    check_outputs: Any = None,
) -> OutputOptions:
    """Return the options for the outputs of each run. Texts are in the manifest, except for large ones."""
    from airflow_provider_flows.storage.output_options import OutputOptions

    return OutputOptions(
        output_path,
        output_conn_id,
        MAX_LINE_BYTES,
        file_log_level=logging.DEBUG,
        reuse=reuse,
        reuse_path=reuse_path,
        check_outputs=check_outputs,
    )
