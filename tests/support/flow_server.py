"""A server of scripted flow runs: it records each request, and a test can replace its responses."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from tests.support.servers import ReceivedRequest, StubResponse, StubServer


@dataclass(frozen=True)
class ApiRequest:
    """A received request, `at` in epoch seconds."""

    path: str
    query: Mapping[str, str]
    key: str
    at: float

    @property
    def is_list(self) -> bool:
        """Whether it requests a list of runs."""
        return self.path == "/flows"


@dataclass(frozen=True)
class ApiResponse:
    """A response, and the seconds before it is sent: bytes as they are, anything else as JSON."""

    value: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0


@dataclass(frozen=True)
class StubRun:
    """A run that takes `duration` seconds."""

    started_at: float
    duration: float
    end: str = "completed"
    progress: Callable[[float], float] = lambda _: 0.0  # of the fraction of its time that has passed

    @property
    def ends_at(self) -> float:
        """The time of its end, in epoch seconds."""
        return self.started_at + self.duration


class StubFlowServer(StubServer):
    """The server; it accepts the keys in `keys`."""

    def __init__(self) -> None:
        super().__init__()
        self.keys = {"key"}
        self.runs: dict[str, StubRun] = {}
        self.requests: list[ApiRequest]
        self.run_response: Callable[[str, ApiRequest], ApiResponse] = lambda key, _: ApiResponse(
            self.row(key)
        )
        self.list_response: Callable[[ApiRequest], ApiResponse] = lambda _: ApiResponse(
            {"flows": [self.row(key) for key in self.running_ids()]}
        )
        self._response_lock = threading.Lock()

    def create_runs(self, count: int, duration: float, prefix: str = "r", **more: Any) -> list[str]:
        """Start runs, and return their ids."""
        ids = [f"{prefix}{number}" for number in range(count)]
        self.runs.update({key: StubRun(time.time(), duration, **more) for key in ids})
        return ids

    def connect(
        self, monkeypatch: pytest.MonkeyPatch, conn_id: str = "flows_default", key: str = "key", **extra: Any
    ) -> None:
        """Set the Airflow connection to this server."""
        connection = {"conn_type": "generio", "host": self.url, "password": key, "extra": extra}
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(connection))

    def running_ids(self) -> list[str]:
        """Return the ids of the runs in progress."""
        return [key for key, run in list(self.runs.items()) if time.time() < run.ends_at]

    def row(self, key: str) -> dict[str, Any]:
        """Return the present JSON of a run."""
        run, now = self.runs[key], time.time()
        fields = {"flow_id": key, "template": "t", "started_at": run.started_at, "created_at": run.started_at}
        if now < run.ends_at:
            return {
                **fields,
                "state": "running",
                "progress": run.progress((now - run.started_at) / run.duration),
            }
        return {**fields, "state": run.end, "progress": 1.0, "finished_at": run.ends_at}

    def list_requests(self) -> list[ApiRequest]:
        """Return the requests for lists."""
        return [request for request in self.requests if request.is_list]

    def poll_requests(self, keys: Iterable[str] | None = None) -> list[ApiRequest]:
        """Return the requests for single runs, or for these runs."""
        paths = None if keys is None else {f"/flows/{key}" for key in keys}
        return [
            request
            for request in self.requests
            if not request.is_list and (paths is None or request.path in paths)
        ]

    def respond(self, request: ReceivedRequest) -> StubResponse:
        """Record a request, and return the response to it; a test's functions are called one at a time."""
        parts = urlsplit(request.path)
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        received = ApiRequest(parts.path, dict(parse_qsl(parts.query)), key, request.at)
        self.requests.append(received)
        with self._response_lock:
            response = self._response_to(received)
        body = response.value if isinstance(response.value, bytes) else json.dumps(response.value).encode()
        return StubResponse(response.status, response.headers, body, response.delay)

    def _response_to(self, request: ApiRequest) -> ApiResponse:
        key = request.path.removeprefix("/flows/")
        if request.key not in self.keys:
            return ApiResponse({"detail": "Not authenticated"}, 401)
        if request.is_list:
            return self.list_response(request)
        return (
            self.run_response(key, request) if key in self.runs else ApiResponse({"detail": "Not found"}, 404)
        )
