"""Polling of many runs: a queue of those that are due, and when one list of runs replaces many single polls.

What a service's list contains is not documented (vendor_notes.md, G-05, G-06, G-08): it may be paged,
projected, missing, huge or slow. A list is therefore trusted only as far as polls of single runs confirm it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from airflow_provider_flows.core.flow_run import FlowState

if TYPE_CHECKING:
    from airflow_provider_flows.core.flow_run import FlowRun

Member = TypeVar("Member")

MIN_RUNS_FOR_LIST = 10  # fewer runs are polled one by one
ROWS_PER_POLL = 40  # so many rows of a list cost about as much as one poll
PAGES_PER_POLL = 0.5  # a page of a list costs about two polls
MIN_LIST_RETRY_SECONDS, MAX_LIST_RETRY_SECONDS = (
    60.0,
    3600.0,
)  # until the next list after one that was useless
MAX_RETRY_DOUBLINGS = 16
MAX_STALE_ENTRIES = 100  # of a queue, besides two for each member; its heap is rebuilt when it has more


@dataclass(frozen=True, slots=True)
class ActiveRuns:
    """The result of one list of active runs.

    :param runs: those of the requested runs that are running, by id.
    :param ids: the ids of all runs on the list.
    :param pages: the number of requests that the list took.
    :param is_complete: whether the list was read to its end.
    """

    runs: Mapping[str, FlowRun] = field(default_factory=dict)
    ids: AbstractSet[str] = frozenset()
    pages: int = 1
    is_complete: bool = True


class BulkPollPolicy:
    """What the lists of one connection cost, and which runs they leave out."""

    def __init__(self) -> None:
        """Create a policy that trusts the first list."""
        self._cost = 0.0  # in polls
        self._listed_ids: set[str] = set()  # on the last list
        self._missing_ids: set[str] = set()  # not on the last list, and polled for that reason
        self._omitted_ids: set[str] = set()  # running, and not on a list all the same
        self._wasted_polls = 0
        self._retry_at = 0.0
        self._failures = 0

    def break_even(self, now: float) -> float:
        """Return the number of polls from which on a list is cheaper; infinite while lists are not used.

        :param now: seconds, by the clock that the other methods use.
        """
        return max(MIN_RUNS_FOR_LIST, self._cost) if now >= self._retry_at else float("inf")

    def covers(self, run: FlowRun | None, flow_run_id: str) -> bool:
        """Return whether the next list may contain this run: it may be running, and no list has omitted it.

        :param run: the run of the last successful poll, None before the first.
        """
        return (run is None or run.state is FlowState.RUNNING) and flow_run_id not in self._omitted_ids

    def record_list(self, active_runs: ActiveRuns) -> set[str]:
        """Record a list; return the ids that were on the list before it and are not on this one."""
        vanished_ids = self._listed_ids - active_runs.ids if active_runs.is_complete else set()
        if self._listed_ids and not self._wasted_polls:
            self._failures = 0  # the list before it has proved to be right
        self._cost = len(active_runs.ids) / ROWS_PER_POLL + active_runs.pages / PAGES_PER_POLL
        self._listed_ids, self._missing_ids, self._wasted_polls = set(active_runs.ids), set(), 0
        self._omitted_ids -= active_runs.runs.keys()
        return vanished_ids

    def record_list_failure(self, now: float) -> None:
        """Record a list that failed, was unreadable or left too much out: no list is used for a while."""
        self._failures += 1
        delay = MIN_LIST_RETRY_SECONDS * 2.0 ** min(self._failures - 1, MAX_RETRY_DOUBLINGS)
        self._retry_at = now + min(MAX_LIST_RETRY_SECONDS, delay)
        self._listed_ids, self._missing_ids = set(), set()

    def record_missing(self, flow_run_id: str) -> None:
        """Record that a run is polled because the last list does not contain it."""
        self._missing_ids.add(flow_run_id)

    def record_single_poll(self, run: FlowRun, now: float) -> None:
        """Record what a single poll returned. A list that leaves out many running runs is useless."""
        if run.flow_run_id not in self._missing_ids:
            return
        self._missing_ids.remove(run.flow_run_id)
        if run.state is FlowState.RUNNING:
            self._omitted_ids.add(run.flow_run_id)
            self._wasted_polls += 1
            if self._wasted_polls >= MIN_RUNS_FOR_LIST and self._wasted_polls >= len(self._listed_ids):
                self.record_list_failure(now)

    def forget(self, flow_run_id: str) -> None:
        """Forget a run whose wait has ended."""
        for ids in (self._listed_ids, self._missing_ids, self._omitted_ids):
            ids.discard(flow_run_id)


class TimerQueue(Generic[Member]):
    """A priority queue by the time at which members are due; each member has at most one entry.

    All times are seconds by one clock.
    """

    def __init__(self) -> None:
        """Create an empty queue."""
        # Due times and entry numbers, not members, because a stale entry may stay until a time far away.
        self._heap: list[tuple[float, int]] = []
        # By entry number. An entry of the heap without a member is stale.
        self._members: dict[int, Member] = {}
        self._entry_ids: dict[Member, int] = {}
        self._last_entry_id = 0

    def schedule(self, member: Member, due: float) -> None:
        """Add a member, or replace the time at which it is due."""
        self.discard(member)
        self._last_entry_id += 1
        self._entry_ids[member] = self._last_entry_id
        self._members[self._last_entry_id] = member
        heapq.heappush(self._heap, (due, self._last_entry_id))

    def discard(self, member: Member) -> None:
        """Remove a member, if it is there."""
        if (entry_id := self._entry_ids.pop(member, None)) is not None:
            del self._members[entry_id]
            if len(self._heap) > MAX_STALE_ENTRIES + 2 * len(self._members):
                self._heap = [entry for entry in self._heap if entry[1] in self._members]
                heapq.heapify(self._heap)

    def next_due(self) -> float | None:
        """Return the time at which the first member is due, None if the queue is empty."""
        while self._heap and self._heap[0][1] not in self._members:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def due_by(self, until: float) -> list[Member]:
        """Return the members that are due by a time, in their order, and leave them in the queue."""
        if (first := self.next_due()) is None or first > until:
            return []
        return [self._members[entry_id] for _, entry_id in sorted(self._entries_by(until))]

    def pop_due(self, until: float) -> list[Member]:
        """Remove and return the members that are due by a time, in their order."""
        due_members = self.due_by(until)
        for member in due_members:
            self.discard(member)
        return due_members

    def _entries_by(self, until: float) -> Iterator[tuple[float, int]]:
        """Walk down the heap, whose entries are never due before their parents."""
        heap, indexes = self._heap, [0]
        while indexes:
            index = indexes.pop()
            if index < len(heap) and heap[index][0] <= until:
                if heap[index][1] in self._members:
                    yield heap[index]
                indexes += (2 * index + 1, 2 * index + 2)
