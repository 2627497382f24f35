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
class Asked:
    """One request as it came in, `at` in epoch seconds."""

    path: str
    query: Mapping[str, str]
    key: str
    at: float

    @property
    def listing(self) -> bool:
        """Whether a list of runs was asked for."""
        return self.path == "/flows"


@dataclass(frozen=True)
class Told:
    """What is answered, after so many seconds: bytes as they are, anything else as JSON."""

    value: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0


@dataclass(frozen=True)
class Made:
    """A run that takes so many seconds."""

    began: float
    lasts: float
    end: str = "completed"
    progress: Callable[[float], float] = lambda _: 0.0  # of the part that has passed

    @property
    def over(self) -> float:
        """When it ends, in epoch seconds."""
        return self.began + self.lasts


class FlowStation:
    """The server, from `with` to the end of the block; it takes the keys in `keys`."""

    def __init__(self) -> None:
        self.keys = {"key"}
        self.runs: dict[str, Made] = {}
        self.asked: list[Asked] = []
        self.peers: set[Any] = set()  # one for each connection that was ever made
        self.most_in_flight = 0
        self.look: Callable[[str, Asked], Told] = lambda key, _: Told(self.row(key))
        self.listing: Callable[[Asked], Told] = lambda _: Told(
            {"flows": [self.row(key) for key in self.running()]}
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
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)

    def make(self, how_many: int, lasts: float, prefix: str = "r", **more: Any) -> list[str]:
        """Let runs begin now, and give their ids."""
        ids = [f"{prefix}{number}" for number in range(how_many)]
        self.runs.update({key: Made(time.time(), lasts, **more) for key in ids})
        return ids

    def connect(
        self, monkeypatch: pytest.MonkeyPatch, conn_id: str = "flows_default", key: str = "key", **extra: Any
    ) -> None:
        """Set the Airflow connection to this server."""
        told = {"conn_type": "generio", "host": self.url, "password": key, "extra": extra}
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(told))

    def running(self) -> list[str]:
        """Give the ids of the runs that are not over."""
        return [key for key, run in list(self.runs.items()) if time.time() < run.over]

    def row(self, key: str) -> dict[str, Any]:
        """Tell how a run is now."""
        run, now = self.runs[key], time.time()
        told = {"flow_id": key, "template": "t", "started_at": run.began, "created_at": run.began}
        if now < run.over:
            return {**told, "state": "running", "progress": run.progress((now - run.began) / run.lasts)}
        return {**told, "state": run.end, "progress": 1.0, "finished_at": run.over}

    def lists(self) -> list[Asked]:
        """Give the requests for lists."""
        return [asked for asked in self.asked if asked.listing]

    def looks(self, keys: Iterable[str] | None = None) -> list[Asked]:
        """Give the requests for single runs, or for these."""
        paths = None if keys is None else {f"/flows/{key}" for key in keys}
        return [asked for asked in self.asked if not asked.listing and (paths is None or asked.path in paths)]

    @property
    def open(self) -> int:
        """How many connections are open."""
        return len(self._server.connections)

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        self._server = web.Server(
            self._answer, handler_cancellation=True
        )  # whoever goes away waits for nothing any more
        runner = web.ServerRunner(self._server, shutdown_timeout=0.01, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = "http://{}:{}".format(*runner.addresses[0][:2])
        self._ready.set()
        await self._over.wait()
        await runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        key = request.headers.get("Authorization", "").removeprefix("Bearer ")
        asked = Asked(request.path, dict(request.query), key, time.time())
        self.asked.append(asked)
        self.peers.add(request.get_extra_info("peername"))
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            told = self._told(asked)
            await asyncio.sleep(told.delay)
        finally:
            self._in_flight -= 1
        body = told.value if isinstance(told.value, bytes) else json.dumps(told.value).encode()
        return web.Response(status=told.status, body=body, headers=dict(told.headers))

    def _told(self, asked: Asked) -> Told:
        key = asked.path.removeprefix("/flows/")
        if asked.key not in self.keys:
            return Told({"detail": "Not authenticated"}, 401)
        if asked.listing:
            return self.listing(asked)
        return self.look(key, asked) if key in self.runs else Told({"detail": "Not found"}, 404)
