"""Tests of the parts of the shared poller without a network: timer queue, rate limiter, bulk poll policy."""

from __future__ import annotations

import itertools
import random

import pytest

from airflow_provider_flows.core.flow_run import FlowRun, FlowState
from airflow_provider_flows.core.polling.bulk import (
    MAX_LIST_RETRY_SECONDS,
    MIN_LIST_RETRY_SECONDS,
    MIN_RUNS_FOR_LIST,
    PAGES_PER_POLL,
    ROWS_PER_POLL,
    ActiveRuns,
    BulkPollPolicy,
)
from airflow_provider_flows.core.polling.schedule import MAX_RETRY_AFTER_SECONDS
from airflow_provider_flows.core.polling.timer_queue import MAX_STALE_ENTRIES, TimerQueue
from airflow_provider_flows.core.rate_limiter import (
    DEFAULT_RETRY_AFTER_SECONDS,
    INITIAL_INTERVAL_SECONDS,
    RateLimiter,
)
from tests.support.scripted_transport import NOON

NEVER = float("inf")


def run(key: str, state: FlowState = FlowState.RUNNING) -> FlowRun:
    """Make a run."""
    return FlowRun(key, "generio", state=state)


def active_runs(*keys: str, rows: int = 0) -> ActiveRuns:
    """Make what a list told of running runs."""
    return ActiveRuns(
        {key: run(key) for key in keys}, {*keys, *(f"other{number}" for number in range(rows - len(keys)))}
    )


def test_agenda_gives_all_who_are_due_in_their_order() -> None:
    """Who is due is taken out once, earliest first, those of one moment in the order in which they came."""
    queue: TimerQueue[str] = TimerQueue()
    for member, due in (("late", 9.0), ("early", 1.0), ("second", 2.0), ("with second", 2.0)):
        queue.schedule(member, due)
    assert queue.next_due() == 1.0
    assert queue.due_by(2.0) == queue.pop_due(2.0) == ["early", "second", "with second"]
    assert queue.due_by(2.0) == queue.pop_due(2.0) == []
    assert queue.pop_due(9.0) == ["late"]
    assert queue.next_due() is None


def test_agenda_has_one_place_for_each() -> None:
    """A member that is scheduled again is due at the new time only; a cancelled one never is."""
    queue: TimerQueue[str] = TimerQueue()
    for due in (5.0, 1.0, 7.0):
        queue.schedule("a", due)
    queue.schedule("b", 6.0)
    queue.discard("b")
    queue.discard("nobody")
    assert queue.pop_due(6.9) == []
    assert queue.next_due() == 7.0
    assert queue.pop_due(7.0) == ["a"]
    queue.schedule("b", 8.0)
    assert queue.pop_due(8.0) == ["b"]


def test_agenda_keeps_nothing_of_who_is_gone() -> None:
    """Thousands of members that are cancelled long before they are due leave no trace."""
    queue: TimerQueue[int] = TimerQueue()
    queue.schedule(-1, 1e9)
    for member in range(20 * MAX_STALE_ENTRIES):
        queue.schedule(member, 1e6 + member)
        queue.discard(member)
    assert len(queue._heap) <= MAX_STALE_ENTRIES + 2
    assert queue.pop_due(1e9) == [-1]


def test_agenda_is_as_right_as_a_plain_dict() -> None:
    """After any calls in any order the queue agrees with a plain dict of times."""
    chance, queue, plain = random.Random(4), TimerQueue[int](), dict[int, float]()  # noqa: S311
    for _ in range(5_000):
        member, moment = chance.randrange(30), chance.random() * 100
        if (what := chance.randrange(4)) < 2:
            queue.schedule(member, moment)
            plain[member] = moment
        elif what == 2:
            queue.discard(member)
            plain.pop(member, None)
        elif chance.random() < 0.2:
            due = sorted((key for key, at in plain.items() if at <= moment), key=lambda key: plain[key])
            plain = {key: at for key, at in plain.items() if at > moment}
            assert queue.due_by(moment) == due
            assert queue.pop_due(moment) == due
        assert queue.next_due() == min(plain.values(), default=None)


def test_open_gate_lets_everybody_through() -> None:
    """Without a bound and without trouble nobody waits, and an ordinary answer changes nothing."""
    limiter = RateLimiter()
    assert [limiter.try_acquire(NOON) for _ in range(100)] == [0.0] * 100
    assert not any(limiter.record_response(status, None, NOON) for status in (200, 404, 500, 502, 503))
    assert limiter.try_acquire(NOON) == 0


