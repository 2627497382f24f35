"""Flow runs as the emulator remembers them: what was given, when it began, what comes out.

Which requests are allowed is the rules' affair, and how a run looks on the wire the views'.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any

from airflow_provider_flows.emulator.clock import Clock
from airflow_provider_flows.emulator.generio.inputs import Media
from airflow_provider_flows.emulator.generio.templates import Template
from airflow_provider_flows.emulator.models import make
from airflow_provider_flows.emulator.plans import Plan
from airflow_provider_flows.emulator.timeline import PROCESSING_SHARE, StateAt, Timeline, compute_state

_PROCESS = secrets.token_hex(5)
_COUNTER = itertools.count(secrets.randbelow(1 << 20))


def new_id() -> str:
    """Return 24 hex digits in the way of a MongoDB ObjectId: seconds, process, counter."""
    return f"{int(time.time()):08x}{_PROCESS}{next(_COUNTER) & 0xFFFFFF:06x}"


@dataclass(eq=False)
class InputAsset:
    """One input of a flow run."""

    media: Media = field(repr=False)
    additional: object = None
    asset_id: str = field(default_factory=new_id)

    @property
    def data(self) -> str:
        """What was sent, written as the API writes it."""
        return self.media.data


@dataclass(eq=False)
class OutputAsset:
    """One output of a flow run; its file is made when it is first asked for."""

    source: InputAsset
    template: Template = field(repr=False)
    parameters: dict[str, Any]
    error: str | None = None
    asset_id: str = field(default_factory=new_id)
    _content: bytes | None = field(default=None, repr=False)
    _lock: Lock = field(default_factory=Lock, repr=False)

    @property
    def additional(self) -> object:
        """The caller's own data, copied from the input."""
        return self.source.additional

    @property
    def content(self) -> bytes:
        """The file, made once."""
        with self._lock:
            if self._content is None:
                self._content = make.create_output(
                    self.template.name, self.source.media.content, self.parameters
                )
            return self._content


@dataclass(eq=False)
class GenerioRun:
    """One flow run of Generio's."""

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
        """Note the time."""
        self.created_at = self.clock.now()
        self._outputs: list[OutputAsset] = []

    @property
    def template(self) -> str:
        """The template's name."""
        return self.spec.name

    @property
    def flow(self) -> str:
        """The template's name, in this package's word."""
        return self.spec.name

    @property
    def parameters(self) -> dict[str, Any]:
        """What was given, with the template's defaults in the gaps."""
        return self.spec.defaults() | self.explicit_parameters

    @property
    def current(self) -> StateAt:
        """State, progress and end, as of now."""
        return compute_state(self.timeline, self.clock.now())

    @property
    def state(self) -> str:
        """The state as of now."""
        return self.current.state

    @property
    def has_started(self) -> bool:
        """Whether anybody had to pay for it."""
        return self.timeline.started_at is not None

    @property
    def outputs(self) -> list[OutputAsset]:
        """What there is of outputs as of now: nothing before the end."""
        current = self.current
        if current.state == "completed":
            return self._outputs
        if not current.is_final or not self.plan.partial_outputs:
            return []
        return self._outputs

    @property
    def has_ready_outputs(self) -> bool:
        """Whether the outputs too have had time to become ready, where that takes a while."""
        finished = self.current.finished_at
        return (
            finished is not None and self.clock.now() >= finished + PROCESSING_SHARE * self.timeline.seconds
        )

    def start(self, seconds: float, failure: str | None) -> None:
        """Begin; ``broken`` says why it is bound to fail, if it is."""
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
                None if number < success_count else self.error or "Not made",
            )
            for number, source in enumerate(self.inputs)
        ]
        self.timeline = Timeline(seconds, outcome, self.plan.unknown_state, started_at=self.clock.now())

    def abort(self, mode: str) -> None:
        """Begin to end early."""
        self.timeline = replace(self.timeline, aborted_at=self.clock.now(), abort=mode)


@dataclass(eq=False)
class ChainRun:
    """One flow run of PromptChainer's; the service gives it no id, this one is for tests."""

    flow: str
    inputs: Mapping[str, str]
    created_at: float
    flow_run_id: str = field(default_factory=new_id)
    # Hidden, because a signed URL opens a picture to whoever reads it.
    outputs: list[dict[str, Any]] = field(default_factory=list, repr=False)
    state: str = "running"
    error: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    additional: object = None
    has_started: bool = True
    service: str = "promptchainer"

    @property
    def template(self) -> str:
        """The flow's id, under the name that Generio's flow runs have too."""
        return self.flow
