"""Tests that a string is a prompt and never names a file, wherever it comes from.

A string that is, or looks like, a path or a URI is rejected before anything is read or sent.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, task

from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.flow_run import FlowInput, UploadSource
from airflow_provider_flows.decorators import task as typed_task
from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.hooks import FlowsHook
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.storage.inputs import parse_inputs
from airflow_provider_flows.storage.paths import is_likely_path_or_uri
from tests.support.airflow_run import run_dag
from tests.support.modes import FAST_POLLING, FLOW

SECRET = "the key of the safe is 4711"

PATHS_AND_URIS = [
    # URIs
    "file:///etc/passwd", "FILE:///etc/passwd", "file:/etc/passwd", "file:passwd", "file://host/share/x",
    "local:///etc/passwd", "s3://bucket/chair.png", "s3a://b/c", "gs://b/c", "gcs://b/c", "abfs://c@host/p",
    "wasbs://c@host/p", "hdfs://node/x", "sftp://host/x", "ftp://host/x", "memory://x/y", "github://o:r@/x",
    "https://example.org/chair.png", "http://169.254.169.254/latest", "https://x.y/p.png?d=secret",
    "simplecache::file:///etc/passwd", "zip://a.png::file:///x.zip", "www.example.org/chair", "x://y",
    "s3://key:s3cret@bucket/chair.png",
    # with blanks and percent signs
    "s3://bucket/my chair.png", "s3://bucket/my chair", "file:///data/my chair.png",
    "file:///my files/secret",
    "file:///data/my%20chair.png", "file:///data/100%.png", "file:///data/50% off/chair",
    "https://example.org/my chair.png", "file%3A%2F%2F%2Fetc%2Fpasswd", "%2Fetc%2Fpasswd", "my%20chair.png",
    "100% chair.png", "file:///a\tb.png", "file:///a\nb.png",
    "file:///the chair of the man with a hat/a b.png",
    # paths
    "/", "/etc/passwd", "//host/share/x", "/data/my chair.png", "/data/my folder/chair", "/My Files/secret",
    "/proc/self/environ", "/dev/zero", "./x.png", "./x", "./my chair", "../x", "../../my folder/x", ".", "..",
    "~", "~/x", "~/.ssh/id_rsa", "~/my chair.png", "~user/x", ".ssh/id_rsa", "$HOME/x", "${HOME}/x y.png",
    "C:\\x.png", "C:\\My Documents\\chair.png", "c:/x", "C:/My Documents/x", "\\\\server\\share\\my x.png",
    "%USERPROFILE%\\x", "models/", "/data/the chair of the man with a very big hat.png",
    # names of files
    "model.glb", "my chair.png", "models/chair.GLB", "models/my chair.glb", "secret.txt", "secrets.env",
    "chair.tar.gz", "Stuhl grün.jpeg", "id.pem", "prices 2026.csv", "@chair.png", "chair.png?sig=1",
    # copied with what is around them
    "  file:///x\n", "\ufefffile:///x", "'/etc/passwd'", '"my chair.png"', "<https://example.org>", "`~/x`",
    # data URIs are URIs, whose content is no prompt
    "data:image/png;base64,iVBORw0KGgo=", "data:,x", "data:image/png,base64;iVBO", "data:text/plain,a chair",
    "data:text/plain;charset=utf-8,x", "DATA:;base64,AAAA", " data:image/jpeg;base64,\n/9 j/",
    "data:base64,AAAA", "file:///" + "a" * 5000, "data:image/png;base64," + "A" * 100_000,
]  # fmt: skip
PROMPTS = [
    "A modern office chair", " chair ", "a chair.png", "s3 is a store", "see https://example.org for a chair",
    "and/or", "1/2 a chair", "a chair, 3/4 view", "3/4 view of a chair", "/imagine a chair",
    "/imagine a chair, 3/4 view", "data: the new oil", "data: a, b and c", "Data: an image, in base64",
    "C: the note", "a://b c", "größe 3\nin zwei Zeilen", "://", "~ a chair", "~5 m tall tower", "16:9",
    "style:modern", "50% off", "100%", "10% wood, 90% steel", "red/green/blue", "km/h", "w/o arms", "Node.js",
    "A chair. Make it red.", "std::vector", "e.g. a chair", "U.S.A.", "v1.2", "4.5", "...", "12:30", "A: B/C",
    "https://example.org is the style, please", "a chair with the text file:///x as its label",
    "model.glb is the name, make a logo of it", "turn photo.png into model.glb", "what is C:\\x.png",
    "make https://example.org/chair.png red", "$5/piece of cake", "a/b testing: red vs. blue", "Hello.World",
    "* a list item", "- a chair\n- a table", "The path /etc/passwd written on a wall", "/ and \\ are slashes",
    "s3://bucket is our store; draw its logo as a red bucket on a table with two legs and a hat",
    "{'a': 1}", "[1, 2]", '{"uri": "file:///etc/passwd"}',
    "A chair " + "as in https://example.org/x.png " * 99,
    "Make a model of the object in the picture /data/my chair.png and paint its legs in the colour of wood",
]  # fmt: skip


def serialize(inputs: Any) -> list[str]:
    """Return what is sent for each input."""
    read = parse_inputs(inputs)
    assert isinstance(read, list)
    assert all(isinstance(item, FlowInput) and isinstance(item.data, str) for item in read)
    return [str(item.data) for item in read]


@pytest.mark.parametrize("text", PATHS_AND_URIS)
def test_path_or_uri_is_rejected_with_both_ways_to_say_it(text: str) -> None:
    """Such a string is rejected, alone or in a list; `data` sends a text as it is."""
    for inputs, where in ((text, "inputs[0]"), ([text], "inputs[0]"), (("a chair", text), "inputs[1]")):
        with pytest.raises(FlowInputError) as caught:
            parse_inputs(inputs)
        message = str(caught.value)
        assert message.startswith(f"{where} is a string that looks like a path or a URI")
        assert '{"uri": "' in message
        assert '{"data": "' in message
        assert "pathlib.Path" in message
        assert len(message) < 1000
        assert message.isprintable()
        assert "s3cret" not in message
    if not text.strip().lower().startswith("data:"):
        assert serialize({"data": text}) == serialize([{"data": text}]) == [text]


@pytest.mark.parametrize("text", PROMPTS)
def test_any_other_string_is_sent_unchanged(text: str) -> None:
    """A prompt may contain paths, addresses and fractions; it is sent to the letter, alone or in a list."""
    assert (
        serialize(text)
        == serialize([text])
        == serialize((text,))
        == serialize([{"data": text}])
        == serialize({"data": text})
        == [text]
    )


@pytest.mark.parametrize("name", ["my chair.txt", "100%.txt", "a%20b.txt", "chair.txt"])
def test_both_ways_of_the_message_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """What the message proposes uploads the file, or sends the text."""
    (tmp_path / name).write_text(SECRET)
    monkeypatch.chdir(tmp_path)
    for text in (name, f"./{name}", str(tmp_path / name), f"file://{tmp_path}/{name}"):
        with pytest.raises(FlowInputError) as caught:
            parse_inputs(text)
        decoder, message = json.JSONDecoder(), str(caught.value)
        proposed = [decoder.raw_decode(message, message.index(f'{{"{key}"'))[0] for key in ("uri", "data")]
        assert [serialize(one) for one in proposed] == [[SECRET], [text]]


@pytest.mark.parametrize(
    "text",
    [
        "." * 200_000, "a:" * 100_000, "/" * 100_000, "data:" + ";a" * 100_000, "a." * 100_000,
        "://" * 100_000, "\\" * 100_000, "%41" * 100_000, "data:" + "a" * 100_000 + " " + "b" * 100_000,
        "a b " + "1/" * 100_000, "x y " + ".png" * 50_000, "/a" + " b" * 100_000,
        "a.png " * 7 + "x" * 100_000,
    ],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_long_text_is_recognized_in_linear_time(text: str) -> None:
    """No text makes the patterns take more than a moment."""
    started = time.process_time()
    is_likely_path_or_uri(text)
    assert time.process_time() - started < 1


def _run(inputs: Any = None, **arguments: Any) -> Any:
    return RunFlowOperator(task_id="run", flow=FLOW, inputs=inputs, **FAST_POLLING, **arguments)


@task
def given(params: Any = None) -> Any:
    """Return the text of the parameter, as a table would."""
    return params["text"]


@task
def given_list(params: Any = None) -> Any:
    """Return a list with the text."""
    return [params["text"]]


def _decorated(decorator: Any, form: Callable[[str], Any], **arguments: Any) -> None:
    @decorator.flow(flow=FLOW, **FAST_POLLING, **arguments)
    def run(params: Any = None) -> Any:
        return form(params["text"])

    run()


def _decorated_and_typed(decorator: Any) -> None:
    @decorator.flow(flow=FLOW, **FAST_POLLING)
    def run(text: str) -> str:
        return text

    run(given())


# each way of a text from outside into a task: what creates the task `run`
WAYS: dict[str, Callable[[], object]] = {
    "template": lambda: _run("{{ params.text }}"),
    "template in a list": lambda: _run(["{{ params.text }}"]),
    "result of a task": lambda: _run(given()),
    "results of tasks": lambda: _run([given()]),
    "list of a task": lambda: _run(given_list()),
    "template and deferral": lambda: _run("{{ params.text }}", deferrable=True),
    "without validation": lambda: _run("{{ params.text }}", validate=False),
    "without a record": lambda: _run("{{ params.text }}", durable=False),
    "function": lambda: _decorated(task, lambda text: text),
    "function with a list": lambda: _decorated(task, lambda text: [text]),
    "function with arguments": lambda: _decorated(task, lambda text: {"inputs": text}),
    "function with rendering": lambda: _decorated(task, lambda _: "{{ params.text }}", render_returned=True),
    "typed function": lambda: _decorated_and_typed(typed_task),
}


@pytest.mark.parametrize("way", WAYS)
def test_text_of_a_trigger_never_sends_a_file(emulator: Emulator, tmp_path: Path, way: str) -> None:
    """A path or URI that the conf of a DAG run contains is rejected, and the file's content is not sent."""
    (tmp_path / "secret.txt").write_text(SECRET)
    dag_id = f"bare_strings_by_{way.replace(' ', '_')}"  # Airflow 3.1 caches the tasks of an id
    with DAG(dag_id, schedule=None, params={"text": ""}) as dag:
        WAYS[way]()
    for text in (f"file://{tmp_path}/secret.txt", str(tmp_path / "secret.txt")):
        result = run_dag(dag, conf={"text": text})
        assert "looks like a path or a URI" in str(result.errors["run"]), result.log
    assert emulator.runs == {}
    assert not any(request.method == "POST" for request in emulator.requests)


