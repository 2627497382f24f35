"""The gate that every request goes through: it is recorded there, and there faults are carried out.

Which requests are struck is the fault book's affair; what they mean the routes'.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from airflow_provider_flows.emulator.faults import Fault
from airflow_provider_flows.emulator.request_log import MAX_LOGGED_BODY_BYTES, RecordedRequest, redact_headers
from airflow_provider_flows.emulator.state import EmulatorState

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
# Finds the connection that a request came by, while it is open.
FindConnection = Callable[[Scope], asyncio.Transport | None]

CONTROL_PREFIX = "/_emulator"


@dataclass
class BufferedResponse:
    """An answer held back until it is known what becomes of it."""

    status: int = 200
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""

    async def receive(self, message: Message) -> None:
        """Be sent to, in place of the client."""
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], list(message.get("headers", []))
        else:
            self.body += message.get("body", b"")

    def override(self, headers: dict[str, str], body: bytes | None) -> None:
        """Put in other headers and another body."""
        if body is not None:
            self.body = body
        new = {name.lower().encode("latin-1"): value.encode("latin-1") for name, value in headers.items()}
        new.setdefault(b"content-length", str(len(self.body)).encode())
        self.headers = [(name, value) for name, value in self.headers if name.lower() not in new] + list(
            new.items()
        )


class EmulatorMiddleware:
    """An ASGI middleware around both services."""

    def __init__(self, app: App, emulator_state: EmulatorState, find_connection: FindConnection) -> None:
        self.app = app
        self.emulator_state = emulator_state
        self.find_connection = find_connection

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, recorded, or let a fault have it."""
        if scope["type"] != "http" or scope["path"].startswith(CONTROL_PREFIX):
            await self.app(scope, receive, send)
            return
        # The whole body first: a fault is to strike a request that arrived, not one half sent.
        body = await _read_body(receive)
        record = _to_recorded_request(scope, body)
        self.emulator_state.request_log.add(record)
        if self.emulator_state.request_listener is not None:
            self.emulator_state.request_listener(record)
        fault = self.emulator_state.faults.consume(record.method, record.path)
        if fault is None:
            await self.app(scope, _replay(body, receive), _recording_send(record, send))
        else:
            await self._inject_fault(fault, scope, _replay(body, receive), _recording_send(record, send))

    async def _inject_fault(self, fault: Fault, scope: Scope, receive: Receive, send: Send) -> None:
        response = BufferedResponse()
        if fault.status is not None:
            response = BufferedResponse(fault.status, [(b"content-type", b"application/json")])
        elif fault.reset != "before":
            await self.app(scope, receive, response.receive)
        await asyncio.sleep(fault.delay)
        if fault.reset is not None:
            _reset_connection(self.find_connection(scope))
            return await _wait_for_disconnect(receive)
        response.override(
            fault.headers, fault.body if fault.body is not None or fault.status is None else b""
        )
        await send({"type": "http.response.start", "status": response.status, "headers": response.headers})
        if fault.truncate is None or fault.truncate >= len(response.body):
            return await send({"type": "http.response.body", "body": response.body})
        await send({"type": "http.response.body", "body": response.body[: fault.truncate], "more_body": True})
        # close() sends what is written first.
        connection = self.find_connection(scope)
        if connection is not None:
            connection.close()
        return await _wait_for_disconnect(receive)


def _to_recorded_request(scope: Scope, body: bytes) -> RecordedRequest:
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    return RecordedRequest(
        method=scope["method"],
        path=scope["path"],
        query=dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)),
        headers=redact_headers(headers),
        body=body[:MAX_LOGGED_BODY_BYTES],
        body_size=len(body),
        at=time.time(),
    )


async def _read_body(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a receive that gives the body once more, and then whatever really comes."""
    pending = [body]

    async def receive_replay() -> Message:
        if pending:
            return {"type": "http.request", "body": pending.pop(), "more_body": False}
        return await receive()

    return receive_replay


def _recording_send(record: RecordedRequest, send: Send) -> Send:
    async def send_and_record(message: Message) -> None:
        if message["type"] == "http.response.start":
            record.status = message["status"]
        await send(message)

    return send_and_record


def _reset_connection(connection: asyncio.Transport | None) -> None:
    if connection is None:
        return
    # With no time to linger the kernel answers RST, as a crashed peer's does, and not an orderly end.
    connection.get_extra_info("socket").setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
    )
    connection.abort()


async def _wait_for_disconnect(receive: Receive) -> None:
    """Wait until the server has noticed, or else it would answer on its own."""
    while (await receive())["type"] != "http.disconnect":
        pass
