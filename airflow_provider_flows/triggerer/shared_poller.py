"""One watch for all waits of a connection in one event loop: one session, one rate gate, one schedule, few looks.

What a look is and when it is due stands in flow/waiting.py and flow/schedule.py, when a list pays in flow/listing.py. The watch
looks no connection up, fetches no outputs, stops no run and ends no task.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from contextvars import Context
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from airflow_provider_flows import metrics
from airflow_provider_flows.core.exceptions import FlowRateLimited, FlowServiceError
from airflow_provider_flows.core.polling.bulk import ActiveRuns, BulkPollPolicy
from airflow_provider_flows.core.polling.timer_queue import TimerQueue
from airflow_provider_flows.core.retry import NO_RETRY, with_retries
from airflow_provider_flows.transport.asynchronous import run
from airflow_provider_flows.triggerer.rate_limited_transport import RateLimitedTransport
from airflow_provider_flows.triggerer.subscriber import LIST_TIMEOUT_SECONDS, Subscriber

if TYPE_CHECKING:
    from airflow_provider_flows.base_hook import BaseFlowsHook
    from airflow_provider_flows.core.http import Request, Response
    from airflow_provider_flows.core.polling.wait import Wait
    from airflow_provider_flows.core.run import FlowRun

MAX_CONCURRENT_POLLS = 32  # looks
COALESCE_SECONDS = 0.5  # seconds; who comes or is due so soon is asked about together with who is due now
LIST_EARLY_FRACTION = 0.9  # of a poll interval; so much too early a list is looked at rather than another one
TICK_FRACTION = 0.1  # of a poll interval; what is due within it is done in one go
LAST_POLL_GRACE_SECONDS = 2.0  # seconds that the last look, which begins at the deadline, may take
RUNS_PER_LOOP_TURN = 200  # runs of a list that are dealt with before others have their turn on the loop

_POLLERS: WeakKeyDictionary[asyncio.AbstractEventLoop, list[SharedPoller]] = WeakKeyDictionary()


class SharedPoller:
    """Waits for the flow runs of one connection.

    Its task ends by itself when nobody waits any more; who comes later gets a new watch. Its moments are the monotonic clock's.
    """

    def __init__(self, hook: BaseFlowsHook) -> None:
        """Prepare; nothing is opened before the first subscriber."""
        self.hook = hook
        self._identity = (type(hook), hook.settings, hook.extra)
        self._service = hook.service
        self._bulk_policy = BulkPollPolicy()
        self._subscribers: dict[
            Subscriber, None
        ] = {}  # a dict keeps their order, so that all have their turn
        self._poll_timers: TimerQueue[Subscriber] = TimerQueue()
        self._deadlines: TimerQueue[Subscriber] = TimerQueue()
        self._due: deque[Subscriber | list[Subscriber]] = deque()  # looks at one run, or at a list for many
        self._workers: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._is_list_running = False
        self._tick = 1.0  # seconds
        self._reported_at = 0.0
        self._task: asyncio.Task[None] | None = None
        self._transport: RateLimitedTransport

    @classmethod
    def for_hook(cls, hook: BaseFlowsHook) -> SharedPoller:
        """Give the running loop's watch for this connection: the same kind, settings and credentials."""
        pollers = _POLLERS.setdefault(asyncio.get_running_loop(), [])
        for poller in pollers:
            if poller.hook is hook or poller._identity == (type(hook), hook.settings, hook.extra):  # noqa: SLF001  # its own
                poller.hook = hook  # the latest of equal ones, which the next is most likely to be
                return poller
        pollers.append(new_poller := cls(hook))
        return new_poller

    async def wait_until_final(self, wait: Wait) -> FlowRun:
        """Wait until a run is final.

        :raises FlowTimeout: the deadline passed first.
        :raises FlowServiceError: an answer that will not get better by waiting (401, 404, ...).
        :raises FlowError: the watch itself broke.
        """
        subscriber = Subscriber(wait)
        self._subscribers[subscriber] = None
        self._tick = min(self._tick, TICK_FRACTION * wait.schedule.poll_interval)
        has_others = (
            len(self._subscribers) > 1
        )  # then others may come in the same moment, and be asked about at once
        now = time.monotonic()
        self._schedule(
            self._poll_timers,
            subscriber,
            now
            + max(
                wait.initial_delay(),
                COALESCE_SECONDS if has_others and not subscriber.needs_single_poll else 0.0,
            ),
        )
        if (remaining := wait.seconds_left()) is not None:
            self._schedule(self._deadlines, subscriber, now + remaining + LAST_POLL_GRACE_SECONDS)
        if self._task is None:
            # in a context of its own: it must not log as the trigger that happened to be first
            self._task = asyncio.get_running_loop().create_task(self._run(), context=Context())
        try:
            return await subscriber.future
        finally:
            del self._subscribers[subscriber]
            self._poll_timers.cancel(subscriber)
            self._deadlines.cancel(subscriber)
            self._bulk_policy.forget(wait.flow_run_id)
            if subscriber.worker is not None:
                subscriber.worker.cancel()
            if not self._subscribers:
                self._wake.set()

    async def _run(self) -> None:
        """Hold the session open while somebody waits, and tell everybody if anything breaks."""
        failure: BaseException | None = None
        try:
            async with self.hook.async_transport() as transport, asyncio.TaskGroup() as group:
                self._transport = RateLimitedTransport(transport, self.hook)
                await self._dispatch_polls(group)
        except BaseException as error:  # whatever ends the watch must be told to all who wait in it
            failure = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error
            if not isinstance(error, Exception):
                raise
        finally:
            self._unregister()
            for subscriber in self._subscribers:
                subscriber.fail(failure)

    async def _dispatch_polls(self, group: asyncio.TaskGroup) -> None:
        """Let looks be made as they become due, and deadlines be told, until nobody waits."""
        while self._subscribers:
            now = time.monotonic()
            if now - self._reported_at >= 1:
                self._reported_at = now
                _report_waiting_runs()
            self._wake.clear()
            for subscriber in self._deadlines.pop_due(now):  # here, and not by whoever looks: a look may hang
                subscriber.fail(subscriber.wait.deadline_error())
            if not self._due:
                self._due.extend(self._due_polls(now))
            for _ in range(min(len(self._due), MAX_CONCURRENT_POLLS - len(self._workers))):
                self._workers.add(group.create_task(self._work()))
            await self._wait_until_due()
        self._unregister()  # at once: whoever comes from now on needs a watch that goes on
        for worker in self._workers:
            worker.cancel()

    async def _work(self) -> None:
        """Make the looks that are due, one after the other, until none is left."""
        current_task = asyncio.current_task()
        assert current_task is not None  # noqa: S101  # for mypy; it runs in a task
        try:
            while self._due:
                due = self._due.popleft()
                if not isinstance(due, Subscriber):
                    await self._poll_list(due)
                elif due in self._subscribers:
                    due.worker = current_task
                    await self._poll_one(due)
                    due.worker = None
        finally:
            if len(self._workers) == MAX_CONCURRENT_POLLS:  # then whoever became due waits for a place
                self._wake.set()
            self._workers.discard(current_task)

    def _unregister(self) -> None:
        with suppress(ValueError):
            _POLLERS[asyncio.get_running_loop()].remove(self)
            _report_waiting_runs()

    async def _wait_until_due(self) -> None:
        queues = (
            (self._deadlines,)
            if len(self._workers) == MAX_CONCURRENT_POLLS
            else (self._poll_timers, self._deadlines)
        )
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

    def _due_polls(self, now: float) -> Iterator[Subscriber | list[Subscriber]]:
        """Give the looks that are due: one at a list for all whom it may tell of where that pays, else one at each run."""
        due = self._poll_timers.pop_due(now)
        batch = [subscriber for subscriber in due if not subscriber.needs_single_poll]
        if (
            batch and self._is_list_running
        ):  # it was asked before they were due, and need not tell of them: the next one will
            for subscriber in batch:
                self._poll_timers.schedule(subscriber, now + COALESCE_SECONDS)
        elif batch and (break_even := self._break_even(now)) <= len(self._subscribers):
            due_soon = self._poll_timers.pop_due(
                now + max(COALESCE_SECONDS, batch[0].wait.schedule.poll_interval * LIST_EARLY_FRACTION)
            )
            batch += [subscriber for subscriber in due_soon if not subscriber.needs_single_poll]
            if len(batch) >= break_even:
                self._is_list_running = True
                yield batch
            else:
                batch = []
            for subscriber in due_soon.keys() - set(batch):
                self._poll_timers.schedule(subscriber, due_soon[subscriber])
        else:
            batch = []
        batch_members = set(batch)
        yield from (subscriber for subscriber in due if subscriber not in batch_members)

    def _break_even(self, now: float) -> float:
        return self._bulk_policy.break_even(now) if self._service.supports("list_active") else float("inf")

    async def _poll_one(self, subscriber: Subscriber) -> None:
        """Look at one run; whatever goes wrong is told to its subscriber, and to nobody else."""
        try:
            flow_run = await run(with_retries(subscriber.wait.poll_once(), NO_RETRY), self._transport.send)
            if flow_run is not None:
                self._bulk_policy.record_single_poll(flow_run, time.monotonic())
            if flow_run is None or not flow_run.is_final:
                self._reschedule(subscriber)
            elif not subscriber.future.done():
                subscriber.future.set_result(flow_run)
        except Exception as error:  # noqa: BLE001  # it may be anything, and the others' waits must go on
            subscriber.fail(error)

    async def _poll_list(self, batch: Sequence[Subscriber]) -> None:
        """Look at the list; who waits for it and is not named there is looked at alone, as is who was named there before."""
        observed_at = 0.0

        async def send(request: Request) -> Response:
            nonlocal observed_at
            metrics.count_list_poll()
            await self._transport.acquire()
            requested_at = time.time()
            async with asyncio.timeout(LIST_TIMEOUT_SECONDS):
                response = await self._transport.send_acquired(request)
            observed_at = (
                requested_at + time.time()
            ) / 2  # a long list takes a while to be made, sent and read, and its runs go on meanwhile
            return response

        active_runs, gone = ActiveRuns(), set[str]()
        try:
            active_runs = await run(
                with_retries(self._service.list_active({one.wait.flow_run_id for one in batch}), NO_RETRY),
                send,
            )
            gone = self._bulk_policy.record_list(active_runs)
        except (FlowServiceError, TimeoutError) as error:
            if isinstance(error, FlowRateLimited) or getattr(error, "retry_after", None):
                self._postpone(batch)
                return
            self._bulk_policy.record_list_failure(time.monotonic())
        finally:
            self._is_list_running = False
        for number, subscriber in enumerate(batch):
            self._apply_list(subscriber, active_runs, observed_at)
            if number % RUNS_PER_LOOP_TURN == RUNS_PER_LOOP_TURN - 1:
                await asyncio.sleep(0)
        for subscriber in [one for one in self._subscribers if one.wait.flow_run_id in gone] if gone else []:
            self._schedule_single_poll(subscriber)

    def _postpone(self, subscribers: Sequence[Subscriber]) -> None:
        """Let who waited for a list that was refused wait again: a look at each run is the last thing the service wants now."""
        for subscriber in subscribers:
            if subscriber in self._subscribers:
                self._poll_timers.schedule(
                    subscriber, time.monotonic() + subscriber.wait.schedule.poll_interval
                )
        self._wake.set()

    def _apply_list(self, subscriber: Subscriber, active_runs: ActiveRuns, observed_at: float) -> None:
        run = active_runs.runs.get(subscriber.wait.flow_run_id)
        if run is None:
            self._bulk_policy.record_missing(subscriber.wait.flow_run_id)
            self._schedule_single_poll(subscriber)
            return
        try:
            subscriber.wait.record_poll(run, observed_at)
            self._reschedule(subscriber)
        except Exception as error:  # noqa: BLE001  # as in a look
            subscriber.fail(error)

    def _schedule_single_poll(self, subscriber: Subscriber) -> None:
        subscriber.needs_single_poll = True
        if subscriber in self._subscribers:
            self._schedule(self._poll_timers, subscriber, time.monotonic())

    def _reschedule(self, subscriber: Subscriber) -> None:
        delay = subscriber.next_delay(self._bulk_policy)
        if subscriber in self._subscribers:
            self._schedule(self._poll_timers, subscriber, time.monotonic() + delay)


def _report_waiting_runs() -> None:
    """Show how many runs this loop's watches wait for."""
    pollers = _POLLERS.get(asyncio.get_running_loop(), [])
    metrics.set_waiting_runs(sum(len(poller._subscribers) for poller in pollers))  # noqa: SLF001  # their own module's
