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
from airflow_provider_flows.core.http import Pause
from airflow_provider_flows.core.run import FlowRun, FlowState, Source

if TYPE_CHECKING:
    from airflow_provider_flows.core.http import Conversation
    from airflow_provider_flows.core.service import Inputs, Service

TOKEN_KEY = "airflow_start"  # noqa: S105  # a name among the caller's metadata, no secret
NOT_TAKEN_UP = frozenset({FlowState.CREATED, FlowState.FAILED, FlowState.ABORTING, FlowState.ABORTED})
PAUSES_UNTIL_GONE = (0.5, 1.0)  # seconds
PAUSES_UNTIL_STOPPED = (0.5, 1.0, 1.5, 2.0, 2.0, 3.0)  # seconds


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be started: the flow, what it works on, and how.

    :param promised: names of the outputs that the flow's definition promises, None where it is not known.
    """

    flow: str
    inputs: Inputs
    parameters: Any = None
    additional: Any = None
    promised: tuple[str, ...] | None = None

    @property
    def fingerprint(self) -> str:
        """A digest of all that makes this order another one; it tells nothing of the content. A file counts by its own digest."""
        items = (
            dict(self.inputs)
            if isinstance(self.inputs, Mapping)
            else [item.as_json() for item in self.inputs]
        )
        # over JSON first: keys become text there, and only text can be sorted
        plain = json.loads(json.dumps([self.flow, items, self.parameters, self.additional], default=_plain))
        told = json.dumps(plain, sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class EarlierOrder(Order):
    """An order that cannot be read any more, say because an input's file is gone, but which an earlier try has sent.

    :param known: its fingerprint, as the record has it.
    """

    known: str = ""

    @property
    def fingerprint(self) -> str:
        """The earlier one's."""
        return self.known


def _plain(value: Any) -> Any:
    return [value.media_type, value.digest] if isinstance(value, Source) else str(value)


@dataclass(frozen=True, slots=True)
class Record:
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
    lineage: int
    deadline: float | None = None
    token: str = field(default_factory=lambda: uuid4().hex)
    flow_run_id: str | None = None
    answer: dict[str, Any] | None = None
    conn_id: str | None = None

    def fits(self, order: Order, lineage: int) -> bool:
        """Whether the record is of an earlier try of this very request."""
        return self.lineage == lineage and self.fingerprint == order.fingerprint

    def as_dict(self) -> dict[str, Any]:
        """Give the record as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, told: Any) -> Record | None:
        """Read a record; whatever cannot be one is as good as none."""
        try:
            record = cls(**told)
            if record.answer is not None:
                FlowRun.from_kept(record.answer)
        except (TypeError, KeyError, ValueError, AttributeError):
            return None
        texts = isinstance(record.flow_run_id, str | None) and isinstance(record.conn_id, str | None)
        return record if texts and isinstance(record.deadline, int | float | None) else None


Keep = Callable[[Record | None], None]


def start(service: Service, order: Order, record: Record, keep: Keep) -> Conversation[FlowRun]:
    """Start a new run: make it, keep its id, give it its inputs, start it. Until the last step nothing is paid.

    A service that does it all in one request is asked once; where it cannot be asked for the run again, its answer is kept whole.

    :param record: what is to be kept, as it stands before there is a run.
    :param keep: called with the record before anything is sent, and again as soon as the run has an id; when it returns, the
        record must be safe. Called with None when it is certain that this try made no run.
    :raises FlowServiceError: the run could not be made, filled or started; one that certainly did not start is deleted again.
    """
    if not service.steps:
        return (yield from _asked_once(service, order, record, keep))
    items = service.checked(order.inputs)
    keep(record)
    run = yield from service.create(order.flow, order.parameters, marked(order.additional, record.token))
    try:
        keep(replace(record, flow_run_id=run.flow_run_id))
        for item in items:
            yield from service.add_input(run.flow_run_id, item)
    except FlowError:
        yield from _tidied(service, run.flow_run_id)
        raise
    yield from _begin(service, run.flow_run_id)
    return replace(run, state=FlowState.STARTING, state_word=FlowState.STARTING.value)


def _asked_once(service: Service, order: Order, record: Record, keep: Keep) -> Conversation[FlowRun]:
    try:
        run = yield from started_at_once(service, order, about=lambda: keep(record))
    except FlowServiceError as error:
        if not error.in_doubt:
            keep(None)
        raise
    answer = None if service.offers("get_run") else run.as_kept()
    keep(replace(record, flow_run_id=run.flow_run_id, answer=answer))
    return run


def started_at_once(
    service: Service, order: Order, about: Callable[[], None] = lambda: None
) -> Conversation[FlowRun]:
    """Start a new run in as few requests as the service allows, with nothing kept (see `Service.start`)."""
    if service.steps and not service.offers("start"):
        return start(service, order, Record(order.fingerprint, lineage=0), lambda _: None)
    return service.start(
        order.flow, order.inputs, order.parameters, order.additional, about=about, promised=order.promised
    )


def marked(additional: Any, token: str) -> Any:
    """Give the caller's metadata with our mark, where it is a mapping or nothing; other metadata is left as it is."""
    if additional is None or isinstance(additional, Mapping):
        return {**(additional or {}), TOKEN_KEY: token}
    return additional


