"""The shapes of what the pages show and their JSON routes answer, and how a flow run is put into them.

Where a run comes from it does not know; nothing in a shape is a secret, a signed link or longer than a page can bear.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel

from airflow_provider_flows.core.payload.data_uri import GLB
from airflow_provider_flows.core.run import ERROR, READY, FlowOutput, FlowRun, FlowState
from airflow_provider_flows.core.signed_urls import find_signatures
from airflow_provider_flows.storage.paths import StorageLocation
from airflow_provider_flows.worker.run_tracking import redact_parameters

SAFE_IMAGE_TYPES = frozenset(
    {"image/png", "image/jpeg", "image/gif", "image/webp"}
)  # a browser runs nothing in these
MAX_TEXT_PREVIEW_LENGTH = 20_000  # characters of an output that is a text
MAX_LINE_LENGTH = 2_000  # of a name, an error, a reason
MAX_OUTPUTS_PER_PAGE = 200
MAX_PLAUSIBLE_SIZE_BYTES = 2**60  # bytes; no file has more
OUTPUT_PATH_HINT = "Set output_path, and the task keeps the file itself."
LINK_NOTE = f"A link that ends; it is not shown. {OUTPUT_PATH_HINT}"


class OutputSchema(BaseModel):
    """One output; `number` is its place among the recorded ones, by which it is downloaded, `location` where its file lies.

    The kind is `inspectable` where a look at the beginning of the file may tell more of it: it is a model, or nobody told what it is.
    """

    number: int
    name: str
    kind: Literal["image", "text", "file", "inspectable"]
    status: str
    media_type: str | None = None
    size: int | None = None
    sha256: str | None = None
    location: str | None = None
    text: str | None = None
    is_truncated: bool = False
    error: str | None = None
    note: str | None = None
    is_downloadable: bool = False


class RunSchema(BaseModel):
    """One flow run; timestamps are in UTC, `progress` is 0.0 to 1.0, `duration` seconds, until now while it runs."""

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
    """One thing that a run works on; `name` is a variable's, or where it stands among the others."""

    name: str
    text: str


class PreviousRunSchema(BaseModel):
    """A flow run that a try before the last one had; `last_try` is the number of the last try that had it."""

    flow_run_id: str
    last_try: int


class RunPage(BaseModel):
    """What a page shows of one run: `run` is None while nothing is known of one, `note` says why, or what went wrong.

    `refresh_after` is the number of seconds after which to look again, None when nothing will change any more; `version` differs where more
    has changed than progress and times.
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
    """One page of a connection's runs; `total` is how many fit the filters, `flows` and `states` what could be chosen."""

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
    """What the header of a GLB file tells of its model."""

    meshes: int
    triangles: int
    materials: int
    textures: int
    animations: int
    generator: str | None = None


class OutputInfoSchema(BaseModel):
    """What the beginning of an output's file tells: what it is, and if it is a model, of its parts."""

    media_type: str | None = None
    is_image: bool = False
    model: ModelSchema | None = None


def to_run_schema(run: FlowRun, now: float) -> RunSchema:
    """Put a run into its shape.

    :param now: epoch seconds.
    """
    duration = run.duration
    if duration is None and run.started_at is not None and not run.is_final:
        duration = max(0.0, now - run.started_at.timestamp())
    return RunSchema(
        flow_run_id=run.flow_run_id,
        service=run.service,
        flow=_to_optional_safe_line(run.flow),
        state=run.state,
        raw_state=to_safe_line(run.raw_state or run.state.value),
        is_final=run.is_final,
        progress=1.0 if run.is_completed else run.progress,
        created_at=run.created_at,
        started_at=run.started_at,
        finished_at=run.finished_at,
        expected_end=None if run.is_final else run.expected_end,
        duration=duration,
        error=_to_optional_safe_line(run.error),
    )


def to_parameters(parameters: Any) -> dict[str, Any]:
    """Give parameters as they may be told; a mapping that came as text is read."""
    redacted = redact_parameters(_parse_json_text(parameters) if isinstance(parameters, str) else parameters)
    cleaned: dict[str, Any] = json.loads(_replace_surrogates(json.dumps(redacted, ensure_ascii=False)))
    return cleaned


def to_input_schemas(inputs: Any) -> list[InputSchema]:
    """Give inputs, in the forms that `RunFlowOperator` takes them, as they may be told; a file by its beginning."""
    if isinstance(inputs, str):
        inputs = _parse_json_text(inputs)
    if isinstance(inputs, Mapping) and not {"data", "uri", "outputs"} & inputs.keys():
        items_by_name = [(str(name), value) for name, value in inputs.items()]
    else:
        items = inputs if isinstance(inputs, list | tuple) else [] if inputs is None else [inputs]
        items_by_name = [(str(number), item) for number, item in enumerate(items, 1)]
    redacted = redact_parameters(dict(items_by_name))
    return [
        InputSchema(name=to_safe_line(name), text=_replace_surrogates(_to_input_text(value)))
        for name, value in redacted.items()
    ]


