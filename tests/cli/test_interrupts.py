"""Tests of Ctrl-C and SIGTERM in every phase of `airflow flows run`: start, wait and download.

The signals are real; the process has no terminal (tests/cli/test_terminal.py has one).
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
from tests.support.commands import PROMPT_FLOW, FlowsCommand, flows_command
from tests.support.versions import needs

pytestmark = needs("commands of providers")

RUN = f"run {PROMPT_FLOW} --input 'A chair' --param quality=low --poll-interval 0.1 --no-validate -o json"
CHAIN = (
    "run clibnwpno000bmc0k9hvv3y7f --conn-id promptchainer_default --variable color=red --variable item=chair"
)


@pytest.fixture
def flows(capsys: pytest.CaptureFixture[str]) -> FlowsCommand:
    """Return the command."""
    return flows_command(capsys)


@contextmanager
def ctrl_c_when(true: Callable[[], bool], number: signal.Signals = signal.SIGINT) -> Iterator[None]:
    """Interrupt this process once, as soon as a condition holds; a command that ignores it ends the tests."""

    def interrupt() -> None:
        end = time.monotonic() + 30
        while not true() and time.monotonic() < end:
            time.sleep(0.005)
        signal.pthread_kill(main_thread().ident or 0, number)

    thread = Thread(target=interrupt)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def asked(emulator: Emulator, method: str, end: str) -> Callable[[], bool]:
    """Tell whether such a request has come."""
    return lambda: any(
        request.method == method and request.path.endswith(end) for request in emulator.requests
    )


@contextmanager
def somebody_types(text: str) -> Iterator[None]:
    """Put a terminal in place of stdin and stderr, and somebody at it."""
    before = sys.stdin, sys.stderr
    keys, screen = pty.openpty()
    with (
        os.fdopen(keys, "wb", buffering=0) as typed,
        os.fdopen(screen) as stdin,
        os.fdopen(os.dup(screen), "w") as stderr,
    ):
        sys.stdin, sys.stderr = stdin, stderr
        try:
            typed.write(text.encode())
            yield
        finally:
            sys.stdin, sys.stderr = before


@pytest.mark.parametrize(("answer", "code"), [("\n", 130), ("no\n", 130), ("Yes\n", 3)])
def test_only_yes_aborts(flow_emulator: Emulator, flows: FlowsCommand, answer: str, code: int) -> None:
    """Whoever answers Ctrl-C's question with anything but yes leaves the run going."""
    flow_emulator.run_seconds = 5
    running = ctrl_c_when(lambda: any(run.current.state == "running" for run in flow_emulator.runs.values()))
    with somebody_types(answer), running:
        ended = flows(RUN)
    (run,) = flow_emulator.runs.values()
    assert (ended.code, run.current.state) == (code, "aborted" if code == 3 else "running")


def test_sigterm_asks_nobody(flow_emulator: Emulator, flows: FlowsCommand) -> None:
    """At a terminal too, SIGTERM asks nothing: the run continues, or is aborted with --on-interrupt abort."""
    before = signal.getsignal(signal.SIGTERM)
    for more, code, state in (("", 143, {"starting", "running"}), (" --on-interrupt abort", 3, {"aborted"})):
        flow_emulator.reset()
        flow_emulator.run_seconds = 5
        running = ctrl_c_when(asked(flow_emulator, "GET", ""), signal.SIGTERM)
        with somebody_types("y\n"), running:
            ended = flows(RUN + more)
        (run,) = flow_emulator.runs.values()
        assert (ended.code, run.current.state in state) == (code, True)
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_before_the_start_pays_nothing(flow_emulator: Emulator, flows: FlowsCommand) -> None:
    """A SIGTERM while inputs are sent deletes the created run; any other command just ends."""
    flow_emulator.add_fault(Fault("POST", "*/inputs", delay=20))
    with ctrl_c_when(asked(flow_emulator, "POST", "/inputs"), signal.SIGTERM):
        ended = flows(RUN)
    assert (ended.code, flow_emulator.paid_runs, dict(flow_emulator.runs)) == (143, [], {})
    assert ended.err.splitlines()[-1] == "No flow run is running; the one that had been created was deleted."
    flow_emulator.add_fault(Fault("GET", "/templates", delay=20))
    with ctrl_c_when(asked(flow_emulator, "GET", "/templates"), signal.SIGTERM):
        assert flows("list").code == 143


