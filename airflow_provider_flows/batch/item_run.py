"""The flow run of one item: resume it or start it, wait until it is final, and fetch its outputs.

These are the conversations and the downloads of every task, on the event loop of the batch: what blocks runs
in threads.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.batch.results import to_failure_line
from airflow_provider_flows.checks.definitions import MAX_CHECK_RETRIES
from airflow_provider_flows.checks.files import check_outputs
from airflow_provider_flows.core.batch import ItemState
from airflow_provider_flows.core.exceptions import (
    FlowAuthError,
    FlowError,
    FlowNotFound,
    FlowServiceError,
    FlowTimeout,
)
from airflow_provider_flows.core.flow_run import FlowRun, FlowState, quote_errors
from airflow_provider_flows.core.polling.schedule import Schedule
from airflow_provider_flows.core.reuse import STAMP_FIELD
from airflow_provider_flows.core.start_or_resume import (
    NOT_RESUMABLE_STATES,
    RunRecord,
    RunRequest,
    delete_created_runs,
    find_stamped_runs,
    get_stamp,
    resume,
    start,
)
from airflow_provider_flows.core.validation import Problems
from airflow_provider_flows.storage.outputs import fetch_outputs
from airflow_provider_flows.storage.reuse_index import (
    create_lookup,
    find_reusable_run,
    restore_lookup,
    save_reusable_run,
)
from airflow_provider_flows.triggerer.kill_check import abort_killed_runs
from airflow_provider_flows.triggerer.shared_poller import SharedPoller
from airflow_provider_flows.worker.finish import DeadlinePolicy, find_rejection, finish_after_deadline
from airflow_provider_flows.worker.saved_run import SavedRunStorage, open_links, seal_links

if TYPE_CHECKING:
    from airflow_provider_flows.batch.options import RunOptions
    from airflow_provider_flows.batch.records import BatchRecords, ItemRecord
    from airflow_provider_flows.core.account_limits import Reservation
    from airflow_provider_flows.core.batch import BatchItem
    from airflow_provider_flows.core.http import Conversation, T
    from airflow_provider_flows.core.redaction import ErrorTexts
    from airflow_provider_flows.core.reuse import ReuseLookup
    from airflow_provider_flows.hooks import FlowsHook
    from airflow_provider_flows.storage.atomic_file import Cancellation
    from airflow_provider_flows.transport.rate_limiter import RateLimitedTransport

log = logging.getLogger(__name__)

MAX_CONCURRENT_STARTS = 16  # of a service that creates a run before it starts it
MAX_CONCURRENT_FETCHES = 8
REJECTIONS_FIELD = "batch_rejections"  # in the stamp of a run that replaces rejected ones
KILLED = "The task was killed during the start of the flow run of item {key}."
LIST_FAILED = (
    "No records of earlier tries are saved, and the list of flow runs cannot be searched. If an earlier try "
    "has started flow runs that are active, they continue, and are billed: check them at the service. %s"
)
MISSING_RUN = (
    "Item %s: flow run %s of an earlier try was not found, so the item is run again. If that flow run is "
    "still active at the service, it continues, and is billed: check it there"
)
MAY_HAVE_RUN = (
    "Item %s: an earlier try sent it to %s and got no response. It may have run before, and is run again"
)
LOST_RESPONSE = (
    "Item %s: flow run %s is paid for, and could not be saved for a retry (%s). This try continues with it. "
    "If this try fails, a retry runs the item again, which is billed again"
)


class ItemRunner:
    """Runs single items. It decides nothing about other items.

    :param transport: an open session behind the rate limiter of the connection.
    :param try_number: of the task.
    :param cancellation: is set when the task is killed: then no run is started any more.
    """

    def __init__(
        self,
        hook: FlowsHook,
        transport: RateLimitedTransport,
        options: RunOptions,
        records: BatchRecords,
        *,
        try_number: int,
        cancellation: Cancellation,
    ) -> None:
        self.use(hook, transport)
        self._options = options
        self._records = records
        self._try_number = try_number
        self._cancellation = cancellation
        self._start_slots = asyncio.Semaphore(MAX_CONCURRENT_STARTS)
        self._fetch_slots = asyncio.Semaphore(MAX_CONCURRENT_FETCHES)
        self._lookups: dict[str, ReuseLookup | None] = {}  # of the items that were started here, by key

    def use(self, hook: FlowsHook, transport: RateLimitedTransport) -> None:
        """Send all further requests with a hook and its transport."""
        self._hook, self._service, self._transport = hook, hook.service, transport

    async def adopt_listed_runs(self, stamp: dict[str, Any]) -> None:
        """Find the runs of earlier tries whose records were deleted, or never saved, in the service's list.

        Those of this run of the task are resumed by new records; others that are active are aborted.
        """
        from airflow_provider_flows.batch.records import ItemRecord

        service, unwanted_ids = self._service, []
        if not (service.staged_start and service.supports("list_runs") and service.supports("get_run")):
            return
        try:
            runs = await self._hook.arun(find_stamped_runs(service, stamp), send=self._transport.send)
        except FlowError as error:
            log.warning(LIST_FAILED, to_failure_line(error))
            return
        for run in runs:
            record, key = RunRecord.from_stamp(run), get_stamp(run).get("batch_key")
            is_wanted = record is not None and record.generation == self._records.header.generation
            is_usable = is_wanted and run.state not in NOT_RESUMABLE_STATES
            if record is not None and is_usable and isinstance(key, str) and self._records.get(key) is None:
                rejections = get_stamp(run).get(REJECTIONS_FIELD)
                rejections = min(rejections, MAX_CHECK_RETRIES) if type(rejections) is int else 0
                adopted = ItemRecord(record.fingerprint, run.flow_run_id, ItemState.ACTIVE, rejections + 1)
                self._records.put(key, replace(adopted, deadline=record.deadline, rejections=rejections))
            elif not run.is_final and run.state is not FlowState.CREATED:
                unwanted_ids.append(run.flow_run_id)
        if unwanted_ids and self._options.abort_on_kill and service.supports("abort"):
            count = await abort_killed_runs(self._hook, unwanted_ids)
            log.info("%d flow runs of earlier tries were active, and were aborted", count)

    async def clean_up(self, earlier_stamp: dict[str, Any] | None, keys: Collection[str]) -> None:
        """Abort the active runs of items that are gone, and delete runs whose ids could not be saved.

        :param earlier_stamp: as that of a `BatchTask`.
        :param keys: of the active items of the batch.
        """
        active = self._records.get_active()
        if earlier_stamp is not None:
            known_ids = {record.flow_run_id for record in active.values() if record.flow_run_id}
            conversation = delete_created_runs(self._service, earlier_stamp, known_ids)
            await self._hook.arun(conversation, send=self._transport.send)
        for key in keys:
            del active[key]
        run_ids = [record.flow_run_id for record in active.values() if record.flow_run_id]
        if run_ids and self._options.abort_on_kill and self._service.supports("get_run"):
            log.info("%d items are not in the batch any more; their flow runs are aborted", len(run_ids))
            await abort_killed_runs(self._hook, run_ids)
        for key, record in active.items():
            self._records.put(key, replace(record, state=ItemState.ABORTED))

    async def resume(self, item: BatchItem, *, after_deferral: bool = False) -> FlowRun | None:
        """Return the run that was started for an item before; None if a new one must be started.

        :param after_deferral: whether the run may have been started by this try, which was deferred since
            then. If it has failed, it is returned as well.
        :raises FlowServiceError: the state of the earlier run could not be determined.
        """
        record = self._records.get(item.key)
        if record is None or record.state not in {ItemState.ACTIVE, ItemState.COMPLETED}:
            return None
        if after_deferral and record.flow_run_id is not None and record.try_number == self._try_number:
            with suppress(FlowNotFound):
                own_run = await self._run(item, self._service.get_run(record.flow_run_id))
                if own_run.state not in {FlowState.CREATED, FlowState.ABORTING}:
                    return own_run
        token = self._records.header.create_token(item.key, record.attempts)
        saved_run: dict[str, Any] | None = None
        if not self._service.supports("get_run"):
            saved_run = await asyncio.to_thread(self._load_response, item.key, token)
            if saved_run is None:
                log.warning(MAY_HAVE_RUN, item.key, self._service.name)
                return None
        fingerprint = self._options.compute_fingerprint(item)
        run_record = RunRecord(
            record.fingerprint,
            self._records.header.generation,
            record.deadline,
            token,
            record.flow_run_id,
            saved_run,
        )
        run = await self._run(
            item,
            resume(
                self._service,
                fingerprint,
                run_record,
                self._records.header.generation,
                abort=self._options.abort_on_kill,
                on_missing=lambda flow_run_id: log.warning(MISSING_RUN, item.key, flow_run_id),
            ),
        )
        if run is not None and run.flow_run_id != record.flow_run_id:  # found by its stamp
            found = replace(record, flow_run_id=run.flow_run_id)
            await asyncio.to_thread(self._records.save, item.key, found)
        return run

    async def reserve_start(self) -> Reservation | None:
        """Return the permission to start a run, None if the account has too many active ones.

        :raises FlowQuotaExceeded: the account has started too many runs within the last 24 hours.
        :raises FlowServiceError: the account's runs could not be counted.
        """
        return await self._hook.arun(self._hook.account.reserve_start(), send=self._transport.send)

    async def start(self, item: BatchItem) -> FlowRun:
        """Start a new run for an item, or return a completed one whose outputs are reused.

        :raises FlowInputError: the item cannot be sent.
        :raises FlowServiceError: the run could not be started.
        :raises Exception: any error of the task state store; the run was not started.
        """
        if not self._service.staged_start:  # the response arrives when the run has ended
            return await self._start(item)
        async with self._start_slots:
            return await self._start(item)

    async def _start(self, item: BatchItem) -> FlowRun:
        header, options, earlier = self._records.header, self._options, self._records.get(item.key)
        fingerprint = options.compute_fingerprint(item)
        rejections = 0 if earlier is None else earlier.count_rejections(fingerprint)
        request = await asyncio.to_thread(self._prepare, item, rejections)
        if not isinstance(request, RunRequest):
            return request
        lookup = self._lookups.get(item.key)
        attempt = 1 if earlier is None else earlier.attempts + 1
        deadline = None if options.timeout is None else time.time() + options.timeout
        run_record = RunRecord(
            fingerprint,
            header.generation,
            deadline,
            header.create_token(item.key, attempt),
            conn_id=header.conn_id,
            host=header.host,
            created_by={
                **options.stamp,
                "batch_key": item.key,
                **({} if lookup is None else {STAMP_FIELD: lookup.fingerprint}),
                **({REJECTIONS_FIELD: rejections} if rejections else {}),
            },
        )
        new = self._create_record(run_record, earlier, attempt)
        unstarted = replace(new, state=ItemState.PENDING, attempts=attempt - 1)
        save = self._create_save(item.key, new, unstarted)
        try:
            with self._hook.account.check_quota(f"Item {item.key} was not started"):
                run = await self._run(item, start(self._service, request, run_record, save))
        except FlowServiceError as error:
            # with a rejected key the created run was not deleted, so that its record is needed to delete it
            is_left = isinstance(error, FlowAuthError) and self._service.staged_start
            if not error.outcome_unknown and not is_left:
                self._records.put(item.key, unstarted)
            raise
        except Exception:  # of the store, after which the start protocol has deleted the run
            if self._service.staged_start:
                self._records.put(item.key, unstarted)
            raise
        return run

    def _create_record(self, run_record: RunRecord, earlier: ItemRecord | None, attempt: int) -> ItemRecord:
        from airflow_provider_flows.batch.records import ItemRecord

        is_same_try = earlier is not None and earlier.try_number == self._try_number
        return ItemRecord(
            run_record.fingerprint,
            None,
            ItemState.ACTIVE,
            attempt,
            self._try_number,
            earlier.failures if earlier is not None and is_same_try else 0,
            run_record.deadline,
            0 if earlier is None else earlier.count_rejections(run_record.fingerprint),
        )

    def _prepare(self, item: BatchItem, rejections: int) -> RunRequest | FlowRun:
        """Return the validated request for an item, with what the flow's definition adds, or a reused run.

        :param rejections: how many runs of the item were rejected, which the new one replaces.
        """
        problems, output_options = Problems(), self._options.output_options
        with self._hook.copy_for_thread() as hook:
            hook.hidden_inputs = item.inputs
            request = self._options.build_request(item, hook, problems)
            if not problems:
                request, reused_request = self._options.change_seed(request, hook, rejections)
                host = hook.settings.base_url
                lookup = create_lookup(output_options, hook.service, host, reused_request)
                reused_run = find_reusable_run(output_options, lookup)
                if reused_run is not None:
                    return reused_run
                self._lookups[item.key] = lookup
            return hook.prepare(request, problems, validate=self._options.validate)

    def _create_save(
        self, key: str, new: ItemRecord, unstarted: ItemRecord
    ) -> Callable[[RunRecord | None], None]:
        """Return the function with which the start protocol saves the record of an item, in a thread.

        The id of a run that is created in a step of its own is saved before the run is started. The record
        before that can be omitted: the run is found by its stamp, and costs nothing until it is started.
        """
        is_staged = self._service.staged_start

        def save(record: RunRecord | None) -> None:
            if record is None:
                self._records.save(key, unstarted)
                return
            if record.flow_run_id is None and not is_staged:
                self._records.save(key, new)
            elif record.flow_run_id is not None and is_staged:
                self._records.save(key, replace(new, flow_run_id=record.flow_run_id))
            elif record.flow_run_id is not None:
                self._save_response(key, record, new)
                return
            if self._cancellation.event.is_set():
                raise FlowError(KILLED.format(key=key))

        return save

    def _save_response(self, key: str, record: RunRecord, new: ItemRecord) -> None:
        """Save a response that is paid for, and the record of the run. An error is logged only."""
        try:
            if record.saved_run is not None:
                sealed = seal_links(record.saved_run, self._hook.settings.secrets)
                if (lookup := self._lookups.get(key)) is not None:
                    sealed[STAMP_FIELD] = lookup.fingerprint
                self._get_response_storage(key).save_in_file(record.token, sealed)
            self._records.save(key, replace(new, flow_run_id=record.flow_run_id))
        except Exception as error:  # noqa: BLE001  # a store may raise anything
            log.error(LOST_RESPONSE, key, record.flow_run_id, type(error).__name__)  # noqa: TRY400  # no traceback

    def _get_response_storage(self, key: str) -> SavedRunStorage:
        options = self._options.output_options
        return SavedRunStorage(None, "", f"{options.output_path}/{key}", options.output_conn_id)

    def _load_response(self, key: str, token: str) -> dict[str, Any] | None:
        """Return the complete run that an earlier try has saved, with its signed links."""
        found = self._get_response_storage(key).find_file(token)
        if found is None:
            return None
        saved_run = open_links(found[0], self._hook.settings.secrets)
        run, options = FlowRun.from_record(saved_run), self._options.output_options
        self._lookups[key] = restore_lookup(options, saved_run.get(STAMP_FIELD), run)
        return saved_run

    def delete_response(self, key: str) -> None:
        """Delete the responses that were saved for an item, because its outputs are stored."""
        record = self._records.get(key)
        if record is not None and not self._service.supports("get_run"):
            storage = self._get_response_storage(key)
            for attempt in range(max(1, record.attempts - record.rejections), record.attempts + 1):
                storage.delete_file(self._records.header.create_token(key, attempt))

    async def wait(self, item: BatchItem, run: FlowRun) -> FlowRun:
        """Wait until a run is final, and return it. A run whose deadline passes is aborted.

        :raises FlowTimeout: the deadline passed.
        :raises FlowServiceError: a permanent error persists.
        """
        record, options = self._records.get(item.key), self._options
        deadline = None if record is None else record.deadline
        schedule = Schedule.of(options.poll_interval, options.max_poll_interval, deadline)
        wait = self._hook.create_wait(run.flow_run_id, schedule, lambda *_: None)
        wait.record_poll(run)  # a run that was just started or polled need not be polled at once
        wait.restore(wait.to_dict())
        try:
            final_run = await SharedPoller.for_hook(self._hook).wait_until_final(wait)
        except FlowTimeout as error:
            final_run = await asyncio.to_thread(self._settle_timeout, run.flow_run_id, error)
        return quote_errors(final_run, self._get_error_texts(item))

    def _settle_timeout(self, flow_run_id: str, error: FlowTimeout) -> FlowRun:
        policy = DeadlinePolicy.ABORT if self._options.abort_on_kill else DeadlinePolicy.LEAVE
        with self._hook.copy_for_thread() as hook:
            return finish_after_deadline(hook, flow_run_id, error, policy)

    async def fetch(self, item: BatchItem, run: FlowRun) -> FlowRun:
        """Fetch the outputs of a completed run into the item's folder, and return the run with them.

        :raises FlowServiceError: an output could not be fetched.
        :raises FlowOutputRejected: the outputs, which are stored, do not satisfy the checks.
        :raises CancelledWriteError: the task was killed.
        """
        async with self._fetch_slots:
            return await asyncio.to_thread(self._fetch, item, run)

    def _fetch(self, item: BatchItem, run: FlowRun) -> FlowRun:
        options = replace(self._options.output_options, folder_name=item.key, inputs=item.inputs)
        with self._hook.copy_for_thread() as hook:
            hook.hidden_inputs = item.inputs
            fetched_run, error = fetch_outputs(hook, run, options, None, self._cancellation)
        if error is not None:
            raise error
        if options.check_outputs is not None:
            fetched_run = fetched_run if run.reused else check_outputs(fetched_run, options)
            if (rejection := find_rejection(fetched_run)) is not None:
                raise rejection
        lookup = self._lookups.pop(item.key, None)
        if lookup is None:  # it was started in an earlier part of the task
            lookup = restore_lookup(options, get_stamp(run).get(STAMP_FIELD), run)
        save_reusable_run(options, lookup, fetched_run)
        return fetched_run

    async def _run(self, item: BatchItem, conversation: Conversation[T]) -> T:
        """Run a conversation, whose errors show no input of the item."""
        error_texts = self._get_error_texts(item)
        transport = self._transport.with_error_texts(error_texts)
        return quote_errors(await self._hook.arun(conversation, send=transport.send), error_texts)

    def _get_error_texts(self, item: BatchItem) -> ErrorTexts:
        return replace(self._hook.error_texts, inputs=item.inputs)
