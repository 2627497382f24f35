"""Services that accept a request and then take any time."""

from __future__ import annotations

import json
import socket

from tests.support.hostile.server import head, register, send_slowly

RUN = json.dumps({"flow_id": "r", "state": "running", "parameters": {"note": "x" * 10_000}}).encode()


@register("no response to any request")
def _send_nothing(connection: socket.socket) -> None:
    connection.recv(1)  # until the client disconnects


@register("a run of which one byte arrives per second")
def _send_run_slowly(connection: socket.socket) -> None:
    connection.sendall(head(Content_Type="application/json", Content_Length=str(len(RUN))))
    send_slowly(connection, RUN)


@register("headers of which one byte arrives per second")
def _send_headers_slowly(connection: socket.socket) -> None:
    send_slowly(connection, head(X_Filler="x" * 10_000, Content_Length=str(len(RUN))) + RUN)


@register("a response that is announced without end")
def _send_interim_responses(connection: socket.socket) -> None:
    send_slowly(connection, head(status="100 Continue") * 1000)


@register("a run and then bytes without end")
def _send_endless_body(connection: socket.socket) -> None:
    connection.sendall(head(Content_Type="application/json", Content_Length=str(10**9)) + RUN)
    send_slowly(connection, b" " * 10_000)
