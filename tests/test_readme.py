"""Runs what the README shows, and compares what it lists with what there is.

It says nothing of the two commands, `make demo` and `make test`: those are run on a fresh clone.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.definitions.connection import Connection

from airflow_provider_flows.connection import PROMPTCHAINER_FIELDS
from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.flow import errors
from airflow_provider_flows.hooks import GenerioHook
from airflow_provider_flows.operators import RunFlowOperator
from tests.airflow_run import ensure_database, load_dags, run_dag

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def block_with(words: str) -> str:
    """Give the one Python block of the README that holds these words."""
    (found,) = [block for block in BLOCKS if words in block]
    return str(found)


def rows_under(heading: str) -> list[list[str]]:
    """Give the cells of the table rows between a heading and the next one."""
    section = README.split(f"# {heading}\n")[1].split("\n#")[0]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in section.splitlines() if line.startswith("| `")]


@pytest.fixture
def shortest_dag(tmp_path: Path, flow_emulator: Emulator) -> Any:  # noqa: ARG001  # it sets the connection
    """Load the README's first DAG, its files going to a folder of this test."""
    source = block_with("with DAG(").replace("file:///tmp/flows", tmp_path.as_uri())
    path = tmp_path / "make_a_chair.py"
    path.write_text(source)
    return load_dags(path)["make_a_chair"]


def test_the_shortest_dag_works(shortest_dag: Any, tmp_path: Path) -> None:
    """The README's shortest DAG leaves a GLB file, and returns a dict with just the keys that the README shows."""
    result = run_dag(shortest_dag)
    assert result.state == "success"
    returned = result.xcoms["make_chair"]["return_value"]
    shown = ast.literal_eval(block_with('"flow_run_id":').strip())
    assert list(returned) == list(shown)
    assert set(returned["outputs"][0]) == set(shown["outputs"][0])
    (file,) = tmp_path.glob("*/*.glb")
    assert file.read_bytes()[:4] == b"glTF"


def test_the_snippet_for_users_own_tests_works(shortest_dag: Any, flow_emulator: Emulator) -> None:
    """The README's test of one's own DAG passes against the fixture that it shows."""
    ensure_database()
    scope: dict[str, Any] = {"make_a_chair": shortest_dag}
    exec(compile(block_with("def test_my_dag"), "README.md", "exec"), scope)  # noqa: S102  # it is what the README shows
    scope["test_my_dag"](flow_emulator)


def test_the_hook_snippet_works(flow_emulator: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    """The README's use of the hook alone starts a run, waits for it and downloads a model."""
    flow_emulator.run_seconds = 0.2
    exec(compile(block_with("hook.start("), "README.md", "exec"), {})  # noqa: S102  # it is what the README shows
    assert re.search(r"completed model/gltf-binary \d+", capsys.readouterr().out)


@pytest.mark.parametrize("spelling", re.findall(r"AIRFLOW_CONN_FLOWS_DEFAULT='(.*?)'", README))
def test_connection_spellings_reach_the_service_itself(spelling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each spelling of the default connection in the README means Generio's own host and the token TOKEN."""
    monkeypatch.setenv("AIRFLOW_CONN_FLOWS_DEFAULT", spelling)
    settings = GenerioHook("flows_default").settings
    assert settings.base_url == "https://flows.generio.ai"
    assert settings.credentials == {"Authorization": "Bearer TOKEN"}


def test_the_uri_with_another_host_means_that_host() -> None:
    """The README's URI with scheme, host and port means just that address."""
    (uri,) = re.findall(r"`(generio://http://.*?)`", README)
    connection = Connection.from_uri(uri, conn_id="elsewhere")
    hook = GenerioHook("elsewhere")
    hook._connection = connection
    assert hook.settings.base_url == "http://127.0.0.1:8084"


def test_the_operators_arguments_are_the_ones_listed() -> None:
    """The README lists every argument of the operator, in order, marks the templated ones, and tells the plain defaults."""
    rows = rows_under("`RunFlowOperator`")
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row[0])]
    parameters = inspect.signature(RunFlowOperator.__init__).parameters
    assert listed == [name for name in parameters if name not in {"self", "kwargs"}]
    templated = {name for row in rows if "*t*" in row[0] for name in re.findall(r"`(\w+)`", row[0])}
    assert templated == set(RunFlowOperator.template_fields)
    told = {row[0].split("`")[1]: row[1] for row in rows}
    assert told["durable"] == str(parameters["durable"].default)
    assert told["flows_conn_id"] == f"`{parameters['flows_conn_id'].default}`"


def test_the_connections_fields_are_the_ones_listed() -> None:
    """The README lists every field of a connection's extra."""
    section = README.split("More fields")[1].split("\n#")[0]
    assert re.findall(r"^\| `(\w+)`", section, re.MULTILINE) == list(PROMPTCHAINER_FIELDS)


def test_the_errors_are_the_ones_there_are() -> None:
    """The README's table of errors names every error class but the root, and no other."""
    section = README.split("\n## Errors\n")[1].split("\n#")[0]
    known = [name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, errors.FlowError)]
    assert re.findall(r"^\| `(\w+)`", section, re.MULTILINE) == [name for name in known if name != "FlowError"]
