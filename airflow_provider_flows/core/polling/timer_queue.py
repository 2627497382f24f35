"""Who is to be dealt with when: a heap of moments, in which each member has one place at the most.

It knows neither clocks nor what becomes due.
"""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

Member = TypeVar("Member")
MAX_STALE_ENTRIES = 100  # entries of the heap; beyond them, and half of it, they are thrown out


class TimerQueue(Generic[Member]):
    """Members in the order of the moments at which they are due."""

    def __init__(self) -> None:
        """Begin with nobody."""
        # moments and the numbers of places: no members, so that one who is gone is not kept until a moment far away
        self._heap: list[tuple[float, int]] = []
        self._members: dict[
            int, Member
        ] = {}  # by the number of the place; whatever else the heap holds is out of date
        self._entry_ids: dict[Member, int] = {}
        self._last_entry_id = 0

    def schedule(self, member: Member, due: float) -> None:
        """Let a member be due at a moment, instead of any earlier or later one."""
        self.cancel(member)
        self._last_entry_id += 1
        self._entry_ids[member] = self._last_entry_id
        self._members[self._last_entry_id] = member
        heapq.heappush(self._heap, (due, self._last_entry_id))

    def cancel(self, member: Member) -> None:
        """Forget a member, whether it has a place or not."""
        if (entry_id := self._entry_ids.pop(member, None)) is not None:
            del self._members[entry_id]
            if len(self._heap) > MAX_STALE_ENTRIES + 2 * len(self._members):
                self._heap = [entry for entry in self._heap if entry[1] in self._members]
                heapq.heapify(self._heap)

    def next_due(self) -> float | None:
        """Give the moment at which somebody is due next, None if nobody has a place."""
        while self._heap and self._heap[0][1] not in self._members:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def pop_due(self, until: float) -> dict[Member, float]:
        """Take out all who are due by a moment, in their order, and tell when they were."""
        due_members: dict[Member, float] = {}
        while (due := self.next_due()) is not None and due <= until:
            member = self._members.pop(heapq.heappop(self._heap)[1])
            del self._entry_ids[member]
            due_members[member] = due
        return due_members
