"""Tests of every row of vendor_notes.md, part 3: over scripted responses, then over a socket.

The table is in tolerance_table.py; the rows about hosts, credentials and transport are here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from airflow_provider_flows.core.exceptions import FlowAuthError, FlowConflict, FlowError, FlowNotFound
from airflow_provider_flows.core.flow_run import FlowInput, FlowState
from airflow_provider_flows.core.http import Response
from airflow_provider_flows.core.start_or_resume import RunRecord
from airflow_provider_flows.emulator import Emulator, Plan
from airflow_provider_flows.hooks import GenerioHook, PromptChainerHook
from airflow_provider_flows.transport.settings import Settings
from tests.support.scripted_transport import ScriptedTransport, json_response
from tests.support.tolerance_table import PACKAGE, ROWS, G, P, Row

SAMPLE = "clibnwpno000bmc0k9hvv3y7f"
ALL = {f"G-{n:02}" for n in range(1, 29)} | {f"P-{n:02}" for n in range(1, 15)}
ELSEWHERE = {"G-21", "G-27", "P-04", "P-14"}  # have a test of their own below


def to_responses(row: Row) -> list[Response]:
    """Return the row's responses."""
    return [given if isinstance(given, Response) else json_response(given) for given in row.responses]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.row} {row.reading}")
def test_client_handles_each_reading(row: Row) -> None:
    """The client handles the reading as the column 'client tolerance' demands, with these requests."""
    script = ScriptedTransport(*to_responses(row))
    if isinstance(row.expected, type) and issubclass(row.expected, FlowError):
        with pytest.raises(row.expected):
            row.action(script)
    elif row.expected is ...:
        row.action(script)
    else:
        assert row.action(script) == row.expected
    assert row.requests is None or script.request_lines == list(row.requests)


def test_every_row_has_a_test() -> None:
    """No row of part 3 is without a test."""
    assert {row.row for row in ROWS} | ELSEWHERE == ALL


pytestmark = pytest.mark.emulator(run_seconds=0)


def create_model(hook: GenerioHook) -> tuple[str, str]:
    """Create a model, and return the ids of the run and of its output."""
    run = hook.start("model_generate_fromprompt", "a chair", {"quality": "low"})
    (output,) = hook.list_ready_outputs(run.flow_run_id)
    assert output.asset_id
    return run.flow_run_id, output.asset_id


def download(hook: GenerioHook, _: Emulator) -> Any:
    """Create a model and download it."""
    return hook.download_output(*create_model(hook)).data[:4]


def list_completed(hook: GenerioHook, _: Emulator) -> Any:
    """Create runs and list the completed ones, newest first."""
    ids = [create_model(hook)[0] for _ in range(5)]
    hook.run(G.create("model_generate_fromprompt", None, None))
    return [run.flow_run_id for run in hook.list_runs(FlowState.COMPLETED)] == ids[::-1]


def get_fields(hook: GenerioHook, _: Emulator) -> Any:
    """Create a run and return some of its fields."""
    run = hook.get_run(create_model(hook)[0])
    return run.state.value, run.progress, str(run.created_at.timezone) if run.created_at else None


def start_in_steps(hook: GenerioHook, _: Emulator) -> Any:
    """Start a run by the start protocol."""
    request = hook.build_request("model_generate_fromprompt", ["a", "b"], None, None)
    run = hook.start_from_request(request, record=RunRecord("", 0), save=lambda _: None)
    return len(hook.list_inputs(run.flow_run_id))


def list_outputs_early(hook: GenerioHook, emulator: Emulator) -> Any:
    """List the outputs of an active run."""
    emulator.add_plan(Plan(run_seconds=60))
    run = hook.start("model_generate_fromprompt", "a chair")
    with pytest.raises(FlowConflict, match=r"the run is (starting|running)"):
        hook.list_outputs(run.flow_run_id)


def run_chain(_: GenerioHook, emulator: Emulator) -> Any:
    """Run the sample chain."""
    emulator.run_seconds = 0.0
    run = PromptChainerHook("promptchainer_default").start(SAMPLE, {"color": "Red", "item": "Ball"})
    return run.state.value, [(output.status, output.is_url) for output in run.outputs]


