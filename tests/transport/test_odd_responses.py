"""Tests that both transports make the same of every odd response, and say what is wrong with one.

The responses are in tests/support/hostile/odd_responses.py, and arrive over real sockets.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from airflow_provider_flows.core.exceptions import FlowError, FlowUnreachable
from airflow_provider_flows.core.http import Conversation, Request, Response
from airflow_provider_flows.core.limits import MAX_HEAD_BYTES, MAX_HEADERS
from airflow_provider_flows.transport.framing import Framing, FramingError
from tests.support.drivers import DRIVERS, Driver, settings_for, single_request
from tests.support.hostile import HostileServer
from tests.support.hostile.odd_responses import JSON, LEFT_OPEN, OK, RESPONSES

pytestmark = pytest.mark.usefixtures("no_proxy")

POST = Request("POST", "/flows", json={"template": "chair"})
NAMES = [*RESPONSES, *LEFT_OPEN]

# What is not the value `JSON` with status 200.
OTHER_VALUES: dict[str, tuple[int, bytes]] = {
    "a 101": (101, b""),
    "a 101 before the response": (101, b""),
    "a 204": (204, b""),
    "a 204 with a body": (204, b""),
    "a 204 with a length of zero": (204, b""),
    "a 204 with chunks": (204, b""),
    "a 205 with a body": (205, JSON),
    "a 304 with a body": (304, b""),
    "a 304 with a length and no body": (304, b""),
    "a 401 without a challenge": (401, JSON),
    "a 407": (407, JSON),
    "a 417": (417, JSON),
    "a 426": (426, JSON),
    "a 204 on an open connection": (204, b""),
    "a 204 with a body on an open connection": (204, b""),
    "a 304 with a length on an open connection": (304, b""),
    "a body that is longer than its length": (200, JSON[:7]),
    "a longer body than its length on an open connection": (200, JSON[:7]),
    "a length of zero and a body": (200, b""),
    "a length of zero on an open connection": (200, b""),
    "a chunk size in capitals": (200, JSON + b"  "),
    "a chunk size in small letters": (200, JSON + b"  "),
    "a redirect to an invalid URL": (302, b""),
    "a redirect with a location of UTF-8": (302, b""),
    "a redirect without a location": (302, b""),
    **{f"status {status}": (status, JSON) for status in (299, 450, 599, 600, 999)},
}
# What these are is a matter of the decompression, which other tests check.
ENCODED = {name for name, data in RESPONSES.items() if b"Content-Encoding: " in data} | {
    "gzip without a label"
}

REJECTED = {
    "a header of its response is longer than 64 KiB": (
        "a header of 64 KiB and 10 bytes",
        "a header of 65.6 KiB",
        "a header of 200 KiB",
        "a header's name of 70 KiB",
        "a reason phrase of 70 KiB",
    ),
    "its response has more than 512 headers": ("2,000 headers",),
    "its response has two different values of Content-Length": (
        "two different lengths",
        "two different lengths in one header",
        "two different lengths on an open connection",
    ),
    "the Content-Length of its response is invalid": (
        "a length with a plus sign",
        "a negative length",
        "a length with an underscore",
        "a length that is no number",
        "a length in hexadecimal",
        "a length with a fraction",
        "an empty length",
        "a length in other digits",
        "a length of 30 digits",
    ),
    "the Transfer-Encoding of its response was not requested": (
        "gzip and chunked as transfer encodings",
        "gzip as the transfer encoding",
        "chunked before gzip",
        "an unknown transfer encoding",
        "a transfer encoding that starts like chunked",
    ),
    "it closed the connection within the body of its response": (
        "a body that is shorter than its length",
        "a length and no body",
        "chunks without the last one",
    ),
    "it closed the connection within the headers of its response": (
        "a 103 only",
        "carriage returns only",
        "headers that do not end",
        "headers that end within a name",
        "one byte",
        "half a status line",
    ),
    "it closed the connection without a response": ("nothing",),
    "its response has an invalid header": (
        "a blank in a name",
        "a header without a colon",
        "an empty name",
        "a folded first header",
        "UTF-8 in a name",
        "a symbol in a name",
        "a quotation mark in a name",
        "a semicolon instead of a colon",
    ),
    "a header of its response contains a carriage return or a NUL": (
        "a NUL in a value",
        "a NUL in a name",
        "a NUL in the reason phrase",
        "a carriage return in a value",
        "a carriage return in the reason phrase",
        "two carriage returns before a line feed",
    ),
    "its response is not HTTP/1.1": (
        "a blank before the response",
        "rubbish before the response",
        "a byte order mark before the response",
        "HTTP/0.9",
        "HTTP/0.9 in the status line",
        "HTTP/01.1",
        "HTTP/2.0",
        "HTTP/2",
        "HTTP/3.7",
        "a version in lower case",
        "a version of mixed case",
        "another protocol",
        "RTSP",
        "SSH",
        "a greeting of another protocol",
        "an HTTP/2 frame",
        "an empty status line",
    ),
    "it speaks TLS; set the connection's host to its https:// address": ("a TLS alert",),
    "the status line of its response is invalid": (
        "HTTP/1.10",
        *(f"status {status}" for status in ("0", "000", "20", "99", "099", "0200", "1000", "2000")),
        *(f"status {status}" for status in ("-200", "+20", "2_0", "200.0", "OK", "in other digits")),
        "no status",
    ),
    "the size of a chunk of its response is invalid": (
        "line feeds only, and chunks",
        "a blank before a chunk size",
        "a chunk size with 0x",
        "a chunk size with a plus sign",
        "a chunk size with an underscore",
    ),
    "the size of a chunk of its response is longer than 64 KiB": ("a chunk extension of 70 KiB",),
    "it sent nothing for the connection's read_timeout": (
        "no length on an open connection",
        "a shorter body than its length on an open connection",
        "headers without an end on an open connection",
    ),
}
CAUSES = {name: cause for cause, names in REJECTED.items() for name in names}


def get_outcome(driver: Driver, name: str) -> Any:
    """Return the response to a request, or the error, without the server's address."""
    with HostileServer(name) as server:
        settings = settings_for(server.url, read_timeout=0.5 if "on an open" in name else 5.0)
        try:
            response = driver(settings, single_request(POST))
        except FlowError as error:
            doubt = getattr(error, "may_have_arrived", None)
            return type(error), doubt, str(error).replace(server.url, "http://host")
    return response.status, response.headers, response.body


