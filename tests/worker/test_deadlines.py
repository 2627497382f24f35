"""Tests of deadlines: `timeout` is one deadline for all tries, `execution_timeout` one for each try.

Killed processes are tested in tests/system/chaos.
"""

from __future__ import annotations

import time
from datetime import timedelta

import pytest

from airflow_provider_flows.core import exceptions
from airflow_provider_flows.emulator import Emulator, Fault
from tests.support.airflow_run import THREAD_TIMEOUT
from tests.support.modes import compat_notices
from tests.support.tries import BOTH_MODES, CHAIR_ARGUMENTS, request_times, run_with_retries
from tests.support.versions import lacks, needs

pytestmark = [THREAD_TIMEOUT, pytest.mark.emulator(run_seconds=0, abort="instant", retries=0)]


@needs("task state store")
@BOTH_MODES
def test_timeout_runs_on_over_the_tries(emulator: Emulator, *, deferrable: bool) -> None:
    """The first start sets the deadline: a second try has the time that is left, and there is no third."""
    emulator.run_seconds = 60
    emulator.add_fault(Fault("GET", "/flows/*", status=402, times=3))
    began = time.time()
    ended = run_with_retries(
        f"retries_timeout_{deferrable}", **CHAIR_ARGUMENTS, timeout=6, retries=3, deferrable=deferrable
    )
    assert (ended.tries, ended.state, emulator.started_count) == (2, "failed", 1)
    assert type(ended.error) is exceptions.FlowTimeout
    (made,), (aborted,) = request_times(emulator, "POST", "/flows"), request_times(emulator, "PATCH")[1:]
    assert began + 6 < ended.record["deadline"] < made + 6
    assert ended.record["deadline"] <= aborted < ended.record["deadline"] + 5


@needs("task state store")
def test_timeout_that_is_over_starts_nothing(emulator: Emulator) -> None:
    """A second try after the deadline starts nothing, and there is no third."""
    emulator.add_fault(Fault("POST", "/flows", status=503))
    ended = run_with_retries(
        "retries_over", **CHAIR_ARGUMENTS, timeout=1, retries=3, retry_delay=timedelta(seconds=2)
    )
    assert (ended.tries, ended.state, emulator.started_count) == (2, "failed", 0)
    assert type(ended.error) is exceptions.FlowTimeout
    assert "was not started, because its timeout had already passed" in str(ended.error)
    assert len(request_times(emulator, "POST", "/flows")) == 1


@lacks("task state store")
def test_without_a_store_each_try_has_the_whole_timeout(emulator: Emulator) -> None:
    """Without a store each try has the full timeout, and logs it; each run is aborted."""
    emulator.run_seconds = 60
    ended = run_with_retries("retries_anew", **CHAIR_ARGUMENTS, timeout=1)
    assert (ended.tries, ended.state, emulator.started_count) == (2, "failed", 2)
    assert type(ended.error) is exceptions.FlowTimeout
    assert compat_notices(ended.result.log).count("The task state store") == ended.tries
    assert [run.state for run in emulator.runs.values()] == ["aborted", "aborted"]


ENDINGS = {
    "aborted": ({}, None, "The flow run ended in state 'aborted'."),
    "left alone": ({"abort_on_kill": False}, None, "The flow run continues (abort_on_kill=False)."),
    "refused": (
        {},
        Fault("PATCH", skip=1, times=None, status=403),
        "may still be active; check it at the service: PATCH",
    ),
    "going on": (
        {},
        Fault("PATCH", skip=1, times=None, status=200),
        "This task asked the service to abort the flow run, which is still 'running'. Check it there.",
    ),
    "gone": (
        {"poll_interval": 30},
        Fault("GET", skip=2, times=None, status=404),
        "The flow run no longer exists at the service.",
    ),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_timeout_tells_what_became_of_the_run(emulator: Emulator, ending: str) -> None:
    """FlowTimeout says whether the flow run was aborted, and if not, why."""
    emulator.run_seconds = 60
    given, fault, words = ENDINGS[ending]
    if fault is not None:
        emulator.add_fault(fault)
    ended = run_with_retries(
        f"retries_ending_{len(ending)}", **CHAIR_ARGUMENTS, timeout=1, retries=0, **given
    )
    assert (ended.tries, type(ended.error)) == (1, exceptions.FlowTimeout)
    assert words in str(ended.error)
    (run,) = emulator.runs.values()
    assert (run.state == "aborted") is (ending == "aborted")


@needs("task state store")
@BOTH_MODES
def test_execution_timeout_is_each_trys(emulator: Emulator, *, deferrable: bool) -> None:
    """After execution_timeout the next try resumes the flow run; after the last try it is aborted."""
    emulator.run_seconds = 60
    began = time.time()
    given = {"execution_timeout": timedelta(seconds=3), "deferrable": deferrable}
    ended = run_with_retries(f"retries_execution_timeouts_{deferrable}", **CHAIR_ARGUMENTS, **given)
    assert (ended.tries, ended.state, emulator.started_count) == (2, "failed", 1)
    assert type(ended.error) is exceptions.FlowTimeout
    assert "The flow run ended in state 'aborted'." in str(ended.error)
    assert ended.count_log_lines("Resuming the generio flow run") == 1
    (run,) = emulator.runs.values()
    assert run.state == "aborted"
    assert len(request_times(emulator, "PATCH")) == 2
    assert request_times(emulator, "PATCH")[1] - began > 6


@BOTH_MODES
def test_execution_timeout_of_the_last_try_stops_the_run(emulator: Emulator, *, deferrable: bool) -> None:
    """In a worker and while deferred, execution_timeout raises a FlowTimeout and aborts the run."""
    emulator.run_seconds = 60
    given = {"execution_timeout": timedelta(seconds=3), "deferrable": deferrable, "retries": 0}
    ended = run_with_retries(f"retries_execution_timeout_{deferrable}", **CHAIR_ARGUMENTS, **given)
    assert (ended.tries, ended.state, emulator.started_count) == (1, "failed", 1)
    assert type(ended.error) is exceptions.FlowTimeout
    assert "The flow run ended in state 'aborted'." in str(ended.error)


def test_execution_timeout_during_the_inputs_leaves_no_run(emulator: Emulator) -> None:
    """A run that was created and not started at the last try's execution_timeout is deleted."""
    emulator.add_fault(Fault("POST", "/flows/*", delay=5))
    ended = run_with_retries(
        "retries_execution_timeout_inputs",
        **CHAIR_ARGUMENTS,
        execution_timeout=timedelta(seconds=2),
        retries=0,
    )
    assert (ended.tries, ended.state, emulator.started_count) == (1, "failed", 0)
    assert type(ended.error) is exceptions.FlowTimeout
    assert "The flow run no longer exists at the service." in str(ended.error)
    assert not emulator.runs
