"""Tests of what a wait logs: state changes, progress, failed polls and the end, each once."""

from __future__ import annotations

import logging
from dataclasses import replace

from airflow_provider_flows.core.flow_run import FlowRun, FlowState
from airflow_provider_flows.core.polling.progress_log import ProgressLogger
from airflow_provider_flows.core.polling.schedule import PollState
from tests.support.scripted_transport import NOON, json_response, no_response
from tests.support.scripted_wait import ScriptedWait, run_response


def test_unknown_state_is_logged_once() -> None:
    """A state that this provider does not know causes one warning with its name, and polling continues."""
    scripted = ScriptedWait(
        run_response("paused"), run_response("paused"), run_response("paused"), run_response("completed")
    )
    assert scripted.run().is_final
    (warning,) = scripted.lines_of(logging.WARNING)
    assert "'paused'" in warning
    assert "polling continues" in warning


def test_state_is_logged_when_it_changes() -> None:
    """Each change of state is one line, however many polls return it."""
    scripted = ScriptedWait(
        *[run_response("starting")] * 3,
        *[run_response("running")] * 9,
        run_response("completed", finished_at=NOON + 61.5),
    )
    scripted.run()
    assert scripted.lines_of(logging.INFO) == [
        "The generio flow run r is starting",
        "The flow run r is running",
        "The flow run r is completed after 61.5 s",
    ]


def test_only_the_first_line_names_the_run_in_full() -> None:
    """The first line has service, id and flow, also if a poll failed; later ones the end of the id."""
    flow_run_id = "6b0cff80866b6f320d018eb3"
    run = FlowRun(flow_run_id, "generio", "chair", FlowState.RUNNING, "running")
    lines: list[str] = []
    logger = ProgressLogger(lambda _, line: lines.append(line))
    poll_state = PollState(flow_run_id, NOON)

    logger.on_run(run, poll_state, NOON)
    logger.on_failed_poll(poll_state._replace(failed_polls=1))
    other = ProgressLogger(lambda _, line: lines.append(line))
    other.restore(logger.to_dict())
    other.on_failed_poll(poll_state._replace(failed_polls=2))
    other.on_run(replace(run, progress=0.5), poll_state, NOON)
    ProgressLogger(lambda _, line: lines.append(line), is_named=True).on_run(run, poll_state, NOON)
    ProgressLogger(lambda _, line: lines.append(line)).on_failed_poll(poll_state._replace(failed_polls=1))

    full, short = f"The generio flow run {flow_run_id} (flow chair) ", "The flow run ...018eb3 (chair) "
    starts = [full, *[short] * 5, f"The flow run {flow_run_id} "]
    assert [line[: len(start)] for line, start in zip(lines, starts, strict=True)] == starts


def test_progress_is_logged_every_ten_points() -> None:
    """Progress is logged for each ten points, with age and expected end; a decrease is not logged."""
    values = (0.0, 0.05, 0.1, 0.12, 0.19, 0.29, 0.1, 0.3, 0.75, 0.75, 0.99, 1.0)
    scripted = ScriptedWait(
        *(run_response("running", progress=progress) for progress in values), run_response("completed")
    )
    scripted.run()
    lines = [line for line in scripted.lines_of(logging.INFO) if "%" in line]
    assert [line.split(" at ")[1].split("%")[0] for line in lines] == ["10", "29", "75", "99"]
    assert lines[0].endswith("after 10 s; expected end: 12:01:40 UTC")
    assert len(scripted.lines) == len(lines) + 2


def test_progress_is_logged_at_most_once_an_interval() -> None:
    """At least `min_log_interval` seconds lie between two lines about progress; states are logged at once."""
    scripted = ScriptedWait(
        *(run_response("running", progress=part / 10) for part in range(9)),
        run_response("aborting"),
        run_response("aborted"),
        min_log_interval=30,
    )
    for _ in range(11):
        scripted.poll_run()
        scripted.script.sleep(10)
    lines = [line for line in scripted.lines_of(logging.INFO) if "%" in line]
    assert [line.split(" at ")[1].split("%")[0] for line in lines] == ["10", "40", "70"]
    assert [
        line.split()[-1] for line in scripted.lines_of(logging.INFO) if " is a" in line and "%" not in line
    ] == [
        "aborting",
        "aborted",
    ]


def test_failed_polls_and_recovery_are_logged() -> None:
    """The first failed poll of a series, each doubling of their number, and the recovery are logged."""
    scripted = ScriptedWait(
        run_response("running"),
        *[json_response({}, 503)] * 9,
        run_response("running"),
        no_response(),
        run_response("completed"),
    )
    scripted.run()
    warnings = scripted.lines_of(logging.WARNING)
    assert [warning.split("(")[1].split(" ")[0] for warning in warnings] == ["1", "2", "4", "8", "1"]
    assert all("polling continues" in warning for warning in warnings)
    assert [line for line in scripted.lines_of(logging.INFO) if "polled again" in line] == [
        "The flow run r can be polled again"
    ] * 2
