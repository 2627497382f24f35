"""Responses that arrive a byte at a time without end, and uploads that are not read."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count

from tests.support.hostile.server import head, json_response, register, send_slowly

SECONDS_PER_BYTE = 0.02
ENDLESS = 100_000  # bytes; more than any test waits for
JSON = json_response({"flow_id": "r", "state": "running", "pad": "x" * ENDLESS})
CHUNKED = head(Content_Type="application/json", Transfer_Encoding="chunked")

# What is sent at once, and what follows a byte at a time.
RESPONSES = {
    "a slow status line": (b"", b"HTTP/1.1 200 " + b"O" * ENDLESS),
    "slow headers": (b"HTTP/1.1 200 OK\r\n", b"X-Header: value\r\n" * ENDLESS),
    "a slow body": (JSON[:200], JSON[200:]),
    "a slow body of an error": (
        head(status="503 Service Unavailable", Content_Length=str(ENDLESS)),
        b"x" * ENDLESS,
    ),
    "a slow body without a length": (head(Connection="close"), b" " * ENDLESS),
    "slow chunks": (CHUNKED, b"1\r\n \r\n" * ENDLESS),
    "a slow line of a chunk size": (CHUNKED + b"1\r\n{\r\n", b"1;extension=" + b"x" * ENDLESS),
    "a slow trailer": (CHUNKED + b"2\r\n{}\r\n0\r\n", b"X-Trailer: value\r\n" * ENDLESS),
    "endless 100 Continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * ENDLESS),
    "endless 103 Early Hints": (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * ENDLESS),
}

# Those in which the headers of a success arrive at once.
OF_A_BODY = {
    "a slow body",
    "a slow body without a length",
    "slow chunks",
    "a slow line of a chunk size",
    "a slow trailer",
}


def _register(name: str, at_once: bytes, slowly: bytes) -> None:
    @register(name)
    def act(connection: socket.socket) -> None:
        connection.sendall(at_once)
        send_slowly(connection, slowly, seconds_per_byte=SECONDS_PER_BYTE)


for _name, (_at_once, _slowly) in RESPONSES.items():
    _register(_name, _at_once, _slowly)


def _repeat(send: Callable[[int], None], seconds: float) -> None:
    with suppress(OSError):  # the client has disconnected
        for number in count():
            send(number)
            time.sleep(seconds)


@register("a flood of 100 Continue")
def _flood_with_informational_responses(connection: socket.socket) -> None:
    _repeat(lambda _: connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 100), 0.001)


@register("silence")
def _stay_silent(connection: socket.socket) -> None:
    connection.recv(1)


@register("a slow TLS handshake", reads_request=False)
def _send_handshake_slowly(connection: socket.socket) -> None:
    # the header of a TLS record of 16 KiB, and its content
    send_slowly(connection, b"\x16\x03\x03\x40\x00\x02" + bytes(ENDLESS), seconds_per_byte=SECONDS_PER_BYTE)


@register("an upload that is not read", reads_request=False)
def _never_read(connection: socket.socket) -> None:
    connection.recv(100)
    _wait_for_reset(connection)


@register("an upload that is read slowly", reads_request=False)
def _read_slowly(connection: socket.socket) -> None:
    def read(_: int) -> None:
        if not connection.recv(1024):
            raise ConnectionError

    _repeat(read, SECONDS_PER_BYTE)


@register("an upload that is not read, after the headers of a response", reads_request=False)
def _respond_without_reading(connection: socket.socket) -> None:
    connection.recv(100)
    connection.sendall(head(Content_Length=str(ENDLESS)))
    send_slowly(connection, b" " * ENDLESS, seconds_per_byte=SECONDS_PER_BYTE)


def _wait_for_reset(connection: socket.socket) -> None:
    """Wait until the client closes the connection, without reading what it has sent."""
    _repeat(lambda _: _raise_if_closed(connection), SECONDS_PER_BYTE)


def _raise_if_closed(connection: socket.socket) -> None:
    connection.send(b"", socket.MSG_NOSIGNAL)
    tcp_state = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO)
    if tcp_state != 1:  # not established any more
        raise ConnectionError


def send_steadily(size: int, seconds_per_piece: float, piece: int = 2_000) -> Callable[[socket.socket], None]:
    """Return an action that sends a body of this size at an even rate: slow, and not too slow."""

    def act(connection: socket.socket) -> None:
        connection.sendall(head(Content_Type="application/octet-stream", Content_Length=str(size)))
        for start in range(0, size, piece):
            connection.sendall(b"x" * min(piece, size - start))
            time.sleep(seconds_per_piece)

    return act
