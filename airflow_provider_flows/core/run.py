"""What a flow run is: its state, its outputs, the dict that goes to XCom, and "completed, or raise".

It does not know how any service words these (flow/services reads them) nor how they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from airflow_provider_flows.core.exceptions import FlowRunAborted, FlowRunFailed
from airflow_provider_flows.core.timestamps import parse_timestamp, to_epoch

if TYPE_CHECKING:
    from pendulum import DateTime


class FlowState(StrEnum):
    """Every state a flow run can be in; the one table of states (vendor-api 1.3, G-05)."""

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
        """Whether a run in this state will never change again; an unknown word is not final, the deadline is its guard."""
        return self in _FINAL_STATES

    @classmethod
    def parse(cls, value: object) -> FlowState:
        """Read a service's word, whatever its case; one that nobody knows is UNKNOWN."""
        return _STATES_BY_VALUE.get(str(value).strip().lower(), cls.UNKNOWN)


_STATES_BY_VALUE: dict[str, FlowState] = {state.value: state for state in FlowState}
_FINAL_STATES = frozenset({FlowState.COMPLETED, FlowState.FAILED, FlowState.ABORTED})

READY, ERROR, PENDING = "ready", "error", "pending"  # an output's status, in our words (vendor-api G-03)


@runtime_checkable
class UploadSource(Protocol):
    """A file that is sent a chunk at a time, as it was when its digest (SHA-256, hexadecimal) was taken."""

    @property
    def media_type(self) -> str:
        """What it is."""

    @property
    def size(self) -> int:
        """How many bytes it has."""

    @property
    def digest(self) -> str:
        """What stands for its content."""

    def chunks(self) -> Iterator[bytes]:
        """Give its bytes, each time from the beginning.

        :raises FlowInputError: it has changed; this is raised in place of the last chunk.
        """


@dataclass(frozen=True, slots=True)
class FlowInput:
    """One thing a run works on: a prompt, a data URI or a file; and the caller's metadata, which returns on its output."""

    data: str | UploadSource = field(repr=False)  # content never reaches a log
    additional: Any = None

    def to_json(self) -> dict[str, Any]:
        """Give the item of the request body (docs C, POST /flows): `additional` is left out when there is none."""
        return (
            {"data": self.data}
            if self.additional is None
            else {"data": self.data, "additional": self.additional}
        )


@dataclass(frozen=True, slots=True)
class FlowOutput:
    """One thing a run made: a text (`value`), or a file that stays at the service until it is written (`uri, size, sha256`)."""

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
    is_url: bool = False  # `value` is a URL of the output, perhaps signed, not the output itself
    expires_at: str | None = None  # ISO 8601; when the link ends

    def to_dict(self) -> dict[str, Any]:
        """Give the XCom form: name, asset_id, status, media_type, additional, and value or uri, size, sha256, or both."""
        data: dict[str, Any] = {
            "name": self.name,
            "asset_id": self.asset_id,
            "status": self.status,
            "media_type": self.media_type,
            "additional": self.additional,
        }
        if self.error:
            data["error"] = self.error
        if self.value is not None:
            data["value"] = self.value
        return (
            data if self.uri is None else {**data, "uri": self.uri, "size": self.size, "sha256": self.sha256}
        )


@dataclass(frozen=True, slots=True)
class FlowRun:
    """One flow run as it was seen at one moment.

    `progress` is 0.0 to 1.0; the timestamps are pendulum datetimes in UTC or None; `expected_at` is, in epoch seconds, when it
    will be done if it goes on as it did until then (None: nothing tells); `state_word` is the service's own word for the state;
    `error` its reason for a failure, if it told one; `raw` the whole answer, kept for whoever needs more, never needed.
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
    expected_at: float | None = None
    parameters: Any = None
    additional: Any = None
    error: str | None = None
    outputs: tuple[FlowOutput, ...] = ()
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        """Service, id and flow, as logs and errors name a run."""
        return f"{self.service} flow run {self.flow_run_id}" + (f" (flow {self.flow})" if self.flow else "")

    @property
    def is_final(self) -> bool:
        """Whether the run will never change again."""
        return self.state.is_final

    @property
    def is_completed(self) -> bool:
        """Whether the run ended well."""
        return self.state is FlowState.COMPLETED

    @property
    def duration(self) -> float | None:
        """Seconds from start to end, None while either is unknown."""
        if self.started_at is None or self.finished_at is None:
            return None
        return round(to_epoch(self.finished_at) - to_epoch(self.started_at), 3)

    @property
    def expected_end(self) -> DateTime | None:
        """When the run will be done if it goes on as it did until it was seen, None if nothing tells."""
        import pendulum  # first used here: importing this module stays cheap

        return None if self.expected_at is None else pendulum.from_timestamp(self.expected_at)

    def with_outputs(self, outputs: tuple[FlowOutput, ...]) -> FlowRun:
        """Give the same run with these outputs."""
        return replace(self, outputs=outputs)

    def completed_or_raise(self) -> FlowRun:
        """Give the run back if it completed.

        :raises FlowRunFailed: it failed; the message carries the service's reason.
        :raises FlowRunAborted: somebody aborted it.
        """
        if self.state is FlowState.FAILED:
            message = f"The {self} failed. {self._failure_reason()} Look at the run at the service, then run the task again."
            raise FlowRunFailed(message, self)
        if self.state is FlowState.ABORTED:
            message = f"The {self} was aborted at the service. {self._failure_reason()} Run the task again to start a new one."
            raise FlowRunAborted(message, self)
        return self

    def _failure_reason(self) -> str:
        reason = f"The service says: {self.error}." if self.error else "The service gives no reason."
        files = [output.uri for output in self.outputs if output.uri is not None]
        return f"{reason} Its partial outputs are in {', '.join(files)}." if files else reason

    def to_dict(self) -> dict[str, Any]:
        """Give the plain dict that operator and sensor return; timestamps are ISO 8601 in UTC, `duration` is seconds."""
        return {
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

    def to_event(self) -> dict[str, Any]:
        """Give what a trigger tells its task: the dict without outputs (they are fetched by the task), with the reason."""
        return {**self.to_dict(), "outputs": [], "raw_state": self.raw_state, "error": self.error}

    def to_record(self) -> dict[str, Any]:
        """Give all that a retry needs to end its task with this run, outputs and all, as plain JSON values."""
        return {**self.to_event(), "outputs": [asdict(output) for output in self.outputs]}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> FlowRun:
        """Read what `as_kept` wrote."""
        return cls.from_event(record).with_outputs(
            tuple(FlowOutput(**output) for output in record["outputs"])
        )

    @classmethod
    def from_event(cls, event: Mapping[str, Any]) -> FlowRun:
        """Read what `as_event` wrote."""
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


def _to_iso(timestamp: DateTime | None) -> str | None:
    return None if timestamp is None else timestamp.isoformat()


def parse_progress(raw: object) -> float:
    """Read a progress into 0.0 to 1.0: missing or unreadable is 0.0, more than 1 is a percentage (vendor-api G-18)."""
    try:
        value = float(raw)  # type: ignore[arg-type]  # whatever is not a number is caught
    except (TypeError, ValueError, OverflowError):
        return 0.0
    value = value / 100 if value > 1 else value
    return min(max(value, 0.0), 1.0) if value == value else 0.0  # noqa: PLR0124  # NaN is the one value unequal to itself
