"""Tests of `airflow flows`: what each command does, prints and ends with, against the emulator.

What needs a terminal or a process of its own is in tests/cli/test_terminal.py.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import yaml

from airflow_provider_flows.cli.command import command
from airflow_provider_flows.cli.exit_codes import Exit
from airflow_provider_flows.cli.terminal import escape_control_chars
from airflow_provider_flows.core.flow_run import FlowRun
from airflow_provider_flows.emulator import Emulator, Fault, Plan
from airflow_provider_flows.hooks import GenerioHook
from tests.support.commands import PROMPT_FLOW, FlowsCommand, add_connection, call, flows_command
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
KEY = "t0ken-that-nobody-may-see"


@pytest.fixture
def flows(capsys: pytest.CaptureFixture[str]) -> FlowsCommand:
    """Return the command."""
    return flows_command(capsys)


@pytest.fixture
def made(emulator: Emulator) -> FlowRun:
    """Make two models."""
    emulator.run_seconds = 0
    hook = GenerioHook("generio_default")
    run = hook.start(
        PROMPT_FLOW, ["a chair", {"data": "a table", "additional": {"n": 2}}], {"quality": "low"}
    )
    return hook.get_run(run.flow_run_id)


def going(emulator: Emulator, seconds: float = 60) -> str:
    """Start a flow run that takes so long, and give its id."""
    emulator.run_seconds = seconds
    return GenerioHook("generio_default").start(PROMPT_FLOW, "a chair").flow_run_id


def test_list_tells_the_flows(emulator: Emulator, flows: FlowsCommand) -> None:
    """`list` prints each flow, in JSON with all that its definition tells, in the other forms a row each."""
    told = {row["name"]: row for row in flows("list -o json").json}
    assert set(told) == {PROMPT_FLOW, "model_generate_fromimage", "model_optimize"}
    assert told[PROMPT_FLOW]["parameters"]["quality"]["values"] == ["low", "high"]
    assert yaml.safe_load(flows("list -o yaml").out) == list(told.values())
    for form in ("table", "plain"):
        shown = flows(f"list -o {form}").out
        assert [name for name in told if name in shown] == list(told)
    assert len(emulator.requests) == 4


def test_describe_tells_what_a_flow_takes(emulator: Emulator, flows: FlowsCommand) -> None:
    """`describe` prints a definition of either service, as rows where that is easier to read."""
    del emulator
    assert flows(f"describe {PROMPT_FLOW} -o json").json["outputs"] == ["model/gltf-binary"]
    assert re.search(r"parameters\.quality\.default +high", flows(f"describe {PROMPT_FLOW} -o plain").out)
    assert flows(f"describe {SAMPLE} --conn-id promptchainer_default -o json").json["inputs"] == [
        "color",
        "item",
    ]


def test_runs_are_listed_by_state(emulator: Emulator, made: FlowRun, flows: FlowsCommand) -> None:
    """`runs` prints the account's flow runs, newest first, or those in one state; other words are errors."""
    under_way = going(emulator)
    assert [row["flow_run_id"] for row in flows("runs -o json").json] == [under_way, made.flow_run_id]
    assert [row["state"] for row in flows("runs --state completed -o json").json] == ["completed"]
    none = flows("runs --state failed")
    assert (none.code, none.out, none.err) == (0, "", "No data found\n")
    assert flows("runs --state failed -o json").json == []
    wrong = flows("runs --state done")
    assert (wrong.code, wrong.out) == (2, "")
    assert "must be one of created, starting" in wrong.err


def test_runs_are_as_many_as_wanted(emulator: Emulator, flows: FlowsCommand) -> None:
    """`runs` prints the newest, as many as --limit says, and tells how many it leaves out; 0 is for all."""
    ids = [going(emulator) for _ in range(4)]
    for limit, shown in ((" --limit 3", 3), (" --limit 0", 4), ("", 4), (" --limit 1", 1)):
        told = flows(f"runs -o json{limit}")
        assert (told.code, len(told.json)) == (0, shown)
        assert {row["flow_run_id"] for row in told.json} <= set(ids)
        assert told.err == (
            "" if shown == 4 else f"{4 - shown} older flow runs are not shown; --limit 0 shows all.\n"
        )
    newest = max(emulator.runs.values(), key=lambda run: run.created_at).flow_run_id
    assert flows("runs -o json --limit 1").json[0]["flow_run_id"] == newest
    for wrong in ("-1", "many"):
        assert flows(f"runs --limit={wrong}").code == 2