def test_signal_that_is_ignored_stays_so(flow_emulator: Emulator, flows: FlowsCommand) -> None:
    """A SIGTERM that the caller ignores ends nothing."""
    flow_emulator.run_seconds = 0.5
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with ctrl_c_when(asked(flow_emulator, "GET", ""), signal.SIGTERM):
            assert flows(RUN).code == 0
    finally:
        signal.signal(signal.SIGTERM, before)


def test_delete_asks(flow_emulator: Emulator, flows: FlowsCommand) -> None:
    """At a terminal `delete` deletes nothing without a yes."""
    flow_emulator.run_seconds = 0
    flow_run_id = flows(RUN).json["flow_run_id"]
    with somebody_types("n\n"):
        assert (flows(f"delete {flow_run_id}").code, [*flow_emulator.runs]) == (1, [flow_run_id])
    with somebody_types("y\n"):
        assert (flows(f"delete {flow_run_id}").code, [*flow_emulator.runs]) == (0, [])


def test_before_the_start_nothing_is_paid(flow_emulator: Emulator, flows: FlowsCommand) -> None:
    """A Ctrl-C while the inputs are sent deletes what was made of the run."""
    flow_emulator.add_fault(Fault("POST", "*/inputs", delay=20))
    with ctrl_c_when(asked(flow_emulator, "POST", "/inputs")):
        ended = flows(RUN)
    assert (ended.code, ended.out) == (130, "")
    assert ended.err.splitlines()[-1] == "No flow run is running; the one that had been created was deleted."
    assert (flow_emulator.paid_runs, dict(flow_emulator.runs)) == ([], {})


def test_a_run_whose_start_was_sent_goes_on(flow_emulator: Emulator, flows: FlowsCommand) -> None:
    """A Ctrl-C while the start is answered finds the run that goes on, and says how to go on with it."""
    flow_emulator.run_seconds = 60
    flow_emulator.add_fault(Fault("PATCH", "*", delay=20))
    with ctrl_c_when(lambda: bool(flow_emulator.paid_runs)):
        ended = flows(RUN)
    (run,) = flow_emulator.runs.values()
    assert (ended.code, run.current.state in {"starting", "running"}) == (130, True)
    assert f"continues. Watch it: airflow flows watch {run.flow_run_id}; abort it:" in ended.err


def test_abort_may_be_decided_beforehand(flow_emulator: Emulator, flows: FlowsCommand) -> None:
    """With --on-interrupt abort, Ctrl-C during the wait aborts the run without a question."""
    flow_emulator.run_seconds = 5
    with ctrl_c_when(asked(flow_emulator, "GET", "")):
        ended = flows(f"{RUN} --on-interrupt abort")
    assert (ended.code, ended.json["state"]) == (3, "aborted")


def test_a_chain_that_was_sent_may_run(flow_emulator: Emulator, flows: FlowsCommand) -> None:
    """A PromptChainer flow cannot be stopped, nor looked at again; a Ctrl-C says so."""
    flow_emulator.run_seconds = 60
    with ctrl_c_when(asked(flow_emulator, "POST", "hvv3y7f")):
        ended = flows(CHAIN)
    assert ended.code == 130
    assert ended.err.endswith("may run nevertheless; its outputs cannot be fetched.\n")


