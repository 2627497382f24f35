"""The server of a hostile service, and the table of its behaviours."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tests.support.servers import MisbehavingServer

Act = Callable[[socket.socket], None]

BEHAVIOURS: dict[str, Act] = {}
"""What each behaviour does with a connection after its complete request was read."""

_ACT_AT_ONCE: set[str] = set()


def register(name: str, *, reads_request: bool = True) -> Callable[[Act], Act]:
    """Return a decorator that registers a behaviour.

    :param reads_request: whether the server reads a request before it behaves so.
    """

    def add(act: Act) -> Act:
        if name in BEHAVIOURS:
            message = f"two behaviours are named {name!r}"
            raise ValueError(message)
        BEHAVIOURS[name] = act
        if not reads_request:
            _ACT_AT_ONCE.add(name)
        return act

    return add


class HostileServer(MisbehavingServer):
    """A server that shows one behaviour at every request, until the client disconnects."""

    def __init__(self, name: str) -> None:
        super().__init__(BEHAVIOURS[name])
        if name in _ACT_AT_ONCE:
            self._handle_connection = BEHAVIOURS[name]


def send_slowly(connection: socket.socket, data: bytes, *, seconds_per_byte: float = 1.0) -> None:
    """Send bytes one at a time, until the client disconnects."""
    with suppress(OSError):
        for number in range(len(data)):
            connection.sendall(data[number : number + 1])
            time.sleep(seconds_per_byte)


def head(*, status: str = "200 OK", **headers: str) -> bytes:
    """Return a status line and headers; an underscore in a name is sent as a dash."""
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode()


def json_response(value: Any) -> bytes:
    """Return a complete response with a JSON body."""
    body = json.dumps(value).encode()
    return head(Content_Type="application/json", Content_Length=str(len(body))) + body
