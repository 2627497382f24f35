"""A recording HTTP proxy between Airflow and a service, which lets things happen at the very moment of a request.

It knows Generio's documented paths well enough to count starts; what happens at a moment is the caller's affair.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlsplit

CHAIN_PATH = "/api/flows/run/"
CONTROL_PATH = "/chaos/"  # paths that are for the proxy itself; a task tells by them where it is
HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "host", "keep-alive"}
FORWARD_TIMEOUT = 120
CREATE_LOCK = threading.Lock()  # a plan is for the run that is created next, so runs are created one by one

Action = Callable[[int], bool]
When = Literal["before", "after", "midway"]


@dataclass
class Interception:
    """The n-th request of a kind, and whether its deed is done before the work, after it, or midway through the answer.

    The deed is given the client's port and tells whether it was done; if it was not, the next such request is meant.
    """

    method: str
    path: str
    action: Action
    when: When = "before"
    nth: int = 1
    match_count: int = 0
    is_done: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def matches(self, method: str, path: str) -> bool:
        """Count a request, and tell whether it is the one."""
        if self.is_done or method != self.method or not re.fullmatch(self.path, path):
            return False
        self.match_count += 1
        return self.match_count >= self.nth


@dataclass
class ProxiedRequest:
    """One request and the status of its answer; 0 if none was given."""

    method: str
    path: str
    status: int = 0


@dataclass
class ProxiedResponse:
    """What the service answered."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


@dataclass
class TrafficLog:
    """What a proxy has seen."""

    requests: list[ProxiedRequest] = field(default_factory=list)
    created_ids: list[str] = field(default_factory=list)
    """The ids of the flow runs that were made, in order."""
    started_ids: list[str] = field(default_factory=list)
    """The id of a flow run each time that one was started."""
    deleted_ids: list[str] = field(default_factory=list)

    def record(self, request: ProxiedRequest, body: bytes, response: ProxiedResponse) -> None:
        """Note what a request has changed at the service."""
        request.status = response.status
        if response.status >= 300:
            return
        flow_run_id = request.path.removeprefix("/flows/")
        payload = _parse_object(body)
        if (request.method, request.path) == ("POST", "/flows"):
            flow_run_id = _parse_object(response.body)["flow_id"]
            self.created_ids.append(flow_run_id)
            if payload.get("inputs"):
                self.started_ids.append(flow_run_id)
        elif request.method == "POST" and request.path.startswith(CHAIN_PATH):
            self.started_ids.append(f"chain {len(self.started_ids)}")  # PromptChainer gives its runs no id
        elif request.method == "PATCH" and payload.get("action") == "start":
            self.started_ids.append(flow_run_id)
        elif request.method == "DELETE":
            self.deleted_ids.append(flow_run_id)


class Proxy(AbstractContextManager["Proxy"]):
    """A proxy in front of one service, for one scenario."""

    def __init__(self, target: str, *, plan: Callable[[], None] | None = None) -> None:
        """Take a free port; nothing is answered yet.

        :param plan: called right before each flow run is created, while no other one is.
        """
        self.target = target
        self.plan = plan
        self.interceptions: list[Interception] = []
        self.traffic = TrafficLog()
        self.is_down = False
        """While it is set, every connection is broken off without an answer."""
        self.lock = threading.Lock()
        self._http = _Server(("127.0.0.1", 0), type("Bound", (_Handler,), {"owner": self}))
        self.port = self._http.server_port
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        """Begin to answer."""
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""
        self._http.shutdown()
        self._http.server_close()

    def match_request(self, method: str, path: str) -> Interception | None:
        """Count a request, and give the moment that it is, if any."""
        with self.lock:
            return next(
                (interception for interception in self.interceptions if interception.matches(method, path)),
                None,
            )

    def forward(self, method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> ProxiedResponse:
        """Ask the service."""
        creating = method == "POST" and path.partition("?")[0] == "/flows"
        with CREATE_LOCK if creating else contextlib.nullcontext():
            if creating and self.plan is not None:
                self.plan()
            target = urlsplit(self.target)
            connection = http.client.HTTPConnection(
                str(target.hostname), target.port, timeout=FORWARD_TIMEOUT
            )
            with contextlib.closing(connection):
                connection.request(method, path, body or None, dict(headers))
                response = connection.getresponse()
                return ProxiedResponse(response.status, response.getheaders(), response.read())


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: that clients die in the middle of it is what this is for."""


class _Handler(BaseHTTPRequestHandler):
    owner: Proxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def serve(self) -> None:
        """Forward one request, unless its moment has come."""
        body = self._read_body()
        path = self.path.partition("?")[0]
        request = ProxiedRequest(self.command, path)
        self.owner.traffic.requests.append(request)
        if self.owner.is_down:
            self._reset_connection()
            return
        interception = self.owner.match_request(self.command, path)
        if interception is not None and interception.when == "before" and self._run_action(interception):
            return
        try:
            response = self._get_response(body)
        except OSError:
            self._reset_connection()
            return
        if not path.startswith(CONTROL_PATH):
            self.owner.traffic.record(request, body, response)
        if interception is not None and interception.when == "after" and self._run_action(interception):
            return
        if interception is not None and interception.when == "midway":
            self._send(response, len(response.body) // 2)
            if self._run_action(interception):
                return
            self.wfile.write(response.body[len(response.body) // 2 :])
            return
        self._send(response, len(response.body))

    do_GET = do_POST = do_PATCH = do_DELETE = serve  # noqa: N815  # the names are the standard library's

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _run_action(self, interception: Interception) -> bool:
        with (
            interception.lock
        ):  # two downloads at once may both be the one that is meant; only one of them is
            done = not interception.is_done and interception.action(self.client_address[1])
            interception.is_done = interception.is_done or done
        if done:
            self._reset_connection()
        return done

    def _get_response(self, body: bytes) -> ProxiedResponse:
        if self.path.startswith(CONTROL_PATH):
            return ProxiedResponse(200, [], b"{}")
        headers = [(name, value) for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP]
        return self.owner.forward(self.command, self.path, headers, body)

    def _send(self, response: ProxiedResponse, size: int) -> None:
        self.send_response(response.status)
        for name, value in response.headers:
            if name.lower() not in HOP_BY_HOP | {"date", "server"}:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        self.wfile.write(response.body[:size])
        self.wfile.flush()

    def _reset_connection(self) -> None:
        """Reset the connection."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def _read_body(self) -> bytes:
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        body = b""
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body


def _parse_object(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text or b"{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