@pytest.mark.parametrize(
    ("status", "retry_after", "closed"),
    [(429, 30.0, 30.0), (503, 30.0, 30.0), (429, None, DEFAULT_RETRY_AFTER_SECONDS)],
)
def test_gate_is_closed_as_long_as_asked(status: int, retry_after: float | None, closed: float) -> None:
    """A 429, and a 503 with Retry-After, pauses requests for that long; late responses do not end it."""
    limiter = RateLimiter()
    assert limiter.try_acquire(NOON) == 0
    assert limiter.record_response(status, retry_after, NOON)
    assert not limiter.record_response(status, retry_after, NOON)
    assert not limiter.record_response(200, None, NOON + 1)
    assert limiter.try_acquire(NOON + 1) == closed - 1
    assert limiter.try_acquire(NOON + closed) == 0


def test_gate_is_closed_for_an_hour_at_the_most() -> None:
    """Whatever is asked, it opens again after an hour; a shorter time told later does not open it sooner."""
    limiter = RateLimiter()
    limiter.record_response(429, 1e9, NOON)
    limiter.record_response(429, 1.0, NOON)
    assert limiter.try_acquire(NOON) == MAX_RETRY_AFTER_SECONDS


def admitted_times(limiter: RateLimiter, now: float, until: float, answer: int = 200) -> list[float]:
    """Send as many requests as the limiter admits, each with a response at once, and return their times."""
    times = []
    while now < until:
        delay = limiter.try_acquire(now)
        if not delay:
            times.append(now)
            limiter.record_response(answer, None, now)
        now += delay or 0.0001
    return times


def test_gate_opens_little_by_little() -> None:
    """After a pause requests are far apart at first, and each success halves the distance."""
    limiter = RateLimiter()
    limiter.record_response(429, 10.0, NOON)
    times = admitted_times(limiter, NOON, NOON + 15)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert times[0] == pytest.approx(NOON + 10)
    assert gaps[0] == pytest.approx(INITIAL_INTERVAL_SECONDS, rel=0.01)
    assert gaps[:5] == sorted(gaps[:5], reverse=True)
    assert gaps[4] < INITIAL_INTERVAL_SECONDS / 10
    assert limiter.try_acquire(NOON + 99) == limiter.try_acquire(NOON + 99) == 0


def test_gate_is_closed_again_at_the_next_refusal() -> None:
    """A refusal while it opens closes it anew, and it opens as slowly as at first."""
    limiter = RateLimiter()
    limiter.record_response(429, 1.0, NOON)
    admitted_times(limiter, NOON, NOON + 3)
    assert limiter.record_response(429, 1.0, NOON + 3)
    assert limiter.try_acquire(NOON + 3) == 1
    assert limiter.try_acquire(NOON + 4) == 0
    assert limiter.try_acquire(NOON + 4) == INITIAL_INTERVAL_SECONDS


def test_gate_keeps_the_bound() -> None:
    """With a limit of requests a second no more are admitted, before and after a pause."""
    limiter = RateLimiter(per_second=50)
    assert 480 <= len(admitted_times(limiter, NOON, NOON + 10)) <= 501
    limiter.record_response(429, 1.0, NOON + 10)
    admitted_times(limiter, NOON + 10, NOON + 15)
    assert 480 <= len(admitted_times(limiter, NOON + 20, NOON + 30)) <= 501
    slow = RateLimiter(per_second=0.1)
    slow.record_response(429, 1.0, NOON)
    times = admitted_times(slow, NOON, NOON + 60)
    assert min(later - earlier for earlier, later in itertools.pairwise(times)) >= 10


def test_list_is_worth_more_looks_the_longer_it_is() -> None:
    """Ten looks are worth a list; a longer one must stand for more of them."""
    policy = BulkPollPolicy()
    assert policy.break_even(NOON) == MIN_RUNS_FOR_LIST
    policy.record_list(active_runs("a", rows=100 * ROWS_PER_POLL))
    assert policy.break_even(NOON) == 100 + 1 / PAGES_PER_POLL


def test_list_that_fails_is_asked_again_later_and_later() -> None:
    """After a failure no list is used for a minute, after each further one twice as long, at most an hour."""
    policy, now, pauses = BulkPollPolicy(), NOON, []
    for _ in range(12):
        policy.record_list_failure(now)
        begun = now
        while policy.break_even(now) == NEVER:
            now += 1
        pauses.append(now - begun)
    assert pauses[:4] == [
        MIN_LIST_RETRY_SECONDS,
        2 * MIN_LIST_RETRY_SECONDS,
        4 * MIN_LIST_RETRY_SECONDS,
        8 * MIN_LIST_RETRY_SECONDS,
    ]
    assert pauses[-1] == MAX_LIST_RETRY_SECONDS
    for _ in range(2_000):
        policy.record_list_failure(now)  # however often


