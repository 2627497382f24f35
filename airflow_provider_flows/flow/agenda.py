"""Who is to be dealt with when: a heap of moments, in which each member has one place at the most.

It knows neither clocks nor what becomes due.
"""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

Member = TypeVar("Member")


class Agenda(Generic[Member]):
    """Members in the order of the moments at which they are due."""

    def __init__(self) -> None:
        """Begin with nobody."""
        self._heap: list[tuple[float, int, Member]] = []
        self._valid: dict[Member, int] = {}  # the number of each one's entry; whatever else the heap holds is out of date
        self._number = 0

    def put(self, member: Member, due: float) -> None:
        """Let a member be due at a moment, instead of any earlier or later one."""
        self._number += 1
        self._valid[member] = self._number
        heapq.heappush(self._heap, (due, self._number, member))

    def drop(self, member: Member) -> None:
        """Forget a member, whether it has a place or not."""
        self._valid.pop(member, None)

    def next(self) -> float | None:
        """Give the moment at which somebody is due next, None if nobody has a place."""
        while self._heap and self._valid.get(self._heap[0][2]) != self._heap[0][1]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def take(self, until: float) -> dict[Member, float]:
        """Take out all who are due by a moment, in their order, and tell when they were."""
        taken: dict[Member, float] = {}
        while (due := self.next()) is not None and due <= until:
            member = heapq.heappop(self._heap)[2]
            del self._valid[member]
            taken[member] = due
        return taken
