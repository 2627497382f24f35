"""Tests of `airflow flows batch`: what it prints and leaves, and what the same command continues."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from airflow.cli.cli_parser import get_parser

from airflow_provider_flows.emulator import Emulator, Fault, Plan
from airflow_provider_flows.storage.batch_manifest import FileStore
from tests.support.account_limits import set_extra, shorten_waits
from tests.support.batches import (
    CHAIN_FLOW,
    count_paid_runs,
    get_max_active,
    read_lines,
    read_manifest_states,
)
from tests.support.bucket import BUCKET, BUCKET_CONN_ID, ObjectServer
from tests.support.commands import PROMPT_FLOW, CommandResult, FlowsCommand, flows_command
from tests.support.interrupts import ctrl_c_when, has_request, type_at_terminal
from tests.support.terminal import CTRL_C, TERMINAL_TIMEOUT_SECONDS, Terminal
from tests.support.versions import needs

pytestmark = [
    needs("commands of providers"),
    pytest.mark.emulator(run_seconds=0.2, abort="instant", retries=0),
]

ITEMS = 4
# the command without the rest of `airflow`, which takes seconds to start
SCRIPT = """
import json, sys
from argparse import Namespace
from airflow_provider_flows.cli.batch import batch
batch(Namespace(**json.loads(sys.argv[1])))
"""
COUNTS = ("total", "completed", "failed", "aborted", "reused")


@pytest.fixture
def flows(capsys: pytest.CaptureFixture[str]) -> FlowsCommand:
    """Return the command."""
    return flows_command(capsys)


@pytest.fixture
def items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file of items, in the current folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "items.jsonl"
    lines = [{"key": f"item-{number}", "inputs": f"Chair {number}"} for number in range(1, ITEMS + 1)]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def to_command(items: str = "items.jsonl", more: str = "") -> str:
    """Return the arguments of a batch with short intervals."""
    return f"batch {PROMPT_FLOW} {items} --output out -p quality=low --poll-interval 0.1 -o json {more}"


def get_counts(result: CommandResult) -> tuple[int, ...]:
    """Return the counts that a command has printed."""
    return tuple(result.json[name] for name in COUNTS)


def test_second_call_sends_no_start(emulator: Emulator, flows: FlowsCommand, items: Path) -> None:
    """A batch runs each item once and prints what a task returns; the same command has nothing to do."""
    first = flows(to_command(more="--max-active 3"))
    assert (first.code, get_counts(first)) == (0, (ITEMS, ITEMS, 0, 0, 0))
    assert {*first.json} == {*COUNTS, "manifest", "failed_items", "duration", "flow", "service"}
    output = items.parent / "out"
    assert set(read_manifest_states(output).values()) == {"completed"}
    assert len(list(output.glob("item-*/*.glb"))) == ITEMS
    sent = len(emulator.requests)
    second = flows(to_command())
    assert (second.code, get_counts(second)) == (0, get_counts(first))
    assert {request.method for request in emulator.requests[sent:]} <= {"GET"}
    assert count_paid_runs(emulator) == {f"item-{number}": 1 for number in range(1, ITEMS + 1)}


@pytest.mark.usefixtures("items")
def test_failed_items_are_run_again(emulator: Emulator, flows: FlowsCommand, tmp_path: Path) -> None:
    """A failure has its exit code; the same command, or one with `failed.jsonl`, runs that item again."""
    emulator.add_plan(Plan("failed", error="Out of memory"))
    first = flows(to_command(more="--max-active 1"))
    assert (first.code, get_counts(first)) == (1, (ITEMS, ITEMS - 1, 1, 0, 0))
    assert "3 of 4 items have completed, less than --min-success-ratio (1)" in first.err
    assert "warning: Item item-1 failed" in first.err
    failed = read_lines(tmp_path / "out" / "failed.jsonl")
    assert [item["key"] for item in failed] == ["item-1"]
    (tmp_path / "failed.jsonl").write_text((tmp_path / "out" / "failed.jsonl").read_text())
    other = flows(to_command("failed.jsonl").replace("--output out", "--output-path other"))
    assert (other.code, get_counts(other)[:2]) == (0, (1, 1))
    again = flows(to_command())
    assert (again.code, get_counts(again)) == (0, (ITEMS, ITEMS, 0, 0, 0))
    assert count_paid_runs(emulator) == {"item-1": 3, "item-2": 1, "item-3": 1, "item-4": 1}


def test_options(emulator: Emulator, flows: FlowsCommand, tmp_path: Path, items: Path) -> None:
    """Columns, retries of items, the ratio, and items that cannot be sent."""
    items.with_name("items.csv").write_text("key,chair_prompt,note\na,A chair,x\nb,A table,y\n/c,A lamp,z\n")
    emulator.add_plan(Plan("failed", times=2))
    columns = "--column chair_prompt=inputs --column note="
    command = to_command("items.csv", f"{columns} --max-active 1")
    rejected = flows(command)
    assert rejected.code == 2
    assert "line 4: its key '/c' is not a safe file name" in rejected.err
    assert "use --skip-invalid to run the other items" in rejected.err
    assert emulator.started_count == 0
    result = flows(f"{command} --skip-invalid --item-retries 1 --min-success-ratio 0.5")
    assert (result.code, get_counts(result)) == (0, (3, 1, 2, 0, 0))
    assert count_paid_runs(emulator) == {"a": 2, "b": 1}
    assert [run.parameters["quality"] for run in emulator.paid_runs] == ["low"] * 3
    assert [line["key"] for line in read_lines(tmp_path / "out" / "failed.jsonl")] == ["a", "/c"]


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ("--max-active 0", "--max-active must be"),
        ("--max-active x", "--max-active: 'x' is not"),
        ("--min-success-ratio 2", "--min-success-ratio: '2' is not a number from 0 to 1"),
        ("--column prompt=inputs", "--column is for CSV and Parquet files only"),
        ("-p qualty=low", "parameter 'qualty'"),
        ("--output-conn-id absent", "--output-conn-id"),
    ],
)
@pytest.mark.usefixtures("items")
def test_mistakes(emulator: Emulator, flows: FlowsCommand, more: str, named: str) -> None:
    """A mistake has exit code 2, names the option, and starts nothing."""
    result = flows(to_command(more=more))
    assert (result.code, emulator.started_count) == (2, 0)
    assert named in result.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("items")
def test_interrupted_batch_is_resumed(
    emulator: Emulator, flows: FlowsCommand, number: signal.Signals
) -> None:
    """Ctrl-C and SIGTERM leave the flow runs active, and the same command resumes them."""
    emulator.run_seconds = 600
    with ctrl_c_when(lambda: emulator.started_count == ITEMS, number):
        result = flows(to_command())
    assert (result.code, result.out) == (130 if number == signal.SIGINT else 143, "")
    assert f"Flow runs that may be active, and continue: {ITEMS}. The same command" in result.err
    assert {run.state for run in emulator.paid_runs} <= {"starting", "running"}
    emulator.advance(600)
    again = flows(to_command())
    assert (again.code, get_counts(again)[:2]) == (0, (ITEMS, ITEMS))
    assert set(count_paid_runs(emulator).values()) == {1}


@pytest.mark.parametrize(("reply", "code"), [("y\n", 3), ("\n", 130)])
@pytest.mark.usefixtures("items")
def test_ctrl_c_aborts_after_a_yes(emulator: Emulator, flows: FlowsCommand, reply: str, code: int) -> None:
    """At a terminal Ctrl-C asks; after an abort, the same command starts the items again."""
    emulator.run_seconds = 600
    with type_at_terminal(reply), ctrl_c_when(lambda: emulator.started_count == ITEMS):
        result = flows(to_command())
    assert result.code == code
    states = {run.state for run in emulator.paid_runs}
    assert states == {"aborted"} if code == 3 else states <= {"starting", "running"}
    emulator.run_seconds = 0.2
    emulator.advance(600)
    assert flows(to_command()).code == 0
    assert set(count_paid_runs(emulator).values()) == {2 if code == 3 else 1}


@pytest.mark.usefixtures("items")
def test_on_interrupt_abort_and_a_service_that_fails(emulator: Emulator, flows: FlowsCommand) -> None:
    """If the flow runs cannot be aborted, stderr says that they continue."""
    emulator.run_seconds = 600
    emulator.add_fault(Fault("PATCH", "*", skip=ITEMS, times=None, status=500))
    with ctrl_c_when(lambda: emulator.started_count == ITEMS):
        result = flows(to_command(more="--on-interrupt abort"))
    assert {run.state for run in emulator.paid_runs} <= {"starting", "running"}
    assert result.code == 130, result.err
    assert "Flow runs that were aborted: 0 of 4; the others have ended, or continue" in result.err
    assert result.err.count("could not be aborted. Check it at the service") == ITEMS


@pytest.mark.usefixtures("items")
def test_ctrl_c_before_a_start_deletes_the_run(emulator: Emulator, flows: FlowsCommand) -> None:
    """A run that was created is deleted by this call or the next one, and is not billed."""
    emulator.add_fault(Fault("POST", "*/inputs", delay=2, times=None))
    with ctrl_c_when(has_request(emulator, "POST", "/inputs")):
        result = flows(to_command(more="--max-active 1"))
    assert (result.code, emulator.paid_runs) == (130, [])
    emulator.clear_faults()
    assert flows(to_command()).code == 0
    assert set(count_paid_runs(emulator).values()) == {1}
    assert [run for run in emulator.runs.values() if not run.has_started] == []


@pytest.mark.parametrize(
    ("limits", "code", "started"),
    [({"max_active_runs": 2}, 0, ITEMS), ({"max_runs_per_day": 2}, 1, 2)],
    ids=["active runs", "runs of a day"],
)
@pytest.mark.usefixtures("items")
def test_limits_of_the_account(
    emulator: Emulator, flows: FlowsCommand, limits: dict[str, float], code: int, started: int
) -> None:
    """No more flow runs than the connection allows are active, or are started within a day."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        shorten_waits(monkeypatch)
        set_extra(emulator, monkeypatch, **limits)
        result = flows(to_command(more="--max-active 4"))
    assert (result.code, emulator.started_count) == (code, started)
    assert get_max_active(emulator) <= limits.get("max_active_runs", ITEMS)
    assert ("max_runs_per_day" in result.err) is bool(code)


