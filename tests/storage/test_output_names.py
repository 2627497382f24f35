"""Tests of `output_name`: what files are called, in every mode, and what no pattern is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk import task as airflow_task

from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.flow_run import FlowOutput, FlowRun
from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.hooks import GenerioHook
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.sensors import FlowRunSensor
from airflow_provider_flows.storage.output_options import OutputOptions
from airflow_provider_flows.storage.paths import MAX_FILE_NAME_LENGTH, OutputName, file_names
from tests.support.airflow_run import run_dag
from tests.support.commands import flows_command
from tests.support.downloads import FileRecords, data_uri_body, fetch_or_raise, glb, hook_to, list_files
from tests.support.modes import MODES, run_in_mode
from tests.support.servers import StubResponse, StubServer
from tests.support.task_instances import Store, context
from tests.support.tries import CHAIN_ARGUMENTS
from tests.support.versions import needs

pytestmark = [pytest.mark.emulator(run_seconds=0, retries=0), pytest.mark.usefixtures("no_proxy")]

RUN = FlowRun("6b01", "generio", "model/from prompt")
OUTPUTS = (
    FlowOutput("chair", "a1", additional={"key": "Oak chair", "n": 7, "none": None, "list": [1]}),
    FlowOutput("chair", "a2", additional={"key": "../../etc/passwd"}),
    FlowOutput("t:b", None),
)
# the pattern, and the names of the three files
NAMES: dict[str, list[str]] = {
    "{name}": ["chair", "chair-2", "t_b"],
    "{index}": ["0", "1", "2"],
    "{index:03}": ["000", "001", "002"],
    "{index:02d}-{name}": ["00-chair", "01-chair", "02-t_b"],
    "{asset_id}": ["a1", "a2", "t_b--" + "{digest}"],
    "{flow}": ["model_from_prompt", "model_from_prompt-2", "model_from_prompt-3"],
    "{flow_run_id}-{index}": ["6b01-0", "6b01-1", "6b01-2"],
    "{input.key}": ["Oak_chair", "etc_passwd", "Ada"],
    "{input.n}-x": ["7-x", "x", "x-2"],
    "{input.none}{input.list}{name}": ["chair", "chair-2", "t_b"],
    "model.glb": ["model", "model-2", "model-3"],
    "model.v2": ["model.v2", "model.v2-2", "model.v2-3"],
    "con": ["_con", "_con-2", "_con-3"],
    "x" * 300: [
        "x" * MAX_FILE_NAME_LENGTH,
        "x" * MAX_FILE_NAME_LENGTH + "-2",
        "x" * MAX_FILE_NAME_LENGTH + "-3",
    ],
    "Stuhl ü (": ["Stuhl", "Stuhl-2", "Stuhl-3"],
}


@pytest.mark.parametrize("pattern", NAMES)
def test_names_are_safe_and_unique(pattern: str) -> None:
    """Fields are replaced, characters that a store may not allow become `_`, and equal names are numbered."""
    naming = OutputName(pattern, {"key": "Ada"})
    found = list(file_names(OUTPUTS, naming, RUN))
    expected = NAMES[pattern]
    assert len(found) == len(set(found)) == 3
    assert found[:2] == expected[:2]
    assert found[2].startswith(expected[2].partition("{digest}")[0])


INPUTS: dict[str, Any] = {
    "one input": {"data": "A chair", "additional": {"key": "Ada"}},
    "several inputs": ["A chair", {"data": "A table", "additional": {"key": "Ada"}}],
    "variables": {"key": "Ada"},
    "a number": {"key": 7},
    "a result": {"flow_run_id": "7", "outputs": [{"name": "x", "additional": {"key": "Ada"}}]},
    "outputs": [[{"name": "x", "additional": {"key": "Ada"}}]],
}


@pytest.mark.parametrize("kind", INPUTS)
def test_fields_of_inputs_are_those_of_their_metadata(kind: str) -> None:
    """`{input.key}` is metadata of an input, or a variable; a key that no input has is an error."""
    (name,) = file_names([FlowOutput("x")], OutputName("{input.key}", INPUTS[kind]), RUN)
    assert name == ("7" if kind == "a number" else "Ada")
    assert OutputName("{input.key}{input.kee}", INPUTS[kind]).find_missing_keys() == ["kee"]


INVALID = {
    "": "output_name must be a text such as",
    "  ": "output_name must be a text such as",
    "{}": "unknown field {}",
    "{0}": "unknown field {0}",
    "{key}": "unknown field {key}. Known are {name}, {index}, {asset_id}, {flow}, {flow_run_id}, {index:03}, "
    "{input.KEY}. If 'key' is of the input, write {input.key}.",
    "{Name}": "unknown field {Name}",
    "{name!r}": "unknown field {name!r}",
    "{name.upper}": "unknown field {name.upper}",
    "{name:>9}": "unknown field {name:>9}",
    "{index:x}": "unknown field {index:x}",
    "{index:099}": "unknown field {index:099}",
    "{input}": "unknown field {input}",
    "{input.}": "unknown field {input.}",
    "a/{name}": "names a folder",
    "../{name}": "names a folder",
    "a\\b": "names a folder",
    "{name": "has a '{' that is not closed. Write a field as in",
    "name}": "has a '}' that has no opening brace",
    "{{name": "has a '{' that is not closed",
    "{name}-{": "has a '{' that is not closed",
    "}{": "has a '}' that has no opening brace",
    "{% if x %}{name{% endif %}": "has a '{' that is not closed",
}


@pytest.mark.parametrize("pattern", INVALID)
def test_invalid_pattern_is_an_error_when_the_dag_is_parsed(pattern: str) -> None:
    """The operator, the sensor and the decorator reject it, and list the known fields."""

    def decorated() -> None:
        @airflow_task.flow(flow="f", output_name=pattern)
        def run() -> str:
            return "a chair"

        run()

    for create in (
        lambda: RunFlowOperator(task_id="t", flow="f", output_name=pattern),
        lambda: FlowRunSensor(task_id="t", flow_run_id="7", output_name=pattern),
        decorated,
    ):
        with pytest.raises(FlowInputError) as caught:
            create()
        assert INVALID[pattern] in str(caught.value)


@pytest.mark.parametrize(
    "pattern", ["{{ params.key }}", "{% if x %}a{% endif %}", "{{ {'a': 1}['a'] }}-{index}"]
)
def test_templates_are_no_fields(pattern: str) -> None:
    """A pattern with Jinja templates is valid when the DAG is parsed, and is rendered by Airflow."""
    task = RunFlowOperator(task_id="t", flow="f", output_name=pattern)
    assert "output_name" in task.template_fields
    with pytest.raises(FlowInputError, match=r"unknown field \{x\}"):
        RunFlowOperator(task_id="t", flow="f", output_name=pattern + "{x}")


@pytest.mark.parametrize("mode", MODES)
def test_files_have_these_names_in_every_mode(mode: str, emulator: Emulator, tmp_path: Path) -> None:
    """The names are the same whatever waits for the run."""
    result = run_in_mode(mode, emulator, output_path=str(tmp_path), output_name="{{ 'a' }}-{flow}-{index:02}")
    assert result.state == "success"
    assert [Path(name).name for name in list_files(tmp_path)] == ["a-model_generate_fromprompt-00.glb"]


@pytest.mark.parametrize("deferrable", [False, True])
def test_function_of_the_decorator_names_files(
    emulator: Emulator, tmp_path: Path, *, deferrable: bool
) -> None:
    """A function of `@task.flow` returns the pattern too; it is not called again after a deferral."""
    emulator.run_seconds = 0.5
    calls = []
    with DAG("named_by_a_function", schedule=None) as dag:

        @airflow_task.flow(
            flow="model_generate_fromprompt",
            flows_conn_id="generio_default",
            output_path=str(tmp_path),
            deferrable=deferrable,
            poll_interval=0.1,
        )
        def run() -> dict[str, Any]:
            calls.append(1)
            item = {"data": "A chair", "additional": {"key": f"Oak {len(calls)}"}}
            return {"inputs": item, "output_name": "{input.key}-" + str(len(calls))}

        run()
    result = run_dag(dag)
    assert result.state == "success", result.log
    assert [Path(name).name for name in list_files(tmp_path)] == ["Oak_1-1.glb"]


def test_missing_key_is_an_error_before_a_run_is_created(emulator: Emulator, tmp_path: Path) -> None:
    """A field of an input that no input has is found before anything is paid."""
    arguments = {**CHAIN_ARGUMENTS, "output_path": str(tmp_path), "output_name": "{input.colour}"}
    with pytest.raises(FlowInputError, match="but no input has 'colour'"):
        RunFlowOperator(task_id="t", **arguments).execute(context(Store()))
    assert not [one for one in emulator.requests if one.method == "POST"]


def test_variables_of_promptchainer_are_fields(emulator: Emulator, tmp_path: Path) -> None:
    """The variables of a run name its files."""
    del emulator
    arguments = {**CHAIN_ARGUMENTS, "output_path": str(tmp_path), "max_xcom_bytes": 0}
    task = RunFlowOperator(task_id="t", output_name="{input.color}-{name}", **arguments)
    outputs = task.execute(context(Store()))["outputs"]
    assert outputs
    assert all(Path(one["uri"]).name.startswith("red-") for one in outputs if one["uri"])


@needs("commands of providers")
def test_command_names_files(emulator: Emulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`airflow flows download --output-name` names the files; an invalid pattern is an error."""
    run = GenerioHook("generio_default").start(
        "model_generate_fromprompt", {"data": "A chair", "additional": {"key": "Oak"}}
    )
    emulator.advance(10)
    flows = flows_command(capsys)
    args = ["download", run.flow_run_id, "--conn-id", "generio_default", "--output-path", str(tmp_path)]
    assert flows(*args, "--output-name", "{input.key}").code == 0
    assert [Path(name).name for name in list_files(tmp_path)] == ["Oak.glb"]
    failed = flows(*args, "--output-name", "{kee}")
    assert failed.code != 0
    assert "unknown field {kee}" in failed.err


def test_resumed_try_finds_its_files(tmp_path: Path) -> None:
    """A retry does not download a file again that an earlier try has stored under such a name."""
    options, records = OutputOptions(str(tmp_path), output_name="{flow}"), FileRecords()
    run = FlowRun("7", "generio", "f").with_outputs(
        tuple(FlowOutput("chair", f"a{n}", status="ready", media_type="model/gltf-binary") for n in range(2))
    )
    with StubServer(lambda _: StubResponse(body=data_uri_body(glb(2_000)))) as server:
        for _ in range(2):
            outputs = fetch_or_raise(hook_to(server.url), run, options, records).outputs
        assert len(server.requests) == 2
    assert [Path(str(one.uri)).name for one in outputs] == ["f.glb", "f-2.glb"]
    assert list_files(tmp_path) == ["7/f-2.glb", "7/f.glb"]
