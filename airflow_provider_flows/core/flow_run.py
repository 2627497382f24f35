"""The model of a flow run: states, inputs, outputs, and the run itself with its dict forms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, runtime_checkable

from airflow_provider_flows.core.exceptions import (
    FlowInputError,
    FlowMalformed,
    FlowRunAborted,
    FlowRunFailed,
    reason_sentence,
)
from airflow_provider_flows.core.limits import (
    MAX_ERROR_LENGTH,
    MAX_ID_LENGTH,
    MAX_MEDIA_TYPE_LENGTH,
    MAX_NAME_LENGTH,
    MAX_OUTPUTS,
    MAX_TIMESTAMP_CHARACTERS,
)
from airflow_provider_flows.core.safe_text import set_lines, to_storable
from airflow_provider_flows.core.template_problems import describe_misplaced_task
from airflow_provider_flows.core.timestamps import parse_timestamp, to_epoch

if TYPE_CHECKING:
    from pendulum import DateTime

    from airflow_provider_flows.core.redaction import ErrorTexts

T = TypeVar("T")


class FlowState(StrEnum):
    """Every state of a flow run (vendor_notes.md, 1.3 and G-05)."""

    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    ABORTING = "aborting"
    COMPLETED = "completed"
    FAILED = "failed"
    ABORTED = "aborted"
    UNKNOWN = "unknown"

    @property
    def is_final(self) -> bool:
        """Whether a run in this state can no longer change; UNKNOWN is not final."""
        return self in _FINAL_STATES

    @classmethod
    def parse(cls, value: object) -> FlowState:
        """Parse a service's state name, case-insensitively; an unrecognized name is UNKNOWN."""
        return _STATES_BY_VALUE.get(str(value).strip().lower(), cls.UNKNOWN)

    @classmethod
    def parse_argument(cls, state: object) -> FlowState | None:
        """Return the state that an argument names, also as a text; None for any.

        :raises FlowInputError: there is no such state.
        """
        found = None if state is None else cls.parse(state)
        if found is cls.UNKNOWN:
            names = ", ".join(one for one in cls if one is not cls.UNKNOWN)
            raise FlowInputError(f"state must be one of {names}, not {state!r}")
        return found


_STATES_BY_VALUE: dict[str, FlowState] = {state.value: state for state in FlowState}
_FINAL_STATES = frozenset({FlowState.COMPLETED, FlowState.FAILED, FlowState.ABORTED})

READY, ERROR, PENDING = "ready", "error", "pending"  # status of an output (vendor_notes.md, G-03)


class OwnReason(str):
    """The error of a run or an output that this package states, and not the service (`quote_errors`)."""

    __slots__ = ()


# maximum lengths in characters
_OUTPUT_TEXT_BOUNDS = {
    "name": MAX_NAME_LENGTH,
    "error": MAX_ERROR_LENGTH,
    "warning": MAX_ERROR_LENGTH,
    "expires_at": MAX_TIMESTAMP_CHARACTERS,
}
_RUN_TEXT_BOUNDS = {"flow": MAX_ID_LENGTH, "raw_state": MAX_NAME_LENGTH, "error": MAX_ERROR_LENGTH}


def _cut_texts(instance: object, bounds: Mapping[str, int]) -> None:
    """Cut the texts of a frozen instance to their maximum lengths."""
    for name, maximum in bounds.items():
        text = getattr(instance, name)
        if isinstance(text, str) and len(text) > maximum:
            object.__setattr__(instance, name, text[:maximum])


@runtime_checkable
class UploadSource(Protocol):
    """A file that is uploaded a chunk at a time, with the content it had when its digest was computed."""

    @property
    def media_type(self) -> str:
        """Media type of the file."""

    @property
    def size(self) -> int:
        """Size in bytes."""

    @property
    def digest(self) -> str:
        """SHA-256 of the content, hexadecimal."""

    def chunks(self) -> Iterator[bytes]:
        """Return an iterator over the content; each call starts with the first byte.

        :raises FlowInputError: the file has changed; raised in place of the last chunk.
        """


