"""Tests of the timer queue: what is due, in which order, and that no trace of discarded members is left."""

from __future__ import annotations

import random

from airflow_provider_flows.core.polling.timer_queue import MAX_STALE_ENTRIES, TimerQueue


def test_due_members_are_returned_in_order() -> None:
    """Due members are popped once, earliest first; those of one time in the order of scheduling."""
    queue: TimerQueue[str] = TimerQueue()
    for member, due in (("late", 9.0), ("early", 1.0), ("second", 2.0), ("with second", 2.0)):
        queue.schedule(member, due)
    assert queue.next_due() == 1.0
    assert queue.due_by(2.0) == queue.pop_due(2.0) == ["early", "second", "with second"]
    assert queue.due_by(2.0) == queue.pop_due(2.0) == []
    assert queue.pop_due(9.0) == ["late"]
    assert queue.next_due() is None


def test_member_has_one_entry() -> None:
    """A member that is scheduled again is due at the new time only; a discarded one never is."""
    queue: TimerQueue[str] = TimerQueue()
    for due in (5.0, 1.0, 7.0):
        queue.schedule("a", due)
    queue.schedule("b", 6.0)
    queue.discard("b")
    queue.discard("unknown")
    assert queue.pop_due(6.9) == []
    assert queue.next_due() == 7.0
    assert queue.pop_due(7.0) == ["a"]
    queue.schedule("b", 8.0)
    assert queue.pop_due(8.0) == ["b"]


def test_discarded_members_are_freed() -> None:
    """Thousands of members that are discarded long before they are due do not fill the heap."""
    queue: TimerQueue[int] = TimerQueue()
    queue.schedule(-1, 1e9)
    for member in range(20 * MAX_STALE_ENTRIES):
        queue.schedule(member, 1e6 + member)
        queue.discard(member)
    assert len(queue._heap) <= MAX_STALE_ENTRIES + 2
    assert queue.pop_due(1e9) == [-1]


def test_queue_agrees_with_a_plain_dict() -> None:
    """After any calls in any order the queue agrees with a plain dict of times."""
    chance, queue, plain = random.Random(4), TimerQueue[int](), dict[int, float]()
    for _ in range(5_000):
        member, time = chance.randrange(30), chance.random() * 100
        if (action := chance.randrange(4)) < 2:
            queue.schedule(member, time)
            plain[member] = time
        elif action == 2:
            queue.discard(member)
            plain.pop(member, None)
        elif chance.random() < 0.2:
            due = sorted((key for key, at in plain.items() if at <= time), key=lambda key: plain[key])
            plain = {key: at for key, at in plain.items() if at > time}
            assert queue.due_by(time) == due
            assert queue.pop_due(time) == due
        assert queue.next_due() == min(plain.values(), default=None)
