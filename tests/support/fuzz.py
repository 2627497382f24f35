"""Hostile values for every reader of what a service, a store or a file says: strategies, and what reads them.

A strategy knows the fields of its reader and puts something odd into a few of them, because an arbitrary
object is mostly rejected by its first field. The everyday tests and `make fuzz` share all of this.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from hypothesis import strategies as st

from airflow_provider_flows.core.exceptions import FlowError
from airflow_provider_flows.core.flow_run import FlowInput, FlowOutput, FlowRun, FlowState
from airflow_provider_flows.core.gltf import GLB_PREAMBLE, JSON_CHUNK_TYPE
from airflow_provider_flows.core.http import Conversation, Response
from airflow_provider_flows.core.payload.data_uri import decode
from airflow_provider_flows.core.payload.download import download_image
from airflow_provider_flows.core.payload.sink import MemoryBuffer
from airflow_provider_flows.core.polling.finished_runs import EventCursor
from airflow_provider_flows.core.start_or_resume import RunRecord, RunRequest, resume
from airflow_provider_flows.plugin.output_files import parse_glb_header
from airflow_provider_flows.plugin.task_data import parse_outputs
from airflow_provider_flows.services.generio.api import Generio
from airflow_provider_flows.services.promptchainer import PromptChainer
from airflow_provider_flows.storage.graph_files import parse_graph
from tests.support.scripted_transport import ScriptedTransport

MAX_CPU_SECONDS = 5.0  # for one example of a few kilobytes; a loaded machine does not change it
MAX_PICTURE_BYTES = 20_000
MAX_FIELDS = 6  # of one object

# Values of single fields

SIZES = st.sampled_from([1, 64, 65, 256, 257, 5_000])
ODD_TEXTS = st.sampled_from(
    ["", " ", "\0", "\ud800", "../..", "/etc/passwd", "a\nb", "\u202e", "null", "None", "-1", "__id__"]
)
TEXTS = (
    st.text(max_size=12)
    | ODD_TEXTS
    | st.builds(str.__mul__, st.sampled_from(["a", "\u00e9", "7", "%"]), SIZES)
)
NUMBERS = (
    st.integers()
    | st.floats()
    | st.sampled_from([10**400, -(10**400), 2**63, 2**64, 1e308, -0.0, float("nan"), float("inf")])
)
LEAVES = st.none() | st.booleans() | NUMBERS | TEXTS
SHALLOW = LEAVES | st.lists(LEAVES, max_size=2) | st.dictionaries(TEXTS, LEAVES, max_size=2)
ANYTHING = SHALLOW | st.lists(SHALLOW, max_size=2) | st.dictionaries(TEXTS, SHALLOW, max_size=2)
TIMESTAMPS = (
    st.datetimes().map(lambda when: when.isoformat())
    | st.text("0123456789:-+TZWP. ,/eE", max_size=70)
    | st.builds("{}{}{}".format, st.sampled_from(["12:", "0:", "-", "2026-", "P", ""]), st.integers(), TEXTS)
    | st.sampled_from(["12:" + 29 * "9", "0:", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59-23:59", "1e400"])
    | st.sampled_from(["2026-02-30", "24:00", "2026-11-30T25:61:61Z", "2026-W60-8", "2026-366"])
    | st.sampled_from([10**13, -(10**13), 10**18, 253_402_300_800, -62_135_596_801])
    | ANYTHING
)
PROGRESS = st.sampled_from(["50%", "1e999", "0.5", "NaN", "100.0 %", "-3"]) | ANYTHING
IDS = st.sampled_from(["r", "r2", "64f0c1d2e3f4a5b6c7d8e9f0"]) | TEXTS | ANYTHING
STATES = st.sampled_from([*[state.value for state in FlowState], "RUNNING", "done"]) | ANYTHING
MEDIA_TYPES = (
    st.sampled_from(
        ["image/png", "model/gltf-binary", "text/plain; charset=latin-1", "image/*", "a/b/c", "/"]
    )
    | ANYTHING
)
CONTENT = st.binary(max_size=40) | st.sampled_from(
    [b"glTF\x02\0\0\0\xff\0\0\0", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"<html>", b"\xff\xd8\xff\xe0", b"RIFF"]
)
DATA_URIS = st.builds(
    "data:{}{},{}".format,
    st.sampled_from(["", "image/png", "text/plain;charset=utf-7", ";;", "a"]) | st.text(max_size=6),
    st.sampled_from([";base64", "", ";base64;base64", ";BASE64"]),
    CONTENT.map(lambda data: base64.b64encode(data).decode()) | st.text("ab+/=%9 \n", max_size=20) | TEXTS,
)
URLS = st.sampled_from(
    [
        "https://[",
        "http://a:b/",
        "//h/x.png?se=12:",
        "https://h/x.png?se=0%3A&sig=1&rsct=image%2F%00",
        "?page=2",
    ]
) | st.text("htps:/[]@.?&=#%0a1x", max_size=20)
FILES = DATA_URIS | URLS | ANYTHING


@st.composite
def fields(draw: st.DrawFn, known: Mapping[str, st.SearchStrategy[Any]], **fixed: Any) -> dict[str, Any]:
    """Return a strategy of objects with a few of the known fields, and with the fixed ones.

    Few, because drawing each of twenty fields takes longer than reading them.
    """
    count = draw(st.integers(0, min(MAX_FIELDS, len(known))))
    names = draw(_some_names(tuple(known), count))
    return {**{name: draw(known[name]) for name in names}, **fixed}


@cache
def _some_names(names: tuple[str, ...], count: int) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(names), min_size=count, max_size=count)


# Objects

PARAMETER = fields(
    {
        "name": TEXTS,
        "type": st.sampled_from(["string", "integer", "array", ["number", "null"]]) | ANYTHING,
        "default": ANYTHING,
        "enum": st.lists(LEAVES, max_size=3) | ANYTHING,
        "allowed_values": st.lists(LEAVES, max_size=3) | ANYTHING,
        "minimum": NUMBERS | ANYTHING,
        "maximum": NUMBERS | ANYTHING,
        "required": st.booleans() | ANYTHING,
        "description": TEXTS,
    }
)
PARAMETERS = (
    st.lists(PARAMETER, max_size=3)
    | st.dictionaries(TEXTS, PARAMETER | ANYTHING, max_size=3)
    | fields({"properties": st.dictionaries(TEXTS, PARAMETER, max_size=2), "required": ANYTHING})
    | ANYTHING
)
ASSET = fields(
    {
        **dict.fromkeys(["asset_id", "id", "_id"], IDS),
        **dict.fromkeys(["name", "filename", "label"], TEXTS | ANYTHING),
        **dict.fromkeys(["status", "state"], st.sampled_from(["ready", "error", "pending"]) | ANYTHING),
        **dict.fromkeys(["media_type", "type", "mime_type"], MEDIA_TYPES),
        **dict.fromkeys(["data", "file_data", "value", "url"], FILES),
        **dict.fromkeys(["additional", "error", "message", "size"], ANYTHING),
    }
)
RUN_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(["flow_id", "id", "_id"], IDS),
    **dict.fromkeys(["state", "status"], STATES),
    "progress": PROGRESS,
    **dict.fromkeys(["created_at", "started_at", "finished_at", "updated_at"], TIMESTAMPS),
    **dict.fromkeys(["template", "flow", "template_id"], IDS | st.fixed_dictionaries({"name": IDS})),
    **dict.fromkeys(["inputs", "outputs"], st.lists(ASSET, max_size=2) | ANYTHING),
    "parameters": PARAMETERS,
    **dict.fromkeys(["additional", "error", "message", "detail"], ANYTHING),
}
RUN = (
    fields(RUN_FIELDS)
    | fields(RUN_FIELDS, flow_id="r", state="running")
    | fields(RUN_FIELDS, flow_id="r2", state="completed")
)
TEMPLATE = fields(
    {
        **dict.fromkeys(["template_id", "id", "_id", "name", "template_name"], IDS),
        **dict.fromkeys(["description", "title"], TEXTS | ANYTHING),
        **dict.fromkeys(
            ["input_types", "inputs", "output_types", "outputs"],
            st.lists(MEDIA_TYPES | st.fixed_dictionaries({"type": MEDIA_TYPES}), max_size=3) | ANYTHING,
        ),
        "parameters": PARAMETERS,
    }
)
CHAIN_ROW = fields(
    {
        "type": st.sampled_from(["output", "variable", "outputNode", None]) | ANYTHING,
        "name": TEXTS | ANYTHING,
        "output": FILES | st.dictionaries(TEXTS, FILES, max_size=2),
    }
)
NODE = fields(
    {
        "id": IDS,
        "type": st.sampled_from(["variableNode", "outputNode", "promptNode"]) | ANYTHING,
        "position": fields({"x": NUMBERS, "y": ANYTHING}) | ANYTHING,
        "data": fields({"label": TEXTS, "name": TEXTS, "variable": ANYTHING, "prompt": TEXTS}) | ANYTHING,
    }
)
EDGE = fields({"id": IDS, "source": IDS, "target": IDS, "sourceHandle": ANYTHING})
GRAPH = fields(
    {"nodes": st.lists(NODE, max_size=4) | ANYTHING, "edges": st.lists(EDGE, max_size=3) | ANYTHING}
)
PROBLEM = fields(
    {
        **dict.fromkeys(["detail", "message", "error", "msg"], ANYTHING | st.lists(ANYTHING, max_size=3)),
        "loc": ANYTHING,
    }
)
PRIMITIVE = fields(
    {
        "mode": st.sampled_from([0, 4, 5, 6, [4], {"a": 4}]) | ANYTHING,
        "indices": st.integers(-1, 3) | ANYTHING,
        "attributes": fields({"POSITION": st.integers(-1, 3) | ANYTHING}) | ANYTHING,
    }
)
GLTF = fields(
    {
        "asset": fields({"generator": TEXTS | ANYTHING}) | ANYTHING,
        "meshes": st.lists(fields({"primitives": st.lists(PRIMITIVE, max_size=3)}), max_size=3) | ANYTHING,
        "accessors": st.lists(fields({"count": NUMBERS | ANYTHING}) | ANYTHING, max_size=3) | ANYTHING,
        **dict.fromkeys(["materials", "textures", "animations"], st.lists(ANYTHING, max_size=2) | ANYTHING),
    }
)


def list_of(rows: st.SearchStrategy[Any], *keys: str) -> st.SearchStrategy[Any]:
    """Return a strategy of lists in the shapes of a service: bare, wrapped, keyed, in pages."""
    some = st.lists(rows | rows | ANYTHING, max_size=2) | st.dictionaries(TEXTS, rows, max_size=2)
    paging = {
        "next": URLS | ANYTHING,
        **dict.fromkeys(["page", "pages", "total", "offset", "limit"], NUMBERS),
    }
    return some | fields({**dict.fromkeys(keys, some), **paging})


def responses(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Response]]:
    """Return a strategy of one or two responses: mostly the values as JSON, some cut, some no JSON."""
    text = (values | PROBLEM).map(lambda value: json.dumps(value).encode())
    cut = st.builds(lambda body, at: body[: at % (len(body) + 1)], text, st.integers(0, 2_000))
    headers = fields(
        {
            "retry-after": st.sampled_from(["0", "-1", "1e9", "Wed, 99 Foo 2026"]) | st.text(max_size=9),
            "date": st.sampled_from(["Mon, 30 Nov 2026 12:00:00 GMT", "Mon, 31 Feb 99999"])
            | st.text(max_size=9),
            "content-type": st.sampled_from(["application/json", "image/png", "text/html; charset=x"]),
            "location": URLS,
        }
    )
    statuses = st.sampled_from([201, 204, 302, 400, 402, 404, 409, 422, 429, 503])
    good = st.builds(Response, st.just(200), headers, values.map(lambda value: json.dumps(value).encode()))
    bad = st.builds(Response, st.just(200) | statuses, headers, text | cut | CONTENT)
    return st.lists(good | good | good | bad, min_size=1, max_size=2)


# Readers


@dataclass(frozen=True)
class Reader:
    """Something that reads what it cannot trust.

    :param examples: what it reads.
    :param read: reads one example, and checks the result.
    :param errors: the errors that it may raise.
    """

    examples: st.SearchStrategy[Any]
    read: Callable[[Any], object]
    errors: tuple[type[Exception], ...] = (FlowError,)

    def check(self, example: Any) -> None:
        """Read an example.

        :raises AssertionError: it takes too long, or what was read breaks a promise.
        :raises Exception: any error that the reader may not raise.
        """
        started = time.thread_time()
        with suppress(*self.errors):
            self.read(example)
        seconds = time.thread_time() - started
        assert seconds < MAX_CPU_SECONDS, f"reading took {seconds:.1f} s of CPU"


GENERIO, CHAINER = Generio(), PromptChainer()
REQUEST = RunRequest("f", [FlowInput("p")])
EVENT = {"flow_run_id": "r", "service": "generio"}
RECORD = {"fingerprint": REQUEST.fingerprint, "generation": 0, "token": "t", "flow_run_id": "r"}


def check_run(run: FlowRun) -> None:
    """Check that a run can be stored, sent in an event and read again."""
    json.dumps(run.to_dict(), allow_nan=False)
    assert FlowRun.from_event(json.loads(json.dumps(run.to_event()))).state is run.state
    assert 0.0 <= run.progress <= 1.0
    assert str(run)


def check_value(value: Any) -> None:
    """Check every run and output in what a conversation returned."""
    for one in value if isinstance(value, list | tuple) else [value]:
        if isinstance(one, FlowRun):
            check_run(one)
        elif isinstance(one, FlowOutput):
            json.dumps(one.to_dict(), allow_nan=False)


def converse(start: Callable[[], Conversation[Any]], values: st.SearchStrategy[Any]) -> Reader:
    """Return the reader of a conversation's responses."""
    return Reader(
        responses(values),
        lambda replies: check_value(ScriptedTransport(*replies, endless=True).run(start())),
    )


