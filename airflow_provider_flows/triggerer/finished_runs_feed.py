"""The finished flow runs of a connection, polled once for all asset watchers on an event loop.

Airflow's own shared streams are not used: such a stream has the interval of its first subscriber, it ends for
all of them at once, and only Airflow 3.3 has them.
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
from weakref import WeakValueDictionary

from airflow_provider_flows import metrics
from airflow_provider_flows.core.exceptions import (
    FlowAuthError,
    FlowQuotaExceeded,
    FlowRateLimited,
    FlowServiceError,
    FlowUnreachable,
)
from airflow_provider_flows.core.polling.finished_runs import FinishedRuns
from airflow_provider_flows.core.polling.schedule import Schedule
from airflow_provider_flows.core.retry import NO_RETRY, Retry, with_retries
from airflow_provider_flows.core.timestamps import parse_http_date
from airflow_provider_flows.transport.asynchronous import run
from airflow_provider_flows.triggerer.hook_cache import get_cached_hook
from airflow_provider_flows.triggerer.per_loop import PerLoop
from airflow_provider_flows.triggerer.shared_poller import RateLimitedTransport

if TYPE_CHECKING:
    from airflow_provider_flows.core.flow_run import FlowRun
    from airflow_provider_flows.core.http import Request, Response
    from airflow_provider_flows.core.polling.finished_runs import Snapshot
    from airflow_provider_flows.hooks import FlowsHook

log = logging.getLogger(__name__)

# A result may be this fraction of an interval old, so that watchers with the same interval share one list.
MIN_INTERVAL_FRACTION = 0.9
MAX_LIST_BACKOFF_SECONDS = 900.0  # between two lists of a service that does not respond


@dataclass(frozen=True, slots=True)
class PollResult:
    """The result of one list.

    :param polled_at: when it was requested, by the monotonic clock.
    :param snapshot: None if the list failed.
    :param failures: failed lists in a row, including this one.
    :param retry_after: seconds that the service asked for when it failed, if it did.
    """

    polled_at: float
    snapshot: Snapshot | None
    failures: int = 0
    retry_after: float | None = None


class _ServerClock:
    """The time at which a list was requested, by the service's clock if its responses have a Date header."""

    def __init__(self) -> None:
        self.started_at = time.time()
        self._local_start = time.monotonic()
        self._is_synced = False

    def observe(self, response: Response) -> Response:
        """Read the Date of the first response, which has whole seconds and so is up to a second too early."""
        with suppress(ValueError, TypeError, OverflowError):  # not a date
            if not self._is_synced:
                elapsed = time.monotonic() - self._local_start
                self.started_at = parse_http_date(response.headers.get("date", "")) - elapsed
                self._is_synced = True
        return response