@pytest.mark.parametrize("name", NAMES)
def test_outcome_is_the_same_over_both_transports(name: str) -> None:
    """A response has the same outcome in a worker and in a triggerer, which is that of the tables above."""
    outcomes = [get_outcome(driver, name) for driver in DRIVERS.values()]
    assert outcomes[0] == outcomes[1]
    outcome = outcomes[0]
    if name in CAUSES:
        assert outcome[:2] == (FlowUnreachable, True)
        assert f"got no usable response from http://host: {CAUSES[name]}" in outcome[2]
        assert ("The service may have acted on it." in outcome[2]) is (name != "a TLS alert")
    elif name not in ENCODED:
        assert (outcome[0], outcome[2]) == OTHER_VALUES.get(name, (200, JSON))


def test_tables_name_known_responses() -> None:
    """Each response of the tables above exists, and is in one of them at most."""
    listed = [*(name for names in REJECTED.values() for name in names), *OTHER_VALUES, *ENCODED]
    assert set(listed) <= set(NAMES)
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize("name", ["plain JSON labelled gzip", "gzip with a wrong checksum"])
def test_wrong_compression_is_called_that(driver: Driver, name: str) -> None:
    """A body that is not compressed as its header says is an error that says so."""
    outcome = get_outcome(driver, name)
    assert outcome[:2] == (FlowUnreachable, True)
    assert "the body of its response is not in the compression that its header names" in outcome[2]


