"""All mutable state of one emulator, so that a reset can clear all of it: flow runs, clock and request log.

The state of a Generio flow run is a pure function of its `Timeline` and the time, so polling never changes
it. Times are epoch seconds. Both services reject a request that the state does not allow with `ApiError`.
"""

from __future__ import annotations

import base64
import copy
import hmac
import itertools
import json
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from threading import Lock, RLock
from typing import Any

from airflow_provider_flows.emulator.generio_templates import Template
from airflow_provider_flows.emulator.graph import PromptGraph, sample_graphs
from airflow_provider_flows.emulator.scripting import FaultRegistry, Plan, PlanQueue
from airflow_provider_flows.emulator.switches import Switches

FINAL_STATES = frozenset({"completed", "failed", "aborted"})
STARTING_SHARE = 0.1
ABORTING_SHARE = 0.2
# A client that polls right after its abort sees `aborting` for short runs, too.
MIN_ABORTING_SECONDS = 0.25
# How long outputs may still be processing after the end, as a share of the run's duration.
PROCESSING_SHARE = 0.2
MAX_LOGGED_REQUESTS = 100_000

_PROCESS = secrets.token_hex(5)
_COUNTER = itertools.count(secrets.randbelow(1 << 20))


class Clock:
    """Wall-clock time that a test can advance."""

    def __init__(self) -> None:
        self._offset_seconds = 0.0

    def now(self) -> float:
        """Return the current time in epoch seconds."""
        return time.time() + self._offset_seconds

    def advance(self, seconds: float) -> None:
        """Move the clock forward, so that a test need not wait.

        :raises ValueError: `seconds` is negative.
        """
        if seconds < 0:
            raise ValueError(f"The clock cannot be moved back: {seconds} s")
        self._offset_seconds += seconds

    def reset(self) -> None:
        """Return to the machine's time."""
        self._offset_seconds = 0.0


def to_iso(timestamp: float | None, style: str = "zulu") -> str | None:
    """Format epoch seconds as ISO 8601 in UTC.

    :param style: ``"zulu"`` appends ``Z``, ``"offset"`` appends ``+00:00``, ``"naive"`` appends nothing.
    """
    if timestamp is None:
        return None
    text = datetime.fromtimestamp(timestamp, UTC).replace(tzinfo=None).isoformat(timespec="milliseconds")
    return text + {"zulu": "Z", "offset": "+00:00", "naive": ""}[style]


@dataclass(frozen=True)
class Timeline:
    """Everything that decides which state a flow run has at a given time."""

    seconds: float = 0.0
    outcome: str = "completed"
    unknown_state: str | None = None
    started_at: float | None = None
    aborted_at: float | None = None
    abort: str = "visible"


@dataclass(frozen=True)
class StateAt:
    """The state of a flow run at one time; `fraction` is its progress from 0 to 1."""

    state: str
    fraction: float = 0.0
    finished_at: float | None = None

    @property
    def is_final(self) -> bool:
        """Whether the state will not change any more."""
        return self.state in FINAL_STATES


def new_id() -> str:
    """Return 24 hex digits that are composed like a MongoDB ObjectId: seconds, process, counter."""
    return f"{int(time.time()):08x}{_PROCESS}{next(_COUNTER) & 0xFFFFFF:06x}"


def to_data_uri(media_type: str, content: bytes) -> str:
    """Return the content as a data URI."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


@dataclass(frozen=True)
class Media:
    """Content with its media type."""

    media_type: str
    content: bytes

    @property
    def data(self) -> str:
        """The content as the API sends it: a prompt as it is, anything else as a data URI."""
        if self.media_type == "text/plain":
            return self.content.decode()
        return to_data_uri(self.media_type, self.content)


@dataclass(eq=False)
class InputAsset:
    """One input of a Generio flow run."""

    media: Media = field(repr=False)
    additional: object = None
    asset_id: str = field(default_factory=new_id)

    @property
    def data(self) -> str:
        """The input as the API sends it."""
        return self.media.data


@dataclass(eq=False)
class OutputAsset:
    """One output of a Generio flow run; its file is created on first access."""

    source: InputAsset
    template: Template = field(repr=False)
    parameters: dict[str, Any]
    error: str | None = None
    asset_id: str = field(default_factory=new_id)
    _content: bytes | None = field(default=None, repr=False)
    _lock: Lock = field(default_factory=Lock, repr=False)

    @property
    def additional(self) -> object:
        """The caller's metadata, copied from the input."""
        return self.source.additional

    @property
    def content(self) -> bytes:
        """The file: a GLB."""
        with self._lock:
            if self._content is None:
                # Imported here because the mesh libraries take time and memory.
                from airflow_provider_flows.emulator.models import create_output

                self._content = create_output(self.template.name, self.source.media.content, self.parameters)
            return self._content


