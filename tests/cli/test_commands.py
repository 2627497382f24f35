"""Tests of `airflow flows`: what each command does, prints and ends with, against the emulator.

What needs a terminal or a process of its own is in tests/cli/test_terminal.py.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import re
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import structlog
import yaml
from airflow.sdk.log import mask_secret

from airflow_provider_flows.cli.command import PACKAGE_NAME, command
from airflow_provider_flows.cli.parser import Exit
from airflow_provider_flows.cli.terminal import escape_control_chars
from airflow_provider_flows.core.flow_run import FlowRun
from airflow_provider_flows.emulator import Emulator, Fault, Plan
from airflow_provider_flows.hooks import GenerioHook
from tests.support.commands import PROMPT_FLOW, FlowsCommand, call, flows_command
from tests.support.flow_server import ApiResponse, StubFlowServer
from tests.support.versions import needs

pytestmark = [needs("commands of providers"), pytest.mark.emulator(run_seconds=0.2)]

SAMPLE = "clibnwpno000bmc0k9hvv3y7f"
QUICK = f"run {PROMPT_FLOW} --input 'A chair' --param quality=low --poll-interval 0.1 -o json"
RUN_KEYS = [
    "flow_run_id",
    "flow",
    "service",
    "state",
    "progress",
    "created_at",
    "started_at",
    "finished_at",
    "duration",
]
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
KEY = "t0ken-that-must-not-be-printed"


@pytest.fixture
def flows(capsys: pytest.CaptureFixture[str]) -> FlowsCommand:
    """Return the command."""
    return flows_command(capsys)


@pytest.fixture
def completed_run(emulator: Emulator) -> FlowRun:
    """Return a completed flow run with two models."""
    emulator.run_seconds = 0
    hook = GenerioHook("generio_default")
    run = hook.start(
        PROMPT_FLOW, ["a chair", {"data": "a table", "additional": {"n": 2}}], {"quality": "low"}
    )
    return hook.get_run(run.flow_run_id)


def start_run(emulator: Emulator, seconds: float = 60) -> str:
    """Start a flow run of this duration, and return its id."""
    emulator.run_seconds = seconds
    return GenerioHook("generio_default").start(PROMPT_FLOW, "a chair").flow_run_id


def test_list_prints_the_flows(emulator: Emulator, flows: FlowsCommand) -> None:
    """`list` prints each flow: in JSON and YAML with its definition, otherwise as one row."""
    rows = {row["name"]: row for row in flows("list -o json").json}
    assert set(rows) == {PROMPT_FLOW, "model_generate_fromimage", "model_optimize"}
    assert rows[PROMPT_FLOW]["parameters"]["quality"]["values"] == ["low", "high"]
    assert yaml.safe_load(flows("list -o yaml").out) == list(rows.values())
    for form in ("table", "plain"):
        shown = flows(f"list -o {form}").out
        assert [name for name in rows if name in shown] == list(rows)
    assert len(emulator.requests) == 4


def test_describe_prints_the_definition(emulator: Emulator, flows: FlowsCommand) -> None:
    """`describe` prints a definition of either service, in tables one row for each property."""
    del emulator
    assert flows(f"describe {PROMPT_FLOW} -o json").json["outputs"] == ["model/gltf-binary"]
    assert re.search(r"parameters\.quality\.default +high", flows(f"describe {PROMPT_FLOW} -o plain").out)
    assert flows(f"describe {SAMPLE} --conn-id promptchainer_default -o json").json["inputs"] == [
        "color",
        "item",
    ]


def test_runs_are_listed_by_state(emulator: Emulator, completed_run: FlowRun, flows: FlowsCommand) -> None:
    """`runs` prints the account's flow runs, newest first, or those in one state; others are errors."""
    active_run = start_run(emulator)
    assert [row["flow_run_id"] for row in flows("runs -o json").json] == [
        active_run,
        completed_run.flow_run_id,
    ]
    assert [row["state"] for row in flows("runs --state completed -o json").json] == ["completed"]
    none = flows("runs --state failed")
    assert (none.code, none.out, none.err) == (0, "", "No data found\n")
    assert flows("runs --state failed -o json").json == []
    wrong = flows("runs --state done")
    assert (wrong.code, wrong.out) == (2, "")
    assert "must be one of created, starting" in wrong.err


def test_runs_prints_at_most_limit_rows(emulator: Emulator, flows: FlowsCommand) -> None:
    """`runs` prints the newest --limit runs, and reports how many it omitted; 0 prints all."""
    ids = [start_run(emulator) for _ in range(4)]
    for limit, shown in ((" --limit 3", 3), (" --limit 0", 4), ("", 4), (" --limit 1", 1)):
        result = flows(f"runs -o json{limit}")
        assert (result.code, len(result.json)) == (0, shown)
        assert {row["flow_run_id"] for row in result.json} <= set(ids)
        assert result.err == (
            "" if shown == 4 else f"{4 - shown} older flow runs are not shown; --limit 0 shows all.\n"
        )
    newest = max(emulator.runs.values(), key=lambda run: run.created_at).flow_run_id
    assert flows("runs -o json --limit 1").json[0]["flow_run_id"] == newest
    for wrong in ("-1", "many"):
        assert flows(f"runs --limit={wrong}").code == 2


