"""Tests of the table of bounds: the documentation has each of them, and texts are cut to them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_flows.core import flow_run as models
from airflow_provider_flows.core import limits
from airflow_provider_flows.core.exceptions import FlowMalformed
from airflow_provider_flows.core.flow_run import ERROR, FlowOutput, FlowRun, FlowState
from airflow_provider_flows.core.http import Conversation, Sleep
from airflow_provider_flows.core.payload.data_uri import normalize_media_type
from airflow_provider_flows.core.polling.finished_runs import MAX_TRACKED_ROWS, FinishedRuns
from airflow_provider_flows.core.responses import parse_bounded_json
from airflow_provider_flows.services.generio.api import Generio
from airflow_provider_flows.services.promptchainer import PromptChainer, get_image_media_type
from airflow_provider_flows.storage.outputs import list_outputs
from airflow_provider_flows.storage.paths import file_names
from tests.support.scripted_transport import ScriptedTransport, json_response

G, P = Generio(), PromptChainer()
LONG = "x" * 300_000
THREAT_MODEL = Path(__file__).parents[2] / "docs/explanation/threat_model.md"
MAX_ROW_CHARACTERS = 12_000
"""More than all bounded texts of a run or an output have together."""


def format_bound(value: float) -> set[str]:
    """Return the ways to write a bound."""
    written = {f"{int(value):,}" if value == int(value) else f"{value}"}
    for unit, size in (("KiB", limits.KIB), ("MiB", limits.MIB)):
        if value >= size and not value % size:
            written.add(f"{int(value) // size:,} {unit}")
    return written


@pytest.mark.parametrize(
    "name", [name for name in vars(limits) if name.isupper() and name not in {"KIB", "MIB"}]
)
def test_documentation_has_each_bound(name: str) -> None:
    """The table of bounds in the documentation has each public constant, with its value."""
    rows = re.findall(rf"^\| `{name}` \| ([^|]+) \| [^|]+ \|", THREAT_MODEL.read_text(), re.MULTILINE)
    assert len(rows) == 1, f"{name} is not in {THREAT_MODEL}"
    value = rows[0].strip()
    assert any(value == one or value.startswith(f"{one} ") for one in format_bound(getattr(limits, name)))


def test_documentation_has_no_other_bound() -> None:
    """Each constant in the table of the documentation exists."""
    names = re.findall(r"^\| `([A-Z_]+)` \|", THREAT_MODEL.read_text(), re.MULTILINE)
    assert names
    assert [name for name in names if not hasattr(limits, name)] == []


def read(conversation: Conversation[Any], value: Any) -> Any:
    """Return what a conversation makes of one response."""
    return ScriptedTransport(json_response(value), endless=True).run(conversation)


RUN_TEXTS = ["template", "template_name", "template_id", "state", "status", "error", "message", "progress"]
RUN_TEXTS += ["created_at", "started_at", "finished_at", "detail", "name", "reason", "details"]
HUGE_VALUES: dict[str, Any] = {"a text": LONG, "a list": [LONG], "an object": {"name": LONG, LONG: LONG}}


@pytest.mark.parametrize("kind", HUGE_VALUES)
@pytest.mark.parametrize("state", ["running", "failed", "completed", "odd"])
def test_texts_of_a_run_are_bounded(state: str, kind: str) -> None:
    """Whatever is huge in a run, its XCom, its event, its record and its log line stay small."""
    for name in RUN_TEXTS:
        row = {"flow_id": "r", "state": state} | {name: HUGE_VALUES[kind]}
        runs = [read(G.get_run("r"), row), *read(G.list_runs(), {"flows": [row]})]
        runs += read(G.list_active({"r"}), {"flows": [row]}).runs.values()
        for run in runs:
            for form in (run.to_dict(), run.to_event(), run.to_record(), str(run)):
                assert len(json.dumps(form)) < MAX_ROW_CHARACTERS, name


OUTPUT_TEXTS = ["asset_id", "id", "status", "state", "name", "file_name", "error", "message", "media_type"]
OUTPUT_TEXTS += ["type", "content_type", "processed"]


@pytest.mark.parametrize("kind", HUGE_VALUES)
def test_texts_of_an_output_are_bounded(kind: str) -> None:
    """Whatever is huge in an output, its XCom stays small."""
    for name in OUTPUT_TEXTS:
        row = {"asset_id": "a", "status": "ready"} | {name: HUGE_VALUES[kind]}
        (output,) = read(G.list_outputs("r"), {"outputs": [row]})
        assert len(json.dumps(output.to_dict())) < MAX_ROW_CHARACTERS, name


@pytest.mark.parametrize("kind", HUGE_VALUES)
def test_texts_of_a_promptchainer_output_are_bounded(kind: str) -> None:
    """Whatever is huge in a row of PromptChainer, only the output's value itself is."""
    for name in ("name", "type", "id"):
        run = read(P.start("f", {}, None, None), [{"name": "n", "output": "o", name: HUGE_VALUES[kind]}])
        assert len(json.dumps(run.to_record())) < MAX_ROW_CHARACTERS, name
        definition = read(
            P.get_definition("f"), [{"name": "n", "type": "variable"} | {name: HUGE_VALUES[kind]}]
        )
        assert len(json.dumps([definition.inputs, definition.outputs])) < MAX_ROW_CHARACTERS, name