def test_list_that_works_again_is_asked_as_before() -> None:
    """A list that omitted no running run resets the failures when the next one arrives."""
    policy = BulkPollPolicy()
    for _ in range(5):
        policy.record_list_failure(NOON)
    later = NOON + 2 * MAX_LIST_RETRY_SECONDS
    policy.record_list(active_runs(*"abc"))
    policy.record_missing("over")
    policy.record_single_poll(run("over", FlowState.COMPLETED), later)
    policy.record_list(active_runs(*"abc"))
    policy.record_list_failure(later)
    assert policy.break_even(later + MIN_LIST_RETRY_SECONDS) < NEVER


def test_run_that_was_named_and_is_no_more_is_gone() -> None:
    """A list returns the ids that vanished since the one before it, each once, and none after a failure."""
    policy = BulkPollPolicy()
    assert policy.record_list(active_runs("a", "b", "c")) == set()
    assert policy.record_list(active_runs("b")) == {"a", "c"}
    assert policy.record_list(active_runs("b")) == set()
    policy.record_list_failure(NOON)
    assert policy.record_list(active_runs()) == set()


def test_list_may_tell_of_running_runs_only() -> None:
    """A list of running runs may cover runs that are running, or were never polled, and no others."""
    policy = BulkPollPolicy()
    assert policy.covers(None, "a")
    assert {state for state in FlowState if policy.covers(run("a", state), "a")} == {FlowState.RUNNING}


def test_run_that_a_list_leaves_out_is_looked_at_until_one_names_it() -> None:
    """A running run that a list omitted is polled by itself until a list contains it."""
    policy = BulkPollPolicy()
    policy.record_list(active_runs("b"))
    policy.record_missing("a")
    policy.record_single_poll(run("a"), NOON)
    assert not policy.covers(run("a"), "a")
    policy.record_list(active_runs("a", "b"))
    assert policy.covers(run("a"), "a")


def test_list_that_leaves_out_more_than_it_names_is_given_up() -> None:
    """Ten running runs that are missing, and no fewer than are named, show that the list is cut or wrong."""
    cut, long = BulkPollPolicy(), BulkPollPolicy()
    for policy, named in ((cut, MIN_RUNS_FOR_LIST), (long, 4 * MIN_RUNS_FOR_LIST)):
        policy.record_list(active_runs(*(f"named{number}" for number in range(named))))
        for number in range(MIN_RUNS_FOR_LIST):
            assert policy.break_even(NOON) < NEVER
            policy.record_missing(f"r{number}")
            policy.record_single_poll(run(f"r{number}"), NOON)
    assert cut.break_even(NOON) == NEVER
    assert long.break_even(NOON) < NEVER


@pytest.mark.parametrize("state", [state for state in FlowState if state is not FlowState.RUNNING])
def test_runs_that_do_not_run_speak_for_the_list(state: FlowState) -> None:
    """Missing runs that turn out not to be running do not count against the list."""
    policy = BulkPollPolicy()
    policy.record_list(active_runs())
    for number in range(5 * MIN_RUNS_FOR_LIST):
        policy.record_missing(f"r{number}")
        policy.record_single_poll(run(f"r{number}", state), NOON)
    assert policy.break_even(NOON) == MIN_RUNS_FOR_LIST


def test_looks_at_named_runs_say_nothing_of_the_list() -> None:
    """A look at a run that was not missing from a list is no experience with it."""
    policy = BulkPollPolicy()
    for number in range(5 * MIN_RUNS_FOR_LIST):
        policy.record_single_poll(run(f"r{number}"), NOON)
    assert policy.break_even(NOON) == MIN_RUNS_FOR_LIST


def test_nothing_is_kept_of_runs_that_are_over() -> None:
    """A run whose wait is over is forgotten, so that a watch which lasts for months keeps nothing of it."""
    policy = BulkPollPolicy()
    policy.record_list(active_runs("a"))
    policy.record_missing("b")
    policy.record_missing("c")
    policy.record_single_poll(run("c"), NOON)
    for key in "abc":
        policy.forget(key)
    assert not (policy._listed_ids | policy._missing_ids | policy._omitted_ids)
    assert policy.covers(run("c"), "c")
