"""Tests of the lines that a wait logs: start, changes, progress and end, without secrets.

That all modes log the same is tested in test_modes.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from airflow_provider_flows.core.exceptions import FlowAuthError
from airflow_provider_flows.emulator import Emulator, Fault
from tests.support.modes import MODES, PROMPT, package_log_lines, run_in_mode

KEY = "a-key-in-no-other-text"
SECONDS = 100.0


@pytest.fixture(scope="module")
def flow_emulator_server() -> Iterator[Emulator]:
    """Serve with a key that occurs in no other text."""
    with Emulator(key=KEY, run_seconds=SECONDS) as emulator:
        yield emulator


def test_progress_is_logged_every_ten_points(emulator: Emulator) -> None:
    """Progress is logged every ten points, with percentage, elapsed time and expected end."""
    # polled at about 0, 12, 15, 18, 45, 48, 84 and 100 %
    wait = run_in_mode("blocking", emulator, (20.5, 3.0, 3.0, 24.0, 3.0, 32.0, 30.0))

    progress = [
        line.partition(" is at ")[2] for line in package_log_lines(wait.result.log) if " is at " in line
    ]
    assert [int(line.partition("%")[0]) // 10 for line in progress] == [1, 4, 8]
    assert all(re.fullmatch(r"\d+% after \d+ s; expected end: \d\d:\d\d:\d\d UTC", line) for line in progress)


def test_first_and_last_line_name_the_run(emulator: Emulator) -> None:
    """The first line has service, flow and flow run id; the last one has the final state and the duration."""
    wait = run_in_mode("deferrable", emulator, (20.0, 90.0))

    run = f"generio flow run {wait.flow_run_id} (flow model_generate_fromprompt)"
    lines = package_log_lines(wait.result.log)
    assert lines[0] == f"info: Started the {run}"
    assert lines[-1] == f"info: The {run} is completed after 100.0 s"


@pytest.mark.parametrize("mode", MODES)
def test_key_and_inputs_are_not_logged(emulator: Emulator, mode: str) -> None:
    """API key and inputs are in no line and no error of any mode, even if the service repeats the key."""
    body = json.dumps({"detail": f"The key {KEY} has expired"}).encode()
    emulator.add_fault(Fault(method="GET", path="/flows/*", skip=2, times=None, status=401, body=body))

    wait = run_in_mode(mode, emulator, (20.0,))

    assert type(wait.error) is FlowAuthError
    assert KEY not in str(wait.error)
    assert KEY not in wait.result.log
    assert PROMPT not in "\n".join(package_log_lines(wait.result.log))
