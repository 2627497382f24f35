"""The pydantic schemas of the pages and of their JSON routes, and the conversion of what they show.

Values come from services and from XComs, so they are untrusted: secrets are redacted, links omitted, texts
bounded and control characters replaced. The schemas contain no secrets and no signed links.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from hashlib import sha256
from itertools import islice
from typing import Any, Literal

from pydantic import BaseModel

from airflow_provider_flows.core.flow_run import ERROR, FlowOutput, FlowRun, FlowState
from airflow_provider_flows.core.limits import MAX_VERDICT_PROBLEMS
from airflow_provider_flows.core.payload.data_uri import GLB
from airflow_provider_flows.core.redaction import MAX_PARAMETERS, find_signatures
from airflow_provider_flows.core.timestamps import parse_timestamp
from airflow_provider_flows.plugin.cache import estimate_size
from airflow_provider_flows.plugin.texts import (
    InputSchema,
    replace_surrogates,
    to_optional_safe_line,
    to_output_title,
    to_safe_line,
)
from airflow_provider_flows.storage.paths import StorageLocation

# image types in which a browser executes nothing
SAFE_IMAGE_TYPES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
MAX_TEXT_PREVIEW_LENGTH = 20_000  # characters of a text output
MAX_PARAMETER_BYTES = 32 * 1024  # of one parameter of a run in memory
MAX_OUTPUTS_PER_PAGE = 200
MAX_OUTPUTS_PER_ITEM = 4  # in the table of a batch; the page of an item has all
MAX_LISTED_TEXT_LENGTH = 200  # characters of a text there
ITEM_STATE_ORDER = ("completed", "failed", "invalid", "aborted", "fetching", "active", "pending", "skipped")
MIN_SURE_PROGRESS = 0.25  # below it, the expected end is given to the minute
MAX_FACTS = 10  # of a verdict
MAX_ATTEMPTS = 1_000_000  # that are plausible
OUTPUT_PATH_HINT = "Set output_path to have the task store the file."
LINK_NOTE = f"This output is an expiring link, which is not shown. {OUTPUT_PATH_HINT}"
OutputKind = Literal["image", "text", "file", "inspectable"]


class VerdictSchema(BaseModel):
    """The verdict of a task's checks of an output; `facts` are short texts."""

    is_accepted: bool
    problems: list[str] = []
    facts: list[str] = []


class OutputSchema(BaseModel):
    """One output of a flow run.

    `number` is its index among the run's outputs and identifies it in URLs; `version` changes with its file.
    `title` is its name, or what was asked for if that is an id. `location` is the URI of its stored file.
    `kind` is "inspectable" if the first bytes of the file have to be read: for a model or an unknown media
    type.
    """

    number: int
    version: str
    name: str
    title: str
    asset_id: str | None = None
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
    verdict: VerdictSchema | None = None


class RunSchema(BaseModel):
    """One flow run.

    Timestamps are in UTC, `progress` is 0.0 to 1.0. `duration` is in seconds and counts up to now for an
    active run. `seconds_left` is the time until the expected end, which `is_rough` while there is little
    progress.
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
    seconds_left: float | None = None
    is_rough: bool = False
    duration: float | None = None
    error: str | None = None


class PreviousRunSchema(BaseModel):
    """A flow run of earlier tries; `last_try` is the number of the last try that had it."""

    flow_run_id: str
    last_try: int


class RunPage(BaseModel):
    """The page of one flow run.

    `run` is None if there is no run or nothing is known about it; `note` then has the reason. With
    `is_error`, `note` is an error. `refresh_after` is the number of seconds until the next poll, None if
    nothing will change. `version` changes whenever anything but progress and times does. `title` is what was
    asked for. `next_step` is what can be done about a run that did not complete. The outputs of a task that
    still stores them are not displayed yet: `is_storing`.
    """

    version: str = ""
    title: str = ""
    run: RunSchema | None = None
    next_step: str | None = None
    is_storing: bool = False
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


class BatchItemSchema(BaseModel):
    """One item of a batch, as its manifest has it.

    `flow_run_id` is None for an item that has no page of its own; `further_outputs` is the number of outputs
    that only that page has.
    """

    key: str
    state: str
    flow_run_id: str | None = None
    attempts: int = 0
    started_at: datetime | None = None
    finished_at: datetime | None = None
    is_reused: bool = False
    error: str | None = None
    outputs: list[OutputSchema] = []
    further_outputs: int = 0


class BatchPage(BaseModel):
    """One page of a batch's items, and the counts of all.

    `counts` has the number of items by state; those of `states` are listed, which are all once the batch has
    ended. `matches` is the number of listed items that match the filters. `rate` is the number of items that
    end in a minute, and `expected_end` a time in UTC; both are None if unknown. `version` changes whenever
    anything but the expected end does. The other fields are as in `RunPage`.
    """

    version: str = ""
    flow: str | None = None
    service: str | None = None
    state: FlowState
    total: int | None = None
    ended: int = 0
    counts: dict[str, int] = {}
    rate: float | None = None
    expected_end: datetime | None = None
    duration: float | None = None
    manifest: str | None = None
    items: list[BatchItemSchema] = []
    states: dict[str, int] = {}
    matches: int = 0
    page: int = 1
    pages: int = 1
    note: str | None = None
    is_error: bool = False
    task_state: str | None = None
    try_number: int = 0
    refresh_after: float | None = None


class ModelSchema(BaseModel):
    """Facts about a 3D model, from the header of its GLB file.

    `compression` is the one that the viewer cannot read, None if it can read the file. `has_other_files` is
    whether the model refers to files that are not stored with it.
    """

    meshes: int
    triangles: int
    materials: int
    textures: int
    animations: int
    generator: str | None = None
    compression: str | None = None
    has_other_files: bool = False


class OutputInfoSchema(BaseModel):
    """Facts about an output's file, from its first bytes."""

    media_type: str | None = None
    size: int | None = None
    is_image: bool = False
    model: ModelSchema | None = None


