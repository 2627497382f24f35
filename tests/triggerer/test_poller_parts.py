"""Tests of the parts that the watch is made of: its agenda, its gate, and its experience with a list; no time passes.

How they work together over a network is in test_watch.py and its neighbours.
"""

from __future__ import annotations

import itertools
import random

import pytest

from airflow_provider_flows.core.polling.bulk import (
    LIST_RETRY_SECONDS,
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
from airflow_provider_flows.core.run import FlowRun, FlowState
from tests.support.scripted_transport import NOON

NEVER = float("inf")


def run(key: str, state: FlowState = FlowState.RUNNING) -> FlowRun:
    """Make a run."""
    return FlowRun(key, "generio", state=state)


def glance(*keys: str, rows: int = 0) -> ActiveRuns:
    """Make what a list told of running runs."""
    return ActiveRuns(
        {key: run(key) for key in keys}, {*keys, *(f"other{number}" for number in range(rows - len(keys)))}
    )


def test_agenda_gives_all_who_are_due_in_their_order() -> None:
    """Who is due is taken out once, earliest first, those of one moment in the order in which they came."""
    agenda: TimerQueue[str] = TimerQueue()
    for member, due in (("late", 9.0), ("early", 1.0), ("second", 2.0), ("with second", 2.0)):
        agenda.schedule(member, due)
    assert agenda.next_due() == 1.0
    assert list(agenda.pop_due(2.0).items()) == [("early", 1.0), ("second", 2.0), ("with second", 2.0)]
    assert agenda.pop_due(2.0) == {}
    assert agenda.pop_due(9.0) == {"late": 9.0}
    assert agenda.next_due() is None


def test_agenda_has_one_place_for_each() -> None:
    """A member that is put again is due at the new moment only, sooner or later; one that was dropped never is."""
    agenda: TimerQueue[str] = TimerQueue()
    for due in (5.0, 1.0, 7.0):
        agenda.schedule("a", due)
    agenda.schedule("b", 6.0)
    agenda.cancel("b")
    agenda.cancel("nobody")
    assert agenda.pop_due(6.9) == {}
    assert agenda.next_due() == 7.0
    assert agenda.pop_due(7.0) == {"a": 7.0}
    agenda.schedule("b", 8.0)
    assert agenda.pop_due(8.0) == {"b": 8.0}


def test_agenda_keeps_nothing_of_who_is_gone() -> None:
    """Thousands who come and are dropped long before their moments, as waits with far deadlines are, leave no trace."""
    agenda: TimerQueue[int] = TimerQueue()
    agenda.schedule(-1, 1e9)
    for member in range(20 * MAX_STALE_ENTRIES):
        agenda.schedule(member, 1e6 + member)
        agenda.cancel(member)
    assert len(agenda._heap) <= MAX_STALE_ENTRIES + 2
    assert agenda.pop_due(1e9) == {-1: 1e9}


def test_agenda_is_as_right_as_a_plain_dict() -> None:
    """Whatever is put, dropped and taken in whatever order, a dict of moments would tell the same."""
    chance, agenda, plain = random.Random(4), TimerQueue[int](), dict[int, float]()  # noqa: S311
    for _ in range(5_000):
        member, moment = chance.randrange(30), chance.random() * 100
        if (what := chance.randrange(4)) < 2:
            agenda.schedule(member, moment)
            plain[member] = moment
        elif what == 2:
            agenda.cancel(member)
            plain.pop(member, None)
        elif chance.random() < 0.2:
            due = {key: at for key, at in plain.items() if at <= moment}
            plain = {key: at for key, at in plain.items() if at > moment}
            assert agenda.pop_due(moment) == due
        assert agenda.next_due() == min(plain.values(), default=None)


def test_open_gate_lets_everybody_through() -> None:
    """Without a bound and without trouble nobody waits, and an ordinary answer changes nothing."""
    gate = RateLimiter()
    assert [gate.try_acquire(NOON) for _ in range(100)] == [0.0] * 100
    assert not any(gate.record_response(status, None, NOON) for status in (200, 404, 500, 502, 503))
    assert gate.try_acquire(NOON) == 0


@pytest.mark.parametrize(
    ("status", "retry_after", "closed"),
    [(429, 30.0, 30.0), (503, 30.0, 30.0), (429, None, DEFAULT_RETRY_AFTER_SECONDS)],
)
def test_gate_is_closed_as_long_as_asked(status: int, retry_after: float | None, closed: float) -> None:
    """A 429, and a 503 with a time, close it for that long, once; answers that come after that, of requests under way, do not."""
    gate = RateLimiter()
    assert gate.try_acquire(NOON) == 0
    assert gate.record_response(status, retry_after, NOON)
    assert not gate.record_response(status, retry_after, NOON)
    assert not gate.record_response(200, None, NOON + 1)
    assert gate.try_acquire(NOON + 1) == closed - 1
    assert gate.try_acquire(NOON + closed) == 0


def test_gate_is_closed_for_an_hour_at_the_most() -> None:
    """Whatever is asked, it opens again after an hour; a shorter time told later does not open it sooner."""
    gate = RateLimiter()
    gate.record_response(429, 1e9, NOON)
    gate.record_response(429, 1.0, NOON)
    assert gate.try_acquire(NOON) == MAX_RETRY_AFTER_SECONDS


def through(gate: RateLimiter, now: float, until: float, answer: int = 200) -> list[float]:
    """Send as many requests as the gate lets through, each answered at once, and give their moments."""
    moments = []
    while now < until:
        delay = gate.try_acquire(now)
        if not delay:
            moments.append(now)
            gate.record_response(answer, None, now)
        now += delay or 0.0001
    return moments


def test_gate_opens_little_by_little() -> None:
    """After it was closed the first requests come apart, each good answer halves the distance, until there is none."""
    gate = RateLimiter()
    gate.record_response(429, 10.0, NOON)
    moments = through(gate, NOON, NOON + 15)
    gaps = [later - earlier for earlier, later in itertools.pairwise(moments)]
    assert moments[0] == pytest.approx(NOON + 10)
    assert gaps[0] == pytest.approx(INITIAL_INTERVAL_SECONDS, rel=0.01)
    assert gaps[:5] == sorted(gaps[:5], reverse=True)
    assert gaps[4] < INITIAL_INTERVAL_SECONDS / 10
    assert gate.try_acquire(NOON + 99) == gate.try_acquire(NOON + 99) == 0


def test_gate_is_closed_again_at_the_next_refusal() -> None:
    """A refusal while it opens closes it anew, and it opens as slowly as at first."""
    gate = RateLimiter()
    gate.record_response(429, 1.0, NOON)
    through(gate, NOON, NOON + 3)
    assert gate.record_response(429, 1.0, NOON + 3)
    assert gate.try_acquire(NOON + 3) == 1
    assert gate.try_acquire(NOON + 4) == 0
    assert gate.try_acquire(NOON + 4) == INITIAL_INTERVAL_SECONDS


def test_gate_keeps_the_bound() -> None:
    """With a bound of requests a second no more go through, before and after it was closed."""
    gate = RateLimiter(per_second=50)
    assert 480 <= len(through(gate, NOON, NOON + 10)) <= 501
    gate.record_response(429, 1.0, NOON + 10)
    through(gate, NOON + 10, NOON + 15)
    assert 480 <= len(through(gate, NOON + 20, NOON + 30)) <= 501
    slow = RateLimiter(per_second=0.1)
    slow.record_response(429, 1.0, NOON)
    moments = through(slow, NOON, NOON + 60)
    assert min(later - earlier for earlier, later in itertools.pairwise(moments)) >= 10


def test_list_is_worth_more_looks_the_longer_it_is() -> None:
    """Ten looks are worth a list; a longer one must stand for more of them."""
    listing = BulkPollPolicy()
    assert listing.break_even(NOON) == MIN_RUNS_FOR_LIST
    listing.record_list(glance("a", rows=100 * ROWS_PER_POLL))
    assert listing.break_even(NOON) == 100 + 1 / PAGES_PER_POLL


def test_list_that_fails_is_asked_again_later_and_later() -> None:
    """After a failure no list is asked for a minute, after each further one twice as long, an hour at the most."""
    listing, now, pauses = BulkPollPolicy(), NOON, []
    for _ in range(12):
        listing.record_list_failure(now)
        begun = now
        while listing.break_even(now) == NEVER:
            now += 1
        pauses.append(now - begun)
    assert pauses[:4] == [
        LIST_RETRY_SECONDS[0],
        2 * LIST_RETRY_SECONDS[0],
        4 * LIST_RETRY_SECONDS[0],
        8 * LIST_RETRY_SECONDS[0],
    ]
    assert pauses[-1] == LIST_RETRY_SECONDS[1]
    for _ in range(2_000):
        listing.record_list_failure(now)  # however often


def test_list_that_works_again_is_asked_as_before() -> None:
    """A list that left out nothing that runs makes up for its failures when the next one comes: a short pause follows then."""
    listing = BulkPollPolicy()
    for _ in range(5):
        listing.record_list_failure(NOON)
    later = NOON + 2 * LIST_RETRY_SECONDS[1]
    listing.record_list(glance(*"abc"))
    listing.record_missing("over")
    listing.record_single_poll(run("over", FlowState.COMPLETED), later)
    listing.record_list(glance(*"abc"))
    listing.record_list_failure(later)
    assert listing.break_even(later + LIST_RETRY_SECONDS[0]) < NEVER


def test_run_that_was_named_and_is_no_more_is_gone() -> None:
    """A list tells which runs the one before it named and it does not; each one once, and not after a failure."""
    listing = BulkPollPolicy()
    assert listing.record_list(glance("a", "b", "c")) == set()
    assert listing.record_list(glance("b")) == {"a", "c"}
    assert listing.record_list(glance("b")) == set()
    listing.record_list_failure(NOON)
    assert listing.record_list(glance()) == set()


def test_list_may_tell_of_running_runs_only() -> None:
    """A list of running runs tells nothing of one that is in another state, and may tell of one that nobody saw yet."""
    listing = BulkPollPolicy()
    assert listing.covers(None, "a")
    assert {state for state in FlowState if listing.covers(run("a", state), "a")} == {FlowState.RUNNING}


def test_run_that_a_list_leaves_out_is_looked_at_until_one_names_it() -> None:
    """A running run that the list did not name is not asked about by a list, until a list names it after all."""
    listing = BulkPollPolicy()
    listing.record_list(glance("b"))
    listing.record_missing("a")
    listing.record_single_poll(run("a"), NOON)
    assert not listing.covers(run("a"), "a")
    listing.record_list(glance("a", "b"))
    assert listing.covers(run("a"), "a")


def test_list_that_leaves_out_more_than_it_names_is_given_up() -> None:
    """Ten running runs that are missing, and no fewer than are named, show that the list is cut or wrong."""
    cut, long = BulkPollPolicy(), BulkPollPolicy()
    for listing, named in ((cut, MIN_RUNS_FOR_LIST), (long, 4 * MIN_RUNS_FOR_LIST)):
        listing.record_list(glance(*(f"named{number}" for number in range(named))))
        for number in range(MIN_RUNS_FOR_LIST):
            assert listing.break_even(NOON) < NEVER
            listing.record_missing(f"r{number}")
            listing.record_single_poll(run(f"r{number}"), NOON)
    assert cut.break_even(NOON) == NEVER
    assert long.break_even(NOON) < NEVER


@pytest.mark.parametrize("state", [state for state in FlowState if state is not FlowState.RUNNING])
def test_runs_that_do_not_run_speak_for_the_list(state: FlowState) -> None:
    """However many missing runs turn out to be over or not to run yet, the list was right to leave them out."""
    listing = BulkPollPolicy()
    listing.record_list(glance())
    for number in range(5 * MIN_RUNS_FOR_LIST):
        listing.record_missing(f"r{number}")
        listing.record_single_poll(run(f"r{number}", state), NOON)
    assert listing.break_even(NOON) == MIN_RUNS_FOR_LIST


def test_looks_at_named_runs_say_nothing_of_the_list() -> None:
    """A look at a run that was not missing from a list is no experience with it."""
    listing = BulkPollPolicy()
    for number in range(5 * MIN_RUNS_FOR_LIST):
        listing.record_single_poll(run(f"r{number}"), NOON)
    assert listing.break_even(NOON) == MIN_RUNS_FOR_LIST


def test_nothing_is_kept_of_runs_that_are_over() -> None:
    """A run whose wait is over is forgotten, so that a watch which lasts for months keeps nothing of it."""
    listing = BulkPollPolicy()
    listing.record_list(glance("a"))
    listing.record_missing("b")
    listing.record_missing("c")
    listing.record_single_poll(run("c"), NOON)
    for key in "abc":
        listing.forget(key)
    assert not (listing._listed_ids | listing._missing_ids | listing._omitted_ids)
    assert listing.covers(run("c"), "c")
