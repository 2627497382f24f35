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
from airflow_provider_flows.core.polling.bulk import Glance, Listing
from airflow_provider_flows.core.polling.timer_queue import Agenda
from airflow_provider_flows.core.retry import once
from airflow_provider_flows.transport.asynchronous import hold
from airflow_provider_flows.triggerer.rate_limited_transport import GatedTransport
from airflow_provider_flows.triggerer.subscriber import LIST_SECONDS, Subscriber

if TYPE_CHECKING:
    from airflow_provider_flows.base_hook import ConnectedHook
    from airflow_provider_flows.core.http import Request, Response
    from airflow_provider_flows.core.polling.wait import Wait
    from airflow_provider_flows.core.run import FlowRun

MOST_AT_ONCE = 32  # looks
SOON = 0.5  # seconds; who comes or is due so soon is asked about together with who is due now
EARLY = 0.9  # of a poll interval; so much too early a list is looked at rather than another one
TICK = 0.1  # of a poll interval; what is due within it is done in one go
GRACE = 2.0  # seconds that the last look, which begins at the deadline, may take
A_TURN = 200  # runs of a list that are dealt with before others have their turn on the loop

_WATCHES: WeakKeyDictionary[asyncio.AbstractEventLoop, list[Watch]] = WeakKeyDictionary()


