"""A recording HTTP proxy between Airflow and a service, which runs an action at a chosen request."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from tests.support.servers import HttpHandler, HttpServer, reset

CHAIN_PATH = "/api/flows/run/"
CONTROL_PATH = "/chaos/"  # requests to the proxy itself, by which a task reports where it is
HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "host", "keep-alive"}
FORWARD_TIMEOUT_SECONDS = 120
QUOTA_ERROR = b'{"detail": "Generation quota used up"}'
CREATE_LOCK = threading.Lock()  # a plan applies to the run that is created next, so creations are serialized

Action = Callable[[int], bool]
When = Literal["before", "after", "midway"]


@dataclass
class Interception:
    """An action at the n-th request of a kind: before or after the service has it, or midway in the response.

    The action is called with the client's port and returns whether it was done. If not, it is called at the
    next such request.
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
        """Count a request, and return whether the action is due at it."""
        if self.is_done or method != self.method or not re.fullmatch(self.path, path):
            return False
        self.match_count += 1
        return self.match_count >= self.nth


@dataclass
class ProxiedRequest:
    """A request and the status of its response, 0 without a response."""

    method: str
    path: str
    status: int = 0


@dataclass
class ProxiedResponse:
    """The service's response."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass
class TrafficLog:
    """The requests that a proxy has forwarded, and what they changed."""

    requests: list[ProxiedRequest] = field(default_factory=list)
    created_ids: list[str] = field(default_factory=list)
    """The ids of the created flow runs, in order."""
    started_ids: list[str] = field(default_factory=list)
    """The id of a flow run for each start."""
    deleted_ids: list[str] = field(default_factory=list)

    def record(self, request: ProxiedRequest, body: bytes, response: ProxiedResponse) -> None:
        """Record what a request has changed at the service."""
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


class Proxy(HttpServer):
    """A proxy in front of one service, for one scenario."""

    def __init__(self, target: str, *, plan: Callable[[], None] | None = None) -> None:
        """Create the proxy.

        :param plan: called before each creation of a flow run, while no other one is created.
        """
        super().__init__(_ProxyHandler)
        self.target = target
        self.plan = plan
        self.interceptions: list[Interception] = []
        self.traffic = TrafficLog()
        self.is_down = False
        """While it is set, every connection is reset without a response."""
        self.is_failing_over = False
        """While it is set, every GET of flow runs gets a 404, as from a gateway that fails over."""
        self.not_found_count = 0
        self.is_quota_used_up = False
        """While it is set, no flow run can be created or started: each such request gets a 402."""
        self.quota_error_count = 0
        self.lock = threading.Lock()

    def match_request(self, method: str, path: str) -> Interception | None:
        """Count a request, and return the interception that is due at it, if any."""
        with self.lock:
            return next(
                (interception for interception in self.interceptions if interception.matches(method, path)),
                None,
            )

    def forward(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> ProxiedResponse:
        """Return the service's response."""
        creating = method == "POST" and path.partition("?")[0] == "/flows"
        with CREATE_LOCK if creating else contextlib.nullcontext():
            if creating and self.plan is not None:
                self.plan()
            target = urlsplit(self.target)
            connection = http.client.HTTPConnection(
                str(target.hostname), target.port, timeout=FORWARD_TIMEOUT_SECONDS
            )
            with contextlib.closing(connection):
                connection.request(method, path, body or None, dict(headers))
                response = connection.getresponse()
                return ProxiedResponse(response.status, _end_to_end(response.headers), response.read())


class _ProxyHandler(HttpHandler):
    server: Proxy

    def respond(self) -> None:
        """Forward a request, unless an interception is due."""
        body = self.read_body()
        path = self.path.partition("?")[0]
        request = ProxiedRequest(self.command, path)
        self.server.traffic.requests.append(request)
        if self.server.is_down:
            self._reset_connection()
            return
        interception = self.server.match_request(self.command, path)
        if interception is not None and interception.when == "before" and self._run_action(interception):
            return
        try:
            response = self._get_response(body)
        except OSError:
            self._reset_connection()
            return
        if not path.startswith(CONTROL_PATH):
            self.server.traffic.record(request, body, response)
        if interception is not None and interception.when == "after" and self._run_action(interception):
            return
        self.send_head(response.status, response.headers, len(response.body))
        if interception is None or interception.when != "midway":
            self.wfile.write(response.body)
            return
        middle = len(response.body) // 2
        self.wfile.write(response.body[:middle])
        if not self._run_action(interception):
            self.wfile.write(response.body[middle:])

    def _run_action(self, interception: Interception) -> bool:
        # two downloads at the same time may both match; the action is done at one of them
        with interception.lock:
            done = not interception.is_done and interception.action(self.client_address[1])
            interception.is_done = interception.is_done or done
        if done:
            self._reset_connection()
        return done

    def _get_response(self, body: bytes) -> ProxiedResponse:
        if self.path.startswith(CONTROL_PATH):
            return ProxiedResponse(200, {}, b"{}")
        if self.server.is_failing_over and self.command == "GET" and self.path.startswith("/flows"):
            self.server.not_found_count += 1
            return ProxiedResponse(404, {}, b"{}")
        if self.server.is_quota_used_up and self._needs_quota(body):
            self.server.quota_error_count += 1
            return ProxiedResponse(402, {"Content-Type": "application/json"}, QUOTA_ERROR)
        return self.server.forward(self.command, self.path, _end_to_end(self.headers), body)

    def _needs_quota(self, body: bytes) -> bool:
        is_creation = (self.command, self.path.partition("?")[0]) == ("POST", "/flows")
        return is_creation or (self.command == "PATCH" and _parse_object(body).get("action") == "start")

    def _reset_connection(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            reset(self.connection)
            self.connection.close()


def _end_to_end(headers: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value for name, value in headers.items() if name.lower() not in HOP_BY_HOP | {"date", "server"}
    }


def _parse_object(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text or b"{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