@pytest.mark.parametrize("length", [limits.MAX_ID_LENGTH, limits.MAX_ID_LENGTH + 1])
@pytest.mark.parametrize("key", ["flow_id", "id", "_id"])
def test_id_of_a_created_run_is_not_lost(key: str, length: int) -> None:
    """The id of a created run is complete, or the error says that it is too long."""
    flow_run_id = "i" * length
    if length <= limits.MAX_ID_LENGTH:
        assert read(G.create("f", None, None), {key: flow_run_id}).flow_run_id == flow_run_id
        return
    with pytest.raises(FlowMalformed, match=str(limits.MAX_ID_LENGTH)):
        read(G.create("f", None, None), {key: flow_run_id})


def test_run_of_any_service_has_a_bounded_id() -> None:
    """A run of a service in another package is bounded as well."""
    with pytest.raises(FlowMalformed, match="look for it at the service"):
        FlowRun("i" * 300, "brewery")


def test_output_with_a_long_id_states_that() -> None:
    """An output whose id is too long is not left out: it is an output with an error."""
    outputs = read(G.list_outputs("r"), {"outputs": [{"asset_id": LONG, "name": "chair"}, {"asset_id": "b"}]})
    assert [(output.name, output.status) for output in outputs] == [("chair", ERROR), ("b", "pending")]
    third = FlowOutput("chair", asset_id=LONG)
    assert (third.asset_id, third.status) == (None, ERROR)
    assert "256 characters" in str(third.error)


class ListingService(Generio):
    """A service in another package, which lists any number of outputs."""

    def list_outputs(self, flow_run_id: str, *, include_data: bool = False) -> Conversation[list[FlowOutput]]:
        """Return too many outputs."""
        yield Sleep(float(include_data))
        return [FlowOutput(f"{flow_run_id}{number}") for number in range(10_500)]


ROWS = [{"asset_id": f"a{number}", "name": "n", "output": "o", "status": "ready"} for number in range(10_500)]
MANY_OUTPUTS: dict[str, Callable[[], Any]] = {
    "Generio": lambda: read(G.list_outputs("r"), {"outputs": ROWS}),
    "Generio's inputs": lambda: read(G.list_inputs("r"), {"inputs": ROWS}),
    "PromptChainer": lambda: read(P.start("f", {}, None, None), ROWS).outputs,
    "another service": lambda: read(list_outputs(ListingService(), "r"), {}),
}


@pytest.mark.parametrize("member", MANY_OUTPUTS)
def test_number_of_outputs_is_bounded(member: str) -> None:
    """Of too many outputs the first ones are fetched, and one more states how many are missing."""
    outputs = MANY_OUTPUTS[member]()
    assert len(outputs) == limits.MAX_OUTPUTS
    assert {output.status for output in outputs[:-1]} <= {"ready", "pending"}
    assert outputs[-1].status == ERROR
    assert "501 are missing" in outputs[-1].error