def test_state_in_a_bucket(
    emulator: Emulator, flows: FlowsCommand, items: Path, bucket: ObjectServer
) -> None:
    """The same command continues a batch whose folder is in an object store."""
    emulator.run_seconds = 600
    command = to_command(str(items), f"--output-conn-id {BUCKET_CONN_ID}")
    command = command.replace("--output out", f"--output s3://{BUCKET}/shop")
    with ctrl_c_when(lambda: emulator.started_count == ITEMS):
        assert flows(command).code == 130
    emulator.advance(600)
    again = flows(command)
    assert (again.code, get_counts(again)[:2]) == (0, (ITEMS, ITEMS))
    assert set(count_paid_runs(emulator).values()) == {1}
    assert "shop/manifest.jsonl" in bucket.objects()


def test_progress_bar(emulator: Emulator, items: Path) -> None:
    """At a terminal a bar has the counts; Ctrl-C asks, and a no leaves the flow runs active."""
    emulator.run_seconds = 600
    emulator.add_plan(Plan(run_seconds=3))
    words = to_command(str(items)).replace("-o json", "-o plain").split()
    with Terminal("-m", "airflow", "flows", *words) as terminal:
        terminal.wait_for(r"━+ +0% \d:\d\d:\d\d 0 of 4 completed, 4 active")
        terminal.wait_for(r"━+ +25% \d:\d\d:\d\d 1 of 4 completed, 3 active")
        terminal.press(CTRL_C)
        terminal.wait_for(r"Abort the flow runs that are active, which are at most 3\? \[y/N\]")
        terminal.press("n\n")
        assert terminal.wait_for_exit() == 130
    assert "Flow runs that may be active, and continue: 3. The same command" in terminal.output