DONE = ("completed", 1.0, "UTC")
CHAINED = ("completed", [("ready", True), ("ready", False)])
EMPTY = ("failed", [("error", False)] * 2)
WIRE: list[tuple[str, dict[str, Any], Callable[[GenerioHook, Emulator], Any], Any]] = [
    *(("G-01", {"output_id": given}, download, b"glTF") for given in ("both", "asset_id", "id", "_id")),
    *(("G-02", {"download": given}, download, b"glTF") for given in ("json", "json_more", "raw", "text")),
    ("G-03", {"ready_word": "available"}, download, b"glTF"),
    *(
        ("G-04", {"processed": given}, download, b"glTF")
        for given in ("timestamp", "bool", "null", "missing")
    ),
    ("G-05", {"state_case": "upper"}, get_fields, DONE),
    *(
        ("G-06", {"filter_by": given}, list_completed, True)
        for given in ("state", "fields", "fields_only", "ignore")
    ),
    ("G-07", {"sort_order": "ascending"}, list_completed, True),
    *(("G-08", {"paging": given, "page_size": 2}, list_completed, True) for given in ("offset", "page")),
    ("G-08", {"list_envelope": "array"}, list_completed, True),
    *(("G-09", {"input_path": given}, start_in_steps, 2) for given in ("inputs", "input", "both")),
    *(("G-15", {"text_data_uri": given}, start_in_steps, 2) for given in ("accept", "reject", "literal")),
    ("G-16", {"create_response": "id"}, download, b"glTF"),
    *(
        ("G-18", {"progress": given}, get_fields, DONE)
        for given in ("smooth", "late", "steps", "missing", "null", "percent")
    ),
    *(("G-22", {"conflict": given}, list_outputs_early, None) for given in (400, 409, 422, 425)),
    *(("G-28", {"state_key": given}, get_fields, DONE) for given in ("state", "status", "both")),
    *(("1.2", {"timestamps": given}, get_fields, DONE) for given in ("zulu", "offset", "naive")),
    *(("1.8", {"envelope": given}, download, b"glTF") for given in ("success", "hidden_errors")),
    *(("1.5", {"acknowledgement": given}, start_in_steps, 2) for given in ("flow", "small", "empty")),
    *(("P-03", {"info_response": given}, run_chain, CHAINED) for given in ("array", "data", "list", "graph")),
    ("P-07", {"output_value": "map"}, run_chain, CHAINED),
    *(("P-08", {"model_failure": given}, run_chain, EMPTY) for given in ("empty", "null", "missing")),
    ("P-10", {"chain_content_type": "text"}, run_chain, CHAINED),
    *(("P-12", {"run_items": given}, run_chain, CHAINED) for given in ("outputs", "all", "untyped")),
    *(("2.7", {"run_response": given}, run_chain, CHAINED) for given in ("array", "outputs", "data", "list")),
]


@pytest.mark.parametrize(
    ("switches", "do", "expected"), [given[1:] for given in WIRE], ids=[str(given[:2]) for given in WIRE]
)
def test_client_handles_each_reading_over_a_socket(
    hook: GenerioHook,
    flow_emulator: Emulator,
    switches: dict[str, Any],
    do: Callable[[GenerioHook, Emulator], Any],
    expected: Any,
) -> None:
    """With the emulator playing this reading, the same thing comes out."""
    flow_emulator.switches.update(switches)
    assert do(hook, flow_emulator) == expected


@pytest.mark.parametrize("code", [401, 403])
def test_401_and_403_are_the_same_error(flow_emulator: Emulator, hook: GenerioHook, code: int) -> None:
    """G-24: 401 and 403 are both FlowAuthError, after one request."""
    flow_emulator.switches.update({"auth_failure": code})
    hook.connection.password = "wrong"
    with pytest.raises(FlowAuthError):
        hook.get_run("r")
    assert len(flow_emulator.requests) == 1


