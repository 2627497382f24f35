"""Tests of a wait's forecast, its saved state and its observers, by a simulated clock."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

import pytest

from airflow_provider_flows.core.flow_run import FlowRun, FlowState
from airflow_provider_flows.core.polling.schedule import Delay
from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.hooks import GenerioHook
from tests.core.polling.test_wait import ScriptedWait, state
from tests.support.scripted_transport import NOON, no_response


def poll(scripted: ScriptedWait) -> FlowRun:
    """Look once, and give the run."""
    scripted.poll()
    assert scripted.wait.run is not None
    return scripted.wait.run


def test_run_carries_its_expected_end() -> None:
    """The run of a poll has the expected end that the log shows; a final run has none."""
    scripted = ScriptedWait(
        state("running"), state("running", progress=0.1), state("completed", progress=1.0)
    )
    assert poll(scripted).expected_end is None
    scripted.script.sleep(10)
    run = poll(scripted)
    assert (run.expected_end_epoch, str(run.expected_end)) == (NOON + 100, "2025-12-15 12:01:40+00:00")
    scripted.script.sleep(10)
    assert poll(scripted).expected_end is None


def test_steady_run_is_left_alone_until_its_end() -> None:
    """Looks at a steady run become rare, and the one at its expected end is announced as such."""
    scripted = ScriptedWait(*(state("running", progress=part / 100) for part in (10, 20, 60)))
    steps = []
    for seconds in (10, 20, 60):
        scripted.script.now = NOON + seconds
        steps.append(scripted.poll())
    assert steps[:2] == [Delay(5), Delay(40)]
    assert isinstance(steps[2], Delay)
    assert steps[2].is_at_expected_end
    assert 40 < steps[2].seconds < 42


def test_forecast_is_remembered_in_another_process() -> None:
    """A wait that continues in another process has the same forecast and starts where the first ended."""
    first = ScriptedWait(state("running", progress=0.1), state("running", progress=0.2))
    for seconds in (10, 20):
        first.script.now = NOON + seconds
        poll(first)
    saved = json.loads(json.dumps(first.wait.to_dict()))

    second = ScriptedWait(state("running", progress=0.5))
    second.script.now = NOON + 50
    second.wait.restore(saved)

    assert second.wait.to_dict() == first.wait.to_dict()
    assert second.wait.initial_delay() > 0
    run = poll(second)
    assert run.expected_end_epoch == NOON + 100
    assert (
        50 < second.wait.next_delay() < 52
    )  # until just after the end, for the forecast before it said the same


def test_new_wait_looks_at_once() -> None:
    """Only a wait that continues after a poll elsewhere starts with a delay."""
    assert ScriptedWait().wait.initial_delay() == 0


@pytest.mark.parametrize(
    "forecast", [None, {}, {"progress": 0.5}, {"progress": 0.5, "of_a_later_version": 1}]
)
def test_memory_of_another_version_breaks_nothing(forecast: Any) -> None:
    """Saved state of another version, or without a forecast, is read as far as possible."""
    scripted = ScriptedWait(state("running", progress=0.5), state("completed"))
    scripted.wait.restore({**scripted.wait.to_dict(), "forecast": forecast})
    assert scripted.wait.initial_delay() >= 0
    assert scripted.run().is_final


def test_progress_is_told_no_more_often_than_said() -> None:
    """At least `min_log_interval` seconds lie between two lines about progress; states are logged at once."""
    scripted = ScriptedWait(
        *(state("running", progress=part / 10) for part in range(9)),
        state("aborting"),
        state("aborted"),
        min_log_interval=30,
    )
    for _ in range(11):
        poll(scripted)
        scripted.script.sleep(10)
    lines = [line for line in scripted.lines_of(logging.INFO) if "%" in line]
    assert [line.split(" at ")[1].split("%")[0] for line in lines] == ["10", "40", "70"]
    assert [
        line.split()[-1] for line in scripted.lines_of(logging.INFO) if " is a" in line and "%" not in line
    ] == [
        "aborting",
        "aborted",
    ]


@pytest.mark.parametrize("started", ["0001-01-01T00:00:00Z", -62135596800, NOON - 1e12])
def test_absurd_start_breaks_no_wait(started: Any) -> None:
    """A start in the year 1, which some services write for none, does not break a wait."""
    scripted = ScriptedWait(
        *(state("running", progress=part, started_at=started) for part in (0.1, 0.3, 0.5)), state("completed")
    )
    assert scripted.run().is_final


def test_meter_is_told_of_looks_and_of_the_end() -> None:
    """Each poll is counted, failed ones too; the end is reported with wait time and detection delay."""
    looks, ends = list[None](), list[tuple[str, float, float | None]]()

    def on_final(run: FlowRun, wait_seconds: float, detection_delay: float | None) -> None:
        ends.append((run.raw_state, wait_seconds, detection_delay))

    answers = state("running"), no_response(), state("failed", finished_at=NOON + 7)
    ScriptedWait(*answers, count_poll=lambda: looks.append(None), on_final=on_final).run()
    assert (len(looks), ends) == (3, [("failed", 10, 3)])


def test_list_that_tells_less_takes_nothing_away() -> None:
    """Flow and timestamps from a poll are not lost when a list lacks them."""
    scripted = ScriptedWait(state("running", template="chair", progress=0.1))
    scripted.script.sleep(10)
    poll(scripted)
    scripted.script.sleep(10)
    scripted.wait.record_poll(FlowRun("r", "generio", state=FlowState.RUNNING, progress=0.2))
    assert scripted.wait.run is not None
    assert (scripted.wait.run.flow, scripted.wait.run.progress) == ("chair", 0.2)
    assert scripted.wait.run.started_at is not None
    assert scripted.wait.to_dict()["forecast"]["end"] == pytest.approx(NOON + 100)


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
