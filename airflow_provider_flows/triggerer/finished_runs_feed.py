"""The final flow runs of a connection, asked for once for all who watch it in one event loop.

Who was told of which run it does not know (flow/told.py does); what is asked and how is the service's and the hook's business.
Airflow's own shared streams are not used: one goes by its first subscriber's interval, its end ends all who read it, and only
Airflow 3.3 has them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, WeakValueDictionary

from airflow_provider_flows import metrics
from airflow_provider_flows.core.exceptions import (
    FlowAuthError,
    FlowNotFound,
    FlowRateLimited,
    FlowServiceError,
    FlowUnreachable,
)
from airflow_provider_flows.core.polling.event_cursor import Edition
from airflow_provider_flows.core.polling.finished_runs import Finals
from airflow_provider_flows.core.polling.schedule import Schedule
from airflow_provider_flows.core.retry import Retry, once, patiently
from airflow_provider_flows.core.timestamps import http_date
from airflow_provider_flows.transport.asynchronous import hold
from airflow_provider_flows.triggerer.hook_cache import hook_of
from airflow_provider_flows.triggerer.rate_limited_transport import GatedTransport

if TYPE_CHECKING:
    from airflow_provider_flows.core.http import Request, Response
    from airflow_provider_flows.hooks import FlowsHook

log = logging.getLogger(__name__)

EARLY = (
    0.9  # of a pause; an edition that is so much too early is as good as one in time, so that all go together
)
LONGEST_PAUSE = 900.0  # seconds between two requests to a service that does not answer

_BULLETINS: WeakKeyDictionary[asyncio.AbstractEventLoop, WeakValueDictionary[str, Bulletin]] = (
    WeakKeyDictionary()
)


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of one list.

    :param at: when it was asked for, by the monotonic clock.
    :param edition: None if nothing could be read.
    :param failures: how often in a row nothing could be read, this time among them.
    :param retry_after: seconds that the service asked for then, if it did.
    """

    at: float
    edition: Edition | None
    failures: int = 0
    retry_after: float | None = None


class _Clock:
    """The moment at which a list was begun, by the clock that its rows go by: the service's, where an answer has a Date."""

    def __init__(self) -> None:
        self.began = time.time()
        self._here = time.monotonic()
        self._told = False

    def heard(self, response: Response) -> Response:
        """Take the first answer's word for the time; it is of whole seconds, so it is too early by less than one."""
        with suppress(ValueError, TypeError, OverflowError):  # no date that there will ever be
            if not self._told:
                self.began = http_date(response.headers.get("date", "")) - (time.monotonic() - self._here)
                self._told = True
        return response


class Bulletin:
    """One connection's editions; it asks when somebody wants one, and never ends by an error."""

    def __init__(self, flows_conn_id: str) -> None:
        """Prepare; nothing is looked up or asked yet."""
        self._flows_conn_id = flows_conn_id
        self._finals = Finals()
        self._latest: Attempt | None = None
        self._task: asyncio.Task[None] | None = None
        self._hook: FlowsHook | None = None
        self._doubted: FlowsHook | None = None

    @classmethod
    def of(cls, flows_conn_id: str) -> Bulletin:
        """Give the running loop's bulletin of this connection; it lasts as long as somebody reads it."""
        known = _BULLETINS.setdefault(asyncio.get_running_loop(), WeakValueDictionary())
        return known.setdefault(flows_conn_id, cls(flows_conn_id))

    async def editions(self, poll_interval: float) -> AsyncIterator[Edition]:
        """Give, one after the other and for ever, which runs are final.

        :param poll_interval: seconds between two; after one that failed it is more and more.
        """
        plan = Schedule(poll_interval, max(poll_interval, LONGEST_PAUSE))
        due = time.monotonic() - poll_interval  # whoever comes later begins with what the others had last
        while True:
            attempt = await self._attempt(due)
            pause = poll_interval
            if attempt.edition is None:
                pause = plan.after_a_miss(attempt.failures, time.time(), attempt.retry_after)
            else:
                yield attempt.edition
            await asyncio.sleep(attempt.at + pause - time.monotonic())
            due = attempt.at + pause * EARLY

    async def _attempt(self, due: float) -> Attempt:
        """Give what came of a list that was asked for at this moment or later."""
        while self._latest is None or self._latest.at < due:
            if self._task is None:
                # a task of its own, in a context of its own: whoever comes first may be cancelled, and it must not log as them
                self._task = asyncio.get_running_loop().create_task(self._publish(), context=Context())
            await asyncio.shield(self._task)
        return self._latest

    async def _publish(self) -> None:
        at = time.monotonic()
        failures = self._latest.failures if self._latest else 0
        try:
            edition = await self._read()
        except Exception as error:  # noqa: BLE001  # whatever it is: a watcher that ended would be started again every second
            if not failures:
                log.error(  # noqa: TRY400  # the message says it all, and it is told once
                    "The flow runs of connection %s cannot be listed: %s All who watch it wait; it is tried again, more and "
                    "more rarely, and told when it works",
                    self._flows_conn_id,
                    error,
                )
            self._hook, self._doubted = None, self._hook or self._doubted
            self._latest = Attempt(at, None, failures + 1, getattr(error, "retry_after", None))
        else:
            if failures:
                log.info("The flow runs of connection %s can be listed again", self._flows_conn_id)
            self._latest = Attempt(at, edition)
        finally:
            self._task = None

    async def _read(self) -> Edition:
        """Read with the hook that did last time, and with what the connection says now where its key is refused."""
        hook = self._hook = self._hook or await hook_of(self._flows_conn_id, instead_of=self._doubted)
        try:
            return await self._read_with(hook)
        except FlowAuthError:
            latest = await hook_of(self._flows_conn_id, instead_of=hook)
            if latest.settings == hook.settings:
                raise
        self._hook = latest
        return await self._read_with(latest)

    async def _read_with(self, hook: FlowsHook) -> Edition:
        """Read the list, whole, for what it leaves out by state is not known; then look at what it tells too little of."""
        retry, clock = Retry(attempts=1 + hook.extra["retries"]), _Clock()
        async with hook.async_transport() as transport:
            gated = GatedTransport(transport, hook)

            async def send(request: Request) -> Response:
                metrics.listed()
                return clock.heard(await gated.send(request))

            with hook.named():
                listed = await hold(patiently(hook.service.list_runs(), retry), send)
                await self._look(hook, self._finals.wanting(listed, clock.began), gated.send)
        return Edition(clock.began, self._finals.ended(listed), self._finals.whole(listed))

    async def _look(
        self, hook: FlowsHook, flow_run_ids: Iterable[str], send: Callable[[Request], Awaitable[Response]]
    ) -> None:
        """Look at single runs as long as that makes sense; one that fails must not keep back what is known of the others."""
        for flow_run_id in flow_run_ids:
            try:
                self._finals.looked(flow_run_id, await hold(once(hook.service.get_run(flow_run_id)), send))
            except FlowAuthError:
                raise
            except FlowServiceError as error:
                self._finals.looked(flow_run_id, gone=isinstance(error, FlowNotFound))
                if isinstance(error, (FlowUnreachable, FlowRateLimited)):
                    return