@pytest.mark.parametrize("name", ["chair", "Chair", "chair-2", ""])
def test_naming_files_takes_linear_time(name: str) -> None:
    """20,000 outputs of one name get 20,000 file names at once, in the order 'chair', 'chair-2', ..."""
    outputs = [FlowOutput("chair-2"), FlowOutput("chair-4"), *[FlowOutput(name)] * 20_000]
    started_at = time.process_time()
    names = list(file_names(outputs))
    assert time.process_time() - started_at < 2
    assert len({one.lower() for one in names}) == len(outputs)


def test_names_of_files_do_not_change() -> None:
    """A name that is taken is skipped, so that a retry finds the files of earlier tries."""
    outputs = [FlowOutput(name) for name in ("a", "a-2", "A", "a", "a-2", "a")]
    assert list(file_names(outputs)) == ["a", "a-2", "A-3", "a-4", "a-2-2", "a-5"]


def test_ids_of_vanished_runs_are_bounded() -> None:
    """A service that lists other active runs each time does not fill a watcher's memory."""
    finished_runs = FinishedRuns()
    for number in range(12):
        listed = [
            FlowRun(f"{number}-{row}", "generio", "f", FlowState.RUNNING, "running")
            for row in range(MAX_TRACKED_ROWS)
        ]
        finished_runs, _ = finished_runs.after_list(listed)
    assert len(finished_runs.active_ids) <= limits.MAX_TRACKED_IDS + MAX_TRACKED_ROWS


ODD_VALUES: Mapping[str, bytes] = {
    "empty objects": b"[" + b"{}," * 4_100_000 + b"0]",
    "empty lists": b"[" + b"[]," * 4_100_000 + b"0]",
    "numbers": b"[" + b"1," * 4_100_000 + b"0]",
    "levels": b"[" * 100_000,
}


@pytest.mark.parametrize("kind", ODD_VALUES)
def test_number_of_json_values_is_bounded(kind: str) -> None:
    """A text of few bytes with many values is rejected before it takes many times its size in memory."""
    with pytest.raises(ValueError, match=r"values|nested|Expecting"):
        parse_bounded_json(ODD_VALUES[kind])


@pytest.mark.parametrize("size", [0, limits.MAX_INLINE_BYTES])
def test_large_json_is_read_like_a_small_one(size: int) -> None:
    r"""Infinities, NaN, unsafe escapes and pairs of surrogates are the same in a text of any size."""
    filler = b'"' + b"x" * size + rb"\\u0000" + b'"'
    text = rb'{"a": [1e999, -1e999, NaN, 1.5], "b": "\u0000\ud83d\ude00\ud83d", "c": ' + filler + b"}"
    value = parse_bounded_json(text)
    assert value["a"] == [None, None, None, 1.5]
    assert value["b"] == "\ufffd\U0001f600\ufffd"
    assert value["c"].endswith(r"x\u0000" if size else r"\u0000")


def test_unsafe_escape_between_two_steps_is_found() -> None:
    """An escape is replaced wherever it is in a large text."""
    for start in range(1024 * 1024 - 8, 1024 * 1024 + 2):
        text = b'"' + b"x" * start + rb"\u0000" + b'"'
        assert parse_bounded_json(text)[-1] == "\ufffd"


def test_long_media_types_and_links_are_none() -> None:
    """A media type or a link of a length that none has is a text."""
    assert normalize_media_type("image/" + "x" * 200) is None
    assert normalize_media_type("image/png;" + LONG) == "image/png"
    assert get_image_media_type("https://a.example/" + "&" * limits.MAX_URL_LENGTH + ".png") is None


def test_texts_are_cut_once_for_every_service() -> None:
    """A run and an output that a service in another package creates are bounded."""
    run = FlowRun("r", "brewery", flow=LONG, raw_state=LONG, error=LONG)
    output = FlowOutput(LONG, media_type=LONG, error=LONG, warning=LONG, expires_at=LONG)
    assert len(
        json.dumps([run.to_record(), output.to_dict(), models.bound_outputs([output], "")[0].name])
    ) < (MAX_ROW_CHARACTERS)
