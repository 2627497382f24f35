"""The start protocol: start a flow run at most once, and resume the run of an earlier try.

The protocol performs no I/O. The caller passes the record that an earlier try saved, and a function that
saves a record.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from airflow_provider_flows.core.exceptions import FlowError, FlowNotFound, FlowServiceError
from airflow_provider_flows.core.flow_run import FlowRun, FlowState, UploadSource
from airflow_provider_flows.core.http import Request, Resend, Response, Sleep, map_requests, run_apart, send
from airflow_provider_flows.core.limits import MAX_SEARCHED_RUNS
from airflow_provider_flows.core.service import abort_run
from airflow_provider_flows.core.timestamps import to_epoch

if TYPE_CHECKING:
    from airflow_provider_flows.core.flow_run import Inputs
    from airflow_provider_flows.core.http import Conversation
    from airflow_provider_flows.core.service import Service

STAMP_KEY = "airflow_start"  # the key of the provider's stamp in the caller's metadata
STAMPED_FIELDS = ("token", "generation", "fingerprint", "deadline")  # of a record
NOT_RESUMABLE_STATES = frozenset({FlowState.CREATED, FlowState.FAILED, FlowState.ABORTING, FlowState.ABORTED})
MISSING_RUN_RETRY_SECONDS = (0.5, 1.0, 2.0, 4.0, 7.5, 15.0)  # 30 s in all, for the failover of a gateway
MIN_SEARCH_SECONDS = 1.5


@dataclass(frozen=True, slots=True)
class RunRequest:
    """A flow run to start: the flow, its inputs and its parameters.

    :param flow: the flow's name or id.
    :param inputs: a list of `FlowInput`, or a mapping of variables (PromptChainer).
    :param parameters: the flow's parameters, a mapping or None.
    :param additional: the caller's metadata, stored with the run (Generio).
    :param expected_outputs: names of the outputs in the flow's definition; None if the definition is not
        available.
    """

    flow: str
    inputs: Inputs
    parameters: Any = None
    additional: Any = None
    expected_outputs: tuple[str, ...] | None = None

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of flow, inputs, parameters and metadata, in hexadecimal.

        A file counts by its own digest. Two tries with the same fingerprint want the same flow run. The
        content cannot be recovered from it.
        """
        items = (
            dict(self.inputs)
            if isinstance(self.inputs, Mapping)
            else [item.to_json() for item in self.inputs]
        )
        # through JSON first, which turns every key into text: keys of several types cannot be sorted
        plain = json.loads(
            json.dumps([self.flow, items, self.parameters, self.additional], default=_to_plain_json)
        )
        text = json.dumps(plain, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _to_plain_json(value: Any) -> Any:
    return [value.media_type, value.digest] if isinstance(value, UploadSource) else str(value)


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What a try saves about its start for the tries after it. The field names are the stored keys.

    :param fingerprint: of the request (`RunRequest.fingerprint`).
    :param generation: the same number for all tries of one run of a task; clearing the task raises it.
    :param deadline: epoch seconds, or None.
    :param token: tags the run at the service, so that it can be found while its id has not been saved yet.
    :param flow_run_id: None until the service has returned it: a run may or may not exist then.
    :param saved_run: the complete run (`FlowRun.to_record`), if the service cannot return it a second time.
    :param conn_id: the Airflow connection that the run was started with.
    :param host: the connection's base URL at that time, without credentials.
    :param created_by: the try that started the run, by Airflow's attribute names (`dag_id`, ...); part of
        the stamp.
    :param check_retry: the runs that it replaces because their outputs were rejected
        (`CheckRetry.to_dict`); part of the stamp, without the reasons.
    """

    fingerprint: str
    generation: int
    deadline: float | None = None
    token: str = field(default_factory=lambda: uuid4().hex)
    flow_run_id: str | None = None
    saved_run: dict[str, Any] | None = None
    conn_id: str | None = None
    host: str | None = None
    created_by: dict[str, Any] | None = None
    check_retry: dict[str, Any] | None = None

    @property
    def stamp(self) -> dict[str, Any]:
        """The stamp in the metadata of the run, under `STAMP_KEY`: the try that started it, and this record.

        A later try without the record creates it again from the stamp (`from_stamp`).
        """
        fields = {name: getattr(self, name) for name in STAMPED_FIELDS}
        if self.check_retry is not None:
            rows = [{**row, "problems": []} for row in self.check_retry["rejected_runs"]]
            fields["check_retry"] = {**self.check_retry, "rejected_runs": rows}
        return {**(self.created_by or {}), **fields}

    def is_stamped_on(self, run: FlowRun) -> bool:
        """Return whether a run carries the stamp of this record."""
        return get_stamp(run).get("token") == self.token

    def matches(self, fingerprint: str, generation: int) -> bool:
        """Return whether an earlier try of the same run of the task saved it for the same request."""
        return self.generation == generation and self.fingerprint == fingerprint

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> RunRecord | None:
        """Return the record that `to_dict` wrote; None for anything else, such as a newer version's."""
        try:
            record = cls(**data)
            if record.saved_run is not None:
                FlowRun.from_record(record.saved_run)
            is_valid = math.isfinite(record.deadline or 0.0) and isinstance(record.generation, int)
            is_valid = is_valid and isinstance(record.check_retry, dict | None)
        except (TypeError, KeyError, ValueError, AttributeError, OverflowError):
            return None
        texts = (record.fingerprint, record.token)
        optional_texts = (record.flow_run_id, record.conn_id, record.host)
        is_valid = is_valid and all(isinstance(text, str) for text in texts)
        return record if is_valid and all(isinstance(text, str | None) for text in optional_texts) else None

    @classmethod
    def from_stamp(cls, run: FlowRun) -> RunRecord | None:
        """Return the record of the start of a run, from its stamp; None if the stamp does not have it."""
        stamp = get_stamp(run)
        fields = {name: stamp.get(name) for name in (*STAMPED_FIELDS, "check_retry")}
        return cls.from_dict({**fields, "flow_run_id": run.flow_run_id})


SaveRecord = Callable[[RunRecord | None], None]


def start(
    service: Service,
    request: RunRequest,
    record: RunRecord,
    save: SaveRecord,
    *,
    now: Callable[[], float] = time.time,
) -> Conversation[FlowRun]:
    """Start a new run: create it, save its id, add its inputs, start it.

    Nothing is billed before the last step. A service without these steps gets a single request. If it cannot
    return the run later, its complete response is saved.

    :param record: the record of this start, without a flow run id.
    :param save: stores a record, and returns only when it is stored; an event loop calls it in a thread. It
        is called before the first request, and again as soon as the run has an id. It is called with None if
        this try certainly created no run. If it raises after the run was created, the run is deleted and not
        started.
    :param now: returns epoch seconds, for the deadline.
    :raises FlowServiceError: the run could not be created, filled or started. If it certainly did not start,
        it is deleted.
    """
    if not service.staged_start:
        return (yield from _start_and_save(service, request, record, save))
    items = service.to_flow_inputs(request.inputs)
    yield from run_apart(partial(save, record))
    run, was_sent_again = yield from _create(service, request, record)
    try:
        yield from run_apart(partial(save, replace(record, flow_run_id=run.flow_run_id)))
        if was_sent_again:
            yield from delete_created_runs(service, {"token": record.token}, [run.flow_run_id])
        for item in items:
            yield from service.add_input(run.flow_run_id, item)
    except Exception:  # a store may raise anything
        yield from _try_delete(service, run.flow_run_id)
        raise
    yield from _start_created_run(service, replace(record, flow_run_id=run.flow_run_id), now)
    return replace(run, state=FlowState.STARTING, raw_state=FlowState.STARTING.value)


def _create(service: Service, request: RunRequest, record: RunRecord) -> Conversation[tuple[FlowRun, bool]]:
    """Create a run. The request is retried like a GET, because it costs nothing.

    If it fails although it may have arrived, the runs that it may have created are deleted.

    :returns: the run, and whether the request was sent more than once, and so may have created others.
    """
    was_sent_again = False

    def send_retryable(one: Request) -> Conversation[Response]:
        nonlocal was_sent_again
        response = yield from send(replace(one, resend=Resend.ALWAYS))
        was_sent_again = was_sent_again or response.attempts > 1
        return response

    additional = add_stamp(request.additional, record.stamp)
    conversation = service.create(request.flow, request.parameters, additional)
    try:
        run = yield from map_requests(conversation, send_retryable)
    except FlowServiceError as error:
        if was_sent_again or error.outcome_unknown:
            yield from delete_created_runs(service, {"token": record.token})
        raise
    return run, was_sent_again


def _start_and_save(
    service: Service, request: RunRequest, record: RunRecord, save: SaveRecord
) -> Conversation[FlowRun]:
    is_unsaved = False

    def before_start() -> None:
        nonlocal is_unsaved
        is_unsaved = True

    def save_and_send(one: Request) -> Conversation[Response]:
        nonlocal is_unsaved
        if is_unsaved:  # the next request may cost money
            is_unsaved = False
            yield from run_apart(partial(save, record))
        return (yield from send(one))

    try:
        run = yield from map_requests(start_without_record(service, request, before_start), save_and_send)
    except FlowServiceError as error:
        if not error.outcome_unknown:
            yield from run_apart(partial(save, None))
        raise
    saved_run = None if service.supports("get_run") else run.to_record()
    started = replace(record, flow_run_id=run.flow_run_id, saved_run=saved_run)
    yield from run_apart(partial(save, started))
    return run


def start_without_record(
    service: Service, request: RunRequest, before_start: Callable[[], None] = lambda: None
) -> Conversation[FlowRun]:
    """Start a new run in as few requests as the service allows, without saving a record.

    :param before_start: called right before the request that may be billed.
    :raises FlowServiceError: the run could not be started.
    """
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


def get_stamp(run: FlowRun) -> Mapping[str, Any]:
    """Return the stamp that a run carries, empty without one."""
    stamp = run.additional.get(STAMP_KEY) if isinstance(run.additional, Mapping) else None
    return stamp if isinstance(stamp, Mapping) else {}


def has_stamp(run: FlowRun, values: Mapping[str, Any]) -> bool:
    """Return whether the stamp of a run has these values, of the same types; it does not have a None."""
    stamp = get_stamp(run)
    found = {name: stamp.get(name) for name in values}
    return all(type(found[name]) is type(value) and found[name] == value for name, value in values.items())


def can_be_stamped(additional: Any) -> bool:
    """Return whether a stamp can be added to the caller's metadata."""
    return additional is None or isinstance(additional, Mapping)


def add_stamp(additional: Any, stamp: Mapping[str, Any]) -> Any:
    """Return the caller's metadata with the stamp added; other metadata than a mapping is unchanged."""
    if can_be_stamped(additional):
        return {**(additional or {}), STAMP_KEY: dict(stamp)}
    return additional


def _start_created_run(service: Service, record: RunRecord, now: Callable[[], float]) -> Conversation[None]:
    """Start the created run that a record names.

    If the outcome of the request is unknown, poll the run before sending the request again. A run whose start
    was rejected is deleted. A run that may have started is left to the next try, which finds it by its
    record.
    """
    flow_run_id = str(record.flow_run_id)
    try:
        yield from service.start_created_run(flow_run_id)
    except FlowServiceError as error:
        if not error.outcome_unknown:
            yield from _try_delete(service, flow_run_id)
            raise
        run = yield from _find_run(service, record, record.deadline, now)
        if run is None:
            raise
        if run.state is FlowState.CREATED:
            yield from service.start_created_run(flow_run_id)


def _try_delete(service: Service, flow_run_id: str) -> Conversation[None]:
    """Delete a run that never ran, and ignore a failure: the error that led here matters more."""
    try:
        yield from service.delete(flow_run_id)
    except FlowError:
        return


def resume(
    service: Service,
    fingerprint: str,
    record: RunRecord | None,
    generation: int,
    *,
    abort: bool = True,
    on_abort: Callable[[str], None] = lambda _: None,
    on_missing: Callable[[str], None] = lambda _: None,
    now: Callable[[], float] = time.time,
) -> Conversation[FlowRun | None]:
    """Return the run that an earlier try of the same request started; None if a new one must be started.

    A run that was created and never started is deleted. An active run is aborted if it is of another
    request, or if the task was cleared since then. A run that is not found is searched for up to 30 seconds,
    but not beyond the deadline.

    :param fingerprint: of this try's request.
    :param record: what the last try saved, or None.
    :param generation: of this run of the task.
    :param abort: whether a run of another request may be aborted, if its service can do that.
    :param on_abort: called with the id of the earlier run if it was deleted or aborted.
    :param on_missing: called with the id of the earlier run if it was not found.
    :param now: returns epoch seconds, for the deadline.
    :raises FlowServiceError: the state of the earlier run could not be determined.
    """
    if record is None:
        return None
    is_same_request = record.matches(fingerprint, generation)
    if record.saved_run is not None:
        saved_run = FlowRun.from_record(record.saved_run)
        return saved_run if is_same_request and saved_run.state not in NOT_RESUMABLE_STATES else None
    if record.flow_run_id is None or not service.supports("get_run"):
        yield from delete_created_runs(service, {"token": record.token})
        return None
    run = yield from _find_run(service, record, record.deadline if is_same_request else None, now)
    if run is None:
        on_missing(record.flow_run_id)
        return None
    if is_same_request and run.state not in NOT_RESUMABLE_STATES:
        return run
    if run.state is FlowState.CREATED or (abort and service.supports("abort")):
        was_aborted = yield from abort_run(service, run.flow_run_id)
        if was_aborted:
            on_abort(run.flow_run_id)
    return None


def _find_run(
    service: Service, record: RunRecord, deadline: float | None, now: Callable[[], float]
) -> Conversation[FlowRun | None]:
    """Return the run that a record names, or None if the service neither returns nor lists it.

    During a failover, a gateway responds with 404 for a while. Therefore this polls with growing delays, and
    searches the list of runs as well. A run that is listed exists, even if no poll found it.

    :param deadline: epoch seconds at which the search ends, after at least 1.5 s; or None.
    :raises FlowServiceError: the service could not be reached.
    """
    listed: FlowRun | None = None
    if deadline is not None:  # a run whose deadline has passed must be found as well, so that it is aborted
        deadline = max(deadline, now() + MIN_SEARCH_SECONDS)
    for attempt, delay in enumerate((*MISSING_RUN_RETRY_SECONDS, 0.0)):
        try:
            return (yield from service.get_run(str(record.flow_run_id)))
        except FlowNotFound:
            pass
        seconds = delay if deadline is None else min(delay, deadline - now())
        if listed is None and (attempt > 0 or seconds <= 0):  # a single 404 is not worth a list
            listed = yield from _find_listed_run(service, record)
        if seconds <= 0:
            break
        yield Sleep(seconds)
    return listed


def _find_listed_run(service: Service, record: RunRecord) -> Conversation[FlowRun | None]:
    """Return the listed run with the record's id, else one with its stamp; None if neither is listed."""
    if not service.supports("list_runs"):
        return None
    try:
        runs = yield from service.list_runs()
    except FlowError:
        return None
    matching = [run for run in runs if run.flow_run_id == record.flow_run_id or record.is_stamped_on(run)]
    return min(matching, key=lambda run: run.flow_run_id != record.flow_run_id, default=None)


def delete_created_runs(
    service: Service, stamp: Mapping[str, Any], except_ids: Collection[str] = ()
) -> Conversation[None]:
    """Delete the created runs with a stamp, whose ids were never received. Never fails.

    :param stamp: a part of the stamp.
    :param except_ids: the ids of runs to leave alone.
    """
    if not service.staged_start or not service.supports("list_runs"):
        return
    try:
        runs = yield from service.list_runs(FlowState.CREATED)
    except FlowError:
        return
    for run in runs:
        if has_stamp(run, stamp) and run.flow_run_id not in except_ids:
            yield from _try_delete(service, run.flow_run_id)


def find_stamped_runs(service: Service, stamp: Mapping[str, Any]) -> Conversation[list[FlowRun]]:
    """Return the runs with a stamp, newest first, among the newest runs that the service lists.

    :param stamp: a part of the stamp.
    :raises FlowServiceError: the service could not be reached, or its list cannot be read.
    """
    page = yield from service.list_newest(MAX_SEARCHED_RUNS)
    runs = [run for run in page.runs if has_stamp(run, stamp)]
    return sorted(runs, key=lambda run: to_epoch(run.created_at) if run.created_at else 0.0, reverse=True)


def select_record(runs: Iterable[FlowRun], generation: int) -> RunRecord | None:
    """Return the record of the run that is to be resumed, or of the newest one if none is.

    :param runs: of one task instance, newest first. One that never ran does not count.
    :param generation: of this run of the task.
    """
    first: RunRecord | None = None
    for run in runs:
        record = None if run.state is FlowState.CREATED else RunRecord.from_stamp(run)
        if record is not None and record.generation == generation and run.state not in NOT_RESUMABLE_STATES:
            return record
        first = first or record
    return first