def to_run_schema(run: FlowRun, now: float) -> RunSchema:
    """Convert a flow run.

    :param now: epoch seconds, for the duration of an active run.
    """
    duration = run.duration
    if duration is None and run.started_at is not None and not run.is_final:
        duration = max(0.0, now - run.started_at.timestamp())
    expected_end = None if run.is_final else run.expected_end
    return RunSchema(
        flow_run_id=run.flow_run_id,
        service=run.service,
        flow=to_optional_safe_line(run.flow),
        state=run.state,
        raw_state=to_safe_line(run.raw_state or run.state.value),
        is_final=run.is_final,
        progress=1.0 if run.is_completed else run.progress,
        created_at=run.created_at,
        started_at=run.started_at,
        finished_at=run.finished_at,
        expected_end=expected_end,
        seconds_left=None if expected_end is None else max(0.0, expected_end.timestamp() - now),
        is_rough=expected_end is not None and run.progress < MIN_SURE_PROGRESS,
        duration=duration,
        error=to_optional_safe_line(run.error),
    )


def to_output_schemas(
    outputs: Iterable[FlowOutput], *, is_at_service: bool, title: str = ""
) -> list[OutputSchema]:
    """Convert outputs, up to `MAX_OUTPUTS_PER_PAGE`.

    :param is_at_service: whether outputs without a stored file can be downloaded from the service.
    :param title: what was asked for.
    """
    return [
        _to_output_schema(number, output, is_at_service=is_at_service, title=title)
        for number, output in enumerate(islice(outputs, MAX_OUTPUTS_PER_PAGE))
    ]


def get_output_version(output: FlowOutput) -> str:
    """Return what identifies an output's file in the URL under which a browser caches it."""
    parts = (output.asset_id, output.uri, output.size, output.sha256)
    return sha256(repr(parts).encode("utf-8", "replace")).hexdigest()[:16]


def _to_output_schema(number: int, output: FlowOutput, *, is_at_service: bool, title: str) -> OutputSchema:
    link = is_link(output)
    text = None if link else output.value
    has_file = output.uri is not None or (
        text is None and not link and is_at_service and output.asset_id is not None
    )
    size = output.size
    if size is None and text is not None:
        size = len(text.encode("utf-8", "replace"))
    return OutputSchema(
        number=number,
        version=get_output_version(output),
        name=to_safe_line(output.name),
        title=to_safe_line(to_output_title(output.name, output.asset_id, title)),
        asset_id=to_optional_safe_line(output.asset_id),
        kind=_get_output_kind(output, text),
        status=to_safe_line(output.status),
        media_type=to_optional_safe_line(output.media_type),
        size=size,
        sha256=to_optional_safe_line(output.sha256),
        location=_to_location(output.uri),
        text=None if text is None else replace_surrogates(text[:MAX_TEXT_PREVIEW_LENGTH]),
        is_truncated=text is not None and (len(text) > MAX_TEXT_PREVIEW_LENGTH or output.uri is not None),
        error=to_optional_safe_line(output.error),
        warning=to_optional_safe_line(output.warning),
        note=LINK_NOTE if link and output.uri is None else None,
        is_downloadable=output.status != ERROR and (has_file or text is not None),
        verdict=_to_verdict(output.verdict),
    )