def test_outputs_can_be_fetched_later(flow_emulator: Emulator, flows: FlowsCommand, tmp_path: Path) -> None:
    """A Ctrl-C while files come leaves none half written, and says how to fetch them."""
    flow_emulator.run_seconds = 0
    flow_emulator.add_fault(Fault("GET", "*/outputs/*", delay=20))
    with ctrl_c_when(lambda: any("/outputs/" in request.path for request in flow_emulator.requests)):
        ended = flows(f"{RUN} --output-path {tmp_path}")
    (flow_run_id,) = flow_emulator.runs
    assert (ended.code, ended.out) == (130, "")
    assert ended.err.endswith(f"is completed; fetch its outputs: airflow flows download {flow_run_id}\n")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    flow_emulator.clear_faults()
    assert flows(f"download {flow_run_id} --output-path {tmp_path}").code == 0


def test_second_ctrl_c_tells_what_may_go_on(flow_emulator: Emulator, flows: FlowsCommand) -> None:
    """Who does not wait until it is found out whether the flow run started is told how to find out."""
    flow_emulator.run_seconds = 60
    flow_emulator.add_fault(Fault("PATCH", "*", delay=20))
    flow_emulator.add_fault(Fault("GET", "/flows/*", delay=20, times=None))
    with ctrl_c_when(lambda: bool(flow_emulator.paid_runs)), ctrl_c_when(asked(flow_emulator, "GET", "")):
        ended = flows(RUN)
    (flow_run_id,) = flow_emulator.runs
    look, stop = f"airflow flows get {flow_run_id}", f"airflow flows abort {flow_run_id}"
    assert (ended.code, ended.out) == (130, "")
    assert ended.err.endswith(
        f"The flow run {flow_run_id} may have started. Check it: {look}; abort it: {stop}\n"
    )


def test_ctrl_c_before_anything_is_sent(flow_emulator: Emulator, flows: FlowsCommand) -> None:
    """A Ctrl-C during the check ends at once: nothing is asked of a service that may be away."""
    flow_emulator.add_fault(Fault("GET", "/templates", delay=20))
    with ctrl_c_when(asked(flow_emulator, "GET", "/templates")):
        ended = flows(RUN.replace(" --no-validate", ""))
    assert (ended.code, ended.err) == (130, f"Interrupted. The flow {PROMPT_FLOW} was not started.\n")
    assert len(flow_emulator.requests) == 1


def test_a_run_that_cannot_be_stopped_is_told_of(flow_emulator: Emulator, flows: FlowsCommand) -> None:
    """When the service does not abort the flow run, it is said that it goes on, and how to go on with it."""
    flow_emulator.run_seconds = 60
    flow_emulator.add_fault(Fault("PATCH", "*", skip=1, status=500, times=None))
    with ctrl_c_when(asked(flow_emulator, "GET", "")):
        ended = flows(f"{RUN} --on-interrupt abort")
    (flow_run_id,) = flow_emulator.runs
    assert ended.code == 130
    assert "could not be aborted: PATCH" in ended.err
    assert f"The flow run {flow_run_id} continues. Watch it: airflow flows watch {flow_run_id}" in ended.err


def test_a_chain_that_is_over_is_never_lost(
    flow_emulator: Emulator, flows: FlowsCommand, tmp_path: Path
) -> None:
    """PromptChainer tells outputs once: a Ctrl-C while a picture comes prints them as they came."""
    flow_emulator.run_seconds = 0
    flow_emulator.add_fault(Fault("GET", "/private/*", delay=20))
    with ctrl_c_when(lambda: any("/private/" in request.path for request in flow_emulator.requests)):
        ended = flows(f"{CHAIN} --output-path {tmp_path} -o json")
    assert ended.code == 130
    assert {output["name"]: bool(output["value"]) for output in ended.json["outputs"]} == {
        "image": True,
        "text": True,
    }
    assert "airflow flows download" not in ended.err


def test_any_other_command_just_ends(flow_emulator: Emulator, flows: FlowsCommand) -> None:
    """A Ctrl-C elsewhere ends the command with its code and a word."""
    flow_emulator.add_fault(Fault("GET", "/templates", delay=20))
    with ctrl_c_when(asked(flow_emulator, "GET", "/templates")):
        ended = flows("list")
    assert (ended.code, ended.out, ended.err) == (130, "", "Interrupted.\n")
