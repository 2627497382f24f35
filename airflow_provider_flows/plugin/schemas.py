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
from airflow_provider_flows.core.signed_urls import secrets_of
from airflow_provider_flows.storage.locations import Place
from airflow_provider_flows.worker.run_tracking import told

SAFE_IMAGES = frozenset(
    {"image/png", "image/jpeg", "image/gif", "image/webp"}
)  # a browser runs nothing in these
LONGEST_TEXT = 20_000  # characters of an output that is a text
LONGEST_LINE = 2_000  # of a name, an error, a reason
MOST_OUTPUTS = 200
LARGEST = 2**60  # bytes; no file has more
KEEP = "Set output_path, and the task keeps the file itself."
LINK = f"A link that ends; it is not shown. {KEEP}"


class OutputShown(BaseModel):
    """One output; `number` is its place among the recorded ones, by which it is downloaded, `place` where its file lies.

    The kind is `unseen` where a look at the beginning of the file may tell more of it: it is a model, or nobody told what it is.
    """

    number: int
    name: str
    kind: Literal["image", "text", "file", "unseen"]
    status: str
    media_type: str | None = None
    size: int | None = None
    sha256: str | None = None
    place: str | None = None
    text: str | None = None
    cut: bool = False
    error: str | None = None
    note: str | None = None
    downloadable: bool = False


class RunShown(BaseModel):
    """One flow run; timestamps are in UTC, `progress` is 0.0 to 1.0, `duration` seconds, until now while it runs."""

    flow_run_id: str
    service: str
    flow: str | None = None
    state: FlowState
    state_word: str
    final: bool
    progress: float
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    expected_end: datetime | None = None
    duration: float | None = None
    error: str | None = None


class InputShown(BaseModel):
    """One thing that a run works on; `name` is a variable's, or where it stands among the others."""

    name: str
    text: str


class BeforeShown(BaseModel):
    """A flow run that a try before the last one had; `last_try` is the number of the last try that had it."""

    flow_run_id: str
    last_try: int


class Look(BaseModel):
    """What a page shows of one run: `run` is None while nothing is known of one, `note` says why, or what went wrong.

    `again` is the number of seconds after which to look again, None when nothing will change any more; `mark` differs where more
    has changed than progress and times.
    """

    mark: str = ""
    run: RunShown | None = None
    inputs: list[InputShown] = []
    parameters: dict[str, Any] = {}
    outputs: list[OutputShown] = []
    note: str | None = None
    trouble: bool = False
    task_state: str | None = None
    try_number: int = 0
    before: list[BeforeShown] = []
    again: float | None = None


class RunsShown(BaseModel):
    """One page of a connection's runs; `total` is how many fit the filters, `flows` and `states` what could be chosen."""

    mark: str = ""
    flows_conn_id: str
    service: str
    runs: list[RunShown] = []
    total: int = 0
    page: int = 1
    pages: int = 1
    flows: list[str] = []
    states: dict[str, int] = {}
    note: str | None = None
    trouble: bool = False
    again: float | None = None


class ModelShown(BaseModel):
    """What the header of a GLB file tells of its model."""

    meshes: int
    triangles: int
    materials: int
    textures: int
    animations: int
    made_with: str | None = None


class AboutShown(BaseModel):
    """What the beginning of an output's file tells: what it is, and if it is a model, of its parts."""

    media_type: str | None = None
    image: bool = False
    model: ModelShown | None = None


def run_shown(run: FlowRun, now: float) -> RunShown:
    """Put a run into its shape.

    :param now: epoch seconds.
    """
    duration = run.duration
    if duration is None and run.started_at is not None and not run.final:
        duration = max(0.0, now - run.started_at.timestamp())
    return RunShown(
        flow_run_id=run.flow_run_id,
        service=run.service,
        flow=_line(run.flow),
        state=run.state,
        state_word=line(run.state_word or run.state.value),
        final=run.final,
        progress=1.0 if run.completed else run.progress,
        created_at=run.created_at,
        started_at=run.started_at,
        finished_at=run.finished_at,
        expected_end=None if run.final else run.expected_end,
        duration=duration,
        error=_line(run.error),
    )


def parameters_shown(parameters: Any) -> dict[str, Any]:
    """Give parameters as they may be told; a mapping that came as text is read."""
    plain = told(_read(parameters) if isinstance(parameters, str) else parameters)
    cleaned: dict[str, Any] = json.loads(_sound(json.dumps(plain, ensure_ascii=False)))
    return cleaned


