"""Tests of the state of a batch: which step comes next, how items change their state, and how it ends."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from airflow_provider_flows.core.batch import (
    TRANSITIONS,
    BatchPolicy,
    BatchProgress,
    BatchState,
    ItemState,
    Step,
)
from airflow_provider_flows.core.exceptions import FlowInputError


def create_state(policy: BatchPolicy | None = None, **counts: int) -> BatchState:
    """Return the state of a batch with so many items in each state."""
    state = BatchState(policy or BatchPolicy(max_active_runs=2))
    for name, count in counts.items():
        for _ in range(count):
            state.add(ItemState(name))
    return state


@pytest.mark.parametrize(
    ("counts", "changes", "step"),
    [
        ({"pending": 3}, {}, Step.START),
        ({"pending": 2, "active": 1}, {}, Step.START),
        ({"pending": 1, "active": 2}, {}, Step.WAIT),
        ({"pending": 1, "fetching": 64}, {}, Step.WAIT),
        ({"pending": 1, "fetching": 63}, {}, Step.START),
        ({"pending": 1, "active": 1}, {"stop_reason": "402"}, Step.WAIT),
        ({"pending": 1}, {"stop_reason": "402"}, Step.END),
        ({"active": 1}, {"has_more": False}, Step.WAIT),
        ({"fetching": 1}, {"has_more": False}, Step.WAIT),
        ({"active": 2}, {"has_more": False, "deferred": 2}, Step.END),
        ({"pending": 1, "active": 2}, {"deferred": 2}, Step.END),
        ({"active": 2, "fetching": 1}, {"has_more": False, "deferred": 2}, Step.WAIT),
        ({"completed": 2, "failed": 1}, {"has_more": False}, Step.END),
        ({}, {"has_more": False}, Step.END),
    ],
)
def test_next_step(counts: dict[str, int], changes: dict[str, Any], step: Step) -> None:
    """Runs are started while there is room; the batch ends when nothing is in progress."""
    state = create_state(**counts)
    for name, value in changes.items():
        setattr(state, name, value)
    assert state.next_step() is step


@pytest.mark.parametrize("new", ItemState)
@pytest.mark.parametrize("old", ItemState)
def test_transitions(old: ItemState, new: ItemState) -> None:
    """An item changes its state as the table allows, and in no other way."""
    state = create_state(**{old.value: 1})
    if new in TRANSITIONS[old]:
        state.move(old, new)
        assert state.counts == {**dict.fromkeys(ItemState, 0), new: 1}
    else:
        with pytest.raises(ValueError, match="cannot change"):
            state.move(old, new)
    assert state.total == 1


def test_transition_of_an_item_that_is_not_there() -> None:
    """No count becomes negative."""
    with pytest.raises(ValueError, match="cannot change"):
        create_state().move(ItemState.PENDING, ItemState.ACTIVE)


@pytest.mark.parametrize(
    ("events", "is_stopped"),
    [("ff", False), ("fff", True), ("ffcff", False), ("ffcfff", True), ("cccff", False), ("fffc", True)],
)
def test_failures_in_a_row_stop_the_batch(events: str, is_stopped: object) -> None:
    """`stop_after_failures` counts failures since the last completed item; the reason remains."""
    state = create_state(BatchPolicy(stop_after_failures=3), fetching=10)
    for event in events:
        if event == "f":
            state.record_failure()
        else:
            state.move(ItemState.FETCHING, ItemState.COMPLETED)
    assert (state.stop_reason is not None) is is_stopped


@pytest.mark.parametrize(
    ("policy", "counts", "failure"),
    [
        (BatchPolicy(), {"completed": 3}, None),
        (BatchPolicy(), {}, None),
        (BatchPolicy(), {"completed": 3, "invalid": 1}, None),
        (
            BatchPolicy(),
            {"completed": 3, "failed": 1},
            "3 of 4 items have completed, less than min_success_ratio (1)",
        ),
        (
            BatchPolicy(),
            {"completed": 3, "aborted": 1},
            "3 of 4 items have completed, less than min_success_ratio (1)",
        ),
        (BatchPolicy(min_success_ratio=0.95), {"completed": 19, "failed": 1}, None),
        (BatchPolicy(min_success_ratio=0.95), {"completed": 18, "failed": 1}, "18 of 19 items"),
        (BatchPolicy(min_success_ratio=0), {"failed": 4}, None),
        (BatchPolicy(min_success_ratio=0.7), {"completed": 7, "failed": 3}, None),
    ],
)
def test_failure(policy: BatchPolicy, counts: dict[str, int], failure: str | None) -> None:
    """The task fails below the ratio; items that cannot be sent do not count."""
    found = create_state(policy, **counts).find_failure()
    assert found is None if failure is None else str(found).startswith(failure)


def test_stopped_batch_fails_although_the_ratio_is_reached() -> None:
    """A batch that was stopped before all items were tried fails, whatever the ratio."""
    state = create_state(BatchPolicy(min_success_ratio=0.5, stop_after_failures=1), completed=9, pending=1)
    state.record_failure()
    assert "the batch was stopped: 1 flow runs have failed in a row" in str(state.find_failure())


@pytest.mark.parametrize(
    ("failures", "retries", "expected"), [(1, 0, False), (1, 1, True), (2, 1, False), (2, 2, True)]
)
def test_item_retries(failures: int, retries: int, expected: object) -> None:
    """A failed item is run again at most `item_retries` times, and not once the batch was stopped."""
    state = create_state(BatchPolicy(item_retries=retries))
    assert state.may_repeat(failures) is expected
    state.stop("any reason")
    assert not state.may_repeat(failures)


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_active_runs": 0},
        {"max_active_runs": True},
        {"max_active_runs": 2.5},
        {"min_success_ratio": 1.1},
        {"min_success_ratio": -0.1},
        {"min_success_ratio": "0.5"},
        {"stop_after_failures": 0},
        {"item_retries": -1},
        {"item_retries": None},
    ],
)
def test_invalid_policy(arguments: dict[str, Any]) -> None:
    """An invalid argument is an error that names it."""
    with pytest.raises(FlowInputError, match=next(iter(arguments))):
        BatchPolicy(**arguments)


def test_progress_line() -> None:
    """The line has the counts that are not zero, and the expected end by the rate of the last items."""
    state = create_state(BatchPolicy(), pending=3535, active=50, completed=412, failed=3)
    seconds_left, line = (
        state.estimate_seconds_left(415, 500.0),
        "412 of 4,000 completed, 3 failed, 50 active",
    )
    assert state.describe(seconds_left) == f"{line}; about 1 h 12 min left"
    assert state.describe() == line
    assert state.estimate_seconds_left(0, 500.0) is None
    state.stop("402")
    assert state.estimate_seconds_left(10, 2.0) == 10.0


def test_lines_and_manifests_of_a_long_batch() -> None:
    """While something moves there is a line at least every 30 s and a manifest every minute, else none."""
    check_seconds, seconds_per_item = 5, 3  # the program asks every few seconds
    state = create_state(BatchPolicy(), pending=200)
    progress = BatchProgress(state, 1_000.0)
    lines: dict[int, str] = {}
    manifests: list[int] = []
    for second in range(1, 1_201):
        if second % seconds_per_item == 0 and state.counts[ItemState.PENDING]:
            state.move(ItemState.PENDING, ItemState.ACTIVE)
            state.move(ItemState.ACTIVE, ItemState.FETCHING)
            state.move(ItemState.FETCHING, ItemState.COMPLETED)
        if second % check_seconds:
            continue
        if (line := progress.take_line(1_000.0 + second)) is not None:
            lines[second] = line
        if progress.is_manifest_due(1_000.0 + second):
            manifests.append(second)
    end = 200 * seconds_per_item
    times = [0, *lines]
    assert max(later - earlier for earlier, later in pairwise(times)) <= 30
    assert end <= times[-1] <= end + 30
    assert len(lines) <= end / 20
    assert lines[300] == "100 of 200 completed; about 5 min left"
    assert lines[times[-1]] == "200 of 200 completed"
    assert max(later - earlier for earlier, later in pairwise([0, *manifests])) <= 60


def test_expected_end_of_a_resumed_batch() -> None:
    """Items that had ended before this try do not count for the rate."""
    state = create_state(BatchPolicy(), completed=900, pending=100)
    progress = BatchProgress(state, 50.0)
    assert progress.describe(60.0) == "900 of 1,000 completed"
    for _ in range(10):
        state.move(ItemState.PENDING, ItemState.ACTIVE)
        state.move(ItemState.ACTIVE, ItemState.FETCHING)
        state.move(ItemState.FETCHING, ItemState.COMPLETED)
    assert progress.describe(150.0) == "910 of 1,000 completed; about 15 min left"
