"""Tests of Ctrl-C and SIGTERM in every phase of `airflow flows run`: start, wait and download.

The signals are real; the process has no terminal (tests/cli/test_terminal.py has one).
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from airflow_provider_flows.emulator import Emulator, Fault
from tests.support.commands import PROMPT_FLOW, FlowsCommand, flows_command
from tests.support.interrupts import ctrl_c_when, has_request, type_at_terminal
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


@pytest.mark.parametrize(("reply", "code"), [("\n", 130), ("no\n", 130), ("Yes\n", 3)])
def test_only_yes_aborts(flow_emulator: Emulator, flows: FlowsCommand, reply: str, code: int) -> None:
    """Any reply but yes to the question after Ctrl-C leaves the run in progress."""
    flow_emulator.run_seconds = 5
    running = ctrl_c_when(lambda: any(run.current.state == "running" for run in flow_emulator.runs.values()))
    with type_at_terminal(reply), running:
        result = flows(RUN)
    (run,) = flow_emulator.runs.values()
    assert (result.code, run.current.state) == (code, "aborted" if code == 3 else "running")


def test_sigterm_ends_without_confirmation(flow_emulator: Emulator, flows: FlowsCommand) -> None:
    """SIGTERM needs no confirmation, even at a terminal: the run continues, or --on-interrupt aborts it."""
    previous = signal.getsignal(signal.SIGTERM)
    for more, code, state in (("", 143, {"starting", "running"}), (" --on-interrupt abort", 3, {"aborted"})):
        flow_emulator.reset()
        flow_emulator.run_seconds = 5
        running = ctrl_c_when(has_request(flow_emulator, "GET", ""), signal.SIGTERM)
        with type_at_terminal("y\n"), running:
            result = flows(RUN + more)
        (run,) = flow_emulator.runs.values()
        assert (result.code, run.current.state in state) == (code, True)
    assert signal.getsignal(signal.SIGTERM) is previous


def test_sigterm_before_the_start_deletes_the_run(flow_emulator: Emulator, flows: FlowsCommand) -> None:
    """A SIGTERM while inputs are sent deletes the created run; it ends any other command."""
    flow_emulator.add_fault(Fault("POST", "*/inputs", delay=20))
    with ctrl_c_when(has_request(flow_emulator, "POST", "/inputs"), signal.SIGTERM):
        result = flows(RUN)
    assert (result.code, flow_emulator.paid_runs, dict(flow_emulator.runs)) == (143, [], {})
    assert result.err.splitlines()[-1] == "No flow run is running; the one that had been created was deleted."
    flow_emulator.add_fault(Fault("GET", "/templates", delay=20))
    with ctrl_c_when(has_request(flow_emulator, "GET", "/templates"), signal.SIGTERM):
        assert flows("list").code == 143


def test_an_ignored_signal_remains_ignored(flow_emulator: Emulator, flows: FlowsCommand) -> None:
    """If the parent process ignores SIGTERM, so does the command."""
    flow_emulator.run_seconds = 0.5
    previous = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with ctrl_c_when(has_request(flow_emulator, "GET", ""), signal.SIGTERM):
            assert flows(RUN).code == 0
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_delete_asks_for_confirmation(flow_emulator: Emulator, flows: FlowsCommand) -> None:
    """At a terminal, `delete` deletes only after the reply yes."""
    flow_emulator.run_seconds = 0
    flow_run_id = flows(RUN).json["flow_run_id"]
    with type_at_terminal("n\n"):
        assert (flows(f"delete {flow_run_id}").code, [*flow_emulator.runs]) == (1, [flow_run_id])
    with type_at_terminal("y\n"):
        assert (flows(f"delete {flow_run_id}").code, [*flow_emulator.runs]) == (0, [])


def test_ctrl_c_before_the_start_deletes_the_run(flow_emulator: Emulator, flows: FlowsCommand) -> None:
    """A Ctrl-C while the inputs are sent deletes the created run, and nothing is billed."""
    flow_emulator.add_fault(Fault("POST", "*/inputs", delay=20))
    with ctrl_c_when(has_request(flow_emulator, "POST", "/inputs")):
        result = flows(RUN)
    assert (result.code, result.out) == (130, "")
    assert result.err.splitlines()[-1] == "No flow run is running; the one that had been created was deleted."
    assert (flow_emulator.paid_runs, dict(flow_emulator.runs)) == ([], {})


def test_a_run_whose_start_was_sent_continues(flow_emulator: Emulator, flows: FlowsCommand) -> None:
    """A Ctrl-C before the response to the start looks the run up, and says how to watch or abort it."""
    flow_emulator.run_seconds = 60
    flow_emulator.add_fault(Fault("PATCH", "*", delay=20))
    with ctrl_c_when(lambda: bool(flow_emulator.paid_runs)):
        result = flows(RUN)
    (run,) = flow_emulator.runs.values()
    assert (result.code, run.current.state in {"starting", "running"}) == (130, True)
    assert f"continues. Watch it: airflow flows watch {run.flow_run_id}; abort it:" in result.err


def test_on_interrupt_abort_needs_no_confirmation(flow_emulator: Emulator, flows: FlowsCommand) -> None:
    """With --on-interrupt abort, Ctrl-C during the wait aborts the run without a question."""
    flow_emulator.run_seconds = 5
    with ctrl_c_when(has_request(flow_emulator, "GET", "")):
        result = flows(f"{RUN} --on-interrupt abort")
    assert (result.code, result.json["state"]) == (3, "aborted")


def test_a_sent_chain_may_run(flow_emulator: Emulator, flows: FlowsCommand) -> None:
    """A PromptChainer flow can be neither aborted nor polled; a Ctrl-C reports that it may run."""
    flow_emulator.run_seconds = 60
    with ctrl_c_when(has_request(flow_emulator, "POST", "hvv3y7f")):
        result = flows(CHAIN)
    assert result.code == 130
    assert result.err.endswith("may run nevertheless; its outputs cannot be fetched.\n")


def test_outputs_can_be_fetched_later(flow_emulator: Emulator, flows: FlowsCommand, tmp_path: Path) -> None:
    """A Ctrl-C during a download leaves no partial file, and says how to fetch the outputs."""
    flow_emulator.run_seconds = 0
    flow_emulator.add_fault(Fault("GET", "*/outputs/*", delay=20))
    with ctrl_c_when(lambda: any("/outputs/" in request.path for request in flow_emulator.requests)):
        result = flows(f"{RUN} --output-path {tmp_path}")
    (flow_run_id,) = flow_emulator.runs
    assert (result.code, result.out) == (130, "")
    assert result.err.endswith(f"is completed; fetch its outputs: airflow flows download {flow_run_id}\n")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    flow_emulator.clear_faults()
    assert flows(f"download {flow_run_id} --output-path {tmp_path}").code == 0


def test_second_ctrl_c_names_the_run_that_may_continue(flow_emulator: Emulator, flows: FlowsCommand) -> None:
    """A second Ctrl-C while the run is looked up ends at once, and says how to check and abort it."""
    flow_emulator.run_seconds = 60
    flow_emulator.add_fault(Fault("PATCH", "*", delay=20))
    flow_emulator.add_fault(Fault("GET", "/flows/*", delay=20, times=None))
    with (
        ctrl_c_when(lambda: bool(flow_emulator.paid_runs)),
        ctrl_c_when(has_request(flow_emulator, "GET", "")),
    ):
        result = flows(RUN)
    (flow_run_id,) = flow_emulator.runs
    get_command, abort_command = f"airflow flows get {flow_run_id}", f"airflow flows abort {flow_run_id}"
    assert (result.code, result.out) == (130, "")
    assert result.err.endswith(
        f"The flow run {flow_run_id} may have started. Check it: {get_command}; abort it: {abort_command}\n"
    )


def test_ctrl_c_before_any_request_to_start(flow_emulator: Emulator, flows: FlowsCommand) -> None:
    """A Ctrl-C during validation ends at once, without another request."""
    flow_emulator.add_fault(Fault("GET", "/templates", delay=20))
    with ctrl_c_when(has_request(flow_emulator, "GET", "/templates")):
        result = flows(RUN.replace(" --no-validate", ""))
    assert (result.code, result.err) == (130, f"Interrupted. The flow {PROMPT_FLOW} was not started.\n")
    assert len(flow_emulator.requests) == 1


def test_a_run_that_cannot_be_aborted_is_reported(flow_emulator: Emulator, flows: FlowsCommand) -> None:
    """If the service does not abort the flow run, stderr says that it continues, and how to watch it."""
    flow_emulator.run_seconds = 60
    flow_emulator.add_fault(Fault("PATCH", "*", skip=1, status=500, times=None))
    with ctrl_c_when(has_request(flow_emulator, "GET", "")):
        result = flows(f"{RUN} --on-interrupt abort")
    (flow_run_id,) = flow_emulator.runs
    assert result.code == 130
    assert "could not be aborted: PATCH" in result.err
    assert f"The flow run {flow_run_id} continues. Watch it: airflow flows watch {flow_run_id}" in result.err


def test_outputs_of_a_finished_chain_are_never_lost(
    flow_emulator: Emulator, flows: FlowsCommand, tmp_path: Path
) -> None:
    """PromptChainer returns outputs once: a Ctrl-C while an image is downloaded prints them."""
    flow_emulator.run_seconds = 0
    flow_emulator.add_fault(Fault("GET", "/private/*", delay=20))
    with ctrl_c_when(lambda: any("/private/" in request.path for request in flow_emulator.requests)):
        result = flows(f"{CHAIN} --output-path {tmp_path} -o json")
    assert result.code == 130
    assert {output["name"]: bool(output["value"]) for output in result.json["outputs"]} == {
        "image": True,
        "text": True,
    }
    assert "airflow flows download" not in result.err


def test_ctrl_c_ends_any_other_command(flow_emulator: Emulator, flows: FlowsCommand) -> None:
    """Ctrl-C ends any other command with its exit code and one line."""
    flow_emulator.add_fault(Fault("GET", "/templates", delay=20))
    with ctrl_c_when(has_request(flow_emulator, "GET", "/templates")):
        result = flows("list")
    assert (result.code, result.out, result.err) == (130, "", "Interrupted.\n")