def _resume(example: tuple[Any, list[Response]]) -> None:
    saved, replies = example
    record = RunRecord.from_dict(json.loads(json.dumps(saved)))
    ScriptedTransport(*replies, endless=True).run(resume(GENERIO, REQUEST.fingerprint, record, 0))


def _read_saved_run(value: Any) -> None:
    record = RunRecord.from_dict(json.loads(json.dumps({**RECORD, "saved_run": value})))
    if record is not None and record.saved_run is not None:
        check_run(FlowRun.from_record(record.saved_run))


def _read_event(value: Any) -> None:
    check_run(FlowRun.from_event(json.loads(json.dumps(value))))


def _read_xcom(value: Any) -> None:
    for output in parse_outputs(value):
        json.dumps(output.to_dict(), allow_nan=False)


def to_glb(header: Any, *, missing_bytes: int = 0) -> bytes:
    """Return the start of a GLB file with a header, without its last bytes."""
    chunk = header if isinstance(header, bytes) else json.dumps(header).encode()
    preamble = GLB_PREAMBLE.pack(b"glTF", 2, len(chunk) + 20, len(chunk), JSON_CHUNK_TYPE)
    return (preamble + chunk)[: len(preamble) + len(chunk) - missing_bytes]


RUNS, ASSETS = list_of(RUN, "flows", "items", "data", "results"), list_of(ASSET, "outputs", "inputs", "data")
RECORD_FIELDS = {
    **dict.fromkeys(["fingerprint", "generation", "token", "created_by", "newer"], ANYTHING),
    **dict.fromkeys(["conn_id", "host", "flow_run_id"], IDS),
    "deadline": TIMESTAMPS,
    "saved_run": RUN | ANYTHING,
}

