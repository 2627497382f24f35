"""Tests of when one list of active runs replaces single polls, and of the queue of runs that are due."""

from __future__ import annotations

import random

import pytest

from airflow_provider_flows.core.flow_run import FlowRun, FlowState
from airflow_provider_flows.core.polling.bulk import (
    MAX_LIST_RETRY_SECONDS,
    MAX_STALE_ENTRIES,
    MIN_LIST_RETRY_SECONDS,
    MIN_RUNS_FOR_LIST,
    PAGES_PER_POLL,
    ROWS_PER_POLL,
    ActiveRuns,
    BulkPollPolicy,
    TimerQueue,
)
from tests.support.scripted_transport import NOON

NEVER = float("inf")


def run(key: str, state: FlowState = FlowState.RUNNING) -> FlowRun:
    """Return a run in a state."""
    return FlowRun(key, "generio", state=state)


def active_runs(*keys: str, rows: int = 0) -> ActiveRuns:
    """Return the result of a list with these running runs, and so many rows in all."""
    return ActiveRuns(
        {key: run(key) for key in keys}, {*keys, *(f"other{number}" for number in range(rows - len(keys)))}
    )


def test_longer_list_must_replace_more_polls() -> None:
    """A list is used from ten due runs on; a long one only if it replaces more polls."""
    policy = BulkPollPolicy()
    assert policy.break_even(NOON) == MIN_RUNS_FOR_LIST
    policy.record_list(active_runs("a", rows=100 * ROWS_PER_POLL))
    assert policy.break_even(NOON) == 100 + 1 / PAGES_PER_POLL


def test_failed_lists_are_retried_with_backoff() -> None:
    """After a failure no list is used for a minute, after each further one twice as long, at most an hour."""
    policy, now, pauses = BulkPollPolicy(), NOON, []
    for _ in range(12):
        policy.record_list_failure(now)
        failed_at = now
        while policy.break_even(now) == NEVER:
            now += 1
        pauses.append(now - failed_at)
    assert pauses[:4] == [
        MIN_LIST_RETRY_SECONDS,
        2 * MIN_LIST_RETRY_SECONDS,
        4 * MIN_LIST_RETRY_SECONDS,
        8 * MIN_LIST_RETRY_SECONDS,
    ]
    assert pauses[-1] == MAX_LIST_RETRY_SECONDS
    for _ in range(2_000):
        policy.record_list_failure(now)  # however often


def test_accurate_list_resets_the_backoff() -> None:
    """A list that omitted no running run resets the failures when the next one arrives."""
    policy = BulkPollPolicy()
    for _ in range(5):
        policy.record_list_failure(NOON)
    later = NOON + 2 * MAX_LIST_RETRY_SECONDS
    policy.record_list(active_runs(*"abc"))
    policy.record_missing("finished")
    policy.record_single_poll(run("finished", FlowState.COMPLETED), later)
    policy.record_list(active_runs(*"abc"))
    policy.record_list_failure(later)
    assert policy.break_even(later + MIN_LIST_RETRY_SECONDS) < NEVER


def test_vanished_ids_are_returned_once() -> None:
    """A list returns the ids that vanished since the one before it, each once, and none after a failure."""
    policy = BulkPollPolicy()
    assert policy.record_list(active_runs("a", "b", "c")) == set()
    assert policy.record_list(active_runs("b")) == {"a", "c"}
    assert policy.record_list(active_runs("b")) == set()
    policy.record_list_failure(NOON)
    assert policy.record_list(active_runs()) == set()


def test_list_covers_running_runs_only() -> None:
    """A list of running runs may cover runs that are running, or were never polled, and no others."""
    policy = BulkPollPolicy()
    assert policy.covers(None, "a")
    assert {state for state in FlowState if policy.covers(run("a", state), "a")} == {FlowState.RUNNING}


def test_omitted_run_is_polled_until_a_list_contains_it() -> None:
    """A running run that a list omitted is polled by itself until a list contains it."""
    policy = BulkPollPolicy()
    policy.record_list(active_runs("b"))
    policy.record_missing("a")
    policy.record_single_poll(run("a"), NOON)
    assert not policy.covers(run("a"), "a")
    policy.record_list(active_runs("a", "b"))
    assert policy.covers(run("a"), "a")


def test_list_that_omits_more_than_it_contains_is_not_used() -> None:
    """If ten running runs are missing, and at least as many as are listed, the list is truncated or wrong."""
    truncated, long = BulkPollPolicy(), BulkPollPolicy()
    for policy, listed in ((truncated, MIN_RUNS_FOR_LIST), (long, 4 * MIN_RUNS_FOR_LIST)):
        policy.record_list(active_runs(*(f"listed{number}" for number in range(listed))))
        for number in range(MIN_RUNS_FOR_LIST):
            assert policy.break_even(NOON) < NEVER
            policy.record_missing(f"r{number}")
            policy.record_single_poll(run(f"r{number}"), NOON)
    assert truncated.break_even(NOON) == NEVER
    assert long.break_even(NOON) < NEVER


@pytest.mark.parametrize("state", [state for state in FlowState if state is not FlowState.RUNNING])
def test_missing_runs_that_are_not_running_are_no_omissions(state: FlowState) -> None:
    """Missing runs that turn out not to be running do not count against the list."""
    policy = BulkPollPolicy()
    policy.record_list(active_runs())
    for number in range(5 * MIN_RUNS_FOR_LIST):
        policy.record_missing(f"r{number}")
        policy.record_single_poll(run(f"r{number}", state), NOON)
    assert policy.break_even(NOON) == MIN_RUNS_FOR_LIST


def test_polls_of_listed_runs_do_not_count() -> None:
    """A poll of a run that was not missing from a list changes nothing."""
    policy = BulkPollPolicy()
    for number in range(5 * MIN_RUNS_FOR_LIST):
        policy.record_single_poll(run(f"r{number}"), NOON)
    assert policy.break_even(NOON) == MIN_RUNS_FOR_LIST


def test_finished_runs_are_forgotten() -> None:
    """A run whose wait has ended is forgotten, so that a poller that lives for months does not grow."""
    policy = BulkPollPolicy()
    policy.record_list(active_runs("a"))
    policy.record_missing("b")
    policy.record_missing("c")
    policy.record_single_poll(run("c"), NOON)
    for key in "abc":
        policy.forget(key)
    assert not (policy._listed_ids | policy._missing_ids | policy._omitted_ids)
    assert policy.covers(run("c"), "c")


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
