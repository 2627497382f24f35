"""A priority queue by the time at which members are due; each member has at most one entry."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Generic, TypeVar

Member = TypeVar("Member")
MAX_STALE_ENTRIES = 100  # besides two for each member; the heap is rebuilt when it has more


class TimerQueue(Generic[Member]):
    """Members in the order in which they are due. All times are seconds by one clock."""

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