def test_killed_command_starts_no_item_twice(emulator: Emulator, flows: FlowsCommand, items: Path) -> None:
    """After kill -9 of the command at two moments, the same command completes each item with one run."""
    words = ["flows", *to_command(more="--max-active 2").split()]
    arguments = {
        name: value for name, value in vars(get_parser().parse_args(words)).items() if name != "func"
    }
    process_words = [sys.executable, "-c", SCRIPT, json.dumps(arguments)]
    for dies_at in (5, 12):
        count = len(emulator.requests) + dies_at
        with subprocess.Popen(process_words, cwd=items.parent, stderr=subprocess.DEVNULL) as process:

            def kill(_: Any, count: int = count, process: subprocess.Popen[bytes] = process) -> None:
                if len(emulator.requests) >= count:
                    process.kill()

            emulator.set_request_listener(kill)
            try:
                assert process.wait(TERMINAL_TIMEOUT_SECONDS) == -signal.SIGKILL
            finally:
                process.kill()
        emulator.set_request_listener(None)
    result = flows(to_command())
    assert (result.code, get_counts(result)[:2]) == (0, (ITEMS, ITEMS))
    assert count_paid_runs(emulator) == {f"item-{number}": 1 for number in range(1, ITEMS + 1)}
    assert [run for run in emulator.runs.values() if not run.has_started] == []


