"""The flow runs of both services, with their inputs and outputs."""

from __future__ import annotations

import base64
import itertools
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any

from airflow_provider_flows.emulator.generio.templates import Template
from airflow_provider_flows.emulator.models import create_output
from airflow_provider_flows.emulator.scripting import Plan
from airflow_provider_flows.emulator.timeline import PROCESSING_SHARE, Clock, StateAt, Timeline, compute_state

_PROCESS = secrets.token_hex(5)
_COUNTER = itertools.count(secrets.randbelow(1 << 20))


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
