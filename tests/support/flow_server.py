"""A small server of flow runs for the tests of the watch: it runs in a thread of its own and keeps who asked what, and when.

What it answers to a look or a list can be replaced; it knows nothing of the package.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import Any, Self

import pytest
from aiohttp import web


@dataclass(frozen=True)
class ApiRequest:
    """One request as it came in, `at` in epoch seconds."""

    path: str
    query: Mapping[str, str]
    key: str
    at: float

    @property
    def is_list(self) -> bool:
        """Whether a list of runs was asked for."""
        return self.path == "/flows"


@dataclass(frozen=True)
class ApiResponse:
    """What is answered, after so many seconds: bytes as they are, anything else as JSON."""

    value: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0


@dataclass(frozen=True)
class StubRun:
    """A run that takes so many seconds."""

    started_at: float
    duration: float
    end: str = "completed"
    progress: Callable[[float], float] = lambda _: 0.0  # of the part that has passed

    @property
    def ends_at(self) -> float:
        """When it ends, in epoch seconds."""
        return self.started_at + self.duration


class StubFlowServer:
    """The server, from `with` to the end of the block; it takes the keys in `keys`."""

    def __init__(self) -> None:
        self.keys = {"key"}
        self.runs: dict[str, StubRun] = {}
        self.requests: list[ApiRequest] = []
        self.peers: set[Any] = set()  # one for each connection that was ever made
        self.max_in_flight = 0
        self.run_response: Callable[[str, ApiRequest], ApiResponse] = lambda key, _: ApiResponse(
            self.row(key)
        )
        self.list_response: Callable[[ApiRequest], ApiResponse] = lambda _: ApiResponse(
            {"flows": [self.row(key) for key in self.running_ids()]}
        )
        self.url = ""
        self._in_flight = 0
        self._ready = Event()
        self._thread = Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> Self:
        """Begin to answer."""
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._loop.call_soon_threadsafe(self._stop_event.set)
        self._thread.join(10)

    def create_runs(self, count: int, duration: float, prefix: str = "r", **more: Any) -> list[str]:
        """Let runs begin now, and give their ids."""
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
        """Give the ids of the runs that are not over."""
        return [key for key, run in list(self.runs.items()) if time.time() < run.ends_at]

    def row(self, key: str) -> dict[str, Any]:
        """Tell how a run is now."""
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
        """Give the requests for lists."""
        return [request for request in self.requests if request.is_list]

    def poll_requests(self, keys: Iterable[str] | None = None) -> list[ApiRequest]:
        """Give the requests for single runs, or for these."""
        paths = None if keys is None else {f"/flows/{key}" for key in keys}
        return [
            request
            for request in self.requests
            if not request.is_list and (paths is None or request.path in paths)
        ]

    @property
    def open_connections(self) -> int:
        """How many connections are open."""
        return len(self._server.connections)

    async def _serve(self) -> None:
        self._loop, self._stop_event = asyncio.get_running_loop(), asyncio.Event()
        self._server = web.Server(
            self._handle, handler_cancellation=True
        )  # whoever goes away waits for nothing any more
        runner = web.ServerRunner(self._server, shutdown_timeout=0.01, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = "http://{}:{}".format(*runner.addresses[0][:2])
        self._ready.set()
        await self._stop_event.wait()
        await runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        key = request.headers.get("Authorization", "").removeprefix("Bearer ")
        received = ApiRequest(request.path, dict(request.query), key, time.time())
        self.requests.append(received)
        self.peers.add(request.get_extra_info("peername"))
        self._in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self._in_flight)
        try:
            response = self._response_to(received)
            await asyncio.sleep(response.delay)
        finally:
            self._in_flight -= 1
        body = response.value if isinstance(response.value, bytes) else json.dumps(response.value).encode()
        return web.Response(status=response.status, body=body, headers=dict(response.headers))

    def _response_to(self, request: ApiRequest) -> ApiResponse:
        key = request.path.removeprefix("/flows/")
        if request.key not in self.keys:
            return ApiResponse({"detail": "Not authenticated"}, 401)
        if request.is_list:
            return self.list_response(request)
        return (
            self.run_response(key, request) if key in self.runs else ApiResponse({"detail": "Not found"}, 404)
        )
