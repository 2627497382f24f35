"""Tests that every response is bounded, whatever a service sends, over both transports."""

from __future__ import annotations

import gzip
import json
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from airflow_provider_flows.core.exceptions import FlowMalformed, FlowNotFound, FlowUnreachable
from airflow_provider_flows.core.flow_run import FlowInput
from airflow_provider_flows.core.http import Conversation, Request
from airflow_provider_flows.core.limits import MAX_INLINE_BYTES, MIB
from airflow_provider_flows.core.payload.data_uri import GLB, Content, encode
from airflow_provider_flows.core.payload.download import DownloadSink, RawFileSink, download_file
from airflow_provider_flows.core.payload.sink import MemoryBuffer
from airflow_provider_flows.core.responses import request_json
from airflow_provider_flows.services.generio import api
from airflow_provider_flows.services.generio.api import Generio
from airflow_provider_flows.services.promptchainer import PromptChainer
from tests.support.drivers import DRIVERS, Driver, settings_for, single_request
from tests.support.hostile import HostileServer, expansion, sizes
from tests.support.servers import ReceivedRequest, StubResponse, StubServer

pytestmark = pytest.mark.usefixtures("no_proxy")

MAX_MEMORY_BYTES = 48 * MIB
SMALL = {"max_response_bytes": MIB, "max_output_bytes": MIB}
G, P = Generio(), PromptChainer()


class CountingTarget:
    """A target that counts bytes, and does not store them."""

    def __init__(self) -> None:
        self.size = 0

    def restart(self) -> None:
        """Start again."""
        self.size = 0

    def write(self, data: bytes) -> None:
        """Count the bytes."""
        self.size += len(data)


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Check that the block allocates little at any time."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MAX_MEMORY_BYTES
    finally:
        tracemalloc.stop()


JSON_MEMBERS: dict[str, Callable[[], Conversation[Any]]] = {
    "get_run": lambda: G.get_run("r"),
    "create": lambda: G.create("f", None, None),
    "start": lambda: G.start("f", [FlowInput("p")], None, None),
    "add_input": lambda: G.add_input("r", FlowInput("p")),
    "abort": lambda: G.abort("r"),
    "check_credentials": G.check_credentials,
    "list_runs": G.list_runs,
    "list_active": lambda: G.list_active({"0", "1"}),
    "list_inputs": lambda: G.list_inputs("r"),
    "list_outputs": lambda: G.list_outputs("r"),
    "list_outputs with data": lambda: G.list_outputs("r", include_data=True),
    "list_definitions": G.list_definitions,
    "get_definition of PromptChainer": lambda: P.get_definition("f"),
    "run of PromptChainer": lambda: P.start("f", {}, None, None),
}


@pytest.mark.parametrize("member", JSON_MEMBERS)
@pytest.mark.parametrize("name", ["an endless list", "an endless JSON text"])
def test_endless_response_is_rejected(driver: Driver, name: str, member: str) -> None:
    """Each request ends with an error that names the bound, after little more than the bound was received."""
    with (
        HostileServer(name) as server,
        bounded_memory(),
        pytest.raises(FlowMalformed, match=r"larger than 1 MiB"),
    ):
        driver(settings_for(server.url, **SMALL), JSON_MEMBERS[member]())


@pytest.mark.parametrize("member", ["get_run", "create", "start"])
def test_response_with_one_run_has_its_own_bound(driver: Driver, member: str) -> None:
    """A response with one run is rejected beyond 1 MiB, although the connection allows more."""
    with (
        HostileServer("an endless JSON text") as server,
        bounded_memory(),
        pytest.raises(FlowMalformed, match=r"larger than 1 MiB. No field of the connection"),
    ):
        driver(settings_for(server.url), JSON_MEMBERS[member]())


def test_error_has_its_own_bound(driver: Driver) -> None:
    """An error page without an end is rejected beyond 1 MiB."""
    with (
        HostileServer("an endless error") as server,
        bounded_memory(),
        pytest.raises(FlowMalformed, match=r"larger than 1 MiB") as caught,
    ):
        driver(settings_for(server.url), G.get_run("r"))
    assert caught.value.status == 404


LISTS: dict[str, Callable[[], Conversation[Any]]] = {
    "list_runs": G.list_runs,
    "list_active": lambda: G.list_active({str(number) for number in range(100)}),
    "list_definitions": G.list_definitions,
}