def test_get_and_outputs_describe_a_run(
    emulator: Emulator, completed_run: FlowRun, flows: FlowsCommand
) -> None:
    """`get` prints a run and its expected end; `outputs` lists its outputs without a download."""
    row = flows(f"get {completed_run.flow_run_id} -o json").json
    assert list(row) == [*RUN_KEYS, "expected_end", "error"]
    assert (row["state"], row["progress"], row["expected_end"]) == ("completed", 1.0, None)
    active_run = start_run(emulator)
    emulator.advance(30)
    assert flows(f"get {active_run} -o yaml").code == 0
    assert yaml.safe_load(flows(f"get {active_run} -o yaml").out)["expected_end"] is not None
    listed = flows(f"outputs {completed_run.flow_run_id} -o json").json
    assert [(output["status"], output["additional"]) for output in listed] == [
        ("ready", None),
        ("ready", {"n": 2}),
    ]
    assert "additional" in flows(f"outputs {completed_run.flow_run_id} -o yaml").out


def test_run_prints_what_a_task_returns(emulator: Emulator, flows: FlowsCommand, tmp_path: Path) -> None:
    """`run` writes the files, prints a task's dict to stdout, and all else, first the id, to stderr."""
    done = flows(
        f"{QUICK} --output-path {tmp_path} --param seed=7 --param texture=True "
        "--additional '{\"order\": 17}'"
    )
    assert done.code == 0, done.err
    task_result = done.json
    assert list(task_result) == [*RUN_KEYS, "outputs"]
    (output,) = task_result["outputs"]
    (file,) = tmp_path.rglob("*.glb")
    assert output["uri"] == file.as_uri()
    assert (output["size"], output["sha256"]) == (
        len(file.read_bytes()),
        hashlib.sha256(file.read_bytes()).hexdigest(),
    )
    (run,) = emulator.runs.values()
    assert file.read_bytes() == run.outputs[0].content
    assert (run.parameters["quality"], run.parameters["seed"], run.parameters["texture"]) == ("low", 7, True)
    assert isinstance(run.additional, dict)
    assert run.additional["order"] == 17
    assert (
        done.err.splitlines()[0]
        == f"The flow run {task_result['flow_run_id']} of flow {PROMPT_FLOW} is created; sending its inputs."
    )


@pytest.mark.parametrize("form", ["table", "plain", "yaml"])
def test_run_prints_in_every_format(emulator: Emulator, flows: FlowsCommand, form: str) -> None:
    """Each output format contains the outputs of a run."""
    emulator.run_seconds = 0
    done = flows(QUICK.replace("-o json", f"-o {form}"))
    assert done.code == 0
    if form == "yaml":
        assert set(yaml.safe_load(done.out)) == {*RUN_KEYS, "outputs"}
    else:
        assert re.search(r"^outputs\.0\.asset_id\W+\w{24}", done.out, re.MULTILINE)


def test_inputs_in_every_form(emulator: Emulator, flows: FlowsCommand, tmp_path: Path) -> None:
    """A prompt, @PATH, a URI and a JSON object are sent in order; JSON that is no input is a prompt."""
    emulator.run_seconds = 0
    (tmp_path / "a b.png").write_bytes(PNG)
    (tmp_path / "b.png").write_bytes(PNG)
    image = ["--input", f"@{tmp_path}/a b.png", "--input", f"@file://{tmp_path}/b.png"]
    done = flows("run", "model_generate_fromimage", *image, "-o", "json")
    assert done.code == 0, done.err
    text = [
        "--input",
        "A chair",
        "--input",
        '{"data": "/a/b", "additional": 7}',
        "-i",
        '{"a": 1}',
        "-i",
        "12",
    ]
    assert flows("run", PROMPT_FLOW, *text).code == 0
    sent = [
        request.json["data"]
        for request in emulator.requests
        if request.path.endswith("/inputs") and request.method == "POST"
    ]
    assert sent[2:] == ["A chair", "/a/b", '{"a": 1}', "12"]
    assert [base64.b64decode(data.partition(",")[2]) for data in sent[:2]] == [PNG, PNG]


