"""Downloads of a file that do not end, break off, or differ from attempt to attempt."""

from __future__ import annotations

import socket
import struct
from collections import Counter
from contextlib import suppress

from tests.support.hostile.server import head, register

MIB = 1024 * 1024
BODY_BYTES = 4 * MIB
BREAK_BYTES = 3 * MIB  # more than all buffers on the way to a reader
bytes_sent: Counter[int] = Counter()
"""How much of a file without an end each server has sent, by its port."""
_attempts: Counter[int] = Counter()


def model(size: int = BODY_BYTES, *, fill: bytes = b"\x01", header_size: int | None = None) -> bytes:
    """Return the bytes of a GLB file.

    :param header_size: the size that its header states, by default the real one.
    """
    start = struct.pack("<4sII", b"glTF", 2, size if header_size is None else header_size)
    return start + fill * (size - len(start))


def _port(connection: socket.socket) -> int:
    port: int = connection.getsockname()[1]
    return port


def _next_attempt(connection: socket.socket) -> int:
    _attempts[_port(connection)] += 1
    return _attempts[_port(connection)]


def _send(connection: socket.socket, body: bytes, size: int | None = None) -> None:
    """Send a file, or only its first bytes."""
    length = str(len(body))
    connection.sendall(head(Content_Type="model/gltf-binary", Content_Length=length, Connection="close"))
    connection.sendall(body[:size])


def _send_endlessly(connection: socket.socket, start: bytes, media_type: str) -> None:
    connection.sendall(head(Content_Type=media_type, Connection="close") + start)
    with suppress(OSError):
        while True:
            connection.sendall(bytes(65536))
            bytes_sent[_port(connection)] += 65536


@register("a model that never ends")
def _send_endless_model(connection: socket.socket) -> None:
    _send_endlessly(connection, model(100, header_size=2**32 - 1), "model/gltf-binary")


@register("a picture that never ends")
def _send_endless_picture(connection: socket.socket) -> None:
    _send_endlessly(connection, b"\x89PNG\r\n\x1a\n" + bytes(100), "image/png")


@register("a file that stops and stays silent")
def _send_silent_file(connection: socket.socket) -> None:
    _send(connection, model(), BREAK_BYTES)
    connection.recv(1)


@register("a file that always breaks off")
def _send_broken_file(connection: socket.socket) -> None:
    _send(connection, model(), BREAK_BYTES)


@register("a file that breaks off once")
def _send_file_that_breaks_off_once(connection: socket.socket) -> None:
    _send(connection, model(), BREAK_BYTES if _next_attempt(connection) == 1 else None)


@register("a file that breaks off, and then is another one")
def _send_changing_file(connection: socket.socket) -> None:
    if _next_attempt(connection) == 1:
        _send(connection, model(), BREAK_BYTES)
    else:
        _send(connection, model(fill=b"\x02"))


@register("a file that breaks off, and then is shorter")
def _send_shrinking_file(connection: socket.socket) -> None:
    if _next_attempt(connection) == 1:
        _send(connection, model(), BREAK_BYTES)
    else:
        _send(connection, model(MIB))


@register("a file that contradicts its header each time")
def _send_contradicting_file(connection: socket.socket) -> None:
    _send(connection, model(header_size=100))
