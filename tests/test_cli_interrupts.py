"""Tests of Ctrl-C in every part of `airflow flows run`: before the flow run starts, while it runs, while its files come.

The signal is a real one, to the test's own process, which has no terminal; tests/test_cli_terminal.py asks at one.
"""

from __future__ import annotations

import os
import pty
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread, main_thread

import pytest

from airflow_provider_flows.emulator import Emulator, Fault
from tests.commands import PROMPT_FLOW, Flows, caller

RUN = f"run {PROMPT_FLOW} --input 'A chair' --param quality=low --poll-interval 0.1 --no-validate -o json"
CHAIN = "run clibnwpno000bmc0k9hvv3y7f --conn-id promptchainer_default --variable color=red --variable item=chair"


@pytest.fixture
def flows(capsys: pytest.CaptureFixture[str]) -> Flows:
    """Give the command."""
    return caller(capsys)


@contextmanager
def ctrl_c_when(true: Callable[[], bool]) -> Iterator[None]:
    """Interrupt this process once, as soon as something is so."""

    def interrupt() -> None:
        end = time.monotonic() + 30
        while not true() and time.monotonic() < end:
            time.sleep(0.005)
        signal.pthread_kill(main_thread().ident or 0, signal.SIGINT)

    thread = Thread(target=interrupt)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def asked(emulator: Emulator, method: str, end: str) -> Callable[[], bool]:
    """Tell whether such a request has come."""
    return lambda: any(request.method == method and request.path.endswith(end) for request in emulator.requests)


@contextmanager
def somebody_types(text: str) -> Iterator[None]:
    """Put a terminal in place of stdin and stderr, and somebody at it."""
    before = sys.stdin, sys.stderr
    keys, screen = pty.openpty()
    with os.fdopen(keys, "wb", buffering=0) as typed, os.fdopen(screen) as stdin, os.fdopen(os.dup(screen), "w") as stderr:
        sys.stdin, sys.stderr = stdin, stderr
        try:
            typed.write(text.encode())
            yield
        finally:
            sys.stdin, sys.stderr = before


@pytest.mark.parametrize(("answer", "code"), [("\n", 130), ("no\n", 130), ("Yes\n", 3)])
def test_only_yes_aborts(flow_emulator: Emulator, flows: Flows, answer: str, code: int) -> None:
    """Whoever answers Ctrl-C's question with anything but yes leaves the run going."""
    flow_emulator.run_seconds = 5
    running = ctrl_c_when(lambda: any(run.moment.state == "running" for run in flow_emulator.runs.values()))
    with somebody_types(answer), running:
        ended = flows(RUN)
    (run,) = flow_emulator.runs.values()
    assert (ended.code, run.moment.state) == (code, "aborted" if code == 3 else "running")


def test_delete_asks(flow_emulator: Emulator, flows: Flows) -> None:
    """At a terminal `delete` deletes nothing without a yes."""
    flow_emulator.run_seconds = 0
    flow_run_id = flows(RUN).json["flow_run_id"]
    with somebody_types("n\n"):
        assert (flows(f"delete {flow_run_id}").code, [*flow_emulator.runs]) == (1, [flow_run_id])
    with somebody_types("y\n"):
        assert (flows(f"delete {flow_run_id}").code, [*flow_emulator.runs]) == (0, [])


def test_before_the_start_nothing_is_paid(flow_emulator: Emulator, flows: Flows) -> None:
    """A Ctrl-C while the inputs are sent deletes what was made of the run."""
    flow_emulator.fault(Fault("POST", "*/inputs", delay=20))
    with ctrl_c_when(asked(flow_emulator, "POST", "/inputs")):
        ended = flows(RUN)
    assert (ended.code, ended.out) == (130, "")
    assert ended.err.splitlines()[-1] == "Interrupted. No flow run was started; what was made of one is deleted."
    assert (flow_emulator.paid_runs, dict(flow_emulator.runs)) == ([], {})


def test_a_run_whose_start_was_sent_goes_on(flow_emulator: Emulator, flows: Flows) -> None:
    """A Ctrl-C while the start is answered finds the run that goes on, and says how to go on with it."""
    flow_emulator.run_seconds = 60
    flow_emulator.fault(Fault("PATCH", "*", delay=20))
    with ctrl_c_when(lambda: bool(flow_emulator.paid_runs)):
        ended = flows(RUN)
    (run,) = flow_emulator.runs.values()
    assert (ended.code, run.moment.state in {"starting", "running"}) == (130, True)
    assert f"goes on. Watch it: airflow flows watch {run.flow_run_id}; abort it:" in ended.err


def test_abort_may_be_decided_beforehand(flow_emulator: Emulator, flows: Flows) -> None:
    """With --on-interrupt abort a Ctrl-C during the wait stops the run without a question, and the exit code says so."""
    flow_emulator.run_seconds = 5
    with ctrl_c_when(asked(flow_emulator, "GET", "")):
        ended = flows(f"{RUN} --on-interrupt abort")
    assert (ended.code, ended.json["state"]) == (3, "aborted")


def test_a_chain_that_was_sent_may_run(flow_emulator: Emulator, flows: Flows) -> None:
    """A PromptChainer flow cannot be stopped, nor looked at again; a Ctrl-C says so."""
    flow_emulator.run_seconds = 60
    with ctrl_c_when(asked(flow_emulator, "POST", "hvv3y7f")):
        ended = flows(CHAIN)
    assert ended.code == 130
    assert ended.err.endswith("may run all the same, and what it makes cannot be fetched.\n")


def test_outputs_can_be_fetched_later(flow_emulator: Emulator, flows: Flows, tmp_path: Path) -> None:
    """A Ctrl-C while files come leaves none half written, and says how to fetch them."""
    flow_emulator.run_seconds = 0
    flow_emulator.fault(Fault("GET", "*/outputs/*", delay=20))
    with ctrl_c_when(lambda: any("/outputs/" in request.path for request in flow_emulator.requests)):
        ended = flows(f"{RUN} --output-path {tmp_path}")
    (flow_run_id,) = flow_emulator.runs
    assert (ended.code, ended.out) == (130, "")
    assert ended.err.endswith(f"is completed; fetch its outputs: airflow flows download {flow_run_id}\n")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    flow_emulator.clear_faults()
    assert flows(f"download {flow_run_id} --output-path {tmp_path}").code == 0


def test_any_other_command_just_ends(flow_emulator: Emulator, flows: Flows) -> None:
    """A Ctrl-C elsewhere ends the command with its code and a word."""
    flow_emulator.fault(Fault("GET", "/templates", delay=20))
    with ctrl_c_when(asked(flow_emulator, "GET", "/templates")):
        ended = flows("list")
    assert (ended.code, ended.out, ended.err) == (130, "", "Interrupted.\n")
