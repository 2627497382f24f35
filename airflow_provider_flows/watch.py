"""One watch for all waits of a connection in one event loop: one session, one rate gate, one schedule, few looks.

What a look is and when it is due stands in flow/waiting.py and flow/schedule.py, when a list pays in flow/listing.py. The watch
looks no connection up, fetches no outputs, stops no run and ends no task.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from airflow_provider_flows import metrics
from airflow_provider_flows.flow.agenda import Agenda
from airflow_provider_flows.flow.errors import FlowRateLimited, FlowServiceError
from airflow_provider_flows.flow.gate import Gate
from airflow_provider_flows.flow.listing import Glance, Listing
from airflow_provider_flows.flow.retry import once
from airflow_provider_flows.subscriber import LIST_SECONDS, Subscriber
from airflow_provider_flows.transport.asynchronous import hold

if TYPE_CHECKING:
    from airflow_provider_flows.connected import ConnectedHook
    from airflow_provider_flows.flow.exchange import Request, Response
    from airflow_provider_flows.flow.run import FlowRun
    from airflow_provider_flows.flow.waiting import Wait
    from airflow_provider_flows.transport.asynchronous import AsyncTransport

MOST_AT_ONCE = 32  # requests
SOON = 0.5  # seconds; who comes or is due so soon is asked about together with who is due now
EARLY = 0.9  # of a poll interval; so much too early a list is looked at rather than another one
TICK = 0.1  # of a poll interval; what is due within it is done in one go
GRACE = 2.0  # seconds that the last look, which begins at the deadline, may take
A_TURN = 200  # runs of a list that are dealt with before others have their turn on the loop

_WATCHES: WeakKeyDictionary[asyncio.AbstractEventLoop, list[Watch]] = WeakKeyDictionary()

Look = Callable[[], Coroutine[Any, Any, None]]


class Watch:
    """Waits for the flow runs of one connection.

    Its task ends by itself when nobody waits any more; who comes later gets a new watch. Its moments are the monotonic clock's.
    """

    def __init__(self, hook: ConnectedHook) -> None:
        """Prepare; nothing is opened before the first subscriber."""
        self.hook = hook
        self._kind = (type(hook), hook.settings, hook.extra)
        self._service = hook.service
        self._gate = Gate(hook.extra.get("max_requests_per_second"))
        self._turn = asyncio.Lock()  # at the gate
        self._listing = Listing()
        self._subscribers: dict[Subscriber, None] = {}  # a dict keeps their order, so that all have their turn
        self._agenda: Agenda[Subscriber] = Agenda()
        self._wake = asyncio.Event()
        self._slots = asyncio.Semaphore(MOST_AT_ONCE)
        self._list_under_way = False
        self._tick = 1.0  # seconds
        self._shown = 0.0
        self._task: asyncio.Task[None] | None = None
        self._transport: AsyncTransport

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
        together = len(self._subscribers) > 1  # then others may come in the same moment, and be asked about at once
        self._put(subscriber, time.monotonic() + max(wait.first_pause(), SOON if together and not subscriber.alone else 0.0))
        if self._task is None:
            # in a context of its own: it must not log as the trigger that happened to be first
            self._task = asyncio.get_running_loop().create_task(self._run(), context=Context())
        left = wait.seconds_left()
        try:
            async with asyncio.timeout(None if left is None else left + GRACE):
                return await subscriber.end
        except TimeoutError:
            raise wait.too_late() from None
        finally:
            del self._subscribers[subscriber]
            self._agenda.drop(subscriber)
            self._listing.over(wait.flow_run_id)
            if subscriber.look is not None:
                subscriber.look.cancel()
            self._wake.set()

    async def _run(self) -> None:
        """Hold the session open while somebody waits, and tell everybody if anything breaks."""
        trouble: BaseException | None = None
        try:
            async with self.hook.async_transport() as self._transport, asyncio.TaskGroup() as group:
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
        """Make looks as they become due, until nobody waits."""
        under_way: set[asyncio.Task[None]] = set()
        while self._subscribers:
            if time.monotonic() - self._shown >= 1:
                self._shown = time.monotonic()
                _show()
            self._wake.clear()
            for subscriber, look in self._due_looks():
                await self._slots.acquire()
                under_way.add(task := group.create_task(look()))
                task.add_done_callback(under_way.discard)
                task.add_done_callback(lambda _: self._slots.release())
                if subscriber is not None:
                    subscriber.look = task
            await self._until_due()
        self._leave()  # at once: whoever comes from now on needs a watch that goes on
        for task in under_way:
            task.cancel()

    def _leave(self) -> None:
        with suppress(ValueError):
            _WATCHES[asyncio.get_running_loop()].remove(self)
            _show()

    async def _until_due(self) -> None:
        due = self._agenda.next()
        delay = None if due is None else due - time.monotonic()
        if delay is not None and delay <= self._tick:
            await asyncio.sleep(self._tick)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._wake.wait()

    def _put(self, subscriber: Subscriber, due: float) -> None:
        before = self._agenda.next()
        self._agenda.put(subscriber, due)
        if before is None or due < before:
            self._wake.set()

    def _due_looks(self) -> Iterator[tuple[Subscriber | None, Look]]:
        """Give the looks that are due: one at a list for all whom it may tell of where that pays, else one at each run."""
        now = time.monotonic()
        due = self._agenda.take(now)
        together = [subscriber for subscriber in due if not subscriber.alone]
        if together and self._list_under_way:  # it was asked before they were due, and need not tell of them: the next one will
            for subscriber in together:
                self._agenda.put(subscriber, now + SOON)
        elif together and (worth := self._worth(now)) <= len(self._subscribers):
            soon = self._agenda.take(now + max(SOON, together[0].wait.schedule.poll_interval * EARLY))
            together += [subscriber for subscriber in soon if not subscriber.alone]
            if len(together) >= worth:
                self._list_under_way = True
                yield None, partial(self._look_at_all, together)
            else:
                together = []
            for subscriber in soon.keys() - set(together):
                self._agenda.put(subscriber, soon[subscriber])
        else:
            together = []
        told = set(together)
        for subscriber in due:
            if subscriber not in told and subscriber in self._subscribers:
                yield subscriber, partial(self._look, subscriber)

    def _worth(self, now: float) -> float:
        return self._listing.worth(now) if self._service.offers("glance") else float("inf")

    async def _look(self, subscriber: Subscriber) -> None:
        """Look at one run."""
        with subscriber.hurt_alone():
            run = await hold(once(subscriber.wait.look()), self._send)
            if run is not None:
                self._listing.looked(run, time.monotonic())
            if run is None or not run.final:
                self._reschedule(subscriber)
            elif not subscriber.end.done():
                subscriber.end.set_result(run)

    async def _look_at_all(self, waiting: Sequence[Subscriber]) -> None:
        """Look at the list; who waits for it and is not named there is looked at alone, as is who was named there before."""
        at = 0.0

        async def send(request: Request) -> Response:
            nonlocal at
            metrics.listed()
            await self._admitted()
            asked = time.time()
            async with asyncio.timeout(LIST_SECONDS):
                response = await self._sent(request)
            at = (asked + time.time()) / 2  # a long list takes a while to be made, sent and read, and its runs go on meanwhile
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
        with subscriber.hurt_alone():
            subscriber.wait.seen(run, at)
            self._reschedule(subscriber)

    def _look_alone(self, subscriber: Subscriber) -> None:
        subscriber.alone = True
        if subscriber in self._subscribers:
            self._put(subscriber, time.monotonic())

    def _reschedule(self, subscriber: Subscriber) -> None:
        delay = subscriber.pause(self._listing)
        if subscriber in self._subscribers:
            self._put(subscriber, time.monotonic() + delay)

    async def _send(self, request: Request) -> Response:
        """Send a request when the gate lets it through."""
        await self._admitted()
        return await self._sent(request)

    async def _admitted(self) -> None:
        """Wait at the gate; one after the other asks it."""
        async with self._turn:
            while delay := self._gate.delay(time.monotonic()):  # noqa: ASYNC110  # a moment is waited for, not an event
                await asyncio.sleep(delay)

    async def _sent(self, request: Request) -> Response:
        """Send a request, and tell the gate of the answer."""
        response = await self._transport.send(request)
        if self._gate.answered(response.status, response.retry_after(time.time()), time.monotonic()):
            metrics.braked()
        return response


def _show() -> None:
    """Show how many runs this loop's watches wait for."""
    watches = _WATCHES.get(asyncio.get_running_loop(), [])
    metrics.watched(sum(len(watch._subscribers) for watch in watches))  # noqa: SLF001  # their own module's
