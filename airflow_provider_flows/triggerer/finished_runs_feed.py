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
from airflow_provider_flows.core.polling.event_cursor import Snapshot
from airflow_provider_flows.core.polling.finished_runs import FinishedRuns
from airflow_provider_flows.core.polling.schedule import Schedule
from airflow_provider_flows.core.retry import NO_RETRY, Retry, with_retries
from airflow_provider_flows.core.timestamps import parse_http_date
from airflow_provider_flows.transport.asynchronous import run
from airflow_provider_flows.triggerer.hook_cache import get_hook_cached
from airflow_provider_flows.triggerer.rate_limited_transport import RateLimitedTransport

if TYPE_CHECKING:
    from airflow_provider_flows.core.http import Request, Response
    from airflow_provider_flows.hooks import FlowsHook

log = logging.getLogger(__name__)

MIN_INTERVAL_FRACTION = (
    0.9  # of a pause; an edition that is so much too early is as good as one in time, so that all go together
)
MAX_LIST_BACKOFF_SECONDS = 900.0  # seconds between two requests to a service that does not answer

_FEEDS: WeakKeyDictionary[asyncio.AbstractEventLoop, WeakValueDictionary[str, FinishedRunsFeed]] = (
    WeakKeyDictionary()
)


@dataclass(frozen=True, slots=True)
class PollResult:
    """What came of one list.

    :param at: when it was asked for, by the monotonic clock.
    :param edition: None if nothing could be read.
    :param failures: how often in a row nothing could be read, this time among them.
    :param retry_after: seconds that the service asked for then, if it did.
    """

    polled_at: float
    snapshot: Snapshot | None
    failures: int = 0
    retry_after: float | None = None


class _ServerClock:
    """The moment at which a list was begun, by the clock that its rows go by: the service's, where an answer has a Date."""

    def __init__(self) -> None:
        self.started_at = time.time()
        self._local_start = time.monotonic()
        self._is_synced = False

    def observe(self, response: Response) -> Response:
        """Take the first answer's word for the time; it is of whole seconds, so it is too early by less than one."""
        with suppress(ValueError, TypeError, OverflowError):  # no date that there will ever be
            if not self._is_synced:
                self.started_at = parse_http_date(response.headers.get("date", "")) - (
                    time.monotonic() - self._local_start
                )
                self._is_synced = True
        return response


class FinishedRunsFeed:
    """One connection's editions; it asks when somebody wants one, and never ends by an error."""

    def __init__(self, flows_conn_id: str) -> None:
        """Prepare; nothing is looked up or asked yet."""
        self._flows_conn_id = flows_conn_id
        self._finished_runs = FinishedRuns()
        self._latest: PollResult | None = None
        self._task: asyncio.Task[None] | None = None
        self._hook: FlowsHook | None = None
        self._stale_hook: FlowsHook | None = None

    @classmethod
    def for_connection(cls, flows_conn_id: str) -> FinishedRunsFeed:
        """Give the running loop's bulletin of this connection; it lasts as long as somebody reads it."""
        feeds = _FEEDS.setdefault(asyncio.get_running_loop(), WeakValueDictionary())
        return feeds.setdefault(flows_conn_id, cls(flows_conn_id))

    async def snapshots(self, poll_interval: float) -> AsyncIterator[Snapshot]:
        """Give, one after the other and for ever, which runs are final.

        :param poll_interval: seconds between two; after one that failed it is more and more.
        """
        schedule = Schedule(poll_interval, max(poll_interval, MAX_LIST_BACKOFF_SECONDS))
        due = time.monotonic() - poll_interval  # whoever comes later begins with what the others had last
        while True:
            result = await self._get_result(due)
            delay = poll_interval
            if result.snapshot is None:
                delay = schedule.backoff_delay(result.failures, time.time(), result.retry_after)
            else:
                yield result.snapshot
            await asyncio.sleep(result.polled_at + delay - time.monotonic())
            due = result.polled_at + delay * MIN_INTERVAL_FRACTION

    async def _get_result(self, due: float) -> PollResult:
        """Give what came of a list that was asked for at this moment or later."""
        while self._latest is None or self._latest.polled_at < due:
            if self._task is None:
                # a task of its own, in a context of its own: whoever comes first may be cancelled, and it must not log as them
                self._task = asyncio.get_running_loop().create_task(self._publish(), context=Context())
            await asyncio.shield(self._task)
        return self._latest

    async def _publish(self) -> None:
        polled_at = time.monotonic()
        failures = self._latest.failures if self._latest else 0
        try:
            snapshot = await self._load_snapshot()
        except Exception as error:  # noqa: BLE001  # whatever it is: a watcher that ended would be started again every second
            if not failures:
                log.error(  # noqa: TRY400  # the message says it all, and it is told once
                    "The flow runs of connection %s cannot be listed: %s All who watch it wait; it is tried again, more and "
                    "more rarely, and told when it works",
                    self._flows_conn_id,
                    error,
                )
            self._hook, self._stale_hook = None, self._hook or self._stale_hook
            self._latest = PollResult(polled_at, None, failures + 1, getattr(error, "retry_after", None))
        else:
            if failures:
                log.info("The flow runs of connection %s can be listed again", self._flows_conn_id)
            self._latest = PollResult(polled_at, snapshot)
        finally:
            self._task = None

    async def _load_snapshot(self) -> Snapshot:
        """Read with the hook that did last time, and with what the connection says now where its key is refused."""
        hook = self._hook = self._hook or await get_hook_cached(self._flows_conn_id, stale=self._stale_hook)
        try:
            return await self._load_snapshot_with(hook)
        except FlowAuthError:
            latest = await get_hook_cached(self._flows_conn_id, stale=hook)
            if latest.settings == hook.settings:
                raise
        self._hook = latest
        return await self._load_snapshot_with(latest)

    async def _load_snapshot_with(self, hook: FlowsHook) -> Snapshot:
        """Read the list, whole, for what it leaves out by state is not known; then look at what it tells too little of."""
        retry, clock = Retry(attempts=1 + hook.extra["retries"]), _ServerClock()
        async with hook.async_transport() as transport:
            rate_limited = RateLimitedTransport(transport, hook)

            async def send(request: Request) -> Response:
                metrics.count_list_poll()
                return clock.observe(await rate_limited.send(request))

            with hook.add_connection_to_errors():
                listed_runs = await run(with_retries(hook.service.list_runs(), retry), send)
                await self._poll_runs(
                    hook, self._finished_runs.ids_to_poll(listed_runs, clock.started_at), rate_limited.send
                )
        return Snapshot(
            clock.started_at,
            self._finished_runs.list_run_ends(listed_runs),
            self._finished_runs.is_complete(listed_runs),
        )

    async def _poll_runs(
        self, hook: FlowsHook, flow_run_ids: Iterable[str], send: Callable[[Request], Awaitable[Response]]
    ) -> None:
        """Look at single runs as long as that makes sense; one that fails must not keep back what is known of the others."""
        for flow_run_id in flow_run_ids:
            try:
                self._finished_runs.record_single_poll(
                    flow_run_id, await run(with_retries(hook.service.get_run(flow_run_id), NO_RETRY), send)
                )
            except FlowAuthError:
                raise
            except FlowServiceError as error:
                self._finished_runs.record_single_poll(flow_run_id, not_found=isinstance(error, FlowNotFound))
                if isinstance(error, (FlowUnreachable, FlowRateLimited)):
                    return