def _parse_json_text(text: str) -> Any:
    """Read what Airflow kept of a list or a mapping as text; a text that is none stays as it is."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, list | dict) else text


def _to_input_text(value: Any) -> str:
    if isinstance(value, Mapping):
        value = next(
            (value[key] for key in ("data", "uri", "value", "name") if isinstance(value.get(key), str)), value
        )
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    if text.startswith("data:") and "," in text:
        prefix, _, data = text.partition(",")
        return f"{to_safe_line(prefix)},… ({len(data):,} characters)"
    return text if len(text) <= MAX_LINE_LENGTH else f"{text[:MAX_LINE_LENGTH]}…"


def to_output_schemas(outputs: Iterable[FlowOutput], *, is_at_service: bool) -> list[OutputSchema]:
    """Put the outputs into their shape.

    :param is_at_service: whether the service can be asked for those that are no files here.
    """
    return [
        _to_output_schema(number, output, is_at_service=is_at_service)
        for number, output in enumerate(outputs)
        if number < MAX_OUTPUTS_PER_PAGE
    ]


def _to_output_schema(number: int, output: FlowOutput, *, is_at_service: bool) -> OutputSchema:
    link = is_link(output)
    text = None if link or output.value is None else output.value
    file = output.uri is not None or (
        text is None and not link and is_at_service and output.asset_id is not None
    )
    location = StorageLocation.parse(output.uri or "")
    return OutputSchema(
        number=number,
        name=to_safe_line(output.name),
        kind=_get_output_kind(output, text),
        status=to_safe_line(output.status),
        media_type=_to_optional_safe_line(output.media_type),
        size=len(text.encode("utf-8", "replace"))
        if output.size is None and text is not None
        else output.size,
        sha256=_to_optional_safe_line(output.sha256),
        location=None
        if location is None
        else to_safe_line(f"{location.scheme}://{location.authority}/{location.path}"),
        text=None if text is None else _replace_surrogates(text[:MAX_TEXT_PREVIEW_LENGTH]),
        is_truncated=text is not None and (len(text) > MAX_TEXT_PREVIEW_LENGTH or output.uri is not None),
        error=_to_optional_safe_line(output.error),
        note=LINK_NOTE if link and output.uri is None else None,
        is_downloadable=output.status != ERROR and (file or text is not None),
    )


def _get_output_kind(output: FlowOutput, text: str | None) -> Literal["image", "text", "file", "inspectable"]:
    if text is not None:
        return "text"
    if output.media_type in SAFE_IMAGE_TYPES:
        return "image"
    return "inspectable" if output.media_type in {None, GLB} else "file"


def is_link(output: FlowOutput) -> bool:
    """Whether an output's value is a link to it: such a link may be signed, and opens the file to whoever has it."""
    value = (output.value or "").strip()
    is_single_url = value.startswith(("https://", "http://")) and not any(
        character.isspace() for character in value
    )
    return output.is_url or (
        is_single_url and ((output.media_type or "").startswith("image/") or bool(find_signatures(value)))
    )


def to_safe_line(text: str) -> str:
    """Give a text with every character replaced that would hide or turn another one, and not too long."""
    safe = "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}"
        for character in text[:MAX_LINE_LENGTH]
    )
    return safe if len(text) <= MAX_LINE_LENGTH else f"{safe}…"


def _to_optional_safe_line(text: Any) -> str | None:
    return to_safe_line(text) if isinstance(text, str) else None


def _replace_surrogates(text: str) -> str:
    """Give a text that can be sent: JSON may hold halves of characters, which no encoding has."""
    return text.encode("utf-8", "replace").decode()


def parse_outputs(value: Any) -> tuple[FlowOutput, ...]:
    """Read the outputs that a task returned; whoever may write XComs may have written anything, so the rest is left out."""
    rows = [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []
    return tuple(
        FlowOutput(
            name=_get_str(row, "name") or f"output {number + 1}",
            asset_id=_get_str(row, "asset_id"),
            status=_get_str(row, "status") or READY,
            media_type=_get_str(row, "media_type"),
            value=_get_str(row, "value"),
            uri=_get_str(row, "uri"),
            size=row["size"]
            if type(row.get("size")) is int and 0 <= row["size"] <= MAX_PLAUSIBLE_SIZE_BYTES
            else None,
            sha256=_get_str(row, "sha256"),
            error=_get_str(row, "error"),
        )
        for number, row in enumerate(rows[:MAX_OUTPUTS_PER_PAGE])
    )


def _get_str(row: dict[str, Any], name: str) -> str | None:
    return row[name] if isinstance(row.get(name), str) else None