@pytest.mark.parametrize(
    ("name", "headers"),
    {
        "a blank before the colon": {"x-a": "b"},
        "a folded header": {"x-a": "b c"},
        "UTF-8 in a value": {"x-a": "Stühle"},
        "Latin-1 in a value": {"x-a": "Stühle"},
        "two content types": {"content-type": "a/b, c/d"},
        "two equal lengths": {"content-length": "8"},
        "length and chunked": {"transfer-encoding": "chunked", "content-length": None},
        "a carriage return in a value": None,
        "120 headers": {"x-118": "a"},
        "a header of 64 KiB": {"x-long": "a" * (64 * 1024 - 10)},
    }.items(),
)
def test_headers_are_complete(driver: Driver, name: str, headers: dict[str, str | None] | None) -> None:
    """The headers of a response are those that were sent; several of one name are joined."""
    outcome = get_outcome(driver, name)
    if headers is None:
        assert outcome[0] is FlowUnreachable
        return
    assert {key: outcome[1].get(key) for key in headers} == headers


@pytest.mark.parametrize(
    "name",
    [
        "rubbish after the body on an open connection",
        "a second response on an open connection",
        "a longer body than its length on an open connection",
        "bytes after the chunks on an open connection",
        "a 204 with a body on an open connection",
        "length and chunked on an open connection",
    ],
)
def test_connection_with_more_bytes_than_its_response_is_not_used_again(driver: Driver, name: str) -> None:
    """What follows a response is never taken for the response to the next request."""

    def send_twice() -> Conversation[list[Response]]:
        first = yield from single_request(POST)
        second = yield from single_request(POST)
        return [first, second]

    with HostileServer(name) as server:
        responses = driver(settings_for(server.url), send_twice())
        assert len(server.peers) == 2
    assert responses[0].body == responses[1].body
    assert responses[0].status == responses[1].status < 300


def read(pieces: list[bytes], *, has_body: bool = True) -> tuple[Any, bytes] | str:
    """Return the head and the plain form of a response that arrives in pieces, or why it cannot be read."""
    framing = Framing(has_body=has_body)
    try:
        plain = b"".join(map(framing.feed, pieces))
        plain += framing.finish()
    except FramingError as error:
        return str(error)
    return framing.head, plain


def merge_chunks(plain: bytes) -> bytes:
    """Return the plain form of a response with the data of its chunks only."""
    head, _, body = plain.partition(b"\r\n\r\n")
    if b"chunked" not in head:
        return plain
    data = b""
    while body != b"0\r\n\r\n":
        size, _, body = body.partition(b"\r\n")
        data, body = data + body[: int(size, 16)], body[int(size, 16) + 2 :]
    return head + data


@pytest.mark.parametrize("name", [name for name, data in RESPONSES.items() if len(data) < 5_000])
def test_segments_make_no_difference(name: str) -> None:
    """A response is read in the same way whether it arrives at once, in two segments, or byte by byte."""
    data = RESPONSES[name]
    splits = [[data[:end], data[end:]] for end in range(1, len(data))]
    outcomes = [read(pieces) for pieces in [[data], *splits, [bytes([byte]) for byte in data]]]
    merged = [each if isinstance(each, str) else (each[0], merge_chunks(each[1])) for each in outcomes]
    assert all(each == merged[0] for each in merged)


def test_endless_heads_are_bounded() -> None:
    """Headers, and a trailer, end at a bound, however they are divided."""
    header = b"X-A: " + b"a" * 60_000 + b"\r\n"
    headers = [header] * (MAX_HEAD_BYTES // len(header) + 1)
    assert read([OK, *headers]) == "the headers of its response are longer than 1024 KiB"
    assert read([OK, *[b"X-A: b\r\n"] * (MAX_HEADERS + 1)]) == "its response has more than 512 headers"
    trailer = read([OK, b"Transfer-Encoding: chunked\r\n\r\n0\r\n", *headers])
    assert re.search("longer than 1024 KiB", str(trailer))


def test_response_to_a_head_request_has_no_body() -> None:
    """The length in the response to a HEAD is that of a body that is not sent."""
    head, plain = read([OK + b"Content-Length: 99\r\n\r\n"], has_body=False)
    assert plain == b"HTTP/1.1 200 \r\n\r\n"
    assert head.to_dict() == {"content-length": "99"}  # type: ignore[attr-defined]