@pytest.mark.usefixtures("items")
def test_two_commands_do_not_share_a_folder(emulator: Emulator, flows: FlowsCommand, tmp_path: Path) -> None:
    """While a process runs the batch of a folder, another one is rejected, and starts nothing."""
    with FileStore(str(tmp_path / "out")).lock():
        result = flows(to_command())
    assert (result.code, emulator.started_count) == (2, 0)
    assert "Another process runs the batch in" in result.err
    assert flows(to_command()).code == 0


@pytest.mark.usefixtures("items")
def test_damaged_records_start_nothing(emulator: Emulator, flows: FlowsCommand, tmp_path: Path) -> None:
    """State that cannot be read is an error, because a new start is billed again."""
    assert flows(to_command()).code == 0
    for name in ("flow_batch_part_1.json", "calls.json"):
        path = tmp_path / "out" / ".batch" / name
        content = path.read_text()
        path.write_text(content[:-5])
        result = flows(to_command())
        assert result.code == 1
        assert "so none was started" in result.err
        path.write_text(content)
    assert emulator.started_count == ITEMS


def test_interrupted_chains_may_run_again(emulator: Emulator, flows: FlowsCommand, items: Path) -> None:
    """A service without run ids cannot resume: stderr says so, and what has responded is not sent again."""
    lines = [{"key": f"item-{n}", "inputs": {"color": "red", "item": f"ball {n}"}} for n in range(1, 4)]
    items.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    command = (
        f"batch {CHAIN_FLOW} {items} --output out --conn-id promptchainer_default --max-active 1 -o json"
    )
    emulator.run_seconds = 0
    emulator.add_fault(Fault("POST", "*", skip=1, delay=2))
    with ctrl_c_when(lambda: len([one for one in emulator.requests if one.method == "POST"]) == 2):
        result = flows(command)
    assert result.code == 130
    assert "Items that have no response yet: 1. They may run nevertheless" in result.err
    again = flows(command)
    assert (again.code, get_counts(again)[:2]) == (0, (3, 3))
    assert count_paid_runs(emulator)["item-1"] == 1
    assert "item-1" not in again.err
