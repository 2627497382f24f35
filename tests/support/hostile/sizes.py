"""Responses without an end, and responses with too much of something."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress

from tests.support.hostile.server import head, json_response, register

LONG = 20 * 1024 * 1024
"""A length in characters that nothing in a response may have."""
BLOCK = 256 * 1024
PNG_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(17)
ENDLESS: dict[str, tuple[str, bytes, bytes]] = {
    "an endless PNG": ("image/png", PNG_START, bytes(BLOCK)),
    "an endless raw GLB": ("model/gltf-binary", b"glTF\x02\x00\x00\x00\xff\xff\xff\xff", b"x" * BLOCK),
    "an endless file in a data URI": (
        "application/json",
        b'{"data": "data:image/png;base64,' + b"iVBORw0KGgoAAAANSUhEUgAA",
        b"AAAA" * (BLOCK // 4),
    ),
    "an endless file in JSON, of white space": (
        "application/json",
        b'{"data": "data:image/png;base64,iVBORw0KGgo',
        b"\\n" * (BLOCK // 2),
    ),
    "endless JSON around a file": ("application/json", b'{"data": "data:,x", "a": "', b"x" * BLOCK),
    "an endless text": ("text/plain", b"Once upon a time", b" and then" * (BLOCK // 9)),
    "an endless list": (
        "application/json",
        b'{"flows": [{"flow_id": "0", "state": "running"}',
        b', {"flow_id": "1", "state": "running"}' * (BLOCK // 38),
    ),
    "an endless JSON text": ("application/json", b'{"flow_id": "', b"x" * BLOCK),
}
"""Media type, start, and a block that is repeated, of bodies without an end or a length."""


def _send_endlessly(
    media_type: str, start: bytes, block: bytes, status: str
) -> Callable[[socket.socket], None]:
    def act(connection: socket.socket) -> None:
        with suppress(OSError):
            connection.sendall(head(status=status, Content_Type=media_type) + start)
            while True:
                connection.sendall(block)

    return act


for _name, (_media_type, _start, _block) in ENDLESS.items():
    register(_name)(_send_endlessly(_media_type, _start, _block, "200 OK"))
register("an endless error")(_send_endlessly("text/html", b"<html>", b"no" * BLOCK, "404 Not Found"))


@register("a run with texts of 20 MiB")
def _send_run_with_long_texts(connection: socket.socket) -> None:
    text = "x" * LONG
    connection.sendall(json_response({"flow_id": text, "state": "running", "template": text}))


@register("a list of 10,500 outputs of one name")
def _send_many_outputs(connection: socket.socket) -> None:
    rows = [{"asset_id": f"a{number}", "status": "ready", "name": "chair"} for number in range(10_500)]
    connection.sendall(json_response({"outputs": rows}))