def _to_verdict(verdict: Mapping[str, Any] | None) -> VerdictSchema | None:
    """Convert the verdict of an output, which is from an XCom; None if it is none."""
    if verdict is None or not isinstance(verdict.get("accepted"), bool):
        return None
    problems, facts = verdict.get("problems"), verdict.get("facts")
    texts = [one for one in problems if isinstance(one, str)] if isinstance(problems, list) else []
    pairs = list(facts.items())[:MAX_FACTS] if isinstance(facts, Mapping) else []
    return VerdictSchema(
        is_accepted=verdict["accepted"],
        problems=[to_safe_line(text) for text in texts[:MAX_VERDICT_PROBLEMS]],
        facts=[
            to_safe_line(f"{str(name).replace('_', ' ')}: {value:,}")
            for name, value in pairs
            if type(value) is int
        ],
    )


def sort_states(counts: Mapping[str, int]) -> dict[str, int]:
    """Return the counts of a batch's items by state, from completed to waiting ones."""
    places = {state: place for place, state in enumerate(ITEM_STATE_ORDER)}
    return dict(sorted(counts.items(), key=lambda pair: (places.get(pair[0], len(places)), pair[0])))


def to_item_schema(
    key: str, state: str, line: Mapping[str, Any], flow_run_id: str | None, outputs: Iterable[FlowOutput]
) -> BatchItemSchema:
    """Convert an item of a batch, with its first outputs, and the beginning of texts.

    :param line: of the manifest; empty if only key and state are known.
    :param flow_run_id: None for an item that has no page of its own.
    """
    error, attempts = line.get("error"), line.get("attempts")
    schemas = to_output_schemas(outputs, is_at_service=flow_run_id is not None)
    for schema in schemas:
        if schema.text is not None and len(schema.text) > MAX_LISTED_TEXT_LENGTH:
            schema.text, schema.is_truncated = schema.text[:MAX_LISTED_TEXT_LENGTH], True
    return BatchItemSchema(
        key=to_safe_line(key),
        state=state,
        flow_run_id=flow_run_id,
        attempts=attempts if type(attempts) is int and 0 <= attempts < MAX_ATTEMPTS else 0,
        started_at=parse_timestamp(line.get("started_at")),
        finished_at=parse_timestamp(line.get("finished_at")),
        is_reused=line.get("reused") is True,
        error=to_optional_safe_line(error),
        outputs=schemas[:MAX_OUTPUTS_PER_ITEM],
        further_outputs=max(0, len(schemas) - MAX_OUTPUTS_PER_ITEM),
    )


def _to_location(uri: str | None) -> str | None:
    """Return the URI of a stored file without credentials, signature and connection id."""
    location = StorageLocation.parse(uri or "")
    if location is None:
        return None
    return to_safe_line(f"{location.scheme}://{location.authority}/{location.path}")


def _get_output_kind(output: FlowOutput, text: str | None) -> OutputKind:
    if text is not None:
        return "text"
    if output.media_type in SAFE_IMAGE_TYPES:
        return "image"
    return "inspectable" if output.media_type in {None, GLB} else "file"


def is_link(output: FlowOutput) -> bool:
    """Return whether an output's value is a link to its file, which may be signed and then is a secret."""
    value = (output.value or "").strip()
    is_single_url = value.startswith(("https://", "http://")) and not any(
        character.isspace() for character in value
    )
    return output.is_url or (
        is_single_url and ((output.media_type or "").startswith("image/") or bool(find_signatures(value)))
    )


def drop_large_parameters(parameters: Any) -> dict[str, Any]:
    """Return the first parameters, with a note in place of a large value, whose redaction would take long."""
    items = islice(parameters.items(), MAX_PARAMETERS) if isinstance(parameters, Mapping) else ()
    sizes_and_items = ((estimate_size(value), name, value) for name, value in items)
    return {
        to_safe_line(str(name)): value if size <= MAX_PARAMETER_BYTES else f"left out: {size} bytes"
        for size, name, value in sizes_and_items
    }


def to_small_run(run: FlowRun) -> FlowRun:
    """Return a run with only what pages show of it, because a service can send any amount of the rest.

    It has no parameters: they are converted first, because their secrets are redacted.
    """
    return replace(
        run,
        flow=run.flow and to_safe_line(run.flow),
        raw_state=to_safe_line(run.raw_state),
        error=run.error and to_safe_line(run.error),
        parameters=None,
        additional=None,
        outputs=(),
        raw={},
    )