def inputs_shown(inputs: Any) -> list[InputShown]:
    """Give inputs, in the forms that `RunFlowOperator` takes them, as they may be told; a file by its beginning."""
    if isinstance(inputs, str):
        inputs = _read(inputs)
    if isinstance(inputs, Mapping) and not {"data", "uri", "outputs"} & inputs.keys():
        named = [(str(name), value) for name, value in inputs.items()]
    else:
        items = inputs if isinstance(inputs, list | tuple) else [] if inputs is None else [inputs]
        named = [(str(number), item) for number, item in enumerate(items, 1)]
    plain = told(dict(named))
    return [InputShown(name=line(name), text=_sound(_input(value))) for name, value in plain.items()]


def _read(text: str) -> Any:
    """Read what Airflow kept of a list or a mapping as text; a text that is none stays as it is."""
    try:
        read = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return read if isinstance(read, list | dict) else text


def _input(value: Any) -> str:
    if isinstance(value, Mapping):
        value = next(
            (value[key] for key in ("data", "uri", "value", "name") if isinstance(value.get(key), str)), value
        )
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    if text.startswith("data:") and "," in text:
        head, _, data = text.partition(",")
        return f"{line(head)},… ({len(data):,} characters)"
    return text if len(text) <= LONGEST_LINE else f"{text[:LONGEST_LINE]}…"


def outputs_shown(outputs: Iterable[FlowOutput], *, at_service: bool) -> list[OutputShown]:
    """Put the outputs into their shape.

    :param at_service: whether the service can be asked for those that are no files here.
    """
    return [
        _output(number, output, at_service=at_service)
        for number, output in enumerate(outputs)
        if number < MOST_OUTPUTS
    ]


def _output(number: int, output: FlowOutput, *, at_service: bool) -> OutputShown:
    link = is_link(output)
    text = None if link or output.value is None else output.value
    file = output.uri is not None or (
        text is None and not link and at_service and output.asset_id is not None
    )
    place = Place.of(output.uri or "")
    return OutputShown(
        number=number,
        name=line(output.name),
        kind=_kind(output, text),
        status=line(output.status),
        media_type=_line(output.media_type),
        size=len(text.encode("utf-8", "replace"))
        if output.size is None and text is not None
        else output.size,
        sha256=_line(output.sha256),
        place=None if place is None else line(f"{place.scheme}://{place.authority}/{place.path}"),
        text=None if text is None else _sound(text[:LONGEST_TEXT]),
        cut=text is not None and (len(text) > LONGEST_TEXT or output.uri is not None),
        error=_line(output.error),
        note=LINK if link and output.uri is None else None,
        downloadable=output.status != ERROR and (file or text is not None),
    )


def _kind(output: FlowOutput, text: str | None) -> Literal["image", "text", "file", "unseen"]:
    if text is not None:
        return "text"
    if output.media_type in SAFE_IMAGES:
        return "image"
    return "unseen" if output.media_type in {None, GLB} else "file"


def is_link(output: FlowOutput) -> bool:
    """Whether an output's value is a link to it: such a link may be signed, and opens the file to whoever has it."""
    value = (output.value or "").strip()
    one = value.startswith(("https://", "http://")) and not any(sign.isspace() for sign in value)
    return output.link or (
        one and ((output.media_type or "").startswith("image/") or bool(secrets_of(value)))
    )


def line(text: str) -> str:
    """Give a text with every character replaced that would hide or turn another one, and not too long."""
    shown = "".join(
        sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text[:LONGEST_LINE]
    )
    return shown if len(text) <= LONGEST_LINE else f"{shown}…"


def _line(text: Any) -> str | None:
    return line(text) if isinstance(text, str) else None


def _sound(text: str) -> str:
    """Give a text that can be sent: JSON may hold halves of characters, which no encoding has."""
    return text.encode("utf-8", "replace").decode()


def outputs_recorded(given: Any) -> tuple[FlowOutput, ...]:
    """Read the outputs that a task returned; whoever may write XComs may have written anything, so the rest is left out."""
    rows = [row for row in given if isinstance(row, dict)] if isinstance(given, list) else []
    return tuple(
        FlowOutput(
            name=_text(row, "name") or f"output {number + 1}",
            asset_id=_text(row, "asset_id"),
            status=_text(row, "status") or READY,
            media_type=_text(row, "media_type"),
            value=_text(row, "value"),
            uri=_text(row, "uri"),
            size=row["size"] if type(row.get("size")) is int and 0 <= row["size"] <= LARGEST else None,
            sha256=_text(row, "sha256"),
            error=_text(row, "error"),
        )
        for number, row in enumerate(rows[:MOST_OUTPUTS])
    )


def _text(row: dict[str, Any], name: str) -> str | None:
    return row[name] if isinstance(row.get(name), str) else None