def test_variables_of_a_chain(emulator: Emulator, flows: FlowsCommand, tmp_path: Path) -> None:
    """`run --variable` runs a PromptChainer flow; its texts are printed, its image is stored."""
    del emulator
    line = f"run {SAMPLE} --conn-id promptchainer_default -o json"
    line += " --variable color=Red --variable item=Ball=round"
    done = flows(f"{line} --output-path {tmp_path}")
    assert (done.code, done.err) == (
        0,
        f"The flow {SAMPLE} has been sent; the service responds when it has finished.\n",
    )
    assert done.json["state"] == "completed"
    assert any("Ball=round" in (output.get("value") or "") for output in done.json["outputs"])
    assert len([*tmp_path.rglob("*.png")]) == 1


def test_no_wait_returns_after_the_start(emulator: Emulator, flows: FlowsCommand) -> None:
    """`run --no-wait` prints the started run, which continues."""
    emulator.run_seconds = 60
    done = flows(f"{QUICK} --no-wait")
    assert (done.code, done.json["state"], done.json["outputs"]) == (0, "starting", [])
    assert len(emulator.paid_runs) == 1


def test_exit_codes_of_unsuccessful_runs(emulator: Emulator, flows: FlowsCommand) -> None:
    """Failed is 1, aborted 3, timeout 4; the run is printed if there is one, the reason is on stderr."""
    emulator.add_plan(Plan("failed", error="no more clay", run_seconds=0))
    failed = flows(QUICK)
    assert (failed.code, failed.json["state"]) == (1, "failed")
    assert failed.err.splitlines()[-1].endswith("failed. Reason given by the service: no more clay.")
    emulator.add_plan(Plan("aborted", run_seconds=0))
    aborted = flows(QUICK)
    assert (aborted.code, aborted.json["state"]) == (3, "aborted")
    emulator.add_plan(Plan(run_seconds=60))
    late = flows(f"{QUICK} --timeout 0.3")
    assert (late.code, late.out) == (4, "")
    (active_run,) = [run for run in emulator.runs.values() if run.current.state not in {"failed", "aborted"}]
    assert late.err.splitlines()[-1].endswith(
        f"continues; watch it: airflow flows watch {active_run.flow_run_id}"
    )
    watched = flows(f"watch {failed.json['flow_run_id']} -o json")
    assert (watched.code, watched.json["error"]) == (1, "no more clay")


def test_watch_logs_each_change(emulator: Emulator, flows: FlowsCommand) -> None:
    """Without a terminal, `watch` writes a line for each change to stderr, and prints the final run."""
    done = flows(f"watch {start_run(emulator, 0.5)} --poll-interval 0.1 -o json")
    assert (done.code, done.json["state"]) == (0, "completed")
    words = [re.sub(r".*is (at )?(\w+).*", r"\2", line) for line in done.err.splitlines()]
    assert [word for word in words if word in {"running", "completed"}] == ["running", "completed"]
    assert re.search(r"is at \d+% after .* expected end: \d\d:\d\d:\d\d UTC", done.err)