@dataclass(frozen=True, slots=True)
class FlowInput:
    """One input of a run.

    :param data: a prompt, a data URI or a file.
    :param additional: the caller's metadata; Generio copies it to the corresponding output.
    """

    data: str | UploadSource = field(repr=False)  # content never reaches a log
    additional: Any = None

    def to_json(self) -> dict[str, Any]:
        """Return the item of Generio's request body (POST /flows), without `additional` if it is None."""
        item: dict[str, Any] = {"data": self.data}
        return item if self.additional is None else {**item, "additional": self.additional}


Inputs = Sequence[FlowInput] | Mapping[str, Any]  # a list of inputs, or variables by name


@dataclass(frozen=True, slots=True)
class FlowOutput:
    """One output of a run.

    A text output has `value`. A file output has `uri`, `size` and `sha256` once it is downloaded. All other
    texts are lines (`core.safe_text`), whichever service they are from.

    :param status: READY, ERROR or PENDING.
    :param additional: metadata of the corresponding input.
    :param is_url: whether `value` is a URL of the output, possibly signed, instead of the output itself. With
        a media type other than a picture's, a file of any type is fetched from it, and with
        `application/octet-stream` its type is that of the response. Without one it must be a picture.
    :param expires_at: time at which that URL expires, ISO 8601.
    :param warning: why the stored file may be unusable: it contradicts its header or its media type, and
        arrived so twice.
    :param verdict: of the task's checks (`check_outputs`): `accepted`, `problems` and `facts`; None if none
        concerns it.
    """

    name: str
    asset_id: str | None = None
    status: str = READY
    media_type: str | None = None
    additional: Any = None
    value: str | None = None
    uri: str | None = None
    size: int | None = None
    sha256: str | None = None
    error: str | None = None
    is_url: bool = False
    expires_at: str | None = None
    warning: str | None = None
    verdict: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Bound what goes to XCom, logs and stores, as lines, whichever service it comes from.

        An output whose id is too long cannot be fetched: it states that as its error.
        """
        set_lines(self, "name", "asset_id", "status", "media_type", "error", "expires_at", "warning")
        _cut_texts(self, _OUTPUT_TEXT_BOUNDS)
        if isinstance(self.media_type, str) and len(self.media_type) > MAX_MEDIA_TYPE_LENGTH:
            object.__setattr__(self, "media_type", None)
        if isinstance(self.asset_id, str) and len(self.asset_id) > MAX_ID_LENGTH:
            object.__setattr__(self, "asset_id", None)
            object.__setattr__(self, "status", ERROR)
            object.__setattr__(self, "error", f"its id has more than {MAX_ID_LENGTH} characters")

    def to_dict(self) -> dict[str, Any]:
        """Return the XCom form.

        Always present are name, asset_id, status, media_type and additional; error, warning, value, and uri
        with size and sha256, only if they are set, and so is verdict.
        """
        data: dict[str, Any] = {
            "name": self.name,
            "asset_id": self.asset_id,
            "status": self.status,
            "media_type": self.media_type,
            "additional": to_storable(self.additional),
        }
        if self.error:
            data["error"] = str(self.error)
        if self.warning:
            data["warning"] = self.warning
        if self.verdict is not None:
            data["verdict"] = dict(self.verdict)
        if self.value is not None:
            data["value"] = self.value
        if self.uri is not None:
            data |= {"uri": self.uri, "size": self.size, "sha256": self.sha256}
        return data


def bound_outputs(outputs: Sequence[FlowOutput], where: str) -> list[FlowOutput]:
    """Return the outputs, or of too many the first ones, and in place of the rest one that states the error.

    The result has at most `MAX_OUTPUTS` outputs. Those that it has are paid for, so they are not rejected.

    :param where: a sentence on what becomes of the rest.
    """
    if len(outputs) <= MAX_OUTPUTS:
        return list(outputs)
    kept = list(outputs[: MAX_OUTPUTS - 1])
    missing = len(outputs) - len(kept)
    error = (
        f"the flow run has {len(outputs):,} outputs, and at most {MAX_OUTPUTS:,} are listed, so {missing:,} "
        f"are missing. {where}"
    )
    return [*kept, FlowOutput(f"{missing} more outputs", status=ERROR, error=OwnReason(error))]


@dataclass(frozen=True, slots=True)
class FlowRun:
    """A snapshot of one flow run; timestamps are pendulum datetimes in UTC, or None.

    Ids, names, states and errors are lines (`core.safe_text`), whichever service they are from.

    :param raw_state: the service's own name for the state.
    :param progress: 0.0 to 1.0.
    :param expected_end_epoch: epoch seconds at which the run will finish at its current speed, None if
        unknown.
    :param error: the service's reason for a failure, if it states one.
    :param raw: the service's complete response.
    :param reused: whether this is the run of an earlier task with the same request, whose outputs are stored.
    :param verdict: of the task's checks (`check_outputs`): `accepted`, `problems`, and with the task's result
        `paid_runs` and `rejected_runs`; None without checks.
    """

    flow_run_id: str
    service: str
    flow: str | None = None
    state: FlowState = FlowState.UNKNOWN
    raw_state: str = ""
    progress: float = 0.0
    created_at: DateTime | None = None
    started_at: DateTime | None = None
    finished_at: DateTime | None = None
    expected_end_epoch: float | None = None
    parameters: Any = None
    additional: Any = None
    error: str | None = None
    outputs: tuple[FlowOutput, ...] = ()
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)
    reused: bool = False
    verdict: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Bound what goes to XCom, logs and stores, as lines, whichever service it comes from.

        :raises FlowMalformed: the id is too long; without it the run is lost.
        """
        set_lines(self, "flow_run_id", "service", "flow", "raw_state", "error")
        if isinstance(self.flow_run_id, str) and len(self.flow_run_id) > MAX_ID_LENGTH:
            start = self.flow_run_id[:MAX_ID_LENGTH]
            raise FlowMalformed(
                f"{self.service} has a flow run whose id has more than {MAX_ID_LENGTH} characters. It cannot "
                f"be polled or aborted from here; look for it at the service. The id starts with: {start!r}"
            )
        _cut_texts(self, _RUN_TEXT_BOUNDS)

    def __str__(self) -> str:
        """Return service, id and flow, for logs and error messages."""
        return f"{self.service} flow run {self.flow_run_id}" + (f" (flow {self.flow})" if self.flow else "")

    @property
    def short_name(self) -> str:
        """The end of the id, and the flow, for log lines after the first one, which names the run in full."""
        end = f"...{self.flow_run_id[-6:]}" if len(self.flow_run_id) > 9 else self.flow_run_id
        return f"flow run {end}" + (f" ({self.flow})" if self.flow else "")

    @property
    def is_final(self) -> bool:
        """Whether the run can no longer change."""
        return self.state.is_final

    @property
    def is_completed(self) -> bool:
        """Whether the run ended in state completed."""
        return self.state is FlowState.COMPLETED

    @property
    def duration(self) -> float | None:
        """Seconds from start to end, None if either is unknown."""
        if self.started_at is None or self.finished_at is None:
            return None
        return round(to_epoch(self.finished_at) - to_epoch(self.started_at), 3)

    @property
    def expected_end(self) -> DateTime | None:
        """Time at which the run will finish at its current speed, None if unknown."""
        import pendulum  # expensive to import

        return None if self.expected_end_epoch is None else pendulum.from_timestamp(self.expected_end_epoch)

    def with_outputs(self, outputs: tuple[FlowOutput, ...]) -> FlowRun:
        """Return a copy of this run with these outputs."""
        return replace(self, outputs=outputs)

    def to_dict(self) -> dict[str, Any]:
        """Return the dict that operator and sensor return.

        Timestamps are ISO 8601 in UTC, `duration` is in seconds. `reused` is there only if it is True, and
        `verdict` only with checks.
        """
        data: dict[str, Any] = {
            "flow_run_id": self.flow_run_id,
            "flow": self.flow,
            "service": self.service,
            "state": self.state.value,
            "progress": self.progress,
            "created_at": _to_iso(self.created_at),
            "started_at": _to_iso(self.started_at),
            "finished_at": _to_iso(self.finished_at),
            "duration": self.duration,
            "outputs": [output.to_dict() for output in self.outputs],
        }
        if self.verdict is not None:
            data["verdict"] = dict(self.verdict)
        return {**data, "reused": True} if self.reused else data

    def to_event(self) -> dict[str, Any]:
        """Return the payload of a trigger's event: the dict without outputs, which the task fetches."""
        error = None if self.error is None else str(self.error)
        return {**self.to_dict(), "outputs": [], "raw_state": self.raw_state, "error": error}

    def to_record(self) -> dict[str, Any]:
        """Return the complete run as plain JSON values, from which a retry can finish its task."""
        outputs = [
            {
                **asdict(output),
                "additional": to_storable(output.additional),
                "error": None if output.error is None else str(output.error),
            }
            for output in self.outputs
        ]
        return {**self.to_event(), "outputs": outputs}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> FlowRun:
        """Return the run that `to_record` described."""
        outputs = tuple(FlowOutput(**output) for output in record["outputs"])
        return cls.from_event(record).with_outputs(outputs)

    @classmethod
    def from_event(cls, event: Mapping[str, Any]) -> FlowRun:
        """Return the run that `to_event` described."""
        return cls(
            flow_run_id=str(event["flow_run_id"]),
            service=str(event["service"]),
            flow=event.get("flow"),
            state=FlowState.parse(event.get("state")),
            raw_state=str(event.get("raw_state") or event.get("state")),
            progress=parse_progress(event.get("progress")),
            created_at=parse_timestamp(event.get("created_at")),
            started_at=parse_timestamp(event.get("started_at")),
            finished_at=parse_timestamp(event.get("finished_at")),
            error=event.get("error"),
        )