READERS: dict[str, Reader] = {
    "get_run": converse(lambda: GENERIO.get_run("r"), RUN),
    "create": converse(lambda: GENERIO.create("f", None, None), RUN),
    "start": converse(lambda: GENERIO.start("f", [FlowInput("p")], None, None), RUN),
    "add_input": converse(lambda: GENERIO.add_input("r", FlowInput("p")), ASSET),
    "start_created_run": converse(lambda: GENERIO.start_created_run("r"), RUN),
    "abort": converse(lambda: GENERIO.abort("r"), RUN),
    "delete": converse(lambda: GENERIO.delete("r"), ANYTHING),
    "list_runs": converse(GENERIO.list_runs, RUNS),
    "list_active": converse(lambda: GENERIO.list_active(["r", "r2"]), RUNS),
    "list_inputs": converse(lambda: GENERIO.list_inputs("r"), ASSETS),
    "list_inputs with data": converse(lambda: GENERIO.list_inputs("r", include_data=True), ASSETS),
    "get_input": converse(lambda: GENERIO.get_input("r", "a"), ASSET | FILES),
    "list_outputs": converse(lambda: GENERIO.list_outputs("r"), ASSETS),
    "list_outputs with data": converse(lambda: GENERIO.list_outputs("r", include_data=True), ASSETS),
    "download_output": converse(lambda: GENERIO.download_output("r", "a"), ASSET | FILES),
    "download_output of a type": converse(
        lambda: GENERIO.download_output("r", "a", "image/png"), ASSET | FILES
    ),
    "list_definitions": converse(GENERIO.list_definitions, list_of(TEMPLATE, "templates", "items", "data")),
    "get_definition": converse(lambda: GENERIO.get_definition("f"), list_of(TEMPLATE, "templates", "data")),
    "check_credentials": converse(GENERIO.check_credentials, list_of(TEMPLATE, "templates", "data")),
    "PromptChainer: start": converse(
        lambda: CHAINER.start("f", {"a": "b"}, None, None), list_of(CHAIN_ROW, "outputs", "data", "list")
    ),
    "PromptChainer: get_definition": converse(
        lambda: CHAINER.get_definition("f"), GRAPH | list_of(CHAIN_ROW, "outputs", "data", "list")
    ),
    "PromptChainer: check_credentials": converse(CHAINER.check_credentials, GRAPH | ANYTHING),
    "PromptChainer: picture": converse(
        lambda: download_image("https://h/x.png", MemoryBuffer(), MAX_PICTURE_BYTES), FILES
    ),
    "saved record": Reader(
        st.tuples(fields(RECORD_FIELDS) | fields(RECORD_FIELDS, **RECORD) | ANYTHING, responses(RUN)), _resume
    ),
    "saved run": Reader(RUN, _read_saved_run),
    "event": Reader(fields({**RUN_FIELDS, "flow": TEXTS, "error": TEXTS}, **EVENT), _read_event),
    "XCom": Reader(st.lists(ASSET | ANYTHING, max_size=3) | ANYTHING, _read_xcom),
    "watcher state": Reader(
        fields({"ends": st.dictionaries(TEXTS, TIMESTAMPS, max_size=3) | ANYTHING, "emitted_until": NUMBERS})
        | ANYTHING,
        lambda value: EventCursor.from_dict(json.loads(json.dumps(value))).to_dict(),
    ),
    "graph file": Reader(GRAPH.map(lambda graph: json.dumps(graph).encode()) | CONTENT, parse_graph),
    "GLB header": Reader(
        st.builds(to_glb, GLTF | ANYTHING | CONTENT, missing_bytes=st.sampled_from([0, 0, 0, 1, 30])),
        parse_glb_header,
        (ValueError,),
    ),
    "data URI": Reader(DATA_URIS | TEXTS, decode, (ValueError,)),
}  # fmt: skip
