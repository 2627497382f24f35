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

CHAINS = "/api/flows/run/"
OWN = "/chaos/"  # paths that are for the proxy itself; a task tells by them where it is
HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "host", "keep-alive"}
FORWARD_TIMEOUT = 120
ROW = threading.Lock()  # a plan is for the run that is created next, so runs are created one by one

Deed = Callable[[int], bool]
When = Literal["before", "after", "midway"]


@dataclass
class Moment:
    """The n-th request of a kind, and whether its deed is done before the work, after it, or midway through the answer.

    The deed is given the client's port and tells whether it was done; if it was not, the next such request is meant.
    """

    method: str
    path: str
    deed: Deed
    when: When = "before"
    nth: int = 1
    passed: int = 0
    done: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def comes(self, method: str, path: str) -> bool:
        """Count a request, and tell whether it is the one."""
        if self.done or method != self.method or not re.fullmatch(self.path, path):
            return False
        self.passed += 1
        return self.passed >= self.nth


@dataclass
class Seen:
    """One request and the status of its answer; 0 if none was given."""

    method: str
    path: str
    status: int = 0


@dataclass
class Answer:
    """What the service answered."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


@dataclass
class Book:
    """What a proxy has seen."""

    requests: list[Seen] = field(default_factory=list)
    created: list[str] = field(default_factory=list)
    """The ids of the flow runs that were made, in order."""
    started: list[str] = field(default_factory=list)
    """The id of a flow run each time that one was started."""
    deleted: list[str] = field(default_factory=list)

    def note(self, seen: Seen, sent: bytes, answer: Answer) -> None:
        """Note what a request has changed at the service."""
        seen.status = answer.status
        if answer.status >= 300:
            return
        flow_run_id = seen.path.removeprefix("/flows/")
        told = _json(sent)
        if (seen.method, seen.path) == ("POST", "/flows"):
            flow_run_id = _json(answer.body)["flow_id"]
            self.created.append(flow_run_id)
            if told.get("inputs"):
                self.started.append(flow_run_id)
        elif seen.method == "POST" and seen.path.startswith(CHAINS):
            self.started.append(f"chain {len(self.started)}")  # PromptChainer gives its runs no id
        elif seen.method == "PATCH" and told.get("action") == "start":
            self.started.append(flow_run_id)
        elif seen.method == "DELETE":
            self.deleted.append(flow_run_id)


class Proxy(AbstractContextManager["Proxy"]):
    """A proxy in front of one service, for one scenario."""

    def __init__(self, target: str, *, plan: Callable[[], None] | None = None) -> None:
        """Take a free port; nothing is answered yet.

        :param plan: called right before each flow run is created, while no other one is.
        """
        self.target = target
        self.plan = plan
        self.moments: list[Moment] = []
        self.book = Book()
        self.away = False
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

    def coming(self, method: str, path: str) -> Moment | None:
        """Count a request, and give the moment that it is, if any."""
        with self.lock:
            return next((moment for moment in self.moments if moment.comes(method, path)), None)

    def forward(self, method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> Answer:
        """Ask the service."""
        creating = method == "POST" and path.partition("?")[0] == "/flows"
        with ROW if creating else contextlib.nullcontext():
            if creating and self.plan is not None:
                self.plan()
            target = urlsplit(self.target)
            connection = http.client.HTTPConnection(
                str(target.hostname), target.port, timeout=FORWARD_TIMEOUT
            )
            with contextlib.closing(connection):
                connection.request(method, path, body or None, dict(headers))
                told = connection.getresponse()
                return Answer(told.status, told.getheaders(), told.read())


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
        body = self._body()
        path = self.path.partition("?")[0]
        seen = Seen(self.command, path)
        self.owner.book.requests.append(seen)
        if self.owner.away:
            self._break_off()
            return
        moment = self.owner.coming(self.command, path)
        if moment is not None and moment.when == "before" and self._befell(moment):
            return
        try:
            answer = self._answered(body)
        except OSError:
            self._break_off()
            return
        if not path.startswith(OWN):
            self.owner.book.note(seen, body, answer)
        if moment is not None and moment.when == "after" and self._befell(moment):
            return
        if moment is not None and moment.when == "midway":
            self._tell(answer, len(answer.body) // 2)
            if self._befell(moment):
                return
            self.wfile.write(answer.body[len(answer.body) // 2 :])
            return
        self._tell(answer, len(answer.body))

    do_GET = do_POST = do_PATCH = do_DELETE = serve  # noqa: N815  # the names are the standard library's

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _befell(self, moment: Moment) -> bool:
        with moment.lock:  # two downloads at once may both be the one that is meant; only one of them is
            done = not moment.done and moment.deed(self.client_address[1])
            moment.done = moment.done or done
        if done:
            self._break_off()
        return done

    def _answered(self, body: bytes) -> Answer:
        if self.path.startswith(OWN):
            return Answer(200, [], b"{}")
        headers = [(name, value) for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP]
        return self.owner.forward(self.command, self.path, headers, body)

    def _tell(self, answer: Answer, size: int) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers:
            if name.lower() not in HOP_BY_HOP | {"date", "server"}:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body[:size])
        self.wfile.flush()

    def _break_off(self) -> None:
        """Reset the connection."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        body = b""
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body


def _json(text: bytes) -> dict[str, Any]:
    try:
        told = json.loads(text or b"{}")
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}
