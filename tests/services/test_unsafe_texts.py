"""Tests that no text from a service or a gateway is one that no store accepts, in whatever field it comes.

Each response of each service is read with an unsafe text in each of its keys and values, one after the other.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_flows.core.exceptions import FlowError
from airflow_provider_flows.core.flow_run import FlowInput
from airflow_provider_flows.core.http import Conversation, Request, Response
from airflow_provider_flows.core.payload.download import DownloadSink, RawFileSink, download_file
from airflow_provider_flows.core.payload.sink import MemoryBuffer
from airflow_provider_flows.services.generio.api import Generio
from airflow_provider_flows.services.promptchainer import PromptChainer
from tests.support.drivers import Driver, settings_for, single_request
from tests.support.scripted_transport import ScriptedTransport
from tests.support.servers import MisbehavingServer, send_and_close
from tests.support.stores import UNSAFE_TEXTS, assert_storable

sys.path.insert(0, str(Path(__file__).parent / "third_service"))
from brewery_flows.service import Brewery

ANY_UNSAFE = pytest.mark.parametrize("unsafe", UNSAFE_TEXTS.values(), ids=UNSAFE_TEXTS)
G, P, B = Generio(), PromptChainer(), Brewery()
RUN = {
    "flow_id": "r",
    "template": {"name": "t"},
    "state": "failed",
    "error": {"message": "boom", "details": ["a"]},
    "created_at": "2026-01-01T00:00:00Z",
    "parameters": {"quality": "low"},
    "additional": {"tag": "x"},
}
ASSET = {
    "asset_id": "a",
    "name": "n",
    "status": "ready",
    "media_type": "text/plain",
    "data": "x",
    "additional": {"k": "v"},
    "error": "none",
}
TEMPLATE = {
    "template_id": "t",
    "name": "n",
    "description": "d",
    "input_types": ["text/plain", "other"],
    "output_types": ["model/x"],
    "parameters": [
        {"name": "p", "type": "string", "default": "a", "values": ["a", "b", "c"], "description": "d"}
    ],
}
IMAGE = "https://h.blob.core.windows.net/i?rsct=image%2Fpng&sig=s"
BREW = {
    "number": 7, "recipe": "stout", "stage": "spoilt", "percent": 50, "created": None, "lit": None,
    "over": None, "knobs": {"a": "b"}, "note": {"c": "d"}, "trouble": "too hot",
}  # fmt: skip
KNOB = {"from": 1, "to": 2, "needed": True}
# the conversations of each service, each with the response that it reads
MEMBERS: dict[str, tuple[Callable[[], Conversation[Any]], Any]] = {
    "create": (lambda: G.create("t", None, None), RUN),
    "start": (lambda: G.start("t", [FlowInput("p")], None, None), RUN),
    "input": (lambda: G.add_input("r", FlowInput("p")), {"asset_id": "a"}),
    "run": (lambda: G.get_run("r"), RUN),
    "runs": (G.list_runs, {"flows": [RUN, {**RUN, "flow_id": "s", "state": "running"}]}),
    "active runs": (lambda: G.list_active({"r"}), {"flows": [{**RUN, "state": "running"}]}),
    "inputs": (lambda: G.list_inputs("r"), {"inputs": [ASSET]}),
    "outputs": (lambda: G.list_outputs("r", include_data=True), {"outputs": [ASSET, {"name": "no id"}]}),
    "templates": (G.list_definitions, {"templates": [TEMPLATE]}),
    "rejected change": (lambda: G.abort("r"), {"success": False, "message": "no"}),
    "chain": (
        lambda: P.start("f", {}, None, None),
        [
            {"name": "n", "type": "output", "output": "x"},
            {"name": "map", "type": "output", "output": {"node": "x"}},
            {"name": "list", "type": "output", "output": {"a": ["x"], "b": "y"}},
            {"name": "image", "type": "output", "output": IMAGE},
        ],
    ),
    "chain's info": (
        lambda: P.get_definition("f"),
        [{"name": "n", "type": "variable"}, {"name": "o", "type": "output"}],
    ),
    "brew": (lambda: B.get_run("7"), BREW),
    "brews": (B.list_runs, {"brews": [BREW]}),
    "barrels": (
        lambda: B.list_outputs("7"),
        {"barrels": [{"number": 1, "label": "l", "full": True, "kind": "text/plain", "words": "w"}]},
    ),
    "recipes": (B.list_definitions, {"recipes": {"stout": {"knobs": {"a": KNOB}}}}),
}


def spoil(value: Any, unsafe: str) -> Iterator[Any]:
    """Yield copies of a JSON value, each with the text at the end of another text, or as one more field."""
    if isinstance(value, str):
        yield value + unsafe
    elif isinstance(value, dict):
        yield {**value, f"more{unsafe}": unsafe}
        for key, inner in value.items():
            yield from ({**value, key: spoilt} for spoilt in spoil(inner, unsafe))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from ([*value[:index], spoilt, *value[index + 1 :]] for spoilt in spoil(inner, unsafe))


def outcome(conversation: Conversation[Any], *responses: Response) -> Any:
    """Return what a conversation returns or raises."""
    try:
        return ScriptedTransport(*responses, endless=True).run(conversation)
    except FlowError as error:
        return error


@ANY_UNSAFE
@pytest.mark.parametrize("name", MEMBERS)
def test_each_text_of_each_response_can_be_stored(name: str, unsafe: str) -> None:
    """With an unsafe text in any key or value, what is read or raised has none."""
    create_conversation, value = MEMBERS[name]
    normal = outcome(create_conversation(), Response(200, {}, json.dumps(value).encode()))
    assert isinstance(normal, FlowError) == (name == "rejected change")
    for spoilt in spoil(value, unsafe):
        read = outcome(create_conversation(), Response(200, {}, json.dumps(spoilt).encode()))
        assert_storable(*read if isinstance(read, list) else [read])


def error_bodies(unsafe: str) -> Iterator[bytes]:
    """Yield bodies of errors of a service and of a gateway."""
    text = f"No entry {unsafe} end"
    for value in (
        {"detail": text},
        {"detail": [{"loc": ["body", text], "msg": text}]},
        {"message": {text: text}},
        {text: text},
        [text],
        text,
    ):
        yield json.dumps(value).encode()
    yield text.encode("utf-8", "surrogatepass")
    for encoding in ("utf-16", "utf-16-le", "utf-32"):
        yield text.encode(encoding, "surrogatepass")
    yield gzip.compress(text.encode("utf-8", "surrogatepass"))
    yield b"\xff\xfe" + bytes(range(256))


@ANY_UNSAFE
@pytest.mark.parametrize("status", [200, 302, 400, 401, 403, 404, 409, 422, 429, 500, 503])
def test_each_error_can_be_stored(status: int, unsafe: str) -> None:
    """Whatever is the body of a rejection, of a gateway's page or of a success, its error can be stored."""
    for body in error_bodies(unsafe):
        for create_conversation, _ in MEMBERS.values():
            read = outcome(create_conversation(), Response(status, {}, body))
            assert status == 200 or isinstance(read, FlowError)
            assert_storable(*read if isinstance(read, list) else [read])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32"])
