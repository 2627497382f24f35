"""Tests of outputs of one task as inputs of the next: outputs, lists, returned dicts, mapped tasks.

Most parse what a task would receive; the last ones are real DAG runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.flow_run import FlowOutput, FlowRun, FlowState, UploadSource
from airflow_provider_flows.emulator import Emulator, Plan
from airflow_provider_flows.hooks import PromptChainerHook
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.storage.inputs import parse_inputs
from tests.support.airflow_run import run_dag
from tests.support.run_requests import CHAIN_ID

GLB = b"glTF\x02\x00\x00\x00\x0d\x00\x00\x00\x00"
TEXT = FlowOutput("slogan", media_type="text/plain", value="Sit down").to_dict()
OFTEN = {"poll_interval": 0.1, "max_poll_interval": 0.2}


@pytest.fixture
def file(tmp_path: Path) -> dict[str, Any]:
    """Return an output that was written, as its task returned it."""
    (tmp_path / "chair.glb").write_bytes(GLB)
    uri = f"file://{tmp_path}/chair.glb"
    return FlowOutput(
        "chair",
        "a1",
        media_type="model/gltf-binary",
        additional={"n": 1},
        uri=uri,
        size=8,
        sha256=hashlib.sha256(GLB).hexdigest(),
    ).to_dict()


def task_result(*outputs: dict[str, Any], state: FlowState = FlowState.COMPLETED) -> dict[str, Any]:
    """Return the result of a task whose run has these outputs."""
    return {**FlowRun("r1", "generio", state=state).to_dict(), "outputs": list(outputs)}


def read_inputs(inputs: Any) -> list[Any]:
    """Parse inputs, and return the text or bytes and the metadata of each."""
    read = parse_inputs(inputs)
    assert isinstance(read, list)
    return [
        (b"".join(i.data.chunks()) if isinstance(i.data, UploadSource) else i.data, i.additional)
        for i in read
    ]


class LazySequence(Sequence[Any]):
    """What the tasks of a mapped one returned, given one by one, as Airflow does it."""

    def __init__(self, *items: Any) -> None:
        self._items = items

    def __len__(self) -> int:
        """How many there are."""
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        """Return one."""
        return self._items[index]


def test_file_changed_after_its_task_is_rejected(file: dict[str, Any], tmp_path: Path) -> None:
    """A file that was overwritten is rejected before anything is sent; its URI alone accepts any content."""
    other = GLB[:-1] + b"\x01"
    (tmp_path / "chair.glb").write_bytes(other)
    with pytest.raises(
        FlowInputError, match=r"inputs\[0\] names a file that changed since its task wrote it"
    ):
        parse_inputs([file])
    assert read_inputs([{"uri": file["uri"]}]) == [(other, None)]
    (tmp_path / "note.txt").write_text("Stand up")
    said = {
        **TEXT,
        "value": "Sit",
        "uri": f"file://{tmp_path}/note.txt",
        "sha256": hashlib.sha256(b"Sit down").hexdigest(),
    }
    with pytest.raises(FlowInputError, match="changed since its task wrote it"):
        parse_inputs([said])
    (tmp_path / "note.txt").write_text("Sit down")
    assert read_inputs([said]) == [("Sit down", None)]


def test_every_form_of_an_output_is_accepted(file: dict[str, Any]) -> None:
    """One output, a list, the returned dict, several dicts and mapped ones all are their files and texts."""
    created, said = (GLB, {"n": 1}), ("Sit down", None)
    assert read_inputs(file) == read_inputs([file]) == read_inputs(task_result(file)) == [created]
    assert (
        read_inputs([file, TEXT])
        == read_inputs(task_result(file, TEXT))
        == read_inputs([task_result(file), task_result(TEXT)])
        == [created, said]
    )
    assert read_inputs(LazySequence(task_result(file), task_result(TEXT, file))) == [created, said, created]
    assert read_inputs(LazySequence([file], [TEXT, file])) == [created, said, created]
    assert read_inputs([[file, TEXT], "and a prompt", task_result(file)]) == [
        created,
        said,
        ("and a prompt", None),
        created,
    ]


@pytest.mark.parametrize(
    "more",
    [
        {"error": None},
        {"expires_at": "2026-01-01T00:00:00Z", "value": "https://images.test/chair.png"},
        {"error": "first try", "value": "cut short", "status": "pending"},
        {"some_day": 1},
    ],
)
def test_unknown_keys_are_ignored(file: dict[str, Any], more: dict[str, Any]) -> None:
    """An output with a file and unknown keys is accepted, alone and in a list."""
    assert read_inputs({**file, **more}) == read_inputs([{**file, **more}]) == [(GLB, {"n": 1})]


@pytest.mark.parametrize(
    ("output", "reported"),
    [
        (
            FlowOutput("chair", "a1", media_type="model/gltf-binary"),
            r"'chair'.*did not store it.*Set output_path on that task",
        ),
        (FlowOutput("chair", "a1", status="pending"), r"'chair'.*was not ready.*output_path"),
        (FlowOutput("chair", "a1", status="error", error="no faces"), r"'chair'.*failed \(no faces\)"),
        (FlowOutput("chair", status="error", value=""), r"'chair'.*failed \(the service gave no reason\)"),
        (
            FlowOutput("chair", media_type="image/png", value="https://images.test/x.png?sig=s"),
            r"'chair'.*Set output_path",
        ),
        (FlowOutput("chair", media_type="text/plain", value=" "), "is blank"),
    ],
)
def test_unacceptable_input_is_named(output: FlowOutput, reported: str) -> None:
    """An output without file and text is an error that names it, the reason, and what to change."""
    item = output.to_dict()
    for inputs, where in (
        (item, r"inputs\[0\]"), (["a", item], r"inputs\[1\]"), (task_result(TEXT, item),
        r"inputs\[0\]\['outputs'\]\[1\]"),
        ([[TEXT, item]], r"inputs\[0\]\[1\]"),
    ):  # fmt: skip
        with pytest.raises(FlowInputError, match=rf"^{where} .*{reported}") as caught:
            parse_inputs(inputs)
        assert "sig=" not in str(caught.value)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            FlowState.STARTING,
            r"inputs\[1\] is the flow run r1, which had no outputs.*: the upstream task did not wait",
        ),
        (FlowState.COMPLETED, r"inputs\[1\]: flow run r1 \(completed\) produced no outputs; remove it"),
    ],
)
def test_run_without_outputs_is_named(state: FlowState, message: str) -> None:
    """A run without outputs is an error; its advice depends on whether the upstream task has waited."""
    with pytest.raises(FlowInputError, match=message):
        parse_inputs(["a", task_result(state=state)])


def test_nested_lists_are_rejected(file: dict[str, Any]) -> None:
    """Only lists of outputs are opened up."""
    for inner in ([], ["a chair"], [file, "a chair"]):
        with pytest.raises(FlowInputError, match=r"inputs\[0\] must be .*not list"):
            parse_inputs([inner])


def test_variables_accept_texts(tmp_path: Path, file: dict[str, Any]) -> None:
    """A variable takes the text of an output, and of a text file; any other file is rejected by name."""
    (tmp_path / "long.txt").write_text("größer", encoding="utf-8")
    (tmp_path / "data.json").write_text("{}", encoding="utf-8")
    long = {**TEXT, "value": "grö", "uri": f"file://{tmp_path}/long.txt"}
    given = {
        "a": TEXT,
        "b": long,
        "c": {"uri": f"file://{tmp_path}/data.json"},
        "d": 5,
        "e": "s3://no/file",
        "f": {"x": 1},
    }
    reported = {"a": "Sit down", "b": "größer", "c": "{}", "d": 5, "e": "s3://no/file", "f": {"x": 1}}
    assert parse_inputs(given) == reported
    with pytest.raises(
        FlowInputError, match=r"inputs\['b'\] names a file of type model/gltf-binary .*but a text is expected"
    ):
        parse_inputs({"a": TEXT, "b": file})
    with pytest.raises(FlowInputError, match=r"inputs\['b'\] refers to output 'x'.*Set output_path"):
        parse_inputs({"a": TEXT, "b": FlowOutput("x", "a1").to_dict()})


def test_variable_of_an_output_reaches_the_service(flow_emulator: Emulator) -> None:
    """The output of one chain is the variable of the next."""
    flow_emulator.run_seconds = 0
    PromptChainerHook("promptchainer_default").start(CHAIN_ID, {"color": TEXT, "item": "ball"})
    assert flow_emulator.requests[-1].json == {"variables": {"color": "Sit down", "item": "ball"}}


pytestmark = pytest.mark.emulator(run_seconds=0.1)


def test_result_of_a_task_is_the_input_of_the_next(emulator: Emulator, tmp_path: Path) -> None:
    """`inputs=first.output`, and a list of two such, run to their end."""
    same: dict[str, Any] = {"flows_conn_id": "generio_default", "output_path": str(tmp_path), **OFTEN}
    with DAG("chaining_whole", schedule=None) as dag:
        first = RunFlowOperator(task_id="first", flow="model_generate_fromprompt", inputs="A chair", **same)
        RunFlowOperator(task_id="one", flow="model_optimize", inputs=first.output, **same)
        RunFlowOperator(
            task_id="two", flow="model_optimize", inputs=[first.output, first.output["outputs"]], **same
        )
    result = run_dag(dag)
    assert result.state == "success", result.log
    assert [len(result.xcoms[name]["return_value"]["outputs"]) for name in ("one", "two")] == [1, 2]
    assert emulator.started_count == 3


def test_results_of_mapped_tasks_are_the_inputs_of_the_next(emulator: Emulator, tmp_path: Path) -> None:
    """The results of a mapped task are inputs of one task, and of mapped tasks one by one."""
    same: dict[str, Any] = {"flows_conn_id": "generio_default", "output_path": str(tmp_path), **OFTEN}
    with DAG("chaining_mapped", schedule=None) as dag:
        many = RunFlowOperator.partial(task_id="many", flow="model_generate_fromprompt", **same).expand(
            inputs=["A chair", "B"]
        )
        RunFlowOperator(task_id="all", flow="model_optimize", inputs=many.output, **same)
        RunFlowOperator(task_id="outputs", flow="model_optimize", inputs=many.output["outputs"], **same)
        RunFlowOperator.partial(task_id="each", flow="model_optimize", **same).expand(inputs=many.output)
    result = run_dag(dag)
    assert result.state == "success", result.log
    created = {name: len(reported["return_value"]["outputs"]) for name, reported in result.xcoms.items()}
    assert created == {"many[0]": 1, "many[1]": 1, "all": 2, "outputs": 2, "each[0]": 1, "each[1]": 1}
    assert emulator.started_count == 6


def test_outputs_without_a_stored_file_fail_the_next_task(emulator: Emulator) -> None:
    """Without output_path on the first task the second one fails with a hint, and starts no run."""
    emulator.add_plan(Plan())
    same: dict[str, Any] = {"flows_conn_id": "generio_default", **OFTEN}
    with DAG("chaining_stayed", schedule=None) as dag:
        first = RunFlowOperator(task_id="first", flow="model_generate_fromprompt", inputs="A chair", **same)
        RunFlowOperator(task_id="second", flow="model_optimize", inputs=first.output["outputs"], **same)
    result = run_dag(dag)
    assert result.states == {"first": "success", "second": "failed"}
    assert "Set output_path on that task" in str(result.errors["second"])
    assert emulator.started_count == 1
