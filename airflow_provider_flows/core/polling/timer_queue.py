"""Who is to be dealt with when: a heap of moments, in which each member has one place at the most.

It knows neither clocks nor what becomes due.
"""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

Member = TypeVar("Member")
MOST_OUT_OF_DATE = 100  # entries of the heap; beyond them, and half of it, they are thrown out


class Agenda(Generic[Member]):
    """Members in the order of the moments at which they are due."""

    def __init__(self) -> None:
        """Begin with nobody."""
        # moments and the numbers of places: no members, so that one who is gone is not kept until a moment far away
        self._heap: list[tuple[float, int]] = []
        self._members: dict[
            int, Member
        ] = {}  # by the number of the place; whatever else the heap holds is out of date
        self._places: dict[Member, int] = {}
        self._number = 0

    def put(self, member: Member, due: float) -> None:
        """Let a member be due at a moment, instead of any earlier or later one."""
        self.drop(member)
        self._number += 1
        self._places[member] = self._number
        self._members[self._number] = member
        heapq.heappush(self._heap, (due, self._number))

    def drop(self, member: Member) -> None:
        """Forget a member, whether it has a place or not."""
        if (place := self._places.pop(member, None)) is not None:
            del self._members[place]
            if len(self._heap) > MOST_OUT_OF_DATE + 2 * len(self._members):
                self._heap = [entry for entry in self._heap if entry[1] in self._members]
                heapq.heapify(self._heap)

    def next(self) -> float | None:
        """Give the moment at which somebody is due next, None if nobody has a place."""
        while self._heap and self._heap[0][1] not in self._members:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def take(self, until: float) -> dict[Member, float]:
        """Take out all who are due by a moment, in their order, and tell when they were."""
        taken: dict[Member, float] = {}
        while (due := self.next()) is not None and due <= until:
            member = self._members.pop(heapq.heappop(self._heap)[1])
            del self._places[member]
            taken[member] = due
        return taken
