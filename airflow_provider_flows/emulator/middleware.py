"""The ASGI middleware around both services: it records each request and injects faults."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from airflow_provider_flows.emulator.scripting import Fault
from airflow_provider_flows.emulator.state import EmulatorState, RecordedRequest

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
# Returns the connection of a request while it is open.
FindConnection = Callable[[Scope], asyncio.Transport | None]

CONTROL_PREFIX = "/_emulator"
SECRET_HEADERS = frozenset({"authorization", "x-api-key", "proxy-authorization", "cookie"})
MAX_LOGGED_BODY_BYTES = 256 * 1024


class EmulatorMiddleware:
    """Passes requests on to the services, unless a fault hits them; control requests always pass."""

    def __init__(self, app: App, emulator_state: EmulatorState, find_connection: FindConnection) -> None:
        self.app = app
        self.emulator_state = emulator_state
        self.find_connection = find_connection

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["path"].startswith(CONTROL_PREFIX):
            await self.app(scope, receive, send)
            return
        # A fault hits a request that arrived completely, so the entire body is read first.
        body = await _read_body(receive)
        record = _to_recorded_request(scope, body)
        self.emulator_state.request_log.add(record)
        if self.emulator_state.request_listener is not None:
            self.emulator_state.request_listener(record)
        fault = self.emulator_state.faults.consume(record.method, record.path)
        if fault is None:
            await self.app(scope, _replay(body, receive), _record_status(record, send))
        else:
            await self._inject_fault(fault, scope, _replay(body, receive), _record_status(record, send))

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
        # close() first sends what has been written.
        connection = self.find_connection(scope)
        if connection is not None:
            connection.close()
        return await _wait_for_disconnect(receive)


@dataclass
class BufferedResponse:
    """A response of a service, buffered until the fault has changed it."""

    status: int = 200
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""

    async def receive(self, message: Message) -> None:
        """Receive an ASGI message in place of the client."""
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], list(message.get("headers", []))
        else:
            self.body += message.get("body", b"")

    def override(self, headers: dict[str, str], body: bytes | None) -> None:
        """Replace the given headers, and the body unless it is None."""
        if body is not None:
            self.body = body
        new = {name.lower().encode("latin-1"): value.encode("latin-1") for name, value in headers.items()}
        new.setdefault(b"content-length", str(len(self.body)).encode())
        unchanged = [(name, value) for name, value in self.headers if name.lower() not in new]
        self.headers = unchanged + list(new.items())


def _to_recorded_request(scope: Scope, body: bytes) -> RecordedRequest:
    """Return the record of a request, with credentials blanked and a long body cut."""
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    return RecordedRequest(
        method=scope["method"],
        path=scope["path"],
        query=dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)),
        headers={name: "***" if name in SECRET_HEADERS else value for name, value in headers.items()},
        body=body[:MAX_LOGGED_BODY_BYTES],
        body_size=len(body),
        at=time.time(),
    )


async def _read_body(receive: Receive) -> bytes:
    chunks = []
    while True:
        message = await receive()
        chunks.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(chunks)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that returns the body first, and then the messages that follow it."""
    pending = [body]

    async def receive_replay() -> Message:
        if pending:
            return {"type": "http.request", "body": pending.pop(), "more_body": False}
        return await receive()

    return receive_replay


def _record_status(record: RecordedRequest, send: Send) -> Send:
    """Return a `send` that stores the response's status in the record."""

    async def send_and_record(message: Message) -> None:
        if message["type"] == "http.response.start":
            record.status = message["status"]
        await send(message)

    return send_and_record


def _reset_connection(connection: asyncio.Transport | None) -> None:
    if connection is None:
        return
    # With a linger time of zero the kernel sends RST, as for a crashed peer, and does not close in order.
    connection.get_extra_info("socket").setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
    )
    connection.abort()


async def _wait_for_disconnect(receive: Receive) -> None:
    """Wait until the server has noticed the disconnect; before that, it would send an error response."""
    while (await receive())["type"] != "http.disconnect":
        pass