def parse_run_id(flow_run_id: object, hint: str = "") -> str:
    """Return the id of a flow run that an argument names.

    :param hint: a sentence on where the id comes from, for an id that is missing.
    :raises FlowInputError: it is not an id.
    """
    if isinstance(flow_run_id, str) and flow_run_id.strip():
        return flow_run_id.strip()
    if (problem := describe_misplaced_task("flow_run_id", flow_run_id)) is not None:
        raise FlowInputError(f"flow_run_id {problem}")
    if isinstance(flow_run_id, FlowRun):
        raise FlowInputError("flow_run_id is the flow run itself; pass its id, run.flow_run_id")
    is_missing = flow_run_id is None or isinstance(flow_run_id, str)
    actual = repr(flow_run_id) if is_missing else type(flow_run_id).__name__
    message = f"flow_run_id must be the id of a flow run, not {actual}"
    raise FlowInputError(f"{message}. {hint}" if hint and is_missing else message)


def quote_errors(result: T, error_texts: ErrorTexts) -> T:
    """Return a run, an output or a list of them with its errors as `error_texts` shows them.

    Any other result is returned as it is.
    """
    if isinstance(result, list):
        return cast("T", [quote_errors(item, error_texts) for item in result])
    changes: dict[str, Any] = {}
    error = result.error if isinstance(result, FlowRun | FlowOutput) else None
    if isinstance(error, str) and not isinstance(error, OwnReason):
        changes["error"] = error_texts.quote(error)
    if isinstance(result, FlowRun):
        if result.state is FlowState.UNKNOWN:  # then it may be any text
            changes["raw_state"] = error_texts.hide_inputs(result.raw_state)
        if any(output.error for output in result.outputs):
            changes["outputs"] = tuple(quote_errors(output, error_texts) for output in result.outputs)
    return cast("T", replace(cast("Any", result), **changes)) if changes else result