class Watch:
    """Waits for the flow runs of one connection.

    Its task ends by itself when nobody waits any more; who comes later gets a new watch. Its moments are the monotonic clock's.
    """

    def __init__(self, hook: ConnectedHook) -> None:
        """Prepare; nothing is opened before the first subscriber."""
        self.hook = hook
        self._kind = (type(hook), hook.settings, hook.extra)
        self._service = hook.service
        self._listing = Listing()
        self._subscribers: dict[
            Subscriber, None
        ] = {}  # a dict keeps their order, so that all have their turn
        self._agenda: Agenda[Subscriber] = Agenda()
        self._deadlines: Agenda[Subscriber] = Agenda()
        self._due: deque[Subscriber | list[Subscriber]] = deque()  # looks at one run, or at a list for many
        self._workers: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._list_under_way = False
        self._tick = 1.0  # seconds
        self._shown = 0.0
        self._task: asyncio.Task[None] | None = None
        self._transport: GatedTransport

    @classmethod
    def of(cls, hook: ConnectedHook) -> Watch:
        """Give the running loop's watch for this connection: the same kind, settings and credentials."""
        watches = _WATCHES.setdefault(asyncio.get_running_loop(), [])
        for found in watches:
            if found.hook is hook or found._kind == (type(hook), hook.settings, hook.extra):  # noqa: SLF001  # its own
                found.hook = hook  # the latest of equal ones, which the next is most likely to be
                return found
        watches.append(made := cls(hook))
        return made

    async def until_final(self, wait: Wait) -> FlowRun:
        """Wait until a run is final.

        :raises FlowTimeout: the deadline passed first.
        :raises FlowServiceError: an answer that will not get better by waiting (401, 404, ...).
        :raises FlowError: the watch itself broke.
        """
        subscriber = Subscriber(wait)
        self._subscribers[subscriber] = None
        self._tick = min(self._tick, TICK * wait.schedule.poll_interval)
        together = (
            len(self._subscribers) > 1
        )  # then others may come in the same moment, and be asked about at once
        now = time.monotonic()
        self._put(
            self._agenda,
            subscriber,
            now + max(wait.first_pause(), SOON if together and not subscriber.alone else 0.0),
        )
        if (left := wait.seconds_left()) is not None:
            self._put(self._deadlines, subscriber, now + left + GRACE)
        if self._task is None:
            # in a context of its own: it must not log as the trigger that happened to be first
            self._task = asyncio.get_running_loop().create_task(self._run(), context=Context())
        try:
            return await subscriber.end
        finally:
            del self._subscribers[subscriber]
            self._agenda.drop(subscriber)
            self._deadlines.drop(subscriber)
            self._listing.over(wait.flow_run_id)
            if subscriber.worker is not None:
                subscriber.worker.cancel()
            if not self._subscribers:
                self._wake.set()

    async def _run(self) -> None:
        """Hold the session open while somebody waits, and tell everybody if anything breaks."""
        trouble: BaseException | None = None
        try:
            async with self.hook.async_transport() as transport, asyncio.TaskGroup() as group:
                self._transport = GatedTransport(transport, self.hook)
                await self._look_in_time(group)
        except BaseException as error:  # whatever ends the watch must be told to all who wait in it
            trouble = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error
            if not isinstance(error, Exception):
                raise
        finally:
            self._leave()
            for subscriber in self._subscribers:
                subscriber.fail(trouble)

    async def _look_in_time(self, group: asyncio.TaskGroup) -> None:
        """Let looks be made as they become due, and deadlines be told, until nobody waits."""
        while self._subscribers:
            now = time.monotonic()
            if now - self._shown >= 1:
                self._shown = now
                _show()
            self._wake.clear()
            for subscriber in self._deadlines.take(now):  # here, and not by whoever looks: a look may hang
                subscriber.fail(subscriber.wait.too_late())
            if not self._due:
                self._due.extend(self._due_looks(now))
            for _ in range(min(len(self._due), MOST_AT_ONCE - len(self._workers))):
                self._workers.add(group.create_task(self._work()))
            await self._until_due()
        self._leave()  # at once: whoever comes from now on needs a watch that goes on
        for worker in self._workers:
            worker.cancel()

    async def _work(self) -> None:
        """Make the looks that are due, one after the other, until none is left."""
        me = asyncio.current_task()
        assert me is not None  # noqa: S101  # for mypy; it runs in a task
        try:
            while self._due:
                due = self._due.popleft()
                if not isinstance(due, Subscriber):
                    await self._look_at_all(due)
                elif due in self._subscribers:
                    due.worker = me
                    await self._look(due)
                    due.worker = None
        finally:
            if len(self._workers) == MOST_AT_ONCE:  # then whoever became due waits for a place
                self._wake.set()
            self._workers.discard(me)

    def _leave(self) -> None:
        with suppress(ValueError):
            _WATCHES[asyncio.get_running_loop()].remove(self)
            _show()

    async def _until_due(self) -> None:
        agendas = (
            (self._deadlines,) if len(self._workers) == MOST_AT_ONCE else (self._agenda, self._deadlines)
        )
        due = min((moment for agenda in agendas if (moment := agenda.next()) is not None), default=None)
        delay = None if due is None else due - time.monotonic()
        if delay is not None and delay <= self._tick:
            await asyncio.sleep(self._tick)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._wake.wait()

    def _put(self, agenda: Agenda[Subscriber], subscriber: Subscriber, due: float) -> None:
        before = agenda.next()
        agenda.put(subscriber, due)
        if before is None or due < before:
            self._wake.set()

    def _due_looks(self, now: float) -> Iterator[Subscriber | list[Subscriber]]:
        """Give the looks that are due: one at a list for all whom it may tell of where that pays, else one at each run."""
        due = self._agenda.take(now)
        together = [subscriber for subscriber in due if not subscriber.alone]
        if (
            together and self._list_under_way
        ):  # it was asked before they were due, and need not tell of them: the next one will
            for subscriber in together:
                self._agenda.put(subscriber, now + SOON)
        elif together and (worth := self._worth(now)) <= len(self._subscribers):
            soon = self._agenda.take(now + max(SOON, together[0].wait.schedule.poll_interval * EARLY))
            together += [subscriber for subscriber in soon if not subscriber.alone]
            if len(together) >= worth:
                self._list_under_way = True
                yield together
            else:
                together = []
            for subscriber in soon.keys() - set(together):
                self._agenda.put(subscriber, soon[subscriber])
        else:
            together = []
        told = set(together)
        yield from (subscriber for subscriber in due if subscriber not in told)

    def _worth(self, now: float) -> float:
        return self._listing.worth(now) if self._service.offers("glance") else float("inf")

    async def _look(self, subscriber: Subscriber) -> None:
        """Look at one run; whatever goes wrong is told to its subscriber, and to nobody else."""
        try:
            run = await hold(once(subscriber.wait.glimpse()), self._transport.send)
            if run is not None:
                self._listing.looked(run, time.monotonic())
            if run is None or not run.final:
                self._reschedule(subscriber)
            elif not subscriber.end.done():
                subscriber.end.set_result(run)
        except Exception as error:  # noqa: BLE001  # it may be anything, and the others' waits must go on
            subscriber.fail(error)

    async def _look_at_all(self, waiting: Sequence[Subscriber]) -> None:
        """Look at the list; who waits for it and is not named there is looked at alone, as is who was named there before."""
        at = 0.0

        async def send(request: Request) -> Response:
            nonlocal at
            metrics.listed()
            await self._transport.admitted()
            asked = time.time()
            async with asyncio.timeout(LIST_SECONDS):
                response = await self._transport.sent(request)
            at = (
                asked + time.time()
            ) / 2  # a long list takes a while to be made, sent and read, and its runs go on meanwhile
            return response

        glance, gone = Glance(), set[str]()
        try:
            glance = await hold(once(self._service.glance({one.wait.flow_run_id for one in waiting})), send)
            gone = self._listing.answered(glance)
        except (FlowServiceError, TimeoutError) as error:
            if isinstance(error, FlowRateLimited) or getattr(error, "retry_after", None):
                self._postpone(waiting)
                return
            self._listing.failed(time.monotonic())
        finally:
            self._list_under_way = False
        for number, subscriber in enumerate(waiting):
            self._told_by_list(subscriber, glance, at)
            if number % A_TURN == A_TURN - 1:
                await asyncio.sleep(0)
        for subscriber in [one for one in self._subscribers if one.wait.flow_run_id in gone] if gone else []:
            self._look_alone(subscriber)

    def _postpone(self, subscribers: Sequence[Subscriber]) -> None:
        """Let who waited for a list that was refused wait again: a look at each run is the last thing the service wants now."""
        for subscriber in subscribers:
            if subscriber in self._subscribers:
                self._agenda.put(subscriber, time.monotonic() + subscriber.wait.schedule.poll_interval)
        self._wake.set()

    def _told_by_list(self, subscriber: Subscriber, glance: Glance, at: float) -> None:
        run = glance.runs.get(subscriber.wait.flow_run_id)
        if run is None:
            self._listing.absent(subscriber.wait.flow_run_id)
            self._look_alone(subscriber)
            return
        try:
            subscriber.wait.seen(run, at)
            self._reschedule(subscriber)
        except Exception as error:  # noqa: BLE001  # as in a look
            subscriber.fail(error)

    def _look_alone(self, subscriber: Subscriber) -> None:
        subscriber.alone = True
        if subscriber in self._subscribers:
            self._put(self._agenda, subscriber, time.monotonic())

    def _reschedule(self, subscriber: Subscriber) -> None:
        delay = subscriber.pause(self._listing)
        if subscriber in self._subscribers:
            self._put(self._agenda, subscriber, time.monotonic() + delay)


def _show() -> None:
    """Show how many runs this loop's watches wait for."""
    watches = _WATCHES.get(asyncio.get_running_loop(), [])
    metrics.watched(sum(len(watch._subscribers) for watch in watches))  # noqa: SLF001  # their own module's