def test_get_and_outputs_tell_of_a_run(emulator: Emulator, made: FlowRun, flows: FlowsCommand) -> None:
    """`get` prints a run and its expected end; `outputs` lists its outputs without a download."""
    told = flows(f"get {made.flow_run_id} -o json").json
    assert list(told) == [*RUN_KEYS, "expected_end", "error"]
    assert (told["state"], told["progress"], told["expected_end"]) == ("completed", 1.0, None)
    under_way = going(emulator)
    emulator.advance(30)
    assert flows(f"get {under_way} -o yaml").code == 0
    assert yaml.safe_load(flows(f"get {under_way} -o yaml").out)["expected_end"] is not None
    listed = flows(f"outputs {made.flow_run_id} -o json").json
    assert [(output["status"], output["additional"]) for output in listed] == [
        ("ready", None),
        ("ready", {"n": 2}),
    ]
    assert "additional" in flows(f"outputs {made.flow_run_id} -o yaml").out


def test_run_prints_what_a_task_returns(emulator: Emulator, flows: FlowsCommand, tmp_path: Path) -> None:
    """`run` writes the files, prints the very dict on stdout, and all else on stderr: first of all the id."""
    done = flows(
        f"{QUICK} --output-path {tmp_path} --param seed=7 --param texture=True "
        "--additional '{\"order\": 17}'"
    )
    assert done.code == 0, done.err
    told = done.json
    assert list(told) == [*RUN_KEYS, "outputs"]
    (output,) = told["outputs"]
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
        == f"The flow run {told['flow_run_id']} of flow {PROMPT_FLOW} is created; sending its inputs."
    )


@pytest.mark.parametrize("form", ["table", "plain", "yaml"])
def test_run_prints_in_every_form(emulator: Emulator, flows: FlowsCommand, form: str) -> None:
    """The outputs of a run stand in each form."""
    emulator.run_seconds = 0
    done = flows(QUICK.replace("-o json", f"-o {form}"))
    assert done.code == 0
    if form == "yaml":
        assert set(yaml.safe_load(done.out)) == {*RUN_KEYS, "outputs"}
    else:
        assert re.search(r"^outputs\.0\.asset_id\W+\w{24}", done.out, re.MULTILINE)


def test_inputs_in_all_their_forms(emulator: Emulator, flows: FlowsCommand, tmp_path: Path) -> None:
    """A prompt, @PATH, a URI and a JSON object are sent in order; other JSON is a prompt."""
    emulator.run_seconds = 0
    (tmp_path / "a b.png").write_bytes(PNG)
    (tmp_path / "b.png").write_bytes(PNG)
    image = ["--input", f"@{tmp_path}/a b.png", "--input", f"file://{tmp_path}/b.png"]
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
    """`run --variable` runs a PromptChainer flow; its texts are printed, its picture is saved."""
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


def test_no_wait_ends_with_the_start(emulator: Emulator, flows: FlowsCommand) -> None:
    """`run --no-wait` prints the run as it was started, which goes on."""
    emulator.run_seconds = 60
    done = flows(f"{QUICK} --no-wait")
    assert (done.code, done.json["state"], done.json["outputs"]) == (0, "starting", [])
    assert len(emulator.paid_runs) == 1


def test_exit_codes_of_runs_that_end_badly(emulator: Emulator, flows: FlowsCommand) -> None:
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
    (under_way,) = [run for run in emulator.runs.values() if run.current.state not in {"failed", "aborted"}]
    assert late.err.splitlines()[-1].endswith(
        f"continues; watch it: airflow flows watch {under_way.flow_run_id}"
    )
    watched = flows(f"watch {failed.json['flow_run_id']} -o json")
    assert (watched.code, watched.json["error"]) == (1, "no more clay")