@dataclass(eq=False)
class GenerioRun:
    """One Generio flow run."""

    spec: Template = field(repr=False)
    explicit_parameters: dict[str, Any]
    additional: object
    plan: Plan
    clock: Clock = field(repr=False)
    flow_run_id: str = field(default_factory=new_id)
    inputs: list[InputAsset] = field(default_factory=list)
    timeline: Timeline = field(default_factory=Timeline)
    error: str | None = None
    is_deleted: bool = False
    service: str = "generio"

    def __post_init__(self) -> None:
        """Record the time of creation."""
        self.created_at = self.clock.now()
        self._outputs: list[OutputAsset] = []

    @property
    def template(self) -> str:
        """The template's name."""
        return self.spec.name

    @property
    def flow(self) -> str:
        """The template's name, under the same name as for PromptChainer."""
        return self.spec.name

    @property
    def parameters(self) -> dict[str, Any]:
        """All parameters: the caller's, and the template's defaults for the others."""
        return self.spec.defaults() | self.explicit_parameters

    @property
    def current(self) -> StateAt:
        """State, progress and end at the present time."""
        return compute_state(self.timeline, self.clock.now())

    @property
    def state(self) -> str:
        """The state at the present time."""
        return self.current.state

    @property
    def has_started(self) -> bool:
        """Whether the flow run was started, and is billed."""
        return self.timeline.started_at is not None

    @property
    def outputs(self) -> list[OutputAsset]:
        """The outputs at the present time; empty until the flow run is final."""
        current = self.current
        if current.state == "completed":
            return self._outputs
        if not current.is_final or not self.plan.partial_outputs:
            return []
        return self._outputs

    @property
    def has_ready_outputs(self) -> bool:
        """Whether the time is over in which outputs may still be processing after the end."""
        finished = self.current.finished_at
        return (
            finished is not None and self.clock.now() >= finished + PROCESSING_SHARE * self.timeline.seconds
        )

    def start(self, seconds: float, failure: str | None) -> None:
        """Start the flow run.

        :param seconds: its duration, unless the plan has one.
        :param failure: the error with which it will fail, if its parameters or inputs require that.
        """
        outcome = "failed" if failure else self.plan.outcome
        if outcome == "failed":
            self.error = failure or self.plan.error or "The flow run failed"
        if self.plan.run_seconds is not None:
            seconds = self.plan.run_seconds
        success_count = len(self.inputs) if outcome == "completed" else (len(self.inputs) + 1) // 2
        self._outputs = [
            OutputAsset(
                source,
                self.spec,
                self.parameters,
                None if number < success_count else self.error or "Not created",
            )
            for number, source in enumerate(self.inputs)
        ]
        self.timeline = Timeline(seconds, outcome, self.plan.unknown_state, started_at=self.clock.now())

    def abort(self, mode: str) -> None:
        """Abort the flow run in the way of the switch `abort`."""
        self.timeline = replace(self.timeline, aborted_at=self.clock.now(), abort=mode)


@dataclass(eq=False)
class ChainRun:
    """One PromptChainer flow run; the service sends no id, so this one is for tests only."""

    flow: str
    inputs: Mapping[str, str]
    created_at: float
    flow_run_id: str = field(default_factory=new_id)
    # Not in the repr, because a signed URL is all that is needed to download an image.
    outputs: list[dict[str, Any]] = field(default_factory=list, repr=False)
    state: str = "running"
    error: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    additional: object = None
    has_started: bool = True
    service: str = "promptchainer"

    @property
    def template(self) -> str:
        """The flow's id, under the same name as for Generio."""
        return self.flow


def compute_state(timeline: Timeline, now: float) -> StateAt:
    """Return the state of a flow run at the given time."""
    if timeline.started_at is None:
        return StateAt("created")
    end = timeline.started_at + timeline.seconds
    if timeline.aborted_at is not None:
        return _compute_aborted_state(timeline, timeline.aborted_at, now, end)
    if now >= end:
        return StateAt(timeline.outcome, _fraction(timeline, end), end)
    elapsed_share = (now - timeline.started_at) / timeline.seconds
    if timeline.unknown_state is not None and 1 / 3 <= elapsed_share < 2 / 3:
        return StateAt(timeline.unknown_state, _fraction(timeline, now))
    return StateAt("starting" if elapsed_share < STARTING_SHARE else "running", _fraction(timeline, now))


def _compute_aborted_state(timeline: Timeline, aborted_at: float, now: float, end: float) -> StateAt:
    if timeline.abort == "finishes":
        if now >= end:
            return StateAt(timeline.outcome, 1.0, end)
        return StateAt("aborting", _fraction(timeline, now))
    abort_seconds = 0.0
    if timeline.abort == "visible":
        abort_seconds = max(MIN_ABORTING_SECONDS, ABORTING_SHARE * timeline.seconds)
    fraction = _fraction(timeline, aborted_at)
    if now < aborted_at + abort_seconds:
        return StateAt("aborting", fraction)
    return StateAt("aborted", fraction, aborted_at + abort_seconds)


def _fraction(timeline: Timeline, now: float) -> float:
    """Return the progress; a flow run that does not complete stays below 1."""
    if timeline.started_at is None or timeline.seconds <= 0:
        return 1.0 if timeline.outcome == "completed" else 0.0
    share = (now - timeline.started_at) / timeline.seconds
    done = max(0.0, min(1.0, (share - STARTING_SHARE) / (1 - STARTING_SHARE)))
    return done if timeline.outcome == "completed" else min(done, 0.99)


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
