"""The table of vendor_notes.md, part 3, as rows for test_tolerance.py.

`reading` names one of the readings of the documentation that the row plays.
"""

from __future__ import annotations

import base64
import io
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from airflow_provider_flows.core import start_or_resume
from airflow_provider_flows.core.definition import FlowDefinition
from airflow_provider_flows.core.exceptions import (
    FlowAuthError,
    FlowConflict,
    FlowInputError,
    FlowMalformed,
    FlowServiceError,
)
from airflow_provider_flows.core.flow_run import FlowInput, FlowState
from airflow_provider_flows.core.validation import collect_problems, validate_arguments
from airflow_provider_flows.services.generio.api import Generio
from airflow_provider_flows.services.promptchainer import PromptChainer
from airflow_provider_flows.storage.inputs import parse_inputs
from tests.support.scripted_transport import ScriptedTransport, json_response

G, P = Generio(), PromptChainer()
GLB = b"glTF" + struct.pack("<II", 2, 12)
GLB_URI = f"data:model/gltf-binary;base64,{base64.b64encode(GLB).decode()}"
SWAPPED = GLB_URI.replace(";base64,", ",base64;")
IMAGE = "https://x.blob.core.windows.net/img?se=2026-01-01T00%3A00%3A00Z&rsct=image/png&sig=s"
INFO = [{"name": "color", "type": "variable"}, {"name": "Text", "type": "output"}]


@dataclass(frozen=True)
class Row:
    """One reading of one row: scripted responses, and the expected result (a value, or a type of error)."""

    row: str
    reading: str
    action: Callable[[ScriptedTransport], Any]
    responses: Sequence[Any] = ()
    expected: Any = None
    requests: Sequence[str] | None = None


@cache
def bitmap() -> bytes:
    """Draw a BMP."""
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), "red").save(buffer, "BMP")
    return buffer.getvalue()


def outputs(*names: str, include_data: bool = False) -> Callable[[ScriptedTransport], Any]:
    """List outputs and return these fields of each."""

    def do(script: ScriptedTransport) -> Any:
        found = script.run(G.list_outputs("r", include_data=include_data))
        return [tuple(getattr(output, name) for name in names) for output in found]

    return do


def run(*names: str) -> Callable[[ScriptedTransport], Any]:
    """Get a run and return these fields of it."""

    def do(script: ScriptedTransport) -> Any:
        found = script.run(G.get_run("r"))
        return tuple(getattr(found, name) for name in names)

    return do


def runs(state: FlowState | None = None) -> Callable[[ScriptedTransport], Any]:
    """List runs and return their ids."""
    return lambda script: [found.flow_run_id for found in script.run(G.list_runs(state))]


def content(script: ScriptedTransport) -> Any:
    """Download an output and return its media type and bytes."""
    found = script.run(G.download_output("r", "a"))
    return found.media_type, found.data


def sent_json(conversation: Callable[[], Any], index: int = 0) -> Callable[[ScriptedTransport], Any]:
    """Run a conversation and return the JSON body of one of its requests."""

    def do(script: ScriptedTransport) -> Any:
        script.run(conversation())
        return script.requests[index].json

    return do


def value(text: Any) -> Callable[[ScriptedTransport], Any]:
    """Return the data of an item of `inputs` as it is sent."""

    def do(script: ScriptedTransport) -> Any:
        script.run(G.add_input("r", parse_inputs([text])[0]))
        return script.requests[0].json["data"]

    return do


def check_variables(definition: FlowDefinition, variables: dict[str, str]) -> None:
    """Check variables as a task does.

    :raises FlowInputError: they do not fit.
    """
    with collect_problems(None) as problems:
        validate_arguments(definition, variables, None, problems)


def chain(*names: str) -> Callable[[ScriptedTransport], Any]:
    """Run a chain and return these fields of its outputs."""

    def do(script: ScriptedTransport) -> Any:
        definition, variables = script.run(P.get_definition("f")), {"color": "red"}
        check_variables(definition, variables)
        found = script.run(P.start("f", variables, None, None, expected_outputs=definition.outputs))
        return found.state.value, [tuple(getattr(output, name) for name in names) for output in found.outputs]

    return do