def failure_error(run: FlowRun) -> FlowRunFailed:
    """Create the error that reports a failed run, or a FlowRunAborted for an aborted one."""
    if run.state is FlowState.ABORTED:
        hint = "Run the task again to start a new flow run."
        return FlowRunAborted(f"The {run} was aborted at the service. {_failure_reason(run)} {hint}", run)
    hint = "Check the run at the service, then run the task again."
    return FlowRunFailed(f"The {run} failed. {_failure_reason(run)} {hint}", run)


def _failure_reason(run: FlowRun) -> str:
    reason = reason_sentence(run.error)
    files = [output.uri for output in run.outputs if output.uri is not None]
    return f"{reason} Its partial outputs are in {', '.join(files)}." if files else reason


def _to_iso(timestamp: DateTime | None) -> str | None:
    return None if timestamp is None else timestamp.isoformat()


def parse_progress(raw: object) -> float:
    """Return a progress from 0.0 to 1.0 (vendor_notes.md, G-18).

    A missing or unreadable value is 0.0; a value above 1 is taken as a percentage.
    """
    try:
        value = float(raw)  # type: ignore[arg-type]  # any other type raises and is caught
    except (TypeError, ValueError, OverflowError):
        return 0.0
    value = value / 100 if value > 1 else value
    return min(max(value, 0.0), 1.0) if value == value else 0.0  # noqa: PLR0124  # NaN is the one value unequal to itself
