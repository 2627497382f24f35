"""The limits of an account: how many flow runs may be active, and how many may be started within a day.

The service's list of flow runs is the one place that all workers and triggerers share, so they are counted
there, directly before a run is started. That is best effort: two processes that read the list at the same
time may both start a run. Within a process, the starts in progress are counted as well.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from math import inf
from threading import Lock
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.core.exceptions import FlowQuotaExceeded, FlowTimeout
from airflow_provider_flows.core.flow_run import FlowState
from airflow_provider_flows.core.http import Sleep
from airflow_provider_flows.core.single_flight import SingleFlightCache
from airflow_provider_flows.core.timestamps import to_epoch

if TYPE_CHECKING:
    from airflow_provider_flows.core.flow_run import FlowRun
    from airflow_provider_flows.core.http import Conversation
    from airflow_provider_flows.core.service import Service

DAY_SECONDS = 86_400.0
LIST_TTL_SECONDS = 5.0  # for which a process counts by the same list
MIN_LISTED_RUNS = 1_000  # the newest ones, among which the active ones are counted
MAX_LOAD_SECONDS = 60.0  # a list that takes longer is requested again by the next caller
SHARED_LOAD_SECONDS = 0.1  # between two checks whether another caller's list has arrived
MAX_START_SECONDS = 300.0  # a run in state created is about to be started; an older one was left behind
MIN_WAIT_SECONDS, MAX_WAIT_SECONDS = 5.0, 15.0  # random, so that waiting processes do not start together
LOG_SECONDS = 60.0  # between two lines of the log while a start waits


@dataclass(frozen=True, slots=True)
class AccountLimits:
    """What the connection's extra allows the account; None for no limit. False if there is none at all.

    :param max_active_runs: how many flow runs may be active at the same time, started by any client.
    :param max_runs_per_day: how many may be started within any 24 hours. Then no more are started within a
        calendar day either, whichever time zone the service counts in.
    """

    max_active_runs: int | None = None
    max_runs_per_day: int | None = None

    @classmethod
    def from_extra(cls, extra: Mapping[str, Any]) -> AccountLimits:
        """Return the limits in the validated extra of a connection."""
        return cls(extra.get("max_active_runs"), extra.get("max_runs_per_day"))

    def __bool__(self) -> bool:
        """Return whether anything is limited."""
        return self.max_active_runs is not None or self.max_runs_per_day is not None

    @property
    def listed_runs(self) -> int:
        """How many of the account's newest flow runs are needed to count."""
        return max(MIN_LISTED_RUNS, self.max_active_runs or 0, self.max_runs_per_day or 0)


