"""Tests of when one list of active runs replaces single polls, and what the policy learns from lists."""

from __future__ import annotations

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