@pytest.mark.parametrize("mapped", ["template", "list", "task", "function"])
def test_mapped_text_never_sends_a_file(emulator: Emulator, tmp_path: Path, mapped: str) -> None:
    """Of mapped texts, one that looks like a URI is rejected; the other one is a prompt."""
    emulator.run_seconds = 0
    (tmp_path / "secret.txt").write_text(SECRET)
    uri = f"file://{tmp_path}/secret.txt"

    @task
    def texts() -> list[str]:
        return ["A chair", uri]

    @task.flow(flow=FLOW, **FAST_POLLING)
    def run(text: str) -> str:
        return text

    with DAG(f"bare_strings_{mapped}", schedule=None, params={"uri": uri}) as dag:
        if mapped == "function":
            run.expand(text=texts())
        else:
            values = {"template": ["A chair", "{{ params.uri }}"], "list": ["A chair", uri], "task": texts}
            expanded = values[mapped]() if mapped == "task" else values[mapped]
            RunFlowOperator.partial(task_id="run", flow=FLOW, **FAST_POLLING).expand(inputs=expanded)
    result = run_dag(dag)
    assert "looks like a path or a URI" in str(result.errors["run[1]"]), result.log
    assert [run.inputs[0].media.content for run in emulator.runs.values()] == [b"A chair"]