def info(script: ScriptedTransport) -> Any:
    """Get a definition and return its inputs and outputs."""
    found = script.run(P.get_definition("f"))
    return found.inputs, found.outputs


def asset(**fields: Any) -> dict[str, Any]:
    """Return an envelope with one output."""
    return {"flow_id": "r", "outputs": [{"asset_id": "a", **fields}]}


def state(raw_state: str, **fields: Any) -> dict[str, Any]:
    """Return the response about a run."""
    return {"flow_id": "r", "state": raw_state, **fields}


def start_run(script: ScriptedTransport) -> Any:
    """Run the start protocol and return the run's state."""
    return script.run(
        start_or_resume.start(
            G,
            start_or_resume.RunRequest("t", [FlowInput("p")]),
            start_or_resume.RunRecord("", 0),
            lambda _: None,
        )
    ).state


def graph(*models: str) -> dict[str, Any]:
    """Return a flow graph whose models have these names."""
    nodes: list[dict[str, Any]] = [
        {"id": f"m{name}", "type": "actionNode", "data": {"modelParams": {"model": name}}} for name in models
    ]
    nodes.append({"id": "v", "type": "variableNode", "data": {"variable": {"label": "color", "value": "x"}}})
    nodes.append({"id": "o", "type": "outputNode", "data": {"name": "Text", "output": {}}})
    return {"nodes": nodes, "edges": []}


def page(*ids: str, **hints: Any) -> dict[str, Any]:
    """Return one page of a list of runs."""
    return {"flows": [state("running") | {"flow_id": key} for key in ids], **hints}


def chain_responses(*rows: Any, **more: Any) -> list[Any]:
    """Return the responses to a chain: its definition, then the outputs of its run."""
    return [INFO, {"outputs": list(rows)} | more if more else list(rows)]


