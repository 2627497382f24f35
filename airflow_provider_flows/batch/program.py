"""The program of a batch: one event loop that starts, awaits and fetches the flow runs of all items.

At most `max_active_runs` of them are active at the same time. Of the items, only those in progress are in
memory.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from airflow_provider_flows.batch.item_reader import ItemReader
from airflow_provider_flows.batch.item_run import ItemRunner
from airflow_provider_flows.batch.records import ItemRecord
from airflow_provider_flows.batch.results import to_failure_line
from airflow_provider_flows.core.account_limits import pick_wait_seconds
from airflow_provider_flows.core.batch import (
    BatchItem,
    BatchPolicy,
    BatchProgress,
    BatchState,
    ItemState,
    Step,
    is_repeatable,
)
from airflow_provider_flows.core.exceptions import (
    FlowAuthError,
    FlowError,
    FlowNotFound,
    FlowOutputRejected,
    FlowQuotaExceeded,
    FlowRunFailed,
)
from airflow_provider_flows.core.flow_run import failure_error
from airflow_provider_flows.storage.atomic_file import CancelledWriteError
from airflow_provider_flows.worker.task_try import CREDENTIALS_CHANGED

if TYPE_CHECKING:
    from airflow_provider_flows.batch.options import BatchTask, RunOptions
    from airflow_provider_flows.batch.records import BatchRecords
    from airflow_provider_flows.batch.results import BatchResults
    from airflow_provider_flows.core.flow_run import FlowRun
    from airflow_provider_flows.hooks import FlowsHook
    from airflow_provider_flows.storage.atomic_file import Cancellation
    from airflow_provider_flows.storage.batch_items import BatchItems

log = logging.getLogger(__name__)

FULL_LOG_SECONDS = 60.0  # between two lines about an account with too many active flow runs
ACCOUNT_CHECK_SECONDS = 300.0  # after which a deferred batch counts the account's active flow runs again
REPORT_SECONDS = 5.0  # between two checks of whether a line or a manifest is due
MAX_LOGGED_FAILURES = 50
MAX_THREADS = 48  # for starts that are being saved, fetches and files
ITEMS_PER_READ = 16  # of the source, which is read in a thread


class BatchProgram:
    """Runs the items of one batch.

    :param sources: two that yield the same items, and the problems of those that cannot be sent. Of the
        second one, items that the flow does not accept are problems, too.
    :param results: gets a line for each item that has ended.
    :param cancellation: is set when the task is killed.
    :param reload_hook: looks the connection up again, and returns its hook.
    :param on_change: called on the event loop whenever the state of an item has changed.
    """

    def __init__(
        self,
        hook: FlowsHook,
        sources: tuple[BatchItems, BatchItems],
        policy: BatchPolicy,
        options: RunOptions,
        *,
        records: BatchRecords,
        results: BatchResults,
        task: BatchTask,
        cancellation: Cancellation,
        reload_hook: Callable[[], FlowsHook],
        on_change: Callable[[BatchState], None] = lambda _: None,
    ) -> None:
        self._hook, self._reload_hook = hook, reload_hook
        self._source = sources[0]
        self._policy, self._options, self._task = policy, options, task
        self._records, self._results, self._cancellation = records, results, cancellation
        self._on_change = on_change
        self.state = BatchState(policy, 0 if task.is_first_part else records.header.failures_in_row)
        self.error: Exception | None = None
        """The error that has ended the batch early, None if there is none."""
        self.deferred_run_ids: list[str] = []
        """The ids of the active runs that are left to a trigger."""
        self.first_deadline: float | None = None
        """The first deadline of these runs, in epoch seconds, None if they have none."""
        self.awaits_account = False
        """Whether the task can be deferred until the account has fewer active runs."""
        self._has_changed = asyncio.Event()
        self._rows: dict[str, int] = {}  # of the items in progress, by key
        self._deferred_keys: set[str] = set()
        self._unstarted: deque[BatchItem] = deque()  # taken while the account had too many active runs
        self._full_until = 0.0  # monotonic seconds, until which no other item is taken for that reason
        self._full_logged_at = -FULL_LOG_SECONDS
        self._logged_failures = 0
        self._has_read_all = False
        self._reader = ItemReader(sources, self.state, options, records, results, task)
        self._runner: ItemRunner
        self._transports: AsyncExitStack
        self._reload_lock = asyncio.Lock()

    async def run(self) -> None:
        """Run the items until all have ended, no other is started, or all that are active can be deferred.

        :raises FlowInputError: items cannot be sent; no run was started.
        :raises Exception: any error of the source or of the task state store.
        """
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(MAX_THREADS, "flows-batch"))
        async with AsyncExitStack() as self._transports:
            transport = await self._transports.enter_async_context(self._hook.async_transport())
            self._runner = ItemRunner(
                self._hook,
                transport,
                self._options,
                self._records,
                try_number=self._task.try_number,
                cancellation=self._cancellation,
            )
            if self._task.is_first_part and self._task.earlier_stamp is not None and not self._records:
                await self._runner.adopt_listed_runs(self._task.earlier_stamp)
            active_items = await asyncio.to_thread(self._reader.read_all)
            self._has_read_all = True
            self._logged_failures = self._reader.count_failures()
            self._records.change_header(total=self.state.total)
            if self._task.is_first_part:
                keys = [item.key for item in active_items]
                await self._runner.clean_up(self._task.earlier_stamp, keys)
            elif (message := self._records.header.quota_error) is not None:
                self._end_batch(FlowQuotaExceeded(message))
            self._on_change(self.state)
            async with asyncio.TaskGroup() as group:
                reporter = group.create_task(self._report())
                for item in active_items:
                    self._take(group, item)
                await self._take_items(group)
                reporter.cancel()
        self._records.change_header(failures_in_row=self.state.failures_in_row)
        await asyncio.to_thread(self._records.flush)
        if self.awaits_account:  # the account is checked again although these runs may be active for hours
            check_at = time.time() + ACCOUNT_CHECK_SECONDS
            self.first_deadline = min(check_at, self.first_deadline or check_at)
        if self.deferred_run_ids or self.awaits_account:
            await self.flush_results()
        else:
            await self._end()

    # Taking items

    async def _take_items(self, group: asyncio.TaskGroup) -> None:
        """Take one item after the other while there is room, and return when nothing is left to do."""
        items = self._reader.iter_pending()
        waiting: list[BatchItem] = []
        while True:
            self._has_changed.clear()
            if self._cancellation.event.is_set():
                self.state.stop("the task was killed")
            step = self.state.next_step()
            if step is Step.END:
                return
            if step is Step.WAIT:
                await self._has_changed.wait()
                continue
            if (seconds := self._full_until - time.monotonic()) > 0:
                if self._task.defers and self.state.is_left_to_trigger:
                    self.awaits_account = True
                    return
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._has_changed.wait(), seconds)
                continue
            while self._unstarted:
                waiting.append(self._unstarted.pop())
            if not waiting:
                waiting = await asyncio.to_thread(lambda: list(islice(items, ITEMS_PER_READ)))
                waiting.reverse()
            if waiting:
                item = waiting.pop()
                self._change(ItemState.PENDING, ItemState.ACTIVE)
                self._take(group, item)
            else:
                self.state.has_more = False

    def _take(self, group: asyncio.TaskGroup, item: BatchItem) -> None:
        self._rows[item.key] = item.row
        record = self._records.get(item.key)
        if record is not None and record.flow_run_id is not None and self._is_still_active(record):
            self._defer(record)
        else:
            group.create_task(self._run_item(item))

    def _is_still_active(self, record: ItemRecord) -> bool:
        """Return whether a trigger waits for the run of a record, and is to continue that."""
        if not self._task.defers or self._task.final_run_ids is None or record.state is not ItemState.ACTIVE:
            return False
        return self._is_in_time(record) and record.flow_run_id not in self._task.final_run_ids

    def _is_in_time(self, record: ItemRecord | None) -> bool:
        return record is None or record.deadline is None or time.time() < record.deadline

    def _defer(self, record: ItemRecord) -> None:
        self.deferred_run_ids.append(str(record.flow_run_id))
        if record.deadline is not None:
            self.first_deadline = min(record.deadline, self.first_deadline or record.deadline)
        self.state.deferred += 1
        self._has_changed.set()

    def _defer_item(self, item: BatchItem, run: FlowRun) -> None:
        record = self._records.get(item.key) or ItemRecord(self._options.compute_fingerprint(item))
        self._deferred_keys.add(item.key)
        self._defer(replace(record, flow_run_id=run.flow_run_id))

    # One item

    async def _run_item(self, item: BatchItem) -> None:
        """Run an active item to its end, unless its run is left to a trigger."""
        try:
            run = await self._run_until_completed(item)
            if run is not None:
                self._change(ItemState.ACTIVE, ItemState.FETCHING)
                await self._fetch_until_stored(item, run)
        finally:
            if item.key not in self._deferred_keys:
                self._rows.pop(item.key, None)
            self._has_changed.set()

    async def _run_until_completed(self, item: BatchItem) -> FlowRun | None:
        """Return the completed run of an item; None if it has none, and its state was recorded."""
        while True:
            is_starting, hook = True, self._hook
            try:
                run = await self._runner.resume(item, after_deferral=not self._task.is_first_part)
                if run is None and (run := await self._start(item)) is None:
                    return None
                is_starting = False
                if not run.is_final and self._task.defers and self._is_in_time(self._records.get(item.key)):
                    self._defer_item(item, run)
                    return None
                if not run.is_final:
                    run = await self._runner.wait(item, run)
                if run.is_completed:
                    return run
                raise failure_error(run)  # noqa: TRY301  # handled as any other failure of the item
            except Exception as error:  # noqa: BLE001  # an item ends with any error
                if await self._has_new_key(hook, error):
                    continue
                if self._ends_batch(error, is_starting=is_starting):
                    self._end_batch(error)
                    self._change(ItemState.ACTIVE, ItemState.PENDING)
                    return None
                if not self._may_repeat(item, error):
                    self._end_item(item, ItemState.ACTIVE, error)
                    return None

    async def _start(self, item: BatchItem) -> FlowRun | None:
        """Start a run for an item; return None if the item is left for later, or the batch has ended."""
        if self.state.stop_reason is not None:
            self._change(ItemState.ACTIVE, ItemState.PENDING)
            return None
        reservation = await self._runner.reserve_start()
        if reservation is None:
            self._put_back(item)
            return None
        with reservation.hold():
            return await self._runner.start(item)

    async def _has_new_key(self, hook: FlowsHook, error: Exception) -> bool:
        """Return whether an error is the rejection of a key, and the connection has another one by now.

        :param hook: with which the request was sent.
        """
        if not isinstance(error, FlowAuthError):
            return False
        async with self._reload_lock:
            if self._hook is not hook:  # an item before this one has found it
                return True
            try:
                latest = await asyncio.to_thread(self._reload_hook)
            except Exception:  # noqa: BLE001  # any error of Airflow's; the rejection is what to report
                return False
            same_host = latest.settings.base_url == hook.settings.base_url
            if latest.settings == hook.settings or not same_host:
                return False
            transport = await self._transports.enter_async_context(latest.async_transport())
            self._hook = latest
            self._runner.use(latest, transport)
            log.info(CREDENTIALS_CHANGED, latest.flows_conn_id)
            return True

    def _put_back(self, item: BatchItem) -> None:
        """Leave an item for later, because the account has too many active runs."""
        record = self._records.get(item.key)
        if record is not None:  # of a run that has failed; after a deferral, it would count as the result
            self._records.put(item.key, replace(record, state=ItemState.PENDING))
        self._unstarted.append(item)
        self.state.has_more = True
        now = time.monotonic()
        self._full_until = now + pick_wait_seconds()
        if now - self._full_logged_at >= FULL_LOG_SECONDS:
            self._full_logged_at = now
            log.info("No other flow run is started for now, because the account has max_active_runs active")
        self._change(ItemState.ACTIVE, ItemState.PENDING)

    async def _fetch_until_stored(self, item: BatchItem, run: FlowRun) -> None:
        while True:
            hook = self._hook
            try:
                fetched_run = await self._runner.fetch(item, run)
            except CancelledWriteError:
                self._change(ItemState.FETCHING, ItemState.FAILED)
                return
            except FlowOutputRejected as error:
                self._on_rejected(item, error)
                return
            except Exception as error:  # noqa: BLE001  # any error of a storage's library
                if await self._has_new_key(hook, error):
                    continue
                if isinstance(error, FlowAuthError):
                    self._end_batch(error)
                if not self._may_repeat(item, error):
                    # its record stays active, so that a retry fetches what is missing
                    self._end_item(item, ItemState.FETCHING, error, run)
                    return
            else:
                self._complete_item(item, fetched_run)
                return

    def _on_rejected(self, item: BatchItem, error: FlowOutputRejected) -> None:
        """Leave an item for another run, if one may replace the rejected one; else record that it failed."""
        self.state.record_failure()
        record = self._records.get(item.key) or ItemRecord(self._options.compute_fingerprint(item))
        rejections = record.rejections + 1
        may_replace = self.state.may_replace(rejections)
        state = ItemState.PENDING if may_replace else ItemState.FAILED
        self._records.put(item.key, replace(record, state=state, rejections=rejections))
        if may_replace:
            log.info(
                "Item %s is run again, because its outputs are rejected: %s", item.key, to_failure_line(error)
            )
            self._unstarted.append(item)
            self.state.has_more = True
            self._change(ItemState.FETCHING, ItemState.PENDING)
            return
        self.state.rejected += 1
        self._end_item(item, ItemState.FETCHING, error)

    def _ends_batch(self, error: Exception, *, is_starting: bool) -> bool:
        """Return whether an error would be that of every other item as well."""
        if isinstance(error, FlowAuthError) or not isinstance(error, FlowError):
            return True
        return is_starting and isinstance(error, FlowQuotaExceeded | FlowNotFound)

    def _end_batch(self, error: Exception) -> None:
        self.error = self.error or error
        if isinstance(error, FlowQuotaExceeded):
            self._records.change_header(quota_error=str(error))
        if self.state.stop_reason is None:
            log.warning("No other flow run is started, because of an error: %s", to_failure_line(error))
        self.state.stop(type(error).__name__)

    def _may_repeat(self, item: BatchItem, error: Exception) -> bool:
        """Count a failure, and return whether the item is run again."""
        self.state.record_failure()
        record = self._records.get(item.key) or ItemRecord(self._options.compute_fingerprint(item))
        failures = record.failures if record.try_number == self._task.try_number else 0
        record = replace(record, failures=failures + 1, try_number=self._task.try_number)
        if isinstance(error, FlowRunFailed):  # so that its run need not be polled again
            record = replace(record, state=ItemState.after_error(error))
        self._records.put(item.key, record)
        return is_repeatable(error) and self.state.may_repeat(record.failures)

    def _change(self, old: ItemState, new: ItemState) -> None:
        self.state.move(old, new)
        self._has_changed.set()
        self._on_change(self.state)

    def _end_item(
        self, item: BatchItem, old: ItemState, error: Exception, run: FlowRun | None = None
    ) -> None:
        """Record that an item has failed."""
        new = ItemState.after_error(error)
        record = self._records.get(item.key) or ItemRecord(self._options.compute_fingerprint(item))
        is_settled = isinstance(error, FlowRunFailed) or record.flow_run_id is None
        if is_settled:  # else the run may be active, or has outputs to be fetched
            record = replace(record, state=new)
            self._records.put(item.key, record)
        self._results.add_failure(item, new, record, error, getattr(error, "run", None) or run)
        self._change(old, new)
        self._logged_failures += 1
        if self._logged_failures <= MAX_LOGGED_FAILURES:
            log.warning("Item %s %s: %s", item.key, new, to_failure_line(error))
        elif self._logged_failures == MAX_LOGGED_FAILURES + 1:
            log.warning("Further failures are in %s only", self._results.failed_items_uri)

    def _complete_item(self, item: BatchItem, run: FlowRun) -> None:
        record = self._records.get(item.key) or ItemRecord(self._options.compute_fingerprint(item))
        record = replace(record, state=ItemState.COMPLETED, flow_run_id=run.flow_run_id)
        self._records.put(item.key, record)
        self._results.add_completed(item, record, run)
        self.state.reused += int(run.reused)
        self._change(ItemState.FETCHING, ItemState.COMPLETED)

    # The log and the manifest

    async def _report(self) -> None:
        """Log the progress and write the manifest regularly."""
        progress = BatchProgress(self.state, time.monotonic())
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            if (line := progress.take_line(time.monotonic())) is not None:
                log.info("%s", line)
            if progress.is_manifest_due(time.monotonic()):
                await self.flush_results()

    async def flush_results(self) -> None:
        """Write the manifest, and delete the responses whose outputs are stored now. An error is logged only.

        The records are written first: a completed item whose line is missing is fetched again. Nothing is
        written before all items were read, because the lines of earlier tries are still missing then.
        """
        if not self._has_read_all:
            return
        try:
            await asyncio.to_thread(self._records.flush)
            active = {
                key: (row, record)
                for key, row in list(self._rows.items())
                if (record := self._records.get(key)) is not None and record.state is ItemState.ACTIVE
            }
            settled_keys = await asyncio.to_thread(self._results.write, active)
        except Exception as error:  # noqa: BLE001  # any error of a store
            log.warning("The manifest could not be written: %s", to_failure_line(error))
            return
        if not self._hook.service.supports("get_run"):
            for key in settled_keys:
                await asyncio.to_thread(self._runner.delete_response, key)

    async def _end(self) -> None:
        """Write what the batch leaves, and log how it has ended.

        :raises OSError: the store does not accept a file. A retry writes it without running an item again.
        """
        await self.flush_results()
        await asyncio.to_thread(self._results.write_end, self._source, self._records.get)
        if self._logged_failures > MAX_LOGGED_FAILURES:
            log.warning("%d items have failed; see %s", self._logged_failures, self._results.failed_items_uri)
        log.info("%s", self.state.describe())