def test_gateways_text_is_readable_in_its_encoding(encoding: str) -> None:
    """The page of a gateway in UTF-16 or UTF-32 is quoted as a text."""
    for body in ("Kein Zutritt für dich", json.dumps({"detail": "Kein Zutritt für dich"})):
        error = outcome(G.get_run("r"), Response(403, {}, body.encode(encoding)))
        assert "Reason given by the service: Kein Zutritt für dich." in str(error)


# headers and broken responses -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Type: audio/x\xff\xed\xa0\xbd\r\nX-Id: \xff",
        b"HTTP/1.1 403 F\xffrbidden\r\nRetry-After: \xff\r\nContent-Type: \xfe",
        b"HTTP/1.1 302 Found\r\nLocation: /\xff\xed\xa0\xbd",
        b"HTTP/1.1 200 OK\r\nContent-Type: audio/\x00",
        b"HTTP/1.1 200 OK\r\nNo\xff\x00 header",
        b"HTTP/1.1 \xff\x00\xed\xa0\xbd",
        b"\x1f\x8b\x00\xff",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip",
    ],
)  # fmt: skip
def test_headers_and_broken_responses_can_be_stored(driver: Driver, head: bytes) -> None:
    """A header, a media type and the error of a response that is no HTTP have texts that can be stored."""
    response = head + b"\r\nContent-Length: 4\r\nConnection: close\r\n\r\n\xff\xfe\x00x"
    with MisbehavingServer(send_and_close(response)) as server:
        settings = settings_for(server.url)
        with suppress(FlowError):
            response = driver(settings, single_request(Request("GET", "/")))
            assert_storable(dict(response.headers))
        for sink in (RawFileSink(MemoryBuffer()), DownloadSink(MemoryBuffer(), "text/plain")):
            try:
                assert_storable(driver(settings, download_file("/", sink)))
            except FlowError as error:
                assert_storable(error)