class Reservation:
    """The permission to start one flow run; it counts as a run until a list must have that run."""

    def __init__(self, now: float) -> None:
        self.reserved_at = now
        self.ended_at: float | None = None
        """The time at which the start had succeeded or failed; epoch seconds."""
        self.expires_at = inf
        """The time from which it does not count in any case; epoch seconds."""

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Run a block that starts the flow run."""
        try:
            yield
        finally:
            self.ended_at = time.time()

    def counts(self, now: float, listed_at: float) -> bool:
        """Return whether to count it in addition to a list that was requested at a time."""
        return now < self.expires_at and (self.ended_at is None or self.ended_at >= listed_at)


class AccountUsage:
    """The flow runs of one account, by its last list, and the starts of this process since then."""

    def __init__(self) -> None:
        self._listed_at = 0.0
        self._runs: list[tuple[FlowState, float | None]] = []  # state and time of creation
        self._reservations: list[Reservation] = []
        self._lock = Lock()

    def record_list(self, runs: Sequence[FlowRun], requested_at: float) -> None:
        """Record the account's newest runs.

        :param requested_at: the time before the request for the list, in epoch seconds.
        """
        rows = [(run.state, _get_start(run)) for run in runs]
        with self._lock:
            self._runs, self._listed_at = rows, requested_at

    def reserve(self, limits: AccountLimits, now: float) -> Reservation | None:
        """Return the permission to start a run, None if too many are active.

        :param now: epoch seconds.
        :raises FlowQuotaExceeded: too many were started within the last 24 hours.
        """
        with self._lock:
            self._reservations = [one for one in self._reservations if one.counts(now, self._listed_at)]
            started, active = self._count(now)
            if limits.max_runs_per_day is not None and len(started) >= limits.max_runs_per_day:
                raise _day_error(limits.max_runs_per_day, started)
            if limits.max_active_runs is not None and active >= limits.max_active_runs:
                return None
            reservation = Reservation(now)
            self._reservations.append(reservation)
            return reservation

    def _count(self, now: float) -> tuple[list[float], int]:
        """Return the times of the starts of the last 24 hours, and the number of active runs."""
        started, active = [one.reserved_at for one in self._reservations], len(self._reservations)
        for state, at in self._runs:
            if state is FlowState.CREATED and (at is None or now - at >= MAX_START_SECONDS):
                continue
            active += not state.is_final
            if at is not None and now - at < DAY_SECONDS:
                started.append(at)
        return started, active


def _get_start(run: FlowRun) -> float | None:
    at = run.created_at or run.started_at
    return None if at is None else to_epoch(at)


def _day_error(limit: int, started: Sequence[float]) -> FlowQuotaExceeded:
    free_at = datetime.fromtimestamp(sorted(started)[len(started) - limit] + DAY_SECONDS, UTC)
    return FlowQuotaExceeded(
        f"No flow run was started: the account has started {len(started):,} within the last 24 hours, and "
        f"max_runs_per_day in the connection's extra is {limit:,}. Run the task again from "
        f"{free_at:%Y-%m-%d %H:%M:%S} UTC on, or increase max_runs_per_day."
    )


USAGES: SingleFlightCache[AccountUsage] = SingleFlightCache(
    max_load_seconds=MAX_LOAD_SECONDS, max_stale_seconds=MAX_START_SECONDS
)


@dataclass(frozen=True, slots=True)
class StartWait:
    """How a caller waits until the account may have another active flow run.

    :param deadline: epoch seconds, None for none.
    :param on_wait: called before each pause; it may raise, which ends the wait.
    :param log: receives a line at the start of the wait, and every minute.
    :param is_for_other_process: whether another process starts the run. It may be this one nevertheless, so
        these reservations count among themselves only.
    """

    deadline: float | None = None
    on_wait: Callable[[], None] = lambda: None
    log: Callable[[str], object] = lambda _: None
    is_for_other_process: bool = False


def reserve_start(
    service: Service, account: Hashable, limits: AccountLimits
) -> Conversation[Reservation | None]:
    """Return the permission to start a run, None if the account has too many active ones.

    :param account: identifies the account: its service, host and key.
    :raises FlowQuotaExceeded: the account has started too many runs within the last 24 hours.
    :raises FlowServiceError: the service did not list its runs; none is started then.
    """
    usage = yield from _load_usage(service, account, limits)
    return usage.reserve(limits, time.time())


def _load_usage(service: Service, account: Hashable, limits: AccountLimits) -> Conversation[AccountUsage]:
    """Return the account's usage by a list of the last seconds, which concurrent callers share."""
    key = (account, limits.listed_runs)
    while True:
        entry, is_new = USAGES.get(key)
        if is_new:
            with USAGES.share_errors(entry):
                usage, requested_at = entry.previous or AccountUsage(), time.time()
                page = yield from service.list_newest(limits.listed_runs)
                usage.record_list(page.runs, requested_at)
                # a list that takes long is not requested all the time
                ttl = max(LIST_TTL_SECONDS, time.time() - requested_at)
                USAGES.set_value(entry, usage, ttl)
        while not (future := entry.future).done() and time.monotonic() < entry.expires_at:
            yield Sleep(SHARED_LOAD_SECONDS)
        if future.done() and isinstance(future.exception(), Exception | None):
            return future.result()  # or raise its error


def pick_wait_seconds(jitter: Callable[[], float] = random.random) -> float:
    """Return how long to wait before the runs are counted again: at random, so that processes differ."""
    return MIN_WAIT_SECONDS + (MAX_WAIT_SECONDS - MIN_WAIT_SECONDS) * jitter()


def wait_for_start(
    service: Service, account: Hashable, limits: AccountLimits, flow: str, wait: StartWait
) -> Conversation[Reservation]:
    """Wait until the account may have another active flow run, and return the permission to start it.

    Nothing was sent before that but requests for lists.

    :param flow: the name of the flow, for messages.
    :raises FlowTimeout: the deadline has passed; no run was started.
    :raises FlowQuotaExceeded: as `reserve_start`.
    :raises FlowServiceError: as `reserve_start`.
    """
    logged_at: float | None = None
    while True:
        reservation = yield from reserve_start(service, account, limits)
        if reservation is not None:
            return reservation
        now = time.time()
        limit = f"the account has max_active_runs ({limits.max_active_runs:,}) active flow runs"
        if wait.deadline is not None and now >= wait.deadline:
            raise FlowTimeout(
                f"Flow {flow} was not started before its timeout had passed, because {limit}. No flow run "
                "was created. Run the task again later, or increase timeout or max_active_runs in the "
                "connection's extra."
            )
        if logged_at is None or now - logged_at >= LOG_SECONDS:
            logged_at = now
            wait.log(f"Flow {flow} is not started yet, because {limit} at {service.name}; waiting")
        wait.on_wait()
        seconds = pick_wait_seconds()
        yield Sleep(seconds if wait.deadline is None else min(seconds, max(0.0, wait.deadline - now)))
