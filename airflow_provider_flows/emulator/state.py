"""All mutable state of one emulator, with the log of its requests, so that a reset can clear all of it.

Both services reject a request that this state does not allow with `ApiError`.
"""

from __future__ import annotations

import copy
import hmac
import json
import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock, RLock
from typing import Any

from airflow_provider_flows.emulator.graph import PromptGraph, sample_graphs
from airflow_provider_flows.emulator.runs import ChainRun, Clock, GenerioRun
from airflow_provider_flows.emulator.scripting import FaultRegistry, PlanQueue
from airflow_provider_flows.emulator.switches import Switches

MAX_LOGGED_REQUESTS = 100_000


class ApiError(Exception):
    """A request that the emulated service rejects.

    :param status: the HTTP status of the response.
    :param detail: the reason as text, or a list of entries as FastAPI sends with status 422.
    """

    def __init__(self, status: int, detail: str | list[dict[str, Any]]) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


@dataclass
class RecordedRequest:
    """A request that the emulator received, without its credentials.

    `query` and `headers` map names to values, headers by lower-case name. `body` is the first part of a long
    body, `body_size` its full size in bytes. `at` is the machine's time in epoch seconds.
    `status` is the status of the response, or None when there is no response (yet).
    """

    method: str
    path: str
    query: dict[str, str] = field(repr=False)
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    body_size: int
    at: float
    status: int | None = None

    @property
    def json(self) -> Any:
        """The body parsed as JSON; None if it is not JSON or was too long to be stored."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    def to_json(self) -> dict[str, Any]:
        """Return the record for the control API."""
        return {
            "method": self.method,
            "path": self.path,
            "query": self.query,
            "headers": self.headers,
            "body": self.body.decode(errors="replace"),
            "body_size": self.body_size,
            "json": self.json,
            "at": self.at,
            "status": self.status,
        }


class RequestLog:
    """The latest requests, oldest first; safe to use from several threads."""

    def __init__(self) -> None:
        self._requests: deque[RecordedRequest] = deque(maxlen=MAX_LOGGED_REQUESTS)
        self._lock = Lock()

    def add(self, record: RecordedRequest) -> None:
        """Append a request."""
        with self._lock:
            self._requests.append(record)

    def all(self) -> tuple[RecordedRequest, ...]:
        """Return the logged requests."""
        with self._lock:
            return tuple(self._requests)

    def clear(self) -> None:
        """Remove all requests."""
        with self._lock:
            self._requests.clear()


@dataclass(eq=False)
class EmulatorState:
    """The state of one emulator."""

    key: str = field(repr=False)
    run_seconds: float
    switches: Switches = field(default_factory=Switches)
    clock: Clock = field(default_factory=Clock)
    faults: FaultRegistry = field(default_factory=FaultRegistry)
    plans: PlanQueue = field(default_factory=PlanQueue)
    request_log: RequestLog = field(default_factory=RequestLog)
    runs: dict[str, GenerioRun] = field(default_factory=dict)
    paid_runs: list[GenerioRun | ChainRun] = field(default_factory=list)
    graphs: dict[str, PromptGraph] = field(default_factory=sample_graphs)
    images: dict[str, str] = field(default_factory=dict, repr=False)
    signing_key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    # Called with each request before the request is processed.
    request_listener: Callable[[RecordedRequest], None] | None = None
    # Held from reading a flow run's state to changing it.
    lock: RLock = field(default_factory=RLock, repr=False)

    def __post_init__(self) -> None:
        """Save the values that a reset restores."""
        self._initial = (copy.copy(self.switches), self.run_seconds, dict(self.graphs))

    def is_valid_key(self, key: str | None) -> bool:
        """Return whether this is the emulator's key; takes the same time for every key of its length."""
        return key is not None and hmac.compare_digest(key.encode(), self.key.encode())

    def reset(self) -> None:
        """Restore the state that the emulator was created with."""
        switches, seconds, graphs = self._initial
        with self.lock:
            self.switches.update(switches.to_dict())
            self.run_seconds = seconds
            self.clock.reset()
            self.request_listener = None
            for store in (self.faults, self.plans, self.request_log, self.runs, self.paid_runs, self.images):
                store.clear()
            self.graphs.clear()
            self.graphs.update(graphs)
