"""What asset watchers of finished flow runs need: a list for all of them, their saved state, and a throttle.

The runs of a connection are listed once for all watchers on an event loop. Airflow's own shared streams are
not used: such a stream has the interval of its first subscriber, it ends for all of them at once, and only
Airflow 3.3 has them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from airflow_provider_flows import metrics
from airflow_provider_flows.compat import get_asset_state, set_asset_state
from airflow_provider_flows.core.exceptions import (
    FlowAuthError,
    FlowQuotaExceeded,
    FlowRateLimited,
    FlowServiceError,
    FlowUnreachable,
)
from airflow_provider_flows.core.polling.finished_runs import FinishedRuns, is_cursor_state
from airflow_provider_flows.core.polling.schedule import Schedule
from airflow_provider_flows.core.retry import NO_RETRY, Retry, with_retries
from airflow_provider_flows.core.timestamps import parse_http_date
from airflow_provider_flows.transport.asynchronous import run
from airflow_provider_flows.triggerer.per_loop import PerLoop, get_cached_hook

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

            async def send(request: Request) -> Response:
                metrics.count_list_poll()
                return clock.observe(await transport.send(request))

            with hook.add_connection_to_errors():
                runs = await run(with_retries(hook.service.list_runs(), retry), send)
                # in threads, because a list may have as many runs as `MAX_LISTED_RUNS`
                listed_runs = await asyncio.to_thread(hook.quote_errors, runs)
                self._finished_runs, flow_run_ids = await asyncio.to_thread(
                    self._finished_runs.after_list, listed_runs
                )
                polls: dict[str, FlowRun | FlowServiceError] = {}
                try:
                    await _poll_runs(hook, flow_run_ids, transport.send, polls)
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


class WatcherState:
    """The saved state of an asset watcher, in Airflow's asset state store (Airflow 3.3 and later).

    It is one key in the store of each asset that a trigger watches.

    :param store: what Airflow gives an event trigger (`asset_state_store`), None where Airflow has none.
    :param key: the key.
    """

    def __init__(self, store: Any, key: str) -> None:
        """Prepare the state; nothing is read yet."""
        self._stores = [] if store is None else _asset_stores(store)
        self._key = key
        self._is_failing = False
        self._unsaved: Any = None
        if not self._stores:
            log.warning(
                "The asset state store requires Airflow 3.3 or later. On this version asset watchers emit no "
                "events for flow runs that finish while no triggerer runs"
            )

    async def load(self, retry_delay: float) -> Any:
        """Return the saved value, None if there is none; wait while the store fails, or events would be lost.

        :param retry_delay: seconds between two attempts.
        """
        while True:
            try:
                values = [await get_asset_state(store, self._key) for store in self._stores]
            except Exception as error:  # noqa: BLE001  # any error of Airflow's; it may be transient
                self._log_failure("read", error)
                await asyncio.sleep(retry_delay)
            else:
                self._is_failing = False
                return max(
                    filter(is_cursor_state, values), key=lambda one: one["emitted_until"], default=None
                )

    async def save(self, value: Any) -> None:
        """Save a JSON value; if that fails, `flush` retries it."""
        self._unsaved = value
        await self.flush()

    async def flush(self) -> None:
        """Save the latest value, if that has not succeeded yet."""
        if self._unsaved is not None and await self._write(self._unsaved):
            self._unsaved = None

    async def _write(self, value: Any) -> bool:
        """Save a value; return whether that succeeded."""
        try:
            for store in self._stores:
                await set_asset_state(store, self._key, value)
        except Exception as error:  # noqa: BLE001  # any error of Airflow's; it may be transient
            self._log_failure("written", error)
            return False
        self._is_failing = False
        return True

    def _log_failure(self, action: str, error: Exception) -> None:
        if not self._is_failing:
            log.warning("The state of an asset watcher could not be %s and is retried: %r", action, error)
        self._is_failing = True


def get_asset_names(store: Any) -> list[str]:
    """Return the names of the assets that a trigger watches; none if Airflow does not provide them."""
    return [*getattr(store, "_by_name", {})]


def _asset_stores(store: Any) -> list[Any]:
    """Return the store of each asset.

    A store for several assets is indexed by asset, and there is no public way for a trigger to list its
    assets. Without the private attribute there is only one asset. tests/triggerer/test_asset_watchers.py
    fails if it changes.
    """
    stores = [*getattr(store, "_by_name", {}).values()]
    return stores if len(stores) > 1 else [store]


class EventThrottle:
    """A minimum interval between the events of an asset, for all triggers on an event loop.

    Airflow has one queue row for an asset and a DAG (`asset_dag_run_queue`). An event creates the row if
    there is none. The scheduler then creates a DAG run and deletes the row; the DAG run gets the asset's
    events up to the row's creation. An event that is added while the row exists waits for the DAG run after
    the next event. A trigger cannot read the row, so it waits for a fixed time.
    """

    def __init__(self) -> None:
        self._next_times: dict[str, float] = {}  # by the monotonic clock

    @classmethod
    def for_loop(cls) -> EventThrottle:
        """Return the throttle that all triggers on the running loop share."""
        return _THROTTLES.get()

    def register(self, assets: Collection[str], interval: float) -> None:
        """Hold the first event of unknown assets back: another triggerer may just have emitted one."""
        for asset in assets:
            self._next_times.setdefault(asset, time.monotonic() + interval)

    async def wait(self, assets: Collection[str]) -> float:
        """Wait until an event may be emitted for all these assets; return the seconds waited."""
        started_at = time.monotonic()
        while (delay := self._next_time(assets) - time.monotonic()) > 0:  # noqa: ASYNC110  # it waits for a time, not an event
            await asyncio.sleep(delay)
        return time.monotonic() - started_at

    def record_event(self, assets: Collection[str], interval: float) -> None:
        """Record an event that is emitted now.

        :param interval: seconds until the next one.
        """
        self._next_times.update(dict.fromkeys(assets, time.monotonic() + interval))

    def _next_time(self, assets: Collection[str]) -> float:
        return max((self._next_times.get(asset, 0.0) for asset in assets), default=0.0)


_THROTTLES: PerLoop[EventThrottle] = PerLoop(EventThrottle)
