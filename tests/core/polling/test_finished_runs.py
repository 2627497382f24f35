"""Tests of how lists and polls become snapshots of finished runs, and snapshots become events."""

from __future__ import annotations

import json
from typing import Any

import pendulum
import pytest

from airflow_provider_flows.core.exceptions import FlowNotFound, FlowUnreachable
from airflow_provider_flows.core.flow_run import FlowRun, FlowState
from airflow_provider_flows.core.polling.finished_runs import (
    MAX_POLLS_PER_LIST,
    EventCursor,
    FinishedRuns,
    Snapshot,
)
from tests.support.scripted_transport import NOON


def matches_all(_: FlowRun) -> bool:
    """Match every run."""
    return True


def test_cursor_is_bounded_and_repeats_no_event() -> None:
    """After thousands of runs within an hour the cursor fits into Airflow's store and repeats no event."""
    cursor, run_ends = EventCursor().after(Snapshot(0.0, ()), matches_all)[0], list[tuple[float, FlowRun]]()
    count = 0
    for hundred in range(50):
        new = [
            (hundred + number / 100, FlowRun(f"{hundred:012x}{number:012x}", "generio"))
            for number in range(100)
        ]
        run_ends = sorted([*run_ends, *new], key=lambda run_end: run_end[0], reverse=True)
        cursor, new_runs = cursor.after(Snapshot(1e9, run_ends), matches_all)
        count += len(new_runs)
    saved = json.dumps(cursor.to_dict())

    assert count == 5000
    assert len(saved) < 65_535
    restored = EventCursor.from_dict(json.loads(saved))
    assert restored.after(Snapshot(1e9, run_ends), matches_all) == (restored, [])


def test_cursor_with_long_ids_is_bounded() -> None:
    """A cursor stores fewer ids if they are long, so that Airflow's store accepts it."""
    cursor, _ = EventCursor().after(Snapshot(0.0, ()), matches_all)
    run_ends = [
        (float(number), FlowRun(f"{number}" + "\N{GREEK SMALL LETTER ALPHA}" * 150, "third"))
        for number in range(999, 0, -1)
    ]
    cursor, new_runs = cursor.after(Snapshot(1e9, run_ends), matches_all)
    assert len(new_runs) == 999
    assert 10_000 < len(json.dumps(cursor.to_dict())) < 65_535
    restored = EventCursor.from_dict(cursor.to_dict())
    assert restored.after(Snapshot(1e9, run_ends), matches_all) == (restored, [])


UNREADABLE_CURSORS = [
    None,
    7,
    [],
    ["x"],
    "x",
    {"emitted_until": "x"},
    {"emitted_until": float("nan")},
    {"ends": {}},
]


@pytest.mark.parametrize("data", UNREADABLE_CURSORS)
def test_unreadable_cursor_is_a_new_one(data: Any) -> None:
    """Foreign content of the store is read as a new cursor."""
    assert EventCursor.from_dict(data) == EventCursor()


def finished(flow_run_id: str, end: float | None = NOON) -> FlowRun:
    """Create a completed run."""
    finished_at = None if end is None else pendulum.from_timestamp(end)
    return FlowRun(flow_run_id, "generio", flow="f", state=FlowState.COMPLETED, finished_at=finished_at)


def test_steps_do_not_change_earlier_states() -> None:
    """Each step returns a new state; a run that vanished is polled until it is final or gone."""
    running = [FlowRun(key, "generio", flow="f", state=FlowState.RUNNING) for key in "ab"]
    first, ids = FinishedRuns().after_list(running)
    assert (ids, first.active_ids) == ([], {"a", "b"})
    second, ids = first.after_list([finished("c")])
    assert ids == ["a", "b"]
    third, snapshot = second.after_polls(
        [finished("c")], {"a": finished("a", None), "b": FlowNotFound("b")}, NOON
    )
    assert (second.active_ids, third.active_ids) == ({"a", "b"}, frozenset())
    assert snapshot.is_complete
    assert [(end, run.flow_run_id) for end, run in snapshot.run_ends] == [(NOON, "c"), (NOON, "a")]
    assert third.after_list([])[1] == []
    assert first == FinishedRuns(active_ids=frozenset("ab"))


def test_longest_unpolled_runs_are_first() -> None:
    """A few runs are polled for each list; failed polls are retried after all others."""
    rows = [FlowRun(f"r{number}", "generio", raw_state="unknown") for number in range(MAX_POLLS_PER_LIST + 5)]
    finished_runs, ids = FinishedRuns().after_list(rows)
    assert ids == [run.flow_run_id for run in rows[:MAX_POLLS_PER_LIST]]
    finished_runs, snapshot = finished_runs.after_polls(
        rows, {key: FlowUnreachable(key) for key in ids}, NOON
    )
    assert not snapshot.is_complete
    assert finished_runs.after_list(rows)[1][:6] == ["r20", "r21", "r22", "r23", "r24", "r0"]