@pytest.fixture
def wrong_connections(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Create connections with a wrong key, to a closed port, and of a type that runs no flows."""
    wrong = {"conn_type": "generio", "host": emulator.url, "password": KEY}
    monkeypatch.setenv("AIRFLOW_CONN_WRONG", json.dumps(wrong))
    monkeypatch.setenv(
        "AIRFLOW_CONN_CLOSED", json.dumps({**wrong, "host": "http://127.0.0.1:9", "extra": {"retries": 0}})
    )
    monkeypatch.setenv("AIRFLOW_CONN_FS_DEFAULT", json.dumps({"conn_type": "fs"}))


@pytest.mark.usefixtures("wrong_connections")
@pytest.mark.parametrize(
    ("line", "code", "reason"),
    [
        ("run nothing-like-it --input x", 2, "--no-validate sends it unchecked"),
        ("run nothing-like-it --input x --no-validate", 5, "has nothing of that name"),
        ("describe nothing-like-it", 5, "nothing-like-it"),
        ("get 0123456789abcdef01234567", 5, "HTTP 404"),
        ("watch 0123456789abcdef01234567 --poll-interval 0.01", 5, "HTTP 404"),
        (f"run {PROMPT_FLOW}", 2, "there must be a prompt"),
        (f"run {PROMPT_FLOW} --input chair.png", 2, "For the file, write --input @chair.png"),
        (f"run {PROMPT_FLOW} --input s3://b/chair.png", 2, "For the file, write --input @s3://b/chair.png"),
        (f"run {PROMPT_FLOW} --input file:///etc/passwd", 2, '--input \'{"data": "file:///etc/passwd"}\''),
        (f"run {PROMPT_FLOW} --input '~/my chair.png'", 2, '--input \'{"uri": "~/my chair.png"}\''),
        (f"run {PROMPT_FLOW} --input @nowhere.png", 2, "nowhere.png"),
        (f"run {PROMPT_FLOW} --input x --variable a=b", 2, "are exclusive"),
        (f"run {PROMPT_FLOW} --input x --variable ab", 2, "is not NAME=VALUE"),
        (f"run {PROMPT_FLOW} --input x --additional ab", 2, "is not JSON"),
        (f"run {PROMPT_FLOW} --input x --additional NaN", 2, "is not JSON"),
        (f"run {PROMPT_FLOW} --input x --param seed=NaN", 2, "must be of type integer, not 'NaN'"),
        (f"run {PROMPT_FLOW} --input x --timeout -1", 2, "is not a number of seconds"),
        (
            f"run {PROMPT_FLOW} --input x --poll-interval 0",
            2,
            "is not a number of seconds that is more than 0",
        ),
        (f"run {PROMPT_FLOW} --input x --output-path nonsense://b", 2, "cannot be written to"),
        ("list --conn-id no_such_connection", 2, "no_such_connection"),
        ("list --conn-id fs_default", 2, "not a flow service"),
        ("list --conn-id wrong", 6, "does not accept the API key"),
        ("runs --conn-id promptchainer_default", 2, "cannot list flow runs"),
        ("abort 0123 --conn-id promptchainer_default", 2, "cannot abort"),
        ("list --conn-id closed", 1, "got no response"),
        ("nonsense", 2, "invalid choice"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(
    emulator: Emulator, flows: FlowsCommand, line: str, code: int, reason: str
) -> None:
    """Each error has its exit code and one line on stderr, leaves stdout empty and no flow run behind."""
    result = flows(line)
    assert result.code == code, result.err
    last = result.err.strip().splitlines()[-1]
    assert reason in last
    assert "Traceback" not in result.err
    assert emulator.paid_runs == []
    assert not emulator.runs
    assert KEY not in result.out + result.err
    by_airflow = "see help above" in last  # the group's own parser
    assert by_airflow or (result.out == "" and "\x1b" not in result.err)


@pytest.mark.parametrize(
    ("line", "usage", "error"),
    [
        ("run", "run [options] flow", "the following arguments are required: flow"),
        ("watch", "watch [options] RUN", "the following arguments are required: RUN"),
        ("run f --timeout -1", "run [options] flow", "argument --timeout: '-1' is not a number of seconds"),
        ("run f --bogus 3", "run [options] flow", "unrecognized arguments: --bogus 3"),
        ("run f --on-interrupt no", "run [options] flow", "argument --on-interrupt: invalid choice: 'no'"),
        ("list --limit 3", "list [options]", "unrecognized arguments: --limit 3"),
        ("runs --limit", "runs [options]", "argument --limit: expected one argument"),
        ("download r other", "download [options] RUN", "unrecognized arguments: other"),
        ("draw", "draw [options] flow", "the following arguments are required: flow"),
        ("emulator --port x", "emulator [options]", "argument --port: invalid int value: 'x'"),
        ("emulator --bogus", "emulator [options]", "unrecognized arguments: --bogus"),
    ],
)
def test_wrong_command_lines_are_explained_in_two_lines(
    flows: FlowsCommand, line: str, usage: str, error: str
) -> None:
    """A wrong command line prints the command's usage and an error that names the argument, not the help."""
    result = flows(line)
    assert (result.code, result.out) == (2, "")
    first, second = result.err.splitlines()
    assert first == f"usage: airflow flows {usage}"
    assert second.startswith(f"airflow flows {line.split(maxsplit=1)[0]}: error: {error}")


def test_a_start_that_fails_halfway_is_reported_and_undone(emulator: Emulator, flows: FlowsCommand) -> None:
    """The id is printed before the inputs are sent; a run with rejected inputs is deleted, not billed."""
    emulator.add_fault(Fault("POST", "*/inputs", times=None, status=422, body=b'{"detail": "no chairs"}'))
    result = flows(QUICK)
    assert (result.code, result.out) == (2, "")
    first, last = result.err.splitlines()
    assert "is created" in first
    assert "no chairs" in last
    assert (emulator.paid_runs, dict(emulator.runs)) == ([], {})


def test_a_start_without_a_response_is_looked_up(emulator: Emulator, flows: FlowsCommand) -> None:
    """After a start without a response, the command waits for the run if it finds it, and names it if not."""
    lost, unavailable = Fault("PATCH", "*", reset="after"), Fault("GET", "/flows/*", status=500)
    emulator.add_fault(lost)
    emulator.add_fault(unavailable)
    found = flows(QUICK + " --no-validate")
    assert (found.code, found.json["state"], len(emulator.paid_runs)) == (0, "completed", 1)
    assert "is started, although" in found.err

    emulator.add_fault(lost)
    emulator.add_fault(replace(unavailable, times=None))
    result = flows(QUICK + " --no-validate")
    (started,) = {run.flow_run_id for run in emulator.paid_runs} - {found.json["flow_run_id"]}
    assert (result.code, result.out) == (1, "")
    assert (
        f"The flow run {started} may have started. Check it: airflow flows get {started}; abort it"
        in result.err
    )


def test_a_service_error_names_the_billed_run(emulator: Emulator, flows: FlowsCommand) -> None:
    """If the key is rejected during a run, or outputs cannot be listed, stderr says how to continue."""
    emulator.run_seconds = 60
    emulator.add_fault(Fault("GET", "/flows/*", status=401, times=None))
    denied = flows(QUICK.replace("0.1", "0.01") + " --no-validate")
    (flow_run_id,) = emulator.runs
    assert denied.code == 6
    assert f"The flow run {flow_run_id} continues. Watch it: airflow flows watch {flow_run_id}" in denied.err

    emulator.clear_faults()
    emulator.run_seconds = 0
    emulator.add_fault(Fault("GET", "*/outputs", status=500, times=None))
    lost = flows(QUICK)
    assert lost.code == 1
    assert re.search(r"is completed; fetch its outputs: airflow flows download \w{24}\n", lost.err)


def test_hook_logs_go_to_stderr(emulator: Emulator, flows: FlowsCommand) -> None:
    """The hooks' warnings go to stderr, the rest of their log with --verbose; stdout is JSON only."""
    emulator.run_seconds = 0
    for status, verbose, is_logged in ((500, "", True), (404, "", False), (404, " --verbose", True)):
        emulator.add_fault(Fault("GET", "/templates", status=status, times=2))
        done = flows(QUICK + verbose)
        assert done.json["state"] == "completed"
        assert ("is not available, so its inputs" in done.err) is is_logged
        emulator.clear_faults()


@pytest.mark.parametrize("get_logger", [logging.getLogger, structlog.get_logger])
@pytest.mark.parametrize("name", ["airflow_provider_flows.hooks", "airflow.io", "botocore"])
def test_every_log_goes_to_stderr_without_secrets(
    capsys: pytest.CaptureFixture[str], get_logger: Callable[[str], Any], name: str
) -> None:
    """Logs of this package, Airflow and libraries are lines on stderr during a command, and only then."""

    @command
    def warn(_: Namespace) -> None:
        get_logger(name).warning("The key %s has\nexpired", KEY)

    mask_secret(KEY)
    before = structlog.get_config(), logging.getLogger().handlers, logging.getLogger(PACKAGE_NAME).level
    warn(Namespace(verbose=False))
    written = capsys.readouterr()
    assert (written.out, written.err) == ("", "warning: The key *** has\\nexpired\n")
    after = structlog.get_config(), logging.getLogger().handlers, logging.getLogger(PACKAGE_NAME).level
    assert after == before


@pytest.mark.parametrize("streams", [["stdout"], ["stderr"], ["stdout", "stderr"]])
@pytest.mark.parametrize("form", ["table", "plain", "json", "yaml"])
def test_a_closed_pipe_does_not_change_the_exit_code(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, form: str, streams: list[str]
) -> None:
    """With `| head`, or `2>&1 | head`, the exit code is still the flow run's."""
    emulator.run_seconds = 0
    for plan, code in ((Plan(run_seconds=0), 0), (Plan("aborted", run_seconds=0), 3)):
        emulator.add_plan(plan)
        read, write = os.pipe()
        os.close(read)
        with os.fdopen(write, "w") as pipe, monkeypatch.context() as patched:
            for stream in streams:
                patched.setattr(sys, stream, pipe)
            assert call(["flows", *shlex.split(QUICK.replace("-o json", f"-o {form}"))]) == code


def test_download_writes_the_outputs(
    emulator: Emulator, completed_run: FlowRun, flows: FlowsCommand, tmp_path: Path
) -> None:
    """`download` writes all outputs, or the selected ones under the same names; unknown ones are errors."""
    contents = {
        output.asset_id: output.content for output in emulator.runs[completed_run.flow_run_id].outputs
    }
    done = flows(f"download {completed_run.flow_run_id} --output-path {tmp_path / 'all'} -o json")
    assert done.code == 0, done.err
    for output in done.json:
        data = Path(output["uri"].removeprefix("file://")).read_bytes()
        assert data == contents[output["asset_id"]]
        assert output["sha256"] == hashlib.sha256(data).hexdigest()
    wanted = [*contents][1]
    one = flows(
        f"download {completed_run.flow_run_id} --output-path {tmp_path / 'one'} --asset {wanted} -o json"
    )
    assert [output["asset_id"] for output in one.json] == [wanted]
    assert [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.glb")] == [
        Path(done.json[1]["uri"].removeprefix("file://")).relative_to(tmp_path / "all")
    ]
    none = flows(f"download {completed_run.flow_run_id} --output-path {tmp_path / 'none'} --asset another")
    assert (none.code, none.out) == (5, "")
    assert f"has no output another; it has {wanted}" in none.err or wanted in none.err
    assert [*tmp_path.glob("none/*")] == []


def test_outputs_of_the_same_name_have_separate_files(
    flows: FlowsCommand, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A selected output has the same file name as in a download of all, so it never replaces another."""
    rows = [{"asset_id": key, "name": "model", "status": "ready", "media_type": "image/png"} for key in "ab"]
    with StubFlowServer() as flow_server:
        flow_server.connect(monkeypatch)
        flow_server.create_runs(1, 0)
        flow_server.runs |= {"r0/outputs": flow_server.runs["r0"], "r0/outputs/b": flow_server.runs["r0"]}
        responses: dict[str, Any] = {
            "r0": flow_server.row("r0"),
            "r0/outputs": {"outputs": rows},
            "r0/outputs/b": PNG,
        }
        flow_server.run_response = lambda key, _: ApiResponse(responses[key])
        assert flows(f"download r0 --output-path {tmp_path} --asset b").code == 0
    assert [path.name for path in tmp_path.glob("r0/*")] == ["model-2.png"]


def test_an_unwritable_output_path_is_the_only_error(
    completed_run: FlowRun, flows: FlowsCommand, tmp_path: Path
) -> None:
    """`download` starts no flow run, so its error does not mention one."""
    (tmp_path / "taken").write_text("mine")
    result = flows(f"download {completed_run.flow_run_id} --output-path {tmp_path / 'taken'}")
    assert (result.code, result.out) == (2, "")
    assert "cannot be written to" in result.err
    assert "No flow run" not in result.err


def test_run_reports_all_problems_at_once(emulator: Emulator, flows: FlowsCommand) -> None:
    """All problems of one command are in one line, which names the command's own options."""
    result = flows(f"run {PROMPT_FLOW} -i chair.png -i @nowhere.png -p qualty=1 --output-path nonsense://b")
    assert (result.code, result.out, len(result.err.splitlines())) == (2, "", 1)
    for part in (
        "--input chair.png resembles a path",
        "nowhere.png",
        "'qualty' is not known",
        "nonsense://b",
    ):
        assert part in result.err
    assert "--no-validate" not in result.err  # the missing file cannot be sent either way
    both = flows(
        f"run {PROMPT_FLOW} -i a --variable b=c -p qualty=1 --no-validate --output-path nonsense://b"
    )
    assert "are exclusive" in both.err
    assert "nonsense://b" in both.err
    assert emulator.runs == {}


@pytest.mark.parametrize("form", ["json", "plain", "table"])
def test_download_prints_the_warning_about_a_file(
    emulator: Emulator, completed_run: FlowRun, flows: FlowsCommand, tmp_path: Path, form: str
) -> None:
    """A file that contradicts its header and arrived twice is written, and its warning is printed."""
    model = b"glTF\x02\x00\x00\x00" + (20).to_bytes(4, "little") + bytes(9)
    emulator.add_fault(Fault("GET", "*/outputs/*", times=None, body=model))
    done = flows(f"download {completed_run.flow_run_id} --output-path {tmp_path} -o {form}")
    assert done.code == 0
    assert "longer" in done.out
    assert {path.read_bytes() for path in tmp_path.rglob("*.glb")} == {model}


def test_download_does_not_wait(emulator: Emulator, flows: FlowsCommand, tmp_path: Path) -> None:
    """`download` of a run in progress is an error that says how to wait for it."""
    flow_run_id = start_run(emulator)
    result = flows(f"download {flow_run_id} --output-path {tmp_path} --conn-id generio_default")
    assert (result.code, result.out) == (1, "")
    assert f"airflow flows watch {flow_run_id} --conn-id generio_default" in result.err


def test_fetched_outputs_are_printed_despite_an_error(
    emulator: Emulator, completed_run: FlowRun, flows: FlowsCommand, tmp_path: Path
) -> None:
    """If one output cannot be fetched, the other is stored and both are printed."""
    first = emulator.runs[completed_run.flow_run_id].outputs[0].asset_id
    emulator.add_fault(Fault("GET", f"*/outputs/{first}*", times=None, status=401))
    result = flows(f"download {completed_run.flow_run_id} --output-path {tmp_path} -o json")
    assert result.code == 6
    assert sorted(output["status"] for output in result.json) == ["error", "ready"]
    assert len([*tmp_path.rglob("*.glb")]) == 1


def test_abort_and_delete(emulator: Emulator, flows: FlowsCommand) -> None:
    """`abort` aborts a run; `delete` deletes it, without a terminal only with --yes."""
    flow_run_id = start_run(emulator)
    aborted = flows(f"abort {flow_run_id} -o json")
    assert (aborted.code, aborted.json["state"] in {"aborting", "aborted"}) == (0, True)
    emulator.advance(120)
    unconfirmed = flows(f"delete {flow_run_id}")
    assert (unconfirmed.code, unconfirmed.out) == (2, "")
    assert "use --yes" in unconfirmed.err
    assert flow_run_id in emulator.runs
    deleted = flows(f"delete {flow_run_id} --yes -o json")
    assert deleted.code == 0, deleted.err
    assert deleted.json == {"flow_run_id": flow_run_id, "deleted": True}
    assert flow_run_id not in emulator.runs
    assert flows(f"delete {flow_run_id} --yes").code == 5


def test_abort_deletes_a_run_that_never_started(emulator: Emulator, flows: FlowsCommand) -> None:
    """`abort` deletes a run that was created and not started, and says so; an unknown id is an error."""
    flow_run_id = GenerioHook("generio_default").create(PROMPT_FLOW).flow_run_id
    aborted = flows(f"abort {flow_run_id} -o json")
    assert (aborted.code, aborted.json) == (0, {"flow_run_id": flow_run_id, "deleted": True})
    assert flow_run_id not in emulator.runs
    assert flows(f"abort {flow_run_id}").code == 5


def test_connections_are_loaded_from_the_database(database_connection: str, flows: FlowsCommand) -> None:
    """A connection may be in Airflow's database instead of the environment."""
    result = flows(f"list --conn-id {database_connection} -o json")
    assert result.code == 0, result.err
    assert len(result.json) == 3


HOSTILE = "[red]\x1b[31m:smile:\r\n\x07\x9b31m\u202egnp.exe[/] 12e3"


@pytest.mark.parametrize("form", ["table", "plain", "json", "yaml"])
def test_service_texts_cannot_control_the_terminal(
    flows: FlowsCommand, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """Markup is printed literally and control characters are escaped, on stdout and on stderr."""
    with StubFlowServer() as flow_server:
        flow_server.connect(monkeypatch)
        flow_server.create_runs(1, 0)
        row = {**flow_server.row("r0"), "template": HOSTILE, "state": "failed", "error": HOSTILE}
        flow_server.run_response = lambda *_: ApiResponse(row)
        flow_server.list_response = lambda _: ApiResponse(
            {"flows": [row, {**row, "flow_id": "12e3", "state": HOSTILE}]}
        )
        results = [flows(f"{line} -o {form}") for line in ("watch r0 --poll-interval 0.01", "get r0", "runs")]
    assert [one.code for one in results] == [1, 0, 0]
    for one in results:
        assert all(char == "\n" or char.isprintable() for char in one.out + one.err), one
        assert one.out.count("[red]") >= 1
    assert results[0].err.count("[red]\\x1b[31m:smile:") >= 1
    assert "12e3" in results[2].out


def test_printable_text_is_not_escaped() -> None:
    """Only control characters and invisible characters are escaped."""
    assert escape_control_chars("größe ☃ 椅子 😀 [b]") == "größe ☃ 椅子 😀 [b]"
    assert escape_control_chars("a\tb\u2028c\x7f\ud800") == "a\\tb\\u2028c\\x7f\\ud800"


def test_the_key_is_never_printed(flows: FlowsCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that the service repeats in its error is not printed, even with --verbose."""
    with StubFlowServer() as flow_server:
        flow_server.connect(monkeypatch, key=KEY)
        flow_server.keys = {KEY}
        flow_server.create_runs(1, 0)
        flow_server.run_response = lambda *_: ApiResponse({"detail": f"{KEY} is a nice key"}, 418)
        result = flows("get r0 --verbose")
    assert result.code == 1
    assert KEY not in result.out + result.err
    assert "is a nice key" in result.err


def test_an_unexpected_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Any exception ends a command with code 1 and one line; --verbose adds the traceback."""

    @command
    def broken(args: Namespace) -> None:
        raise OSError(28, f"No space for {args.what}")

    for verbose in (False, True):
        with pytest.raises(SystemExit) as exit_error:
            broken(Namespace(verbose=verbose, what="a\x1b[31mchair"))
        assert exit_error.value.code == 1
        written = capsys.readouterr()
        assert written.err.splitlines()[-1] == "OSError: [Errno 28] No space for a\\x1b[31mchair"
        assert ("Traceback" in written.err) is verbose


def test_help_lists_the_exit_codes(flows: FlowsCommand) -> None:
    """The help of the group and of each command contains the table of exit codes."""
    for line in ("--help", "run --help", "watch --help", "delete --help"):
        result = flows(line)
        assert result.code == 0
        for code in Exit:
            assert re.search(rf"^ +{code.value}  {re.escape(code.meaning)}$", result.out, re.MULTILINE), (
                result.out
            )


def test_emulator_command_passes_its_options_on(flows: FlowsCommand) -> None:
    """`emulator` passes all options to the emulator's own command, also --help."""
    result = flows("emulator --help")
    assert result.code == 0
    assert "usage: airflow flows emulator" in result.out
    assert "--run-seconds" in result.out
    wrong = flows("emulator --port 0 --switch nonsense=1")
    assert wrong.code == 2
    assert "no switch 'nonsense'" in wrong.err


GRAPH = {
    "nodes": [
        {"id": "1", "type": "variableNode", "data": {"variable": {"label": "color"}}},
        {"id": "2", "type": "outputNode", "data": {"name": "te\x1b[31mxt </text><script>"}},
    ],
    "edges": [{"source": "1", "target": "2"}],
}


def test_draw_writes_both_formats(flows: FlowsCommand, tmp_path: Path) -> None:
    """`draw` writes an exported graph to stdout or to a file, in the requested or the file's format."""
    exported, picture, text = (tmp_path / name for name in ("chain.json", "chain.svg", "chain.mmd"))
    exported.write_text(json.dumps(GRAPH))
    shown = flows(f"draw {exported}")
    assert shown.code == 0, shown.err
    root = ET.fromstring(shown.out)  # noqa: S314  # our own output
    assert root.tag.endswith("svg")
    assert "\x1b" not in shown.out
    assert "<script" not in shown.out
    assert flows(f"draw {exported} --format mermaid").out.startswith("flowchart LR\n")
    assert flows(f"draw chain --file {exported} --to {picture}").err == f"Wrote {picture}.\n"
    assert flows(f"draw {exported} --to {text}").out == ""
    assert ET.parse(picture).getroot().tag == root.tag  # noqa: S314  # our own output
    assert text.read_text().startswith("flowchart LR\n")


def test_draw_loads_the_graph_from_the_connections_folder(
    emulator: Emulator, flows: FlowsCommand, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`draw FLOW` reads FLOW.json in the connection's folder `graphs`; a missing file is an error."""
    (tmp_path / "my-flow.json").write_text(json.dumps(GRAPH))
    connection = {
        "conn_type": "promptchainer",
        "host": emulator.url,
        "password": KEY,
        "extra": {"graphs": str(tmp_path)},
    }
    monkeypatch.setenv("AIRFLOW_CONN_DRAWN", json.dumps(connection))
    assert "color" in flows("draw my-flow --conn-id drawn --format mermaid").out
    none = flows("draw another --conn-id drawn")
    assert (none.code, none.out) == (2, "")
    assert "another.json" in none.err


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "cannot be read"), (b"{", "not JSON"), (b"[]", "not a JSON object")]
)
def test_draw_rejects_invalid_graph_files(
    flows: FlowsCommand, tmp_path: Path, content: bytes | None, reason: str
) -> None:
    """A file that is missing or not a flow graph is an error of one line with its path."""
    file = tmp_path / "it.json"
    if content is not None:
        file.write_bytes(content)
    result = flows(f"draw {file}")
    assert (result.code, result.out) == (2, "")
    (line,) = result.err.splitlines()
    assert reason in line
    assert str(file) in line


def test_invalid_arguments_are_found_before_a_run_is_created(emulator: Emulator, flows: FlowsCommand) -> None:
    """`run` validates all arguments against the flow's definition; --no-validate skips that."""
    line = f"run {PROMPT_FLOW} --input 'A chair' --param qualty=low --param seed=x"
    checked = flows(line)
    assert (checked.code, checked.out) == (2, "")
    assert "qualty" in checked.err
    assert "seed" in checked.err
    assert emulator.runs == {}
    assert [request.method for request in emulator.requests] == ["GET"]
    rejected = flows(f"{line} --no-validate")
    assert (rejected.code, rejected.out) == (2, "")
    assert "HTTP 422" in rejected.err
    assert (emulator.paid_runs, dict(emulator.runs)) == ([], {})


@pytest.mark.parametrize("paging", ["offset", "page"])
@pytest.mark.parametrize(("order", "pages"), [("descending", 1), ("ascending", 8)])
def test_runs_reads_no_more_pages_than_needed(
    emulator: Emulator, flows: FlowsCommand, paging: str, order: str, pages: int
) -> None:
    """`runs --limit` reads one page of a list that is newest first, and all of one in another order."""
    ids = [start_run(emulator) for _ in range(24)]
    emulator.switches.update({"paging": paging, "page_size": 3, "sort_order": order})
    count_before = len(emulator.requests)
    result = flows("runs --limit 2 -o json")
    lists = [one for one in emulator.requests[count_before:] if one.path == "/flows"]
    newest = sorted(emulator.runs.values(), key=lambda run: run.created_at, reverse=True)
    assert [row["flow_run_id"] for row in result.json] == [run.flow_run_id for run in newest[:2]]
    assert len(lists) == pages
    count = "Older" if pages == 1 else "22 older"
    assert result.err == f"{count} flow runs are not shown; --limit 0 shows all.\n"
    assert {row["flow_run_id"] for row in flows("runs --limit 0 -o json").json} == {*ids}