@pytest.mark.parametrize("way", ["empty", "reject"])
def test_failed_run_is_failed_with_any_outputs(flow_emulator: Emulator, hook: GenerioHook, way: str) -> None:
    """G-23: partial outputs of a failed run can be listed, and a rejection or an empty list is no error."""
    flow_emulator.switches.update({"outputs_after_failure": way})
    flow_emulator.add_plan(Plan("failed", "out of clay", partial_outputs=way == "empty"))
    run = hook.wait(hook.start("model_generate_fromprompt", "a chair").flow_run_id)
    assert (run.state, run.error) == (FlowState.FAILED, "out of clay")
    if way == "empty":
        assert len(hook.list_outputs(run.flow_run_id)) == 1
    else:
        with pytest.raises(FlowConflict):
            hook.list_outputs(run.flow_run_id)


@pytest.mark.parametrize("kind", ["generio", "promptchainer"])
def test_host_is_that_of_the_connection(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """G-21, P-04: the documented production host is the default, and a connection may name any other."""
    hooks = {"generio": GenerioHook, "promptchainer": PromptChainerHook}
    monkeypatch.setenv("AIRFLOW_CONN_PLAIN", f'{{"conn_type": "{kind}", "password": "k"}}')
    monkeypatch.setenv(
        "AIRFLOW_CONN_OTHER", f'{{"conn_type": "{kind}", "password": "k", "host": "test-flows.example"}}'
    )
    usual = {"generio": "https://flows.generio.ai", "promptchainer": "https://api.promptchainer.io"}
    assert hooks[kind]("plain").settings.base_url == usual[kind]
    assert hooks[kind]("other").settings.base_url == "https://test-flows.example"


def test_key_is_sent_in_the_documented_header_only() -> None:
    """P-05: PromptChainer's key goes into x-api-key, Generio's into a bearer token."""
    assert P.auth_headers("k") == {"x-api-key": "k"}
    assert G.auth_headers("k") == {"Authorization": "Bearer k"}
    assert Settings("https://h", P.auth_headers("k")).credentials == {"x-api-key": "k"}


def test_code_contains_no_sample_key_and_no_sample_repository() -> None:
    """G-27, P-14: the package has no key of the published form and no link to the sample code."""
    text = "".join(path.read_text() for path in PACKAGE.rglob("*.py") if "emulator" not in path.parts)
    assert not re.search(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", text)
    assert "api-examples" not in text
    assert "quickstart" not in text


def test_error_about_an_unknown_template_lists_all(hook: GenerioHook) -> None:
    """G-26: a flow that the service does not have is an error with the names of those it has."""
    with pytest.raises(FlowNotFound, match="model_generate_fromprompt"):
        hook.get_definition("model_generate_fromdream")


def test_documented_input_types_are_exact() -> None:
    """G-14, G-19: an input's item is `data` and, only where there is one, `additional`."""
    assert FlowInput("p").to_json() == {"data": "p"}
    assert FlowInput("p", {"n": 1}).to_json() == {"data": "p", "additional": {"n": 1}}


def test_row_without_an_id_is_a_failed_output() -> None:
    """Rows without an id cannot be fetched: each is listed as failed."""
    given = [
        {"asset_id": "a", "status": "ready"},
        {"key": "b", "name": "table", "status": "ready", "data": "data:,x"},
        None,
        7,
    ]
    listed = ScriptedTransport(json_response({"outputs": given})).run(G.list_outputs("r", include_data=True))
    assert [(output.name, output.asset_id, output.status) for output in listed] == [
        ("a", "a", "ready"), ("table", None, "error"), ("unnamed", None, "error"), ("unnamed", None, "error"),
    ]  # fmt: skip
    assert {output.error for output in listed[1:]} == {"the service's list has no id for it"}


def test_long_names_are_truncated() -> None:
    """A long name is cut for XCom, and an output of a chain with a long name is not missing."""
    name = "n" * 100_000
    (output,) = ScriptedTransport(json_response({"outputs": [{"asset_id": "a", "name": name}]})).run(
        G.list_outputs("r")
    )
    assert output.name == name[:200]
    row = {"name": name, "type": "output", "output": "x"}
    run = ScriptedTransport(json_response([row])).run(P.start("f", {}, None, None, expected_outputs=[name]))
    assert [(output.name, output.status) for output in run.outputs] == [(name[:200], "ready")]