METHODS: dict[str, Callable[[FlowsHook, str], object]] = {
    "start": lambda hook, text: hook.start(FLOW, text, validate=False),
    "start with a list": lambda hook, text: hook.start(FLOW, [text], validate=False),
    "build_request": lambda hook, text: hook.build_request(FLOW, text, None, None),
    "add_input": lambda hook, text: hook.add_input("0" * 24, text),
}


@pytest.mark.parametrize("method", METHODS)
def test_hook_never_reads_the_file_of_a_string(flow_emulator: Emulator, tmp_path: Path, method: str) -> None:
    """Each method of the hook that takes inputs rejects a string that looks like a path or a URI."""
    (tmp_path / "secret.txt").write_text(SECRET)
    hook = FlowsHook.get_hook("generio_default")
    for text in (f"file://{tmp_path}/secret.txt", str(tmp_path / "secret.txt"), "secret.txt"):
        with pytest.raises(FlowInputError, match="looks like a path or a URI"):
            METHODS[method](hook, text)
    assert flow_emulator.requests == ()


@pytest.mark.parametrize("text", PATHS_AND_URIS)
def test_variable_is_always_a_text(text: str) -> None:
    """The value of a variable (PromptChainer) is a text, whatever it looks like."""
    assert parse_inputs({"color": text, "item": "ball"}) == {"color": text, "item": "ball"}


def test_text_of_an_earlier_run_is_a_text() -> None:
    """A text that a service has returned is sent as a text, also if it looks like a path."""
    output = {"name": "t", "asset_id": None, "status": "ready", "media_type": "text/plain"}
    assert serialize([{**output, "value": "/etc/passwd"}]) == ["/etc/passwd"]


def test_files_are_named_by_their_own_types(tmp_path: Path) -> None:
    """A Path, an ObjectStoragePath and a dict with `uri` still name a file."""
    from airflow.sdk import ObjectStoragePath

    path = tmp_path / "a b.glb"
    path.write_bytes(b"glTF" + bytes([2, 0, 0, 0, 12, 0, 0, 0]))
    for way in (path, ObjectStoragePath(f"file://{path}"), {"uri": f"file://{path}"}, {"uri": str(path)}):
        (read,) = parse_inputs([way])
        assert isinstance(read, FlowInput)
        assert isinstance(read.data, UploadSource)
