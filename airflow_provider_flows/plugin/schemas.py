"""Pydantic schemas of the pages and of their JSON routes.

They contain no secrets and no signed links, and their texts and lists are bounded.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel

from airflow_provider_flows.core.flow_run import FlowState

OutputKind = Literal["image", "text", "file", "inspectable"]


class OutputSchema(BaseModel):
    """One output of a flow run.

    `number` is its index among the run's outputs and identifies it in URLs; `location` is the URI of its
    stored file. `kind` is "inspectable" if the first bytes of the file have to be read: for a model or an
    unknown media type.
    """

    number: int
    name: str
    kind: OutputKind
    status: str
    media_type: str | None = None
    size: int | None = None
    sha256: str | None = None
    location: str | None = None
    text: str | None = None
    is_truncated: bool = False
    error: str | None = None
    warning: str | None = None
    note: str | None = None
    is_downloadable: bool = False


class RunSchema(BaseModel):
    """One flow run.

    Timestamps are in UTC, `progress` is 0.0 to 1.0, `duration` is in seconds and counts up to now for an
    active run.
    """

    flow_run_id: str
    service: str
    flow: str | None = None
    state: FlowState
    raw_state: str
    is_final: bool
    progress: float
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    expected_end: datetime | None = None
    duration: float | None = None
    error: str | None = None


class InputSchema(BaseModel):
    """One input; `name` is the name of a variable or the input's number, from 1."""

    name: str
    text: str


class PreviousRunSchema(BaseModel):
    """A flow run of earlier tries; `last_try` is the number of the last try that had it."""

    flow_run_id: str
    last_try: int


class RunPage(BaseModel):
    """The page of one flow run.

    `run` is None if there is no run or nothing is known about it; `note` then has the reason. With
    `is_error`, `note` is an error. `refresh_after` is the number of seconds until the next poll, None if
    nothing will change. `version` changes whenever anything but progress and times does.
    """

    version: str = ""
    run: RunSchema | None = None
    inputs: list[InputSchema] = []
    parameters: dict[str, Any] = {}
    outputs: list[OutputSchema] = []
    note: str | None = None
    is_error: bool = False
    task_state: str | None = None
    try_number: int = 0
    previous_runs: list[PreviousRunSchema] = []
    refresh_after: float | None = None


class RunListSchema(BaseModel):
    """One page of a connection's flow runs.

    `total` is the number of runs that match the filters; `flows` and `states` are the values to filter by,
    `states` with their counts.
    """

    version: str = ""
    flows_conn_id: str
    service: str
    runs: list[RunSchema] = []
    total: int = 0
    page: int = 1
    pages: int = 1
    flows: list[str] = []
    states: dict[str, int] = {}
    note: str | None = None
    is_error: bool = False
    refresh_after: float | None = None


class ModelSchema(BaseModel):
    """Facts about a 3D model, from the header of its GLB file."""

    meshes: int
    triangles: int
    materials: int
    textures: int
    animations: int
    generator: str | None = None


class OutputInfoSchema(BaseModel):
    """Facts about an output's file, from its first bytes."""

    media_type: str | None = None
    is_image: bool = False
    model: ModelSchema | None = None
