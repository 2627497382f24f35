"""The start protocol: how a flow run is started so that no killed worker leaves one behind that its retry does not know.

It keeps nothing itself: the caller hands in what was kept before, and a function that keeps what must not be forgotten.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from airflow_provider_flows.core.exceptions import FlowConflict, FlowError, FlowNotFound, FlowServiceError
from airflow_provider_flows.core.http import Sleep
from airflow_provider_flows.core.run import FlowRun, FlowState, UploadSource

if TYPE_CHECKING:
    from airflow_provider_flows.core.http import Conversation
    from airflow_provider_flows.core.run import Inputs
    from airflow_provider_flows.core.service import Service

TOKEN_KEY = "airflow_start"  # noqa: S105  # a name among the caller's metadata, no secret
NOT_RESUMABLE_STATES = frozenset({FlowState.CREATED, FlowState.FAILED, FlowState.ABORTING, FlowState.ABORTED})
NOT_FOUND_RETRY_SECONDS = (0.5, 1.0)  # seconds
CANCEL_POLL_SECONDS = (0.5, 1.0, 1.5, 2.0, 2.0, 3.0)  # seconds


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What is to be started: the flow, what it works on, and how.

    :param promised: names of the outputs that the flow's definition promises, None where it is not known.
    """

    flow: str
    inputs: Inputs
    parameters: Any = None
    additional: Any = None
    expected_outputs: tuple[str, ...] | None = None

    @property
    def fingerprint(self) -> str:
        """A digest of all that makes this order another one; it tells nothing of the content. A file counts by its own digest."""
        items = (
            dict(self.inputs)
            if isinstance(self.inputs, Mapping)
            else [item.to_json() for item in self.inputs]
        )
        # over JSON first: keys become text there, and only text can be sorted
        plain = json.loads(
            json.dumps([self.flow, items, self.parameters, self.additional], default=_to_plain_json)
        )
        text = json.dumps(plain, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class EarlierRunRequest(RunRequest):
    """An order that cannot be read any more, say because an input's file is gone, but which an earlier try has sent.

    :param known: its fingerprint, as the record has it.
    """

    saved_fingerprint: str = ""

    @property
    def fingerprint(self) -> str:
        """The earlier one's."""
        return self.saved_fingerprint


def _to_plain_json(value: Any) -> Any:
    return [value.media_type, value.digest] if isinstance(value, UploadSource) else str(value)


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What a retry must know of the tries before it.

    :param fingerprint: of the order.
    :param lineage: the same for all tries of one run of a task, another one after a Clear.
    :param deadline: epoch seconds, or None.
    :param token: marks the run at the service, for the moment in which its id is not known here yet.
    :param flow_run_id: None while the answer to the start was not kept yet: then a run may be there or not.
    :param answer: the whole run (`FlowRun.as_kept`), where the service could not tell of it a second time.
    :param conn_id: the Airflow connection that the run is reached by.
    """

    fingerprint: str
    generation: int
    deadline: float | None = None
    token: str = field(default_factory=lambda: uuid4().hex)
    flow_run_id: str | None = None
    saved_run: dict[str, Any] | None = None
    conn_id: str | None = None

    def matches(self, request: RunRequest, generation: int) -> bool:
        """Whether the record is of an earlier try of this very request."""
        return self.generation == generation and self.fingerprint == request.fingerprint

    def to_dict(self) -> dict[str, Any]:
        """Give the record as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> RunRecord | None:
        """Read a record; whatever cannot be one is as good as none."""
        try:
            record = cls(**data)
            if record.saved_run is not None:
                FlowRun.from_record(record.saved_run)
        except (TypeError, KeyError, ValueError, AttributeError):
            return None
        texts = isinstance(record.flow_run_id, str | None) and isinstance(record.conn_id, str | None)
        return record if texts and isinstance(record.deadline, int | float | None) else None


SaveRecord = Callable[[RunRecord | None], None]


def start(
    service: Service, request: RunRequest, record: RunRecord, save: SaveRecord
) -> Conversation[FlowRun]:
    """Start a new run: make it, keep its id, give it its inputs, start it. Until the last step nothing is paid.

    A service that does it all in one request is asked once; where it cannot be asked for the run again, its answer is kept whole.

    :param record: what is to be kept, as it stands before there is a run.
    :param keep: called with the record before anything is sent, and again as soon as the run has an id; when it returns, the
        record must be safe. Called with None when it is certain that this try made no run.
    :raises FlowServiceError: the run could not be made, filled or started; one that certainly did not start is deleted again.
    """
    if not service.staged_start:
        return (yield from _start_and_save(service, request, record, save))
    items = service.to_flow_inputs(request.inputs)
    save(record)
    run = yield from service.create(
        request.flow, request.parameters, tag_with_token(request.additional, record.token)
    )
    try:
        save(replace(record, flow_run_id=run.flow_run_id))
        for item in items:
            yield from service.add_input(run.flow_run_id, item)
    except FlowError:
        yield from _try_delete(service, run.flow_run_id)
        raise
    yield from _start_created(service, run.flow_run_id)
    return replace(run, state=FlowState.STARTING, raw_state=FlowState.STARTING.value)


def _start_and_save(
    service: Service, request: RunRequest, record: RunRecord, save: SaveRecord
) -> Conversation[FlowRun]:
    try:
        run = yield from start_in_one_request(service, request, before_start=lambda: save(record))
    except FlowServiceError as error:
        if not error.outcome_unknown:
            save(None)
        raise
    saved_run = None if service.supports("get_run") else run.to_record()
    save(replace(record, flow_run_id=run.flow_run_id, saved_run=saved_run))
    return run


def start_in_one_request(
    service: Service, request: RunRequest, before_start: Callable[[], None] = lambda: None
) -> Conversation[FlowRun]:
    """Start a new run in as few requests as the service allows, with nothing kept (see `Service.start`)."""
    if service.staged_start and not service.supports("start"):
        return start(service, request, RunRecord(request.fingerprint, generation=0), lambda _: None)
    return service.start(
        request.flow,
        request.inputs,
        request.parameters,
        request.additional,
        before_start=before_start,
        expected_outputs=request.expected_outputs,
    )


def tag_with_token(additional: Any, token: str) -> Any:
    """Give the caller's metadata with our mark, where it is a mapping or nothing; other metadata is left as it is."""
    if additional is None or isinstance(additional, Mapping):
        return {**(additional or {}), TOKEN_KEY: token}
    return additional


def _start_created(service: Service, flow_run_id: str) -> Conversation[None]:
    """Start a filled run; an answer that was lost, or is a gateway's, is settled by looking, never by sending again blindly.

    A run whose start was refused is deleted. One that may have started is left to the next try, which knows it by its record.
    """
    try:
        yield from service.start_created(flow_run_id)
    except FlowServiceError as error:
        if not error.outcome_unknown:
            yield from _try_delete(service, flow_run_id)
            raise
        run = yield from service.get_run(flow_run_id)
        if run.state is FlowState.CREATED:
            yield from service.start_created(flow_run_id)


def _try_delete(service: Service, flow_run_id: str) -> Conversation[None]:
    """Delete a run that never ran, if that can be done; whatever led here matters more."""
    try:
        yield from service.delete(flow_run_id)
    except FlowError:
        return


def resume(
    service: Service, request: RunRequest, record: RunRecord | None, generation: int, *, abort: bool = True
) -> Conversation[FlowRun | None]:
    """Give the run that an earlier try of the same request left, None if a new one must be started.

    A run that was made but never started is deleted; one from before a Clear, or of another order, is aborted if it still
    goes on.

    :param abort: whether such a run may be aborted; one that its service cannot abort is left alone.
    """
    if record is None:
        return None
    is_same_request = record.matches(request, generation)
    if record.saved_run is not None:
        saved_run = FlowRun.from_record(record.saved_run)
        return saved_run if is_same_request and saved_run.state is not FlowState.FAILED else None
    if record.flow_run_id is None:
        yield from _delete_orphans(service, record)
        return None
    try:
        run = yield from _get_run_confirmed(service, record.flow_run_id)
    except FlowNotFound:
        return None
    if is_same_request and run.state not in NOT_RESUMABLE_STATES:
        return run
    if run.state is FlowState.CREATED or (abort and service.supports("abort")):
        yield from cancel(service, run.flow_run_id)
    return None


def _get_run_confirmed(service: Service, flow_run_id: str) -> Conversation[FlowRun]:
    """Read a run that was there; only when several looks say so is it gone, for a run may not be visible everywhere at once.

    :raises FlowNotFound: it is gone.
    """
    for delay in NOT_FOUND_RETRY_SECONDS:
        try:
            return (yield from service.get_run(flow_run_id))
        except FlowNotFound:
            yield Sleep(delay)
    return (yield from service.get_run(flow_run_id))


def _delete_orphans(service: Service, record: RunRecord) -> Conversation[None]:
    """Delete what a try made whose worker died before it knew the id: the runs, never started, that bear its mark."""
    if not service.staged_start:
        return
    try:
        runs = yield from service.list_runs(FlowState.CREATED)
    except FlowError:
        return
    for run in runs:
        if isinstance(run.additional, Mapping) and run.additional.get(TOKEN_KEY) == record.token:
            yield from _try_delete(service, run.flow_run_id)


def cancel(service: Service, flow_run_id: str) -> Conversation[None]:
    """Stop a run wherever it is: one that never ran is deleted, one under way is aborted, a final one is left alone.

    :raises FlowServiceError: the service could not be asked, or does not do it.
    """
    for last in (False, True):  # the run may move on between the look and the request
        try:
            run = yield from _get_run_confirmed(service, flow_run_id)
            if run.state is FlowState.CREATED:
                yield from service.delete(flow_run_id)
            elif not run.is_final and run.state is not FlowState.ABORTING:
                yield from service.abort(flow_run_id)
        except FlowNotFound:
            return
        except FlowConflict:
            if last:
                raise
        else:
            return


def cancel_and_wait(service: Service, flow_run_id: str) -> Conversation[FlowRun | None]:
    """Stop a run, and wait for about ten seconds until it is final; gives it as it was seen last, None if it is gone.

    :raises FlowServiceError: the service could not be asked, or does not do it.
    """
    yield from cancel(service, flow_run_id)
    run = None
    for delay in CANCEL_POLL_SECONDS:
        try:
            run = yield from service.get_run(flow_run_id)
        except FlowNotFound:
            return None
        if run.is_final:
            return run
        yield Sleep(delay)
    return run