def _begin(service: Service, flow_run_id: str) -> Conversation[None]:
    """Start a filled run; an answer that was lost, or is a gateway's, is settled by looking, never by sending again blindly.

    A run whose start was refused is deleted. One that may have started is left to the next try, which knows it by its record.
    """
    try:
        yield from service.begin(flow_run_id)
    except FlowServiceError as error:
        if not error.in_doubt:
            yield from _tidied(service, flow_run_id)
            raise
        run = yield from service.get_run(flow_run_id)
        if run.state is FlowState.CREATED:
            yield from service.begin(flow_run_id)


def _tidied(service: Service, flow_run_id: str) -> Conversation[None]:
    """Delete a run that never ran, if that can be done; whatever led here matters more."""
    try:
        yield from service.delete(flow_run_id)
    except FlowError:
        return


def picked_up(
    service: Service, order: Order, record: Record | None, lineage: int, *, abort: bool = True
) -> Conversation[FlowRun | None]:
    """Give the run that an earlier try of the same request left, None if a new one must be started.

    A run that was made but never started is deleted; one from before a Clear, or of another order, is aborted if it still
    goes on.

    :param abort: whether such a run may be aborted; one that its service cannot abort is left alone.
    """
    if record is None:
        return None
    fits = record.fits(order, lineage)
    if record.answer is not None:
        kept = FlowRun.from_kept(record.answer)
        return kept if fits and kept.state is not FlowState.FAILED else None
    if record.flow_run_id is None:
        yield from _swept(service, record)
        return None
    try:
        run = yield from _found(service, record.flow_run_id)
    except FlowNotFound:
        return None
    if fits and run.state not in NOT_TAKEN_UP:
        return run
    if run.state is FlowState.CREATED or (abort and service.offers("abort")):
        yield from stopped(service, run.flow_run_id)
    return None


def _found(service: Service, flow_run_id: str) -> Conversation[FlowRun]:
    """Read a run that was there; only when several looks say so is it gone, for a run may not be visible everywhere at once.

    :raises FlowNotFound: it is gone.
    """
    for pause in PAUSES_UNTIL_GONE:
        try:
            return (yield from service.get_run(flow_run_id))
        except FlowNotFound:
            yield Pause(pause)
    return (yield from service.get_run(flow_run_id))


def _swept(service: Service, record: Record) -> Conversation[None]:
    """Delete what a try made whose worker died before it knew the id: the runs, never started, that bear its mark."""
    if not service.steps:
        return
    try:
        made = yield from service.list_runs(FlowState.CREATED)
    except FlowError:
        return
    for run in made:
        if isinstance(run.additional, Mapping) and run.additional.get(TOKEN_KEY) == record.token:
            yield from _tidied(service, run.flow_run_id)


def stopped(service: Service, flow_run_id: str) -> Conversation[None]:
    """Stop a run wherever it is: one that never ran is deleted, one under way is aborted, a final one is left alone.

    :raises FlowServiceError: the service could not be asked, or does not do it.
    """
    for last in (False, True):  # the run may move on between the look and the request
        try:
            run = yield from _found(service, flow_run_id)
            if run.state is FlowState.CREATED:
                yield from service.delete(flow_run_id)
            elif not run.final and run.state is not FlowState.ABORTING:
                yield from service.abort(flow_run_id)
        except FlowNotFound:
            return
        except FlowConflict:
            if last:
                raise
        else:
            return


def seen_off(service: Service, flow_run_id: str) -> Conversation[FlowRun | None]:
    """Stop a run, and wait for about ten seconds until it is final; gives it as it was seen last, None if it is gone.

    :raises FlowServiceError: the service could not be asked, or does not do it.
    """
    yield from stopped(service, flow_run_id)
    run = None
    for pause in PAUSES_UNTIL_STOPPED:
        try:
            run = yield from service.get_run(flow_run_id)
        except FlowNotFound:
            return None
        if run.final:
            return run
        yield Pause(pause)
    return run