def test_media_type_of_a_link_can_be_stored() -> None:
    """A link that declares its media type with escapes of what no store accepts has a media type without."""
    for escape in ("%00", "%ED%A0%BD"):
        link = IMAGE.replace("png", f"p{escape}g")
        run = outcome(
            P.start("f", {}, None, None),
            Response(200, {}, json.dumps([{"name": "n", "output": link}]).encode()),
        )
        assert run.outputs[0].media_type.startswith("image/p\ufffd")


# files ------------------------------------------------------------------------------------------------------


def stored_file(sink_class: type[DownloadSink], body: bytes, media_type: str) -> bytes:
    """Return the bytes of a downloaded file."""
    buffer = MemoryBuffer()
    response = Response(200, {"content-length": str(len(body))}, body)
    ScriptedTransport(response).run(download_file("/", sink_class(buffer, media_type)))
    return bytes(buffer.data)


@pytest.mark.parametrize(
    "body", ["größer".encode("utf-16"), "größer".encode("latin-1"), b"a\0b", b"\xed\xa0\xbd"]
)
def test_text_file_is_stored_unchanged(body: bytes) -> None:
    """A text file is stored as it is received, in whatever encoding."""
    assert stored_file(RawFileSink, body, "text/plain") == body


@pytest.mark.parametrize(
    ("escaped", "content"),
    [
        (r"a\u0000b", b"a\0b"),
        (r"x \ud83d", "x \ufffd".encode()),
        (r"x \ud83d and \ude00.", "x \ufffd and \ufffd.".encode()),
        (r"\ud83d\n", "\ufffd\n".encode()),
        (r"\ud83d\\", "\ufffd\\".encode()),
        (r"\ud83d\u0041", "\ufffdA".encode()),
        (r"\ud83d\ud83d\ude00", "\ufffd\U0001f600".encode()),
    ],
)
def test_text_file_in_json_is_stored(escaped: str, content: bytes) -> None:
    """A lone surrogate in a file's JSON, which has no bytes, is replaced in the file; the rest is as it is.

    It does not matter where the response is cut.
    """
    whole = f'{{"data": "{escaped}", "n\\ud83d": "\\u0000"}}'.encode()
    assert stored_file(DownloadSink, whole, "text/markdown") == content
    for cut in range(1, len(whole)):
        buffer = MemoryBuffer()
        sink = DownloadSink(buffer, "text/markdown")
        sink.on_response_start(200, {})
        sink.feed(whole[:cut])
        sink.feed(whole[cut:])
        sink.finish()
        assert bytes(buffer.data) == content