class FinishedRunsFeed:
    """The snapshots of one connection. It polls when a watcher needs a snapshot, and no error ends it."""

    def __init__(self, flows_conn_id: str) -> None:
        """Prepare the feed; nothing is looked up or sent yet."""
        self._flows_conn_id = flows_conn_id
        self._finished_runs = FinishedRuns()
        self._latest: PollResult | None = None
        self._task: asyncio.Task[None] | None = None
        self._hook: FlowsHook | None = None
        self._stale_hook: FlowsHook | None = None

    @classmethod
    def for_connection(cls, flows_conn_id: str) -> FinishedRunsFeed:
        """Return the running loop's feed of a connection; it lives while a watcher reads it."""
        return _FEEDS.get().setdefault(flows_conn_id, cls(flows_conn_id))

    async def snapshots(self, poll_interval: float) -> AsyncIterator[Snapshot]:
        """Yield one snapshot after the other, without end.

        :param poll_interval: seconds between two snapshots; more after a list that failed.
        """
        schedule = Schedule(poll_interval, max(poll_interval, MAX_LIST_BACKOFF_SECONDS))
        due = time.monotonic() - poll_interval  # a later watcher starts with the latest result of the others
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
        """Return the result of a list that was requested at this time or later."""
        while self._latest is None or self._latest.polled_at < due:
            if self._task is None:
                # In its own task and context: the first watcher may be cancelled, and has its own log.
                self._task = asyncio.get_running_loop().create_task(self._poll(), context=Context())
            await asyncio.shield(self._task)
        return self._latest

    async def _poll(self) -> None:
        polled_at = time.monotonic()
        failures = self._latest.failures if self._latest else 0
        try:
            snapshot = await self._load_snapshot()
        except Exception as error:  # noqa: BLE001  # any error: Airflow restarts a trigger that fails every second
            if not failures:
                log.error(  # noqa: TRY400  # the message is enough
                    "The flow runs of connection %s cannot be listed: %s Its asset watchers wait. The list "
                    "is retried less and less often, and the log reports when it works again",
                    self._flows_conn_id,
                    error,
                )
            if self._hook is not None:
                self._hook, self._stale_hook = None, self._hook
            self._latest = PollResult(polled_at, None, failures + 1, getattr(error, "retry_after", None))
        else:
            if failures:
                log.info("The flow runs of connection %s can be listed again", self._flows_conn_id)
            self._latest = PollResult(polled_at, snapshot)
        finally:
            self._task = None

    async def _load_snapshot(self) -> Snapshot:
        """Load with the last hook, or with a reloaded one if the service rejects its credentials."""
        if self._hook is None:
            self._hook = await get_cached_hook(self._flows_conn_id, stale=self._stale_hook)
        hook = self._hook
        try:
            return await self._load_snapshot_with(hook)
        except FlowAuthError:
            latest = await get_cached_hook(self._flows_conn_id, stale=hook)
            if latest.settings == hook.settings:
                raise
        self._hook = latest
        return await self._load_snapshot_with(latest)

    async def _load_snapshot_with(self, hook: FlowsHook) -> Snapshot:
        """List all runs, because a list by state may leave some out; then poll those with too little data."""
        retry, clock = Retry(attempts=1 + hook.extra["retries"]), _ServerClock()
        async with hook.async_transport() as transport:
            rate_limited = RateLimitedTransport(transport, hook)

            async def send(request: Request) -> Response:
                metrics.count_list_poll()
                return clock.observe(await rate_limited.send(request))

            with hook.add_connection_to_errors():
                runs = await run(with_retries(hook.service.list_runs(), retry), send)
                # in threads, because a list may have as many runs as `MAX_LISTED_RUNS`
                listed_runs = await asyncio.to_thread(hook.quote_errors, runs)
                self._finished_runs, flow_run_ids = await asyncio.to_thread(
                    self._finished_runs.after_list, listed_runs
                )
                polls: dict[str, FlowRun | FlowServiceError] = {}
                try:
                    await _poll_runs(hook, flow_run_ids, rate_limited.send, polls)
                finally:
                    self._finished_runs, snapshot = await asyncio.to_thread(
                        self._finished_runs.after_polls, listed_runs, polls, clock.started_at
                    )
                    await asyncio.to_thread(_free, listed_runs)
        return snapshot


def _free(listed_runs: list[FlowRun]) -> None:
    """Free the runs one at a time, because no other thread runs while all of a large list is freed."""
    while listed_runs:
        listed_runs.pop()


_FEEDS: PerLoop[WeakValueDictionary[str, FinishedRunsFeed]] = PerLoop(WeakValueDictionary)


async def _poll_runs(
    hook: FlowsHook,
    flow_run_ids: Iterable[str],
    send: Callable[[Request], Awaitable[Response]],
    polls: dict[str, FlowRun | FlowServiceError],
) -> None:
    """Poll single runs and add the results to `polls`; stop if the service is unreachable or limits the rate.

    :raises FlowAuthError: the service rejects the credentials.
    """
    for flow_run_id in flow_run_ids:
        try:
            flow_run = await run(with_retries(hook.service.get_run(flow_run_id), NO_RETRY), send)
            polls[flow_run_id] = hook.quote_errors(flow_run)
        except FlowAuthError:
            raise
        except FlowServiceError as error:
            polls[flow_run_id] = error
            if isinstance(error, (FlowUnreachable, FlowQuotaExceeded, FlowRateLimited)):
                return
