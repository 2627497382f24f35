"""Tests that ids, names, states and errors of a service are lines, whichever field has others."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_flows.core.definition import FlowDefinition
from airflow_provider_flows.core.exceptions import FlowError, FlowInputError, FlowMalformed
from airflow_provider_flows.core.flow_run import FlowOutput, FlowRun, failure_error
from airflow_provider_flows.core.http import Request, Response
from airflow_provider_flows.core.safe_text import has_control_characters, to_line
from airflow_provider_flows.core.service import quote_path_segment
from airflow_provider_flows.services.generio.api import Generio
from tests.support.hostile.texts import IS_NO_LINE, NO_LINES
from tests.support.scripted_transport import ScriptedTransport

G = Generio()
ANY_NO_LINE = pytest.mark.parametrize("text", NO_LINES.values(), ids=NO_LINES)


def outcome(conversation: Any, value: Any, status: int = 200) -> Any:
    """Return what a conversation returns or raises for a JSON value."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    try:
        return ScriptedTransport(Response(status, {}, body), endless=True).run(conversation)
    except FlowError as error:
        return error


def iter_lines(run: FlowRun | FlowOutput | FlowDefinition | FlowError) -> Iterator[str]:
    """Yield the texts that are logged or displayed as lines."""
    if isinstance(run, FlowRun):
        yield from (str(run), run.raw_state, run.error or "", str(failure_error(run)))
    elif isinstance(run, FlowOutput):
        yield from (str(getattr(run, name)) for name in ("name", "asset_id", "status", "media_type", "error"))
    elif isinstance(run, FlowDefinition):
        yield from (run.flow, run.display_name, *run.outputs)
    else:
        yield str(run)


RUN = {"flow_id": "r", "state": "failed", "template": "t"}
FIELDS: dict[str, Any] = {
    "error": lambda text: (G.get_run("r"), RUN | {"error": text}),
    "error object": lambda text: (G.get_run("r"), RUN | {"error": {text: text}}),
    "flow": lambda text: (G.get_run("r"), RUN | {"template": text}),
    "flow object": lambda text: (G.get_run("r"), RUN | {"template": {"name": text}}),
    "state": lambda text: (G.get_run("r"), RUN | {"state": text}),
    "created id": lambda text: (G.create("t", None, None), {"flow_id": text, "state": "created"}),
    "listed id": lambda text: (G.list_runs(), {"flows": [RUN | {"flow_id": text}]}),
    "listed state": lambda text: (G.list_runs(), {"flows": [RUN | {"state": text}]}),
    "output's id": lambda text: (G.list_outputs("r"), [{"asset_id": text}]),
    "output's id alone": lambda text: (G.list_outputs("r"), [text]),
    "output's name": lambda text: (G.list_outputs("r"), [{"asset_id": "a", "name": text}]),
    "output's media type": lambda text: (
        G.list_outputs("r"),
        [{"asset_id": "a", "media_type": f"text/{text}"}],
    ),
    "output's error": lambda text: (G.list_outputs("r"), [{"asset_id": "a", "error": text}]),
    "flow's name": lambda text: (G.list_definitions(), [{"template_id": "t", "name": text}]),
    "flow's id": lambda text: (G.list_definitions(), [{"template_id": text}]),
    "flow's output": lambda text: (G.list_definitions(), [{"name": "t", "outputs": [f"text/{text}"]}]),
    "rejection": lambda text: (G.get_run("r"), {"detail": text}, 403),
    "validation error": lambda text: (G.get_run("r"), {"detail": [{"loc": [text], "msg": text}]}, 422),
    "failure": lambda text: (G.get_run("r"), {"success": False, "message": text}),
    "page": lambda text: (G.get_run("r"), f"<html>{text}".encode(), 502),
    "broken JSON": lambda text: (G.get_run("r"), f"no {text}".encode()),
    "list without rows": lambda text: (G.list_runs(), {"message": text}),
}


@ANY_NO_LINE
@pytest.mark.parametrize("field", FIELDS)
def test_each_field_is_a_line(field: str, text: str) -> None:
    """What is read or raised has no control character where it is logged."""
    read = outcome(*FIELDS[field](text))
    for one in read if isinstance(read, list) else [read]:
        assert [line for line in iter_lines(one) if IS_NO_LINE.search(line)] == []


@ANY_NO_LINE
def test_id_with_control_characters_is_no_id(text: str) -> None:
    """A run without another id is malformed, its row is skipped, an output has an error."""
    assert isinstance(
        outcome(G.create("t", None, None), {"flow_id": text, "state": "created"}), FlowMalformed
    )
    rows = {"flows": [RUN | {"flow_id": text}, RUN]}
    assert [run.flow_run_id for run in outcome(G.list_runs(), rows)] == ["r"]
    (output,) = outcome(G.list_outputs("r"), [{"asset_id": text}])
    assert (output.asset_id, output.status) == (None, "error")
    with pytest.raises(FlowInputError, match="flow_run_id must be an id"):
        quote_path_segment("flow_run_id", text)


@ANY_NO_LINE
def test_models_of_any_service_have_lines(text: str, caplog: pytest.LogCaptureFixture) -> None:
    """A third service, an event and a record cannot set a text that is no line either."""
    run = FlowRun(text, text, flow=text, raw_state=text, error=text)
    output = FlowOutput(text, asset_id=text, status=text, media_type=text, error=text, warning=text)
    definition = FlowDefinition(text, "s", name=text, outputs=(text,))
    copies = [
        run,
        FlowRun.from_record(run.with_outputs((output,)).to_record()),
        FlowRun.from_event(run.to_event()),
    ]
    with caplog.at_level(logging.INFO):
        for one in (*copies, output, *copies[1].outputs, definition):
            for line in iter_lines(one):
                logging.getLogger("airflow_provider_flows.test").info("Read %s", line)
    assert len(caplog.messages) == 3 * 4 + 2 * 5 + 3
    assert [message for message in caplog.messages if IS_NO_LINE.search(message)] == []


@ANY_NO_LINE
def test_request_to_a_link_is_a_line(text: str) -> None:
    """A request is named in errors; its path may be a link of the service."""
    assert IS_NO_LINE.search(str(Request("GET", f"/flows/{text}?page=2"))) is None


def test_content_keeps_its_line_breaks() -> None:
    """Texts, parameters and metadata are content, not lines."""
    text = "one\ntwo\t\x1b[0m"
    run = outcome(G.get_run("r"), RUN | {"parameters": {text: text}, "additional": text})
    assert (run.parameters, run.additional) == ({text: text}, text)
    rows = [{"asset_id": "a", "data": text, "additional": text}]
    (output,) = outcome(G.list_outputs("r", include_data=True), rows)
    assert (output.value, output.additional) == (text, text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "chair",
        "größe",
        "Stühle und Tische",
        "prix\u00a0(€)",
        "👨\u200d👩\u200d👧",
        "\u0645\u06cc\u200c\u062e\u0648\u0627",
        "\ufffd",
        "\u3000",
    ],
)
def test_ordinary_text_is_unchanged(text: str) -> None:
    """Other scripts, no-break spaces and emoji are lines."""
    assert to_line(text) == text
    assert not has_control_characters(text)


@given(st.text())
def test_every_text_becomes_a_line(text: str) -> None:
    """The result has one line, can be encoded, and does not change when it is processed again."""
    line = to_line(text)
    assert len(line.splitlines() or [""]) == 1
    assert IS_NO_LINE.search(line) is None
    assert line.encode().decode() == line == to_line(line)
    assert has_control_characters(text) == (line != text)
