"""Property tests: any response is parsed to a value or is a FlowError."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_provider_flows.core.exceptions import FlowError
from airflow_provider_flows.core.flow_run import FlowInput, FlowOutput, FlowRun, FlowState
from airflow_provider_flows.core.http import Conversation, Response
from airflow_provider_flows.core.payload.data_uri import Content, decode, encode
from airflow_provider_flows.core.responses import MAX_JSON_DEPTH
from airflow_provider_flows.services.generio.api import Generio
from airflow_provider_flows.services.promptchainer import PromptChainer, get_expires_at, get_image_media_type
from airflow_provider_flows.storage.paths import file_names, safe_name
from airflow_provider_flows.transport.settings import Settings
from tests.support.fuzz import READERS, RUN_FIELDS, fields
from tests.support.scripted_transport import ScriptedTransport
from tests.support.versions import serialize

G, P = Generio(), PromptChainer()
EXAMPLES = 200  # of each reader; `make fuzz` has more
CONVERSATIONS: dict[str, Callable[[], Conversation[Any]]] = {
    "check": G.check_credentials,
    "create": lambda: G.create("t", None, None),
    "start": lambda: G.start("t", [FlowInput("p")], None, None),
    "add_input": lambda: G.add_input("r", FlowInput("p")),
    "begin": lambda: G.start_created_run("r"),
    "abort": lambda: G.abort("r"),
    "delete": lambda: G.delete("r"),
    "get_run": lambda: G.get_run("r"),
    "list_runs": lambda: G.list_runs(FlowState.RUNNING),
    "list_inputs": lambda: G.list_inputs("r"),
    "get_input": lambda: G.get_input("r", "a"),
    "list_outputs": lambda: G.list_outputs("r", include_data=True),
    "download_output": lambda: G.download_output("r", "a"),
    "get_definition": lambda: G.get_definition("t"),
    "chain's check": P.check_credentials,
    "chain's info": lambda: P.get_definition("f"),
    "chain's run": lambda: P.start("f", {}, None, None),
}


@pytest.mark.parametrize("name", READERS)
def test_any_value_is_read_or_is_a_flow_error(name: str) -> None:
    """Whatever is in any field, only a FlowError comes out, in time, and what was read can be stored."""
    everyday = settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    everyday(given(READERS[name].examples)(READERS[name].check))()


RUN_BUT_ITS_ID_AND_STATE = fields(
    # an object in `flow` is a run in an envelope
    {key: values for key, values in RUN_FIELDS.items() if key not in {"id", "_id", "status", "flow"}},
    flow_id="r",
    state="running",
)


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)
@given(row=RUN_BUT_ITS_ID_AND_STATE)
def test_an_odd_field_costs_nothing_else(row: dict[str, Any]) -> None:
    """A run with an id and a state is read whatever else it holds, and so is the next one in a list."""
    text = json.dumps(row)
    for conversation in (G.get_run("r"), G.create("f", None, None)):
        run = ScriptedTransport(Response(200, {}, text.encode()), endless=True).run(conversation)
        assert (run.flow_run_id, run.state) == ("r", FlowState.RUNNING)
    body = f'{{"flows": [{text}, {{"flow_id": "good", "state": "completed"}}]}}'
    runs = ScriptedTransport(Response(200, {}, body.encode()), endless=True).run(G.list_runs())
    assert [(run.flow_run_id, run.state.value) for run in runs] == [("r", "running"), ("good", "completed")]


DEPTHS = [MAX_JSON_DEPTH - 2, MAX_JSON_DEPTH + 1, 900, 20_000]


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_depth_is_bounded(name: str, status: int) -> None:
    """JSON of any depth is a FlowError, or a value that Airflow can serialize, whichever field it is in."""
    for depth in DEPTHS:
        for deep in ("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth):
            inner = ",".join(
                f'"{key}": {deep}' for key in ("error", "detail", "additional", "parameters", "output")
            )
            row = f'{{"flow_id": "r", "state": "failed", "type": "output", "name": "n", {inner}}}'
            for body in (deep, row, f'{{"flows": [{row}], "outputs": [{row}]}}'):
                with contextlib.suppress(FlowError):
                    read = ScriptedTransport(Response(status, {}, body.encode()), endless=True).run(
                        CONVERSATIONS[name]()
                    )
                    assert len(body) < 100 * MAX_JSON_DEPTH or not isinstance(read, FlowRun)
                    for run in [read] if isinstance(read, FlowRun) else []:
                        assert serialize(run.to_dict())


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_numbers_that_no_database_accepts_are_none(word: str) -> None:
    """A number that is not finite becomes None, so that an XCom with it can be stored."""
    values = f'"progress": {word}, "created_at": {word}, "additional": [{word}]'
    body = f'{{"flow_id": "r", "state": "completed", {values}}}'
    run = ScriptedTransport(Response(200, {}, body.encode())).run(G.get_run("r"))
    assert (run.progress, run.created_at, run.additional) == (1.0, None, [None])
    json.dumps(run.to_dict(), allow_nan=False)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    text=st.text(max_size=200)
    | st.text(max_size=60).map(lambda rest: f"data:{rest}")
    | (st.text(max_size=60) | st.text("[]:@/.1x", max_size=9)).map(lambda rest: f"https://{rest}")
)
def test_any_text_is_parsed_safely(text: str) -> None:
    """Any text is handled as a data URI, an image URL, a redirect target or a file name."""
    assert not Settings("https://h", {}).may_redirect_to(text) or text.lstrip().lower().startswith("https://")
    with contextlib.suppress(ValueError):
        content = decode(text)
        assert decode(encode(content)).data == content.data
    if get_image_media_type(text) is not None:
        get_expires_at(text)
    assert "/" not in safe_name(text)
    assert safe_name(text) not in {"", ".", ".."}


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(data=st.binary(max_size=300))
def test_data_uri_round_trip(data: bytes) -> None:
    """Any bytes come out of a data URI as they went in."""
    assert decode(encode(Content(data, "image/png"))) == Content(data, "image/png")


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(names=st.lists(st.text(max_size=12), max_size=12))
def test_file_names_are_unique(names: list[str]) -> None:
    """However outputs are called, no two of them get the same file, whatever the store makes of case."""
    found = [name.lower() for name in file_names([FlowOutput(name) for name in names])]
    assert len(set(found)) == len(names)