def test_watch_tells_what_changes(emulator: Emulator, flows: FlowsCommand) -> None:
    """`watch` without a terminal writes a line for each change to stderr, and prints the run at its end."""
    done = flows(f"watch {going(emulator, 0.5)} --poll-interval 0.1 -o json")
    assert (done.code, done.json["state"]) == (0, "completed")
    words = [re.sub(r".*is (at )?(\w+).*", r"\2", line) for line in done.err.splitlines()]
    assert [word for word in words if word in {"running", "completed"}] == ["running", "completed"]
    assert re.search(r"is at \d+% after .* expected end: \d\d:\d\d:\d\d UTC", done.err)


@pytest.fixture
def wrong_connections(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make connections with a wrong key, to nobody, and of a type that runs no flows."""
    wrong = {"conn_type": "generio", "host": emulator.url, "password": KEY}
    monkeypatch.setenv("AIRFLOW_CONN_WRONG", json.dumps(wrong))
    monkeypatch.setenv(
        "AIRFLOW_CONN_NOBODY", json.dumps({**wrong, "host": "http://127.0.0.1:9", "extra": {"retries": 0}})
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
        (f"run {PROMPT_FLOW}", 2, "must hold at least one prompt"),
        (f"run {PROMPT_FLOW} --input chair.png", 2, "For the file, write --input @chair.png"),
        (f"run {PROMPT_FLOW} --input @nowhere.png", 2, "nowhere.png"),
        (f"run {PROMPT_FLOW} --input x --variable a=b", 2, "are exclusive"),
        (f"run {PROMPT_FLOW} --input x --variable ab", 2, "is not NAME=VALUE"),
        (f"run {PROMPT_FLOW} --input x --additional ab", 2, "is not JSON"),
        (f"run {PROMPT_FLOW} --input x --additional NaN", 2, "is not JSON"),
        (f"run {PROMPT_FLOW} --input x --param seed=NaN", 2, "must be of type integer, not 'NaN'"),
        (f"run {PROMPT_FLOW} --input x --timeout -1", 2, "is not a number of seconds"),
        (f"run {PROMPT_FLOW} --input x --poll-interval 0", 2, "poll_interval must be more than 0"),
        (f"run {PROMPT_FLOW} --input x --output-path nonsense://b", 2, "cannot be written to"),
        ("list --conn-id no_such_connection", 2, "no_such_connection"),
        ("list --conn-id fs_default", 2, "not a flow service"),
        ("list --conn-id wrong", 6, "does not accept the API key"),
        ("runs --conn-id promptchainer_default", 2, "cannot list flow runs"),
        ("abort 0123 --conn-id promptchainer_default", 2, "cannot abort"),
        ("list --conn-id nobody", 1, "got no response"),
        ("nonsense", 2, "invalid choice"),
    ],
)
def test_errors_are_one_line_and_a_code(
    emulator: Emulator, flows: FlowsCommand, line: str, code: int, reason: str
) -> None:
    """Each error has its exit code and one line on stderr, leaves stdout empty and no flow run behind."""
    ended = flows(line)
    assert ended.code == code, ended.err
    last = ended.err.strip().splitlines()[-1]
    assert reason in last
    assert "Traceback" not in ended.err
    assert emulator.paid_runs == []
    assert not emulator.runs
    assert KEY not in ended.out + ended.err
    by_argparse = "see above" in last or "see help above" in last
    assert by_argparse or (ended.out == "" and all("\x1b" not in part for part in ended.err))


def test_a_start_that_fails_halfway_is_told_and_leaves_nothing(
    emulator: Emulator, flows: FlowsCommand
) -> None:
    """The id is printed before the inputs are sent; a run with rejected inputs is deleted, not paid."""
    emulator.add_fault(Fault("POST", "*/inputs", times=None, status=422, body=b'{"detail": "no chairs"}'))
    ended = flows(QUICK)
    assert (ended.code, ended.out) == (2, "")
    first, last = ended.err.splitlines()
    assert "is created" in first
    assert "no chairs" in last
    assert (emulator.paid_runs, dict(emulator.runs)) == ([], {})


def test_a_start_in_doubt_is_looked_for(emulator: Emulator, flows: FlowsCommand) -> None:
    """After a start without a response, the command waits for the run if it finds it, and names it if not."""
    lost, away = Fault("PATCH", "*", reset="after"), Fault("GET", "/flows/*", status=500)
    emulator.add_fault(lost)
    emulator.add_fault(away)
    found = flows(QUICK + " --no-validate")
    assert (found.code, found.json["state"], len(emulator.paid_runs)) == (0, "completed", 1)
    assert "is started, although" in found.err

    emulator.add_fault(lost)
    emulator.add_fault(replace(away, times=None))
    ended = flows(QUICK + " --no-validate")
    (started,) = {run.flow_run_id for run in emulator.paid_runs} - {found.json["flow_run_id"]}
    assert (ended.code, ended.out) == (1, "")
    assert (
        f"The flow run {started} may have started. Check it: airflow flows get {started}; abort it"
        in ended.err
    )


def test_what_is_paid_for_is_named_when_the_service_fails(emulator: Emulator, flows: FlowsCommand) -> None:
    """If the key is rejected during a run, or outputs cannot be listed, stderr says how to continue."""
    emulator.run_seconds = 60
    emulator.add_fault(Fault("GET", "/flows/*", status=401, times=None))
    refused = flows(QUICK.replace("0.1", "0.01") + " --no-validate")
    (flow_run_id,) = emulator.runs
    assert refused.code == 6
    assert f"The flow run {flow_run_id} continues. Watch it: airflow flows watch {flow_run_id}" in refused.err

    emulator.clear_faults()
    emulator.run_seconds = 0
    emulator.add_fault(Fault("GET", "*/outputs", status=500, times=None))
    lost = flows(QUICK)
    assert lost.code == 1
    assert re.search(r"is completed; fetch its outputs: airflow flows download \w{24}\n", lost.err)


def test_log_of_hooks_is_not_data(emulator: Emulator, flows: FlowsCommand) -> None:
    """The hooks' warnings go to stderr, the rest of their log with --verbose; stdout is JSON only."""
    emulator.run_seconds = 0
    for status, verbose, told in ((500, "", True), (404, "", False), (404, " --verbose", True)):
        emulator.add_fault(Fault("GET", "/templates", status=status, times=2))
        done = flows(QUICK + verbose)
        assert done.json["state"] == "completed"
        assert ("is not available, so its inputs" in done.err) is told
        emulator.clear_faults()


@pytest.mark.parametrize("form", ["table", "plain", "json", "yaml"])
def test_reader_that_has_seen_enough_changes_nothing(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """With `| head` the exit code is the flow run's all the same."""
    emulator.run_seconds = 0
    for plan, code in ((Plan(run_seconds=0), 0), (Plan("aborted", run_seconds=0), 3)):
        emulator.add_plan(plan)
        read, write = os.pipe()
        os.close(read)
        with os.fdopen(write, "w") as stdout, monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", stdout)
            assert call(["flows", *shlex.split(QUICK.replace("-o json", f"-o {form}"))]) == code


def test_download_writes_the_right_bytes(
    emulator: Emulator, made: FlowRun, flows: FlowsCommand, tmp_path: Path
) -> None:
    """`download` writes all outputs, or the selected ones under the same names; unknown ones are errors."""
    contents = {output.asset_id: output.content for output in emulator.runs[made.flow_run_id].outputs}
    done = flows(f"download {made.flow_run_id} --output-path {tmp_path / 'all'} -o json")
    assert done.code == 0, done.err
    for output in done.json:
        data = Path(output["uri"].removeprefix("file://")).read_bytes()
        assert data == contents[output["asset_id"]]
        assert output["sha256"] == hashlib.sha256(data).hexdigest()
    wanted = [*contents][1]
    one = flows(f"download {made.flow_run_id} --output-path {tmp_path / 'one'} --asset {wanted} -o json")
    assert [output["asset_id"] for output in one.json] == [wanted]
    assert [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.glb")] == [
        Path(done.json[1]["uri"].removeprefix("file://")).relative_to(tmp_path / "all")
    ]
    none = flows(f"download {made.flow_run_id} --output-path {tmp_path / 'none'} --asset another")
    assert (none.code, none.out) == (5, "")
    assert f"has no output another; it has {wanted}" in none.err or wanted in none.err
    assert [*tmp_path.glob("none/*")] == []


def test_outputs_of_the_same_name_keep_their_files(
    flows: FlowsCommand, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A single selected output has the file name that it has among all, so it never replaces another."""
    rows = [{"asset_id": key, "name": "model", "status": "ready", "media_type": "image/png"} for key in "ab"]
    with StubFlowServer() as flow_server:
        flow_server.connect(monkeypatch)
        flow_server.create_runs(1, 0)
        flow_server.runs |= {"r0/outputs": flow_server.runs["r0"], "r0/outputs/b": flow_server.runs["r0"]}
        told: dict[str, Any] = {
            "r0": flow_server.row("r0"),
            "r0/outputs": {"outputs": rows},
            "r0/outputs/b": PNG,
        }
        flow_server.run_response = lambda key, _: ApiResponse(told[key])
        assert flows(f"download r0 --output-path {tmp_path} --asset b").code == 0
    assert [path.name for path in tmp_path.glob("r0/*")] == ["model-2.png"]


def test_place_that_cannot_be_written_to_is_all_that_is_told(
    made: FlowRun, flows: FlowsCommand, tmp_path: Path
) -> None:
    """`download` starts nothing, and does not speak of that."""
    (tmp_path / "taken").write_text("mine")
    ended = flows(f"download {made.flow_run_id} --output-path {tmp_path / 'taken'}")
    assert (ended.code, ended.out) == (2, "")
    assert "cannot be written to" in ended.err
    assert "No flow run" not in ended.err


def test_run_tells_all_that_is_wrong_at_once(emulator: Emulator, flows: FlowsCommand) -> None:
    """All problems of one command are in one line, which names the command's own options."""
    ended = flows(f"run {PROMPT_FLOW} -i chair.png -i @nowhere.png -p qualty=1 --output-path nonsense://b")
    assert (ended.code, ended.out, len(ended.err.splitlines())) == (2, "", 1)
    for part in (
        "--input chair.png resembles a path",
        "nowhere.png",
        "'qualty' is not known",
        "nonsense://b",
        "--no-validate",
    ):
        assert part in ended.err
    both = flows(
        f"run {PROMPT_FLOW} -i a --variable b=c -p qualty=1 --no-validate --output-path nonsense://b"
    )
    assert "are exclusive" in both.err
    assert "nonsense://b" in both.err
    assert emulator.runs == {}


def test_download_waits_for_nothing(emulator: Emulator, flows: FlowsCommand, tmp_path: Path) -> None:
    """`download` of a run that is not over says how to wait for it."""
    flow_run_id = going(emulator)
    ended = flows(f"download {flow_run_id} --output-path {tmp_path} --conn-id generio_default")
    assert (ended.code, ended.out) == (1, "")
    assert f"airflow flows watch {flow_run_id} --conn-id generio_default" in ended.err


def test_what_could_be_fetched_is_printed(
    emulator: Emulator, made: FlowRun, flows: FlowsCommand, tmp_path: Path
) -> None:
    """If one output cannot be fetched, the other is written, both are printed, and the exit code is 1."""
    first = emulator.runs[made.flow_run_id].outputs[0].asset_id
    emulator.add_fault(Fault("GET", f"*/outputs/{first}*", times=None, status=401))
    ended = flows(f"download {made.flow_run_id} --output-path {tmp_path} -o json")
    assert ended.code == 6
    assert sorted(output["status"] for output in ended.json) == ["error", "ready"]
    assert len([*tmp_path.rglob("*.glb")]) == 1


def test_abort_and_delete(emulator: Emulator, flows: FlowsCommand) -> None:
    """`abort` stops a run; `delete` needs --yes where there is nobody to ask, and takes the run away."""
    flow_run_id = going(emulator)
    stopped = flows(f"abort {flow_run_id} -o json")
    assert (stopped.code, stopped.json["state"] in {"aborting", "aborted"}) == (0, True)
    emulator.advance(120)
    asked = flows(f"delete {flow_run_id}")
    assert (asked.code, asked.out) == (2, "")
    assert "use --yes" in asked.err
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


@pytest.fixture
def stored(flow_emulator: Emulator, airflow_database: None) -> Iterator[str]:
    """Put a connection into Airflow's database."""
    del airflow_database
    add_connection("stored", flow_emulator.url, flow_emulator.key)
    yield "stored"
    call(["connections", "delete", "stored"])


def test_connections_of_the_database_are_found(stored: str, flows: FlowsCommand) -> None:
    """A connection that only Airflow's database has is as good as one of the environment."""
    ended = flows(f"list --conn-id {stored} -o json")
    assert ended.code == 0, ended.err
    assert len(ended.json) == 3


HOSTILE = "[red]\x1b[31m:smile:\r\n\x07\x9b31m\u202egnp.exe[/] 12e3"


@pytest.mark.parametrize("form", ["table", "plain", "json", "yaml"])
def test_what_a_service_says_cannot_command_a_terminal(
    flows: FlowsCommand, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """Markup is shown as it is, and every control character is written out, on stdout as on stderr."""
    with StubFlowServer() as flow_server:
        flow_server.connect(monkeypatch)
        flow_server.create_runs(1, 0)
        row = {**flow_server.row("r0"), "template": HOSTILE, "state": "failed", "error": HOSTILE}
        flow_server.run_response = lambda *_: ApiResponse(row)
        flow_server.list_response = lambda _: ApiResponse(
            {"flows": [row, {**row, "flow_id": "12e3", "state": HOSTILE}]}
        )
        ended = [flows(f"{line} -o {form}") for line in ("watch r0 --poll-interval 0.01", "get r0", "runs")]
    assert [one.code for one in ended] == [1, 0, 0]
    for one in ended:
        assert all(sign == "\n" or sign.isprintable() for sign in one.out + one.err), one
        assert one.out.count("[red]") >= 1
    assert ended[0].err.count("[red]\\x1b[31m:smile:") >= 1
    assert "12e3" in ended[2].out


def test_printable_text_is_left_alone() -> None:
    """Only what a terminal would obey or not show is written out."""
    assert escape_control_chars("größe ☃ 椅子 😀 [b]") == "größe ☃ 椅子 😀 [b]"
    assert escape_control_chars("a\tb\u2028c\x7f\ud800") == "a\\tb\\u2028c\\x7f\\ud800"


def test_no_key_anywhere(flows: FlowsCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even a service that repeats the key gets it printed, nor does --verbose."""
    with StubFlowServer() as flow_server:
        flow_server.connect(monkeypatch, key=KEY)
        flow_server.keys = {KEY}
        flow_server.create_runs(1, 0)
        flow_server.run_response = lambda *_: ApiResponse({"detail": f"{KEY} is a nice key"}, 418)
        ended = flows("get r0 --verbose")
    assert ended.code == 1
    assert KEY not in ended.out + ended.err
    assert "is a nice key" in ended.err


def test_an_error_that_nobody_thought_of_is_a_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    """Any exception ends a command with code 1 and one line; --verbose adds where it came from."""
    from argparse import Namespace

    @command
    def broken(args: Namespace) -> None:
        raise OSError(28, f"No space for {args.what}")

    for verbose in (False, True):
        with pytest.raises(SystemExit) as ended:
            broken(Namespace(verbose=verbose, what="a\x1b[31mchair"))
        assert ended.value.code == 1
        written = capsys.readouterr()
        assert written.err.splitlines()[-1] == "OSError: [Errno 28] No space for a\\x1b[31mchair"
        assert ("Traceback" in written.err) is verbose


def test_help_tells_the_exit_codes(flows: FlowsCommand) -> None:
    """Each command's help, and the group's, holds the table of exit codes."""
    for line in ("--help", "run --help", "watch --help", "delete --help"):
        told = flows(line)
        assert told.code == 0
        for code in Exit:
            assert re.search(rf"^ +{code.value}  {re.escape(code.meaning)}$", told.out, re.MULTILINE), (
                told.out
            )


def test_emulator_takes_the_options_that_it_has_by_itself(flows: FlowsCommand) -> None:
    """`emulator` hands its options on as they stand, dashes and all, and its help is the emulator's own."""
    told = flows("emulator --help")
    assert told.code == 0
    assert "usage: airflow flows emulator" in told.out
    assert "--run-seconds" in told.out
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


def test_draw_writes_a_graph_in_both_forms(flows: FlowsCommand, tmp_path: Path) -> None:
    """`draw` writes an exported graph to stdout or to a file, in the requested or the file's format."""
    exported, picture, text = (tmp_path / name for name in ("chain.json", "chain.svg", "chain.mmd"))
    exported.write_text(json.dumps(GRAPH))
    shown = flows(f"draw {exported}")
    assert shown.code == 0, shown.err
    root = ET.fromstring(shown.out)  # noqa: S314  # it was made here
    assert root.tag.endswith("svg")
    assert "\x1b" not in shown.out
    assert "<script" not in shown.out
    assert flows(f"draw {exported} --format mermaid").out.startswith("flowchart LR\n")
    assert flows(f"draw chain --file {exported} --to {picture}").err == f"Wrote {picture}.\n"
    assert flows(f"draw {exported} --to {text}").out == ""
    assert ET.parse(picture).getroot().tag == root.tag  # noqa: S314  # it was made here
    assert text.read_text().startswith("flowchart LR\n")


def test_draw_finds_a_flows_graph_in_the_connections_folder(
    emulator: Emulator, flows: FlowsCommand, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`draw FLOW` reads FLOW.json in the folder that the connection names; without one it says what to do."""
    (tmp_path / "my-flow.json").write_text(json.dumps(GRAPH))
    told = {
        "conn_type": "promptchainer",
        "host": emulator.url,
        "password": KEY,
        "extra": {"graphs": str(tmp_path)},
    }
    monkeypatch.setenv("AIRFLOW_CONN_DRAWN", json.dumps(told))
    assert "color" in flows("draw my-flow --conn-id drawn --format mermaid").out
    none = flows("draw another --conn-id drawn")
    assert (none.code, none.out) == (2, "")
    assert "another.json" in none.err


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "cannot be read"), (b"{", "not JSON"), (b"[]", "not a JSON object")]
)
def test_draw_refuses_what_is_no_graph(
    flows: FlowsCommand, tmp_path: Path, content: bytes | None, reason: str
) -> None:
    """A file that is not there or holds no flow graph is told in one line, by its name."""
    file = tmp_path / "it.json"
    if content is not None:
        file.write_bytes(content)
    ended = flows(f"draw {file}")
    assert (ended.code, ended.out) == (2, "")
    (line,) = ended.err.splitlines()
    assert reason in line
    assert str(file) in line


def test_what_does_not_fit_is_found_before_there_is_a_run(emulator: Emulator, flows: FlowsCommand) -> None:
    """`run` checks all arguments against the flow's definition; --no-validate leaves that to the service."""
    line = f"run {PROMPT_FLOW} --input 'A chair' --param qualty=low --param seed=x"
    checked = flows(line)
    assert (checked.code, checked.out) == (2, "")
    assert "qualty" in checked.err
    assert "seed" in checked.err
    assert emulator.runs == {}
    assert [request.method for request in emulator.requests] == ["GET"]
    refused = flows(f"{line} --no-validate")
    assert (refused.code, refused.out) == (2, "")
    assert "HTTP 422" in refused.err
    assert (emulator.paid_runs, dict(emulator.runs)) == ([], {})
