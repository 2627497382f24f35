"""One poller for all waits of a connection on an event loop: one session, one rate limiter, one schedule.

When many runs are due, it sends one list request instead of many polls. The end of a run is never taken from
a list. Times are by the monotonic clock unless they are called epoch seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from contextvars import Context
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from airflow_provider_flows import metrics
from airflow_provider_flows.core.exceptions import (
    FlowError,
    FlowQuotaExceeded,
    FlowRateLimited,
    FlowServiceError,
)
from airflow_provider_flows.core.limits import LAST_POLL_GRACE_SECONDS
from airflow_provider_flows.core.polling.bulk import ActiveRuns, BulkPollPolicy, TimerQueue
from airflow_provider_flows.core.polling.schedule import Done, Failed, deadline_error
from airflow_provider_flows.core.retry import NO_RETRY, with_retries
from airflow_provider_flows.transport.asynchronous import run
from airflow_provider_flows.triggerer.per_loop import PerLoop

if TYPE_CHECKING:
    from airflow_provider_flows.base_hook import BaseFlowsHook
    from airflow_provider_flows.core.flow_run import FlowRun
    from airflow_provider_flows.core.http import Request, Response
    from airflow_provider_flows.core.polling.schedule import Delay, PollStep
    from airflow_provider_flows.core.polling.wait import Wait
    from airflow_provider_flows.transport.rate_limiter import RateLimitedTransport

MAX_CONCURRENT_POLLS = 32
RUNS_PER_LOOP_TURN = 200  # runs of a list that are processed before other tasks on the loop get a turn

# A list also includes runs that are due soon: within this fraction of their poll interval ...
LIST_EARLY_FRACTION = 0.9
COALESCE_SECONDS = 0.5  # ... or within this time; a new wait is delayed as long, so that others can join it
TICK_FRACTION = 0.1  # of the shortest poll interval: polls due within it are started in one go

LIST_TIMEOUT_SECONDS = 5.0  # for one page of a list
MAX_UNCHANGED_LISTS = 20  # in a row; then the run is polled itself, because lists may be outdated


class _ListSender:
    """Sends the requests of one list, and notes when the service read the runs."""

    def __init__(self, transport: RateLimitedTransport) -> None:
        self._transport = transport
        self.observed_at = 0.0  # epoch seconds

    async def send(self, request: Request) -> Response:
        metrics.count_list_poll()
        await self._transport.acquire()
        requested_at = time.time()
        deadline = time.monotonic() + LIST_TIMEOUT_SECONDS
        response = await self._transport.send_now(replace(request, deadline=deadline))
        # a long list takes a while to create, send and read, while its runs continue
        self.observed_at = (requested_at + time.time()) / 2
        return response


class Subscriber:
    """One wait in a poller, and the future that its trigger awaits."""

    __slots__ = ("_progress", "_unchanged_lists", "future", "needs_single_poll", "wait", "worker")

    def __init__(self, wait: Wait) -> None:
        self.wait = wait
        self.future: asyncio.Future[FlowRun] = asyncio.get_running_loop().create_future()
        self.needs_single_poll = self._is_near_deadline(0.0)  # whether the next poll must not be a list
        self.worker: asyncio.Task[None] | None = None  # that polls its run just now
        self._progress = 0.0
        self._unchanged_lists = 0

    def finish(self, final_run: FlowRun) -> None:
        """End the wait with its final run."""
        if not self.future.done():
            self.future.set_result(final_run)

    def fail(self, error: BaseException | None) -> None:
        """End the wait with an error; one that is no FlowError is wrapped in one that names the run."""
        if not self.future.done():
            message = (
                f"The wait for flow run {self.wait.flow_run_id} failed unexpectedly ({error!r}). "
                "The run continues, and the next try resumes it."
            )
            self.future.set_exception(error if isinstance(error, FlowError) else FlowError(message))

    def plan_poll(self, delay: Delay, policy: BulkPollPolicy) -> None:
        """Decide whether the poll after a delay may be a list."""
        wait, previous = self.wait, self._progress
        flow_run = wait.poll_state.run
        self._progress = flow_run.progress if flow_run else 0.0
        is_unchanged_list = not self.needs_single_poll and self._progress == previous
        self._unchanged_lists = self._unchanged_lists + 1 if is_unchanged_list else 0
        is_covered = policy.covers(flow_run, wait.flow_run_id) and self._unchanged_lists < MAX_UNCHANGED_LISTS
        self.needs_single_poll = (
            delay.is_at_expected_end or not is_covered or self._is_near_deadline(delay.seconds)
        )

    def _is_near_deadline(self, delay: float) -> bool:
        """Return whether the deadline would be too near, after this delay, for a list that times out."""
        remaining = self.wait.seconds_left()
        return remaining is not None and remaining - delay <= LIST_TIMEOUT_SECONDS


class PollPlan(NamedTuple):
    """Which subscribers to poll now.

    :param single: to be polled one by one.
    :param batch: to be polled with one list.
    :param postponed: due, but left to the next list, because one is in progress.
    """

    single: Sequence[Subscriber]
    batch: Sequence[Subscriber] = ()
    postponed: Sequence[Subscriber] = ()


_POLLERS: PerLoop[list[SharedPoller]] = PerLoop(list)  # a poller removes itself when its task ends


class SharedPoller:
    """Waits for the flow runs of one connection.

    Its task ends when the last wait has ended; the next wait gets a new poller.
    """

    def __init__(self, hook: BaseFlowsHook) -> None:
        """Prepare the poller; nothing is opened before the first wait."""
        self.hook = hook
        self._identity = (type(hook), hook.settings, hook.extra)
        self._service = hook.service
        self._bulk_policy = BulkPollPolicy()
        self._subscribers: dict[Subscriber, None] = {}  # a dict, because it has an order
        self._poll_timers: TimerQueue[Subscriber] = TimerQueue()
        self._deadlines: TimerQueue[Subscriber] = TimerQueue()
        self._batch: Sequence[Subscriber] = ()  # to be polled with a list by the next free worker
        self._due: deque[Subscriber] = deque()  # to be polled one by one by the next free workers
        self._workers: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._is_list_running = False  # or about to run
        self._tick = 1.0
        self._reported_at = 0.0
        self._task: asyncio.Task[None] | None = None
        self._transport: RateLimitedTransport

    @classmethod
    def for_hook(cls, hook: BaseFlowsHook) -> SharedPoller:
        """Return the running loop's poller for hooks of the same type, settings and credentials."""
        pollers = _POLLERS.get()
        for poller in pollers:
            if poller.hook is hook or poller._identity == (type(hook), hook.settings, hook.extra):  # noqa: SLF001  # its own
                poller.hook = hook  # the next call is most likely for the same one
                return poller
        pollers.append(new_poller := cls(hook))
        return new_poller

    async def wait_until_final(self, wait: Wait) -> FlowRun:
        """Wait until a run is final, and return it.

        :raises FlowTimeout: the deadline passed first.
        :raises FlowServiceError: a permanent error (401, 404, ...) for the third time.
        :raises FlowError: any other error, of a service's code or of this module.
        """
        subscriber = Subscriber(wait)
        self._add(subscriber)
        if self._task is None:
            # in an empty context, because it must not log as the trigger that happens to be first
            self._task = asyncio.get_running_loop().create_task(self._run(), context=Context())
        try:
            return await subscriber.future
        finally:
            self._remove(subscriber)

    def _add(self, subscriber: Subscriber) -> None:
        wait, now = subscriber.wait, time.monotonic()
        self._subscribers[subscriber] = None
        self._tick = min(self._tick, TICK_FRACTION * wait.schedule.poll_interval)
        delay = wait.initial_delay()
        if len(self._subscribers) > 1 and not subscriber.needs_single_poll:
            delay = max(delay, COALESCE_SECONDS)  # others may join at the same time, and share a list
        self._schedule(self._poll_timers, subscriber, now + delay)
        if (remaining := wait.seconds_left()) is not None:
            self._schedule(self._deadlines, subscriber, now + remaining + LAST_POLL_GRACE_SECONDS)

    def _remove(self, subscriber: Subscriber) -> None:
        del self._subscribers[subscriber]
        self._poll_timers.discard(subscriber)
        self._deadlines.discard(subscriber)
        self._bulk_policy.forget(subscriber.wait.flow_run_id)
        if subscriber.worker is not None:
            subscriber.worker.cancel()
        if not self._subscribers:
            self._wake.set()

    async def _run(self) -> None:
        """Poll with one session while there are subscribers; fail all of them if that breaks."""
        failure: BaseException | None = None
        try:
            async with self.hook.async_transport() as transport, asyncio.TaskGroup() as group:
                self._transport = transport
                await self._dispatch_polls(group)
        except BaseException as error:  # any error, because all subscribers wait for this task
            failure = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error
            if not isinstance(error, Exception):
                raise
        finally:
            self._unregister()
            for subscriber in self._subscribers:
                subscriber.fail(failure)

    async def _dispatch_polls(self, group: asyncio.TaskGroup) -> None:
        """Start polls when they are due, and end waits at their deadlines, until no subscriber is left."""
        while self._subscribers:
            now = time.monotonic()
            if now - self._reported_at >= 1:
                self._reported_at = now
                _report_waiting_runs()
            self._wake.clear()
            for subscriber in self._deadlines.pop_due(now):  # here, not in a worker, whose poll may hang
                subscriber.fail(deadline_error(subscriber.wait.poll_state))
            if not self._due and not self._batch:
                self._apply(self._plan(now), now)
            queued = len(self._due) + bool(self._batch)
            for _ in range(min(queued, MAX_CONCURRENT_POLLS - len(self._workers))):
                self._workers.add(group.create_task(self._work()))
            await self._wait_until_due()
        self._unregister()  # at once, because a new wait needs a poller that continues
        for worker in self._workers:
            worker.cancel()

    def _plan(self, now: float) -> PollPlan:
        """Decide whom to poll now, and how. This changes nothing."""
        due = self._poll_timers.due_by(now)
        first = next((one for one in due if not one.needs_single_poll), None)
        if first is None:
            return PollPlan(due)
        if self._is_list_running:  # the service may have read its runs before these were due
            single, postponed = _split_by_list(due)
            return PollPlan(single, postponed=postponed)
        break_even = self._break_even(now)
        if break_even <= len(self._subscribers):
            horizon = max(COALESCE_SECONDS, first.wait.schedule.poll_interval * LIST_EARLY_FRACTION)
            batch = [one for one in self._poll_timers.due_by(now + horizon) if not one.needs_single_poll]
            if len(batch) >= break_even:
                return PollPlan(_split_by_list(due)[0], batch)
        return PollPlan(due)

    def _apply(self, plan: PollPlan, now: float) -> None:
        """Queue the planned polls for the workers."""
        for subscriber in plan.postponed:
            self._poll_timers.schedule(subscriber, now + COALESCE_SECONDS)
        for subscriber in (*plan.batch, *plan.single):
            self._poll_timers.discard(subscriber)
        self._batch = plan.batch
        self._is_list_running = self._is_list_running or bool(plan.batch)
        self._due.extend(plan.single)

    def _break_even(self, now: float) -> float:
        return self._bulk_policy.break_even(now) if self._service.supports("list_active") else float("inf")

    async def _work(self) -> None:
        """Run queued polls one after the other until the queue is empty."""
        current_task = asyncio.current_task()
        assert current_task is not None  # noqa: S101  # for mypy; it runs in a task
        try:
            while self._batch or self._due:
                if self._batch:
                    batch, self._batch = self._batch, ()
                    await self._poll_list(batch)
                elif (subscriber := self._due.popleft()) in self._subscribers:
                    subscriber.worker = current_task
                    await self._poll_one(subscriber)
                    subscriber.worker = None
        finally:
            if len(self._workers) == MAX_CONCURRENT_POLLS:  # then due polls wait for a free worker
                self._wake.set()
            self._workers.discard(current_task)

    def _unregister(self) -> None:
        with suppress(ValueError):
            _POLLERS.get().remove(self)
            _report_waiting_runs()

    async def _wait_until_due(self) -> None:
        """Sleep until a poll or a deadline is due; without a free worker, until a deadline is."""
        has_free_worker = len(self._workers) < MAX_CONCURRENT_POLLS
        queues = (self._poll_timers, self._deadlines) if has_free_worker else (self._deadlines,)
        due = min((next_due for queue in queues if (next_due := queue.next_due()) is not None), default=None)
        delay = None if due is None else due - time.monotonic()
        if delay is not None and delay <= self._tick:
            await asyncio.sleep(self._tick)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._wake.wait()

    def _schedule(self, queue: TimerQueue[Subscriber], subscriber: Subscriber, due: float) -> None:
        previous = queue.next_due()
        queue.schedule(subscriber, due)
        if previous is None or due < previous:
            self._wake.set()

    async def _poll_one(self, subscriber: Subscriber) -> None:
        """Poll one run; any error ends only its own wait."""
        try:
            step = await run(with_retries(subscriber.wait.poll(), NO_RETRY), self._transport.send)
            poll_state = subscriber.wait.poll_state
            if poll_state.run is not None and poll_state.last_error is None:
                self._bulk_policy.record_single_poll(poll_state.run, time.monotonic())
            self._apply_step(subscriber, step)
        except Exception as error:  # noqa: BLE001  # any error, because the other waits continue
            subscriber.fail(error)

    async def _poll_list(self, batch: Sequence[Subscriber]) -> None:
        """Poll with a list; then poll the runs that are missing from it, or vanished since the last one."""
        sender, active_runs, vanished_ids = _ListSender(self._transport), ActiveRuns(), set[str]()
        flow_run_ids = {subscriber.wait.flow_run_id for subscriber in batch}
        try:
            listing = with_retries(self._service.list_active(flow_run_ids), NO_RETRY)
            active_runs = await run(listing, sender.send)
            vanished_ids = self._bulk_policy.record_list(active_runs)
        except FlowServiceError as error:
            if isinstance(error, (FlowQuotaExceeded, FlowRateLimited)) or getattr(error, "retry_after", None):
                self._postpone(batch)
                return
            self._bulk_policy.record_list_failure(time.monotonic())
        finally:
            self._is_list_running = False
        for number, subscriber in enumerate(batch, start=1):
            self._apply_list(subscriber, active_runs, sender.observed_at)
            if number % RUNS_PER_LOOP_TURN == 0:
                await asyncio.sleep(0)
        if vanished_ids:
            for subscriber in [one for one in self._subscribers if one.wait.flow_run_id in vanished_ids]:
                self._schedule_single_poll(subscriber)

    def _postpone(self, batch: Sequence[Subscriber]) -> None:
        """Schedule another list after a rate-limited one; single polls would be even more requests."""
        for subscriber in batch:
            if subscriber in self._subscribers:
                due = time.monotonic() + subscriber.wait.schedule.poll_interval
                self._poll_timers.schedule(subscriber, due)
        self._wake.set()

    def _apply_list(self, subscriber: Subscriber, active_runs: ActiveRuns, observed_at: float) -> None:
        flow_run = active_runs.runs.get(subscriber.wait.flow_run_id)
        if flow_run is None or flow_run.is_final:  # the end of a run is taken from a poll of its own
            self._bulk_policy.record_missing(subscriber.wait.flow_run_id)
            self._schedule_single_poll(subscriber)
            return
        try:
            self._apply_step(subscriber, subscriber.wait.record_poll(flow_run, observed_at))
        except Exception as error:  # noqa: BLE001  # as in _poll_one
            subscriber.fail(error)

    def _schedule_single_poll(self, subscriber: Subscriber) -> None:
        subscriber.needs_single_poll = True
        if subscriber in self._subscribers:
            self._schedule(self._poll_timers, subscriber, time.monotonic())

    def _apply_step(self, subscriber: Subscriber, step: PollStep) -> None:
        """Schedule the next poll of a run, or end its wait."""
        if isinstance(step, Done):
            subscriber.finish(step.run)
        elif isinstance(step, Failed):
            subscriber.fail(step.error)
        else:
            subscriber.plan_poll(step, self._bulk_policy)
            if subscriber in self._subscribers:
                self._schedule(self._poll_timers, subscriber, time.monotonic() + step.seconds)


def _split_by_list(subscribers: Sequence[Subscriber]) -> tuple[list[Subscriber], list[Subscriber]]:
    """Return the subscribers that need a poll of their own, and those that a list may cover."""
    single = [one for one in subscribers if one.needs_single_poll]
    return single, [one for one in subscribers if not one.needs_single_poll]


def _report_waiting_runs() -> None:
    """Report how many runs the pollers of the running loop wait for."""
    metrics.set_waiting_runs(sum(len(poller._subscribers) for poller in _POLLERS.get()))  # noqa: SLF001  # their own module