READY, PENDING, ERROR = [("ready",)], [("pending",)], [("error",)]
FLOW_ROWS = [
    *(
        Row("G-01", f"{key}", outputs("asset_id"), [{"outputs": [{key: "a"}]}], [("a",)])
        for key in ("asset_id", "id", "_id")
    ),
    Row(
        "G-01",
        "both",
        outputs("asset_id"),
        [{"outputs": [{"_id": "c", "id": "b", "asset_id": "a"}]}],
        [("a",)],
    ),
    Row("G-02", "JSON with a data URI", content, [{"data": GLB_URI}], ("model/gltf-binary", GLB)),
    Row("G-02", "JSON with file_data", content, [{"file_data": GLB_URI}], ("model/gltf-binary", GLB)),
    Row("G-02", "raw GLB", content, [GLB], ("model/gltf-binary", GLB)),
    Row("G-02", "bare data URI", content, [GLB_URI.encode()], ("model/gltf-binary", GLB)),
    Row("G-02", "GLB cut short", content, [GLB[:-1]], FlowMalformed),
    *(
        Row("G-03", w, outputs("status"), [asset(status=w)], READY)
        for w in ("ready", "available", "completed", "done", "READY")
    ),
    *(Row("G-03", w, outputs("status"), [asset(status=w)], ERROR) for w in ("error", "failed", "Error")),
    *(
        Row("G-03", w, outputs("status"), [asset(status=w)], PENDING)
        for w in ("pending", "processing", "never seen")
    ),
    Row("G-03", "absent with data", outputs("status"), [asset(data=GLB_URI)], READY),
    Row("G-03", "absent without data", outputs("status"), [asset()], PENDING),
    *(
        Row("G-04", f"processed {given!r}", outputs("asset_id"), [asset(processed=given)], [("a",)])
        for given in (True, False, "2025-12-16T19:01:12Z", None)
    ),
    Row("G-04", "processed absent", outputs("asset_id"), [asset()], [("a",)]),
    *(
        Row(
            "G-05",
            w,
            run("state", "is_final"),
            [state(w)],
            (FlowState(w), w in {"completed", "failed", "aborted"}),
        )
        for w in ("created", "starting", "running", "aborting", "completed", "failed", "aborted")
    ),
    Row(
        "G-05",
        "a word never seen",
        run("state", "is_final", "raw_state"),
        [state("queued")],
        (FlowState.UNKNOWN, False, "queued"),
    ),
    Row("G-05", "upper case", run("state"), [state("ABORTING")], (FlowState.ABORTING,)),
    Row(
        "G-06",
        "by state, badly",
        runs(FlowState.FAILED),
        [{"flows": [state("failed"), state("running") | {"flow_id": "x"}]}],
        ["r"],
    ),
    Row(
        "G-06",
        "by fields",
        runs(FlowState.RUNNING),
        [{"flows": [{"flow_id": "r"}]}, {"flows": [state("running")]}],
        ["r"],
        ["GET /flows", "GET /flows"],
    ),
    Row(
        "G-07",
        "whatever order",
        runs(),
        [[state("failed", created_at=1_765_886_400 + t) | {"flow_id": str(t)} for t in (5, 9, 7)]],
        ["9", "7", "5"],
    ),
    Row(
        "G-08",
        "total",
        runs(),
        [page("1", "2", total=3), page("3", total=3)],
        ["1", "2", "3"],
        ["GET /flows"] * 2,
    ),
    Row(
        "G-08",
        "next address",
        runs(),
        [page("1", next="/flows?page=2"), page("2", next=None)],
        ["1", "2"],
        ["GET /flows"] * 2,
    ),
    Row("G-08", "next number", runs(), [page("1", next_page=2), page("2")], ["1", "2"], ["GET /flows"] * 2),
    Row("G-08", "pages", runs(), [page("1", page=1, pages=2), page("2", page=2, pages=2)], ["1", "2"]),
    Row("G-08", "no hint", runs(), [page("1")], ["1"], ["GET /flows"]),
    Row(
        "G-08",
        "the same page again",
        runs(),
        [page("1", total=9), page("1", total=9)],
        ["1"],
        ["GET /flows"] * 2,
    ),
    Row("G-08", "a next that is no address", runs(), [page("1", next="http://[")], ["1"], ["GET /flows"]),
    Row(
        "G-09",
        "/inputs",
        sent_json(lambda: G.add_input("r", FlowInput("p"))),
        [{}],
        {"data": "p"},
        ["POST /flows/r/inputs"],
    ),
    *(
        Row(
            "G-09",
            f"/input on {code}",
            sent_json(lambda: G.add_input("r", FlowInput("p")), 1),
            [json_response({}, code), {"id": "i"}],
            {"file_data": "p"},
            ["POST /flows/r/inputs", "POST /flows/r/input"],
        )
        for code in (404, 405)
    ),
    Row("G-10", "read swapped", content, [{"data": SWAPPED}], ("model/gltf-binary", GLB)),
    Row("G-10", "written right", value({"data": SWAPPED}), [{}], GLB_URI),
    Row(
        "G-12",
        "image/jpg",
        value({"data": "data:image/jpg;base64,/9j/"}),
        [{}],
        "data:image/jpeg;base64,/9j/",
    ),
    Row("G-13", "a prompt", value("a chair"), [{}], "a chair"),
    Row("G-14", "a file", value({"data": GLB_URI}), [{}], GLB_URI),
    Row("G-15", "a text", value({"data": "data:text/plain;base64,aGk="}), [{}], "hi"),
    Row("G-15", "a prompt like a data URI", value("data: the new oil"), [{}], " data: the new oil"),
    Row(
        "G-16",
        "only flow_id",
        lambda s: s.run(G.create("t", None, None)).state,
        [{"flow_id": "r"}],
        FlowState.CREATED,
    ),
    Row(
        "G-16",
        "state too",
        lambda s: s.run(G.create("t", None, None)).state,
        [state("starting")],
        FlowState.STARTING,
    ),
    Row(
        "G-16",
        "no flow_id",
        lambda s: s.run(G.create("t", None, None)),
        [{"state": "created"}],
        FlowMalformed,
    ),
    Row(
        "G-17",
        "created",
        start_run,
        [{"flow_id": "r"}, {}, {}],
        FlowState.STARTING,
        ["POST /flows", "POST /flows/r/inputs", "PATCH /flows/r"],
    ),
    Row(
        "G-17",
        "started already",
        lambda s: s.run(G.start_created_run("r")),
        [json_response({}, 409), state("running")],
        None,
    ),
    Row(
        "G-17",
        "not to be started",
        lambda s: s.run(G.start_created_run("r")),
        [json_response({}, 409), state("created")],
        FlowConflict,
    ),
    *(
        Row("G-18", repr(given), run("progress"), [state("running", progress=given)], (expected,))
        for given, expected in (
            (0.25, 0.25),
            (42, 0.42),
            (100, 1.0),
            (250, 1.0),
            (-1, 0.0),
            (None, 0.0),
            ("0.5", 0.5),
            ("x", 0.0),
            ([], 0.0),
        )
    ),
    Row("G-18", "absent", run("progress", "is_final"), [state("running")], (0.0, False)),
    Row("G-18", "1.0 is no end", run("is_final"), [state("running", progress=1.0)], (False,)),
    Row("G-19", "start", sent_json(lambda: G.start_created_run("r")), [{}], {"action": "start"}),
    Row("G-19", "abort", sent_json(lambda: G.abort("r")), [{}], {"action": "abort"}),
    Row(
        "G-19",
        "create",
        sent_json(lambda: G.create("t", {"a": 1}, None)),
        [{"flow_id": "r"}],
        {"template": "t", "parameters": {"a": 1}},
    ),
    Row(
        "G-20",
        "an id with braces",
        lambda s: s.run(G.get_run("{flow_id}")),
        [state("running")],
        ...,
        ["GET /flows/%7Bflow_id%7D"],
    ),
    *(
        Row("G-22", f"{code} too early", outputs(), [json_response({}, code), state("running")], FlowConflict)
        for code in (400, 409, 422, 425)
    ),
    Row(
        "G-22",
        "403 is the key's",
        outputs(),
        [json_response({}, 403)],
        FlowAuthError,
        ["GET /flows/r/outputs"],
    ),
    Row("G-23", "an empty list", outputs("name"), [{"outputs": []}], []),
    Row("G-23", "a rejection", outputs("name"), [json_response({}, 409), state("failed")], FlowConflict),
    *(
        Row(
            "G-24", f"{code}", run(), [json_response({"detail": "no"}, code)], FlowAuthError, ["GET /flows/r"]
        )
        for code in (401, 403)
    ),
    *(
        Row(
            "G-25",
            f"{given}",
            lambda s, given=given: (s.run(G.list_outputs("r", include_data=given)), s.requests[0].query)[1],
            [{"outputs": []}],
            {"include_data": str(given).lower()},
        )
        for given in (True, False)
    ),
    *(
        Row(
            "G-26",
            key,
            lambda s, key=key: s.run(G.get_definition(key)).name,
            [{"templates": [{"id": "17", "name": "chair"}]}],
            "chair",
        )
        for key in ("17", "chair")
    ),
    Row(
        "G-26",
        "sent as given",
        sent_json(lambda: G.create("chair", None, None)),
        [{"flow_id": "r"}],
        {"template": "chair"},
    ),
    Row("G-28", "status", run("state"), [{"flow_id": "r", "status": "running"}], (FlowState.RUNNING,)),
    Row("G-28", "both", run("state"), [state("failed", status="running")], (FlowState.FAILED,)),
]
CHAIN_ROWS = [
    Row("P-01", "the real path", info, [INFO], ..., ["GET /api/flows/getFlowInfo/f"]),
    Row(
        "P-02",
        "more keys",
        info,
        [[row | {"id": 1, "kind": "text"} for row in INFO]],
        (("color",), ("Text",)),
    ),
    Row("P-03", "an array", info, [INFO], (("color",), ("Text",))),
    Row("P-03", "a graph", info, [graph()], (("color",), ("Text",))),
    Row("P-03", "a wrapped array", info, [{"data": INFO}], (("color",), ("Text",))),
    Row(
        "P-05",
        "header only",
        sent_json(lambda: P.start("f", {"color": "red"}, None, None)),
        [[]],
        {"variables": {"color": "red"}},
    ),
    *(
        Row("P-06", repr(given)[:20], info, [json_response(given, 500)], FlowServiceError)
        for given in ({"error": "boom"}, {"message": "boom"}, {"statusCode": 500}, b"boom", b"")
    ),
    Row(
        "P-07",
        "a map",
        chain("value"),
        chain_responses({"name": "Text", "output": {"node": "hi"}}),
        ("completed", [("hi",)]),
    ),
    Row(
        "P-07",
        "a text",
        chain("value"),
        chain_responses({"name": "Text", "output": "hi"}),
        ("completed", [("hi",)]),
    ),
    Row(
        "P-07",
        "a number",
        chain("value"),
        chain_responses({"name": "Text", "output": 7}),
        ("completed", [("7",)]),
    ),
    Row(
        "P-07",
        "several nodes",
        chain("value"),
        chain_responses({"name": "Text", "output": {"a": "1", "b": "2"}}),
        ("completed", [('{"a": "1", "b": "2"}',)]),
    ),
    Row("P-08", "a status", chain(), [INFO, json_response({}, 500)], FlowServiceError),
    *(
        Row(
            "P-08",
            f"output {given!r}",
            chain("status"),
            chain_responses({"name": "Text", "output": given}),
            ("failed", ERROR),
        )
        for given in ("", None)
    ),
    Row("P-08", "no element", chain("status"), chain_responses(), ("failed", ERROR)),
    Row(
        "P-08",
        "one of two",
        chain("status"),
        chain_responses({"name": "Text", "output": "a"}, {"name": "B"}),
        ("completed", [("ready",), ("error",)]),
    ),
    Row(
        "P-09",
        "a missing variable",
        lambda s: check_variables(s.run(P.get_definition("f")), {}),
        [INFO],
        FlowInputError,
        ["GET /api/flows/getFlowInfo/f"],
    ),
    Row(
        "P-10",
        "no content type",
        chain("value"),
        chain_responses({"name": "Text", "output": "hi"}),
        ("completed", [("hi",)]),
    ),
    Row(
        "P-11",
        "an image's URL",
        chain("is_url", "media_type"),
        chain_responses({"name": "Text", "output": IMAGE}),
        ("completed", [(True, "image/png")]),
    ),
    Row(
        "P-11",
        "a text with a URL",
        chain("is_url", "media_type"),
        chain_responses({"name": "Text", "output": f"see {IMAGE}"}),
        ("completed", [(False, "text/plain")]),
    ),
    Row(
        "P-12",
        "variables too",
        chain("name"),
        chain_responses(
            {"name": "color", "type": "variable"}, {"name": "Text", "type": "output", "output": "x"}
        ),
        ("completed", [("Text",)]),
    ),
    Row(
        "P-12",
        "no types",
        chain("name"),
        chain_responses({"name": "Text", "output": "x"}),
        ("completed", [("Text",)]),
    ),
    Row("P-13", "any model", info, [graph("dall-e", "gpt-9", "")], (("color",), ("Text",))),
]
BITMAP_ROWS = [
    Row(
        "G-11",
        "a BMP",
        lambda s: value({"data": f"data:image/bmp;base64,{base64.b64encode(bitmap()).decode()}"})(s)[:30],
        [{}],
        "data:image/png;base64,iVBORw0KGg"[:30],
    )
]
ROWS = [*FLOW_ROWS, *CHAIN_ROWS, *BITMAP_ROWS]
PACKAGE = Path(__file__).parents[2] / "airflow_provider_flows"