@pytest.mark.parametrize("member", LISTS)
def test_pages_of_a_list_count_together(driver: Driver, member: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list whose pages are small ends when all pages together exceed its bound."""
    for bound in ("MAX_LIST_BYTES", "MAX_DEFINITIONS_BYTES"):
        monkeypatch.setattr(api, bound, 3 * MIB)

    def reply(request: ReceivedRequest) -> StubResponse:
        page = int(request.path.partition("page=")[2] or 0)
        row = {"flow_id": f"r{page}", "id": f"t{page}", "state": "running", "filler": "x" * MIB}
        return StubResponse(body=json.dumps({"flows": [row], "templates": [row], "next": page + 1}).encode())

    with StubServer(reply) as stub, pytest.raises(FlowMalformed, match=r"larger than|more than 3 MiB"):
        driver(settings_for(stub.url), LISTS[member]())
    assert len(stub.requests) == 2


@pytest.mark.parametrize("member", ["list_runs", "list_definitions"])
def test_number_of_pages_is_bounded(driver: Driver, member: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list that always has a next page ends with an error, because it would look complete otherwise."""
    monkeypatch.setattr(api, "MAX_PAGES", 5)

    def reply(request: ReceivedRequest) -> StubResponse:
        page = int(request.path.partition("page=")[2] or 0)
        row = {"flow_id": f"r{page}", "id": f"t{page}", "state": "running"}
        return StubResponse(body=json.dumps({"flows": [row], "templates": [row], "next": page + 1}).encode())

    with StubServer(reply) as stub, pytest.raises(FlowMalformed, match="more than 5 pages"):
        driver(settings_for(stub.url), LISTS[member]())
    assert len(stub.requests) == 5


def test_number_of_listed_runs_is_bounded(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many runs in a list are an error; a list of active runs is incomplete then, and is no error."""
    monkeypatch.setattr(api, "MAX_LISTED_RUNS", 100)

    def reply(request: ReceivedRequest) -> StubResponse:
        page = int(request.path.partition("page=")[2] or 0)
        rows = [{"flow_id": f"{page}-{number}", "state": "running"} for number in range(60)]
        return StubResponse(body=json.dumps({"flows": rows, "next": page + 1}).encode())

    with StubServer(reply) as stub:
        with pytest.raises(FlowMalformed, match="more than 100 flow runs"):
            driver(settings_for(stub.url), G.list_runs())
        active = driver(settings_for(stub.url), G.list_active({str(number) for number in range(100)}))
    assert (len(active.ids), active.is_complete) == (120, False)


FILE_MEMBERS: dict[str, Callable[[], Conversation[Any]]] = {
    "a file of Generio": lambda: download_file("/f", DownloadSink(CountingTarget())),
    "a text of Generio": lambda: download_file("/f", DownloadSink(CountingTarget(), "text/plain")),
    "a raw file": lambda: download_file("/f", RawFileSink(CountingTarget())),
    "get_input": lambda: G.get_input("r", "a"),
    "download_output": lambda: G.download_output("r", "a"),
    "a sink of another service": lambda: single_request(Request("GET", "/f", sink=MemoryBuffer())),
}


@pytest.mark.parametrize("member", FILE_MEMBERS)
@pytest.mark.parametrize("name", [name for name in sizes.ENDLESS if name != "an endless list"])
def test_endless_file_is_rejected(driver: Driver, name: str, member: str) -> None:
    """A file without an end, or what stands around it, ends with an error after a bounded number of bytes."""
    with HostileServer(name) as server, bounded_memory(), pytest.raises(FlowMalformed):
        driver(settings_for(server.url, **SMALL), FILE_MEMBERS[member]())


@pytest.mark.parametrize("member", FILE_MEMBERS)
def test_endless_list_in_place_of_a_file_is_rejected(driver: Driver, member: str) -> None:
    """JSON without a file ends with an error after a bounded number of bytes."""
    with HostileServer("an endless list") as server, pytest.raises(FlowMalformed):
        driver(settings_for(server.url, **SMALL), FILE_MEMBERS[member]())


@pytest.mark.parametrize("name", ["an endless PNG", "an endless file in a data URI"])
def test_error_of_an_endless_file_names_the_field(driver: Driver, name: str) -> None:
    """The error says how large the file may be, and which field of the connection allows more."""
    target = CountingTarget()
    with HostileServer(name) as server, pytest.raises(FlowMalformed, match=r"1 MiB.*max_output_mib"):
        driver(settings_for(server.url, **SMALL), download_file("/f", DownloadSink(target)))
    assert target.size < 2 * MIB


def test_bound_is_that_of_the_file_and_not_of_its_encoding(driver: Driver) -> None:
    """A file that is just within its bound is accepted, although its base64 in JSON is larger."""
    content = b"glTF\x02\x00\x00\x00" + MIB.to_bytes(4, "little") + bytes(MIB - 12)
    body = json.dumps({"data": encode(Content(content, GLB))}).encode()
    assert len(body) > MIB
    with StubServer(lambda _: StubResponse(body=body)) as stub:
        content_type = driver(
            settings_for(stub.url, **SMALL), download_file("/f", DownloadSink(CountingTarget()))
        )
    assert content_type == GLB


def test_download_into_memory_is_bounded(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download into memory has a bound of its own, and the error says what to do instead."""
    monkeypatch.setattr("airflow_provider_flows.core.payload.sink.MAX_IN_MEMORY_BYTES", MIB)
    with (
        HostileServer("an endless PNG") as server,
        bounded_memory(),
        pytest.raises(FlowMalformed, match=r"larger than 1 MiB.*save_output"),
    ):
        driver(settings_for(server.url), G.download_output("r", "a"))


# expansion --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("member", ["list_runs", "a file of Generio", "a raw file", "list_outputs with data"])
@pytest.mark.parametrize("name", expansion.BOMBS)
def test_compressed_response_does_not_fill_the_memory(driver: Driver, name: str, member: str) -> None:
    """A response of about 1 MiB that expands to 1 GiB ends with an error after bounded memory."""
    with HostileServer(name) as server, bounded_memory(), pytest.raises(FlowMalformed):
        driver(settings_for(server.url, max_response_bytes=4 * MIB), (JSON_MEMBERS | FILE_MEMBERS)[member]())


@pytest.mark.parametrize("sink", [None, MemoryBuffer()], ids=["JSON", "file"])
@pytest.mark.parametrize("name", expansion.FOREIGN)
def test_compression_that_was_not_requested_is_rejected(
    driver: Driver, name: str, sink: MemoryBuffer | None
) -> None:
    """A body in a compression that this package does not read is rejected, and the error names it."""
    with HostileServer(name) as server, pytest.raises(FlowMalformed, match="compressed with"):
        driver(settings_for(server.url), single_request(Request("GET", "/f", sink=sink)))


@pytest.mark.parametrize(("sink", "accepted"), [(None, "gzip, deflate"), (MemoryBuffer(), "identity")])
def test_request_names_the_compression_that_it_accepts(
    driver: Driver, sink: MemoryBuffer | None, accepted: str
) -> None:
    """JSON may be compressed, and a file not."""
    with StubServer() as stub:
        driver(settings_for(stub.url), single_request(Request("GET", "/f", sink=sink)))
    assert stub.requests[0].headers["accept-encoding"] == accepted


CONTENT = json.dumps([{"number": number} for number in range(100_000)]).encode()
COMPRESSED: dict[str, tuple[str, bytes]] = {
    "gzip": ("gzip", gzip.compress(CONTENT)),
    "x-gzip, in capitals": ("X-GZIP", gzip.compress(CONTENT)),
    "two members of gzip": ("gzip", gzip.compress(CONTENT[:1000]) + gzip.compress(CONTENT[1000:])),
    "gzip and zeros": ("gzip", gzip.compress(CONTENT) + bytes(1000)),
    "zlib": ("deflate", zlib.compress(CONTENT)),
    "deflate without a header": ("deflate", zlib.compress(CONTENT)[2:-4]),
    "identity": ("identity", CONTENT),
}


@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed_response_is_complete(driver: Driver, name: str) -> None:
    """Each form of compression that servers send is decompressed to the same bytes."""
    encoding, body = COMPRESSED[name]
    with StubServer(lambda _: StubResponse(headers={"Content-Encoding": encoding}, body=body)) as stub:
        assert driver(settings_for(stub.url), single_request(Request("GET", "/"))).body == CONTENT


@pytest.mark.parametrize("name", ["gzip", "zlib", "deflate without a header"])
def test_truncated_compression_is_no_response(driver: Driver, name: str) -> None:
    """A compressed body that ends too early counts like a connection that broke."""
    encoding, body = COMPRESSED[name]
    with (
        StubServer(lambda _: StubResponse(headers={"Content-Encoding": encoding}, body=body[:-20])) as stub,
        pytest.raises(FlowUnreachable, match="not in the compression that its header names"),
    ):
        driver(settings_for(stub.url), single_request(Request("GET", "/")))


def test_unreadable_error_keeps_its_status(driver: Driver) -> None:
    """An error in an unknown compression is still that error."""
    with (
        StubServer(lambda _: StubResponse(404, {"Content-Encoding": "br"}, b"\x0b\x02")) as stub,
        pytest.raises(FlowNotFound),
    ):
        driver(settings_for(stub.url), G.get_run("r"))


# the event loop ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [MAX_INLINE_BYTES // 2, MAX_INLINE_BYTES * 2])
@pytest.mark.parametrize("name", DRIVERS)
def test_large_response_is_parsed_outside_of_the_event_loop(name: str, size: int) -> None:
    """With aiohttp a large response is parsed in another thread; a small one, or in a worker, in the same."""
    threads: list[threading.Thread] = []

    def parse(value: Any) -> int:
        threads.append(threading.current_thread())
        return len(value)

    with StubServer(lambda _: StubResponse(body=json.dumps("x" * size).encode())) as stub:
        conversation = request_json(Request("GET", "/"), parse)
        assert DRIVERS[name](settings_for(stub.url), conversation) == size
    is_elsewhere = threads != [threading.main_thread()]
    assert is_elsewhere == (name == "aiohttp" and size > MAX_INLINE_BYTES)


@pytest.mark.parametrize("name", DRIVERS)
def test_error_of_a_large_response_arrives_in_the_conversation(name: str) -> None:
    """What parsing in another thread raises is raised by the conversation."""
    with (
        StubServer(lambda _: StubResponse(body=b"x" * 2 * MAX_INLINE_BYTES)) as stub,
        pytest.raises(FlowMalformed, match="cannot be read as JSON"),
    ):
        DRIVERS[name](settings_for(stub.url), G.get_run("r"))
