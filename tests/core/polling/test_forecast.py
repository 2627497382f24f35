"""Tests of what a wait expects of a run, remembers of it and tells of it to statistics; the clock goes on only when told.

When it looks is in test_schedule.py, what ends it in test_waiting.py.
"""

from __future__ import annotations

import json
import logging
import time
from typing import Any

import pytest

from airflow_provider_flows.core.polling.wait import WaitMetrics
from airflow_provider_flows.core.retry import NO_RETRY, with_retries
from airflow_provider_flows.core.run import FlowRun, FlowState
from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.hooks import GenerioHook
from tests.core.polling.test_wait import Told, state
from tests.support.scripted_transport import NOON, no_response


def look(told: Told) -> FlowRun:
    """Look once, and give the run."""
    run = told.script.run(with_retries(told.wait.poll(), NO_RETRY))
    assert run is not None
    return run


def test_run_carries_its_expected_end() -> None:
    """What a look gives says when the run is expected to be over, as the log does; a final run expects nothing."""
    told = Told(state("running"), state("running", progress=0.1), state("completed", progress=1.0))
    assert look(told).expected_end is None
    told.script.sleep(10)
    run = look(told)
    assert (run.expected_at, str(run.expected_end)) == (NOON + 100, "2025-12-15 12:01:40+00:00")
    told.script.sleep(10)
    assert look(told).expected_end is None


def test_steady_run_is_left_alone_until_its_end() -> None:
    """Looks at a steady run become rare, and the one at its expected end is announced as such."""
    told = Told(*(state("running", progress=part / 100) for part in (10, 20, 60)))
    pauses = []
    for moment in (10, 20, 60):
        told.script.now = NOON + moment
        look(told)
        pauses.append((told.wait.next_delay(), told.wait.is_due_at_expected_end))
    assert pauses[0] == (5, False)
    assert pauses[1] == (40, False)
    assert pauses[2][1]
    assert 40 < pauses[2][0] < 42


def test_forecast_is_remembered_in_another_process() -> None:
    """A wait that goes on elsewhere knows the expected end and that it is steady, and begins where the first one left."""
    first = Told(state("running", progress=0.1), state("running", progress=0.2))
    for moment in (10, 20):
        first.script.now = NOON + moment
        look(first)
    memory = json.loads(json.dumps(first.wait.to_dict()))

    second = Told(state("running", progress=0.5))
    second.script.now = NOON + 50
    second.wait.restore(memory)

    assert second.wait.to_dict() == first.wait.to_dict()
    assert second.wait.initial_delay() > 0
    run = look(second)
    assert run.expected_at == NOON + 100
    assert (
        50 < second.wait.next_delay() < 52
    )  # until just after the end, for the forecast before it said the same


def test_new_wait_looks_at_once() -> None:
    """Only a wait that goes on after a look elsewhere begins with a pause."""
    assert Told().wait.initial_delay() == 0


@pytest.mark.parametrize(
    "forecast", [None, {}, {"progress": 0.5}, {"progress": 0.5, "of_a_later_version": 1}]
)
def test_memory_of_another_version_breaks_nothing(forecast: Any) -> None:
    """A memory whose forecast another version wrote, or none did, is read as far as it can be."""
    told = Told(state("running", progress=0.5), state("completed"))
    told.wait.restore({**told.wait.to_dict(), "forecast": forecast})
    assert told.wait.initial_delay() >= 0
    assert told.hold().is_final


def test_progress_is_told_no_more_often_than_said() -> None:
    """Between two lines about progress lie `apart` seconds at the least; changes of state are told all the same."""
    told = Told(
        *(state("running", progress=part / 10) for part in range(9)),
        state("aborting"),
        state("aborted"),
        min_interval=30,
    )
    for _ in range(11):
        look(told)
        told.script.sleep(10)
    lines = [line for line in told.of(logging.INFO) if "%" in line]
    assert [line.split(" at ")[1].split("%")[0] for line in lines] == ["10", "40", "70"]
    assert [line.split()[-1] for line in told.of(logging.INFO) if " is a" in line and "%" not in line] == [
        "aborting",
        "aborted",
    ]


@pytest.mark.parametrize("started", ["0001-01-01T00:00:00Z", -62135596800, NOON - 1e12])
def test_absurd_start_breaks_no_wait(started: Any) -> None:
    """A start in the year 1, which some services write for none, with progress that goes on, is waited out like any other."""
    told = Told(
        *(state("running", progress=part, started_at=started) for part in (0.1, 0.3, 0.5)), state("completed")
    )
    assert told.hold().is_final


def test_meter_is_told_of_looks_and_of_the_end() -> None:
    """Each look is counted, also one that brings nothing; the end is noted once, with how long was waited and how late it is."""

    class Counting(WaitMetrics):
        looks, ends = 0, list[tuple[str, float, float | None]]()

        def count_poll(self) -> None:
            self.looks += 1

        def record_end(self, run: FlowRun, wait_seconds: float, detection_delay: float | None) -> None:
            self.ends.append((run.raw_state, wait_seconds, detection_delay))

    meter = Counting()
    Told(state("running"), no_response(), state("failed", finished_at=NOON + 7), metrics=meter).hold()
    assert (meter.looks, meter.ends) == (3, [("failed", 10, 3)])


def test_list_that_tells_less_takes_nothing_away() -> None:
    """Flow and timestamps that a look told stay known when a list tells of the run without them."""
    told = Told(state("running", template="chair", progress=0.1))
    told.script.sleep(10)
    look(told)
    told.script.sleep(10)
    told.wait.record_poll(FlowRun("r", "generio", state=FlowState.RUNNING, progress=0.2))
    assert told.wait.run is not None
    assert (told.wait.run.flow, told.wait.run.progress) == ("chair", 0.2)
    assert told.wait.run.started_at is not None
    assert told.wait.to_dict()["forecast"]["end"] == pytest.approx(NOON + 100)


def test_run_that_the_hook_reads_tells_its_expected_end(flow_emulator: Emulator) -> None:
    """`get_run` gives the run with the end that its progress lets expect; one that is over has none."""
    flow_emulator.run_seconds = 3
    hook = GenerioHook("generio_default")
    run = hook.start("model_generate_fromprompt", "A chair")
    time.sleep(1.5)
    seen = hook.get_run(run.flow_run_id)
    assert seen.expected_end is not None
    assert seen.started_at is not None
    assert 1.5 < (seen.expected_end - seen.started_at).total_seconds() < 6
    assert hook.wait(run.flow_run_id, 0.5, 0.5).expected_end is None
    assert hook.get_run(run.flow_run_id).expected_end is None
