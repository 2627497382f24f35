"""The start protocol: how a flow run is started so that no killed worker leaves one behind that its retry does not know.

It keeps nothing itself: the caller hands in what was kept before, and a function that keeps what must not be forgotten.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.flow.errors import FlowConflict, FlowError, FlowNotFound, FlowServiceError, FlowUnreachable
from airflow_provider_flows.flow.run import FlowRun, FlowState

if TYPE_CHECKING:
    from airflow_provider_flows.flow.exchange import Conversation
    from airflow_provider_flows.flow.services import Inputs, Service


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be started: the flow, what it works on, and how."""

    flow: str
    inputs: Inputs
    parameters: Any = None
    additional: Any = None

    @property
    def fingerprint(self) -> str:
        """A digest of all that makes this order another one; it tells nothing of the content."""
        items = dict(self.inputs) if isinstance(self.inputs, Mapping) else [item.as_json() for item in self.inputs]
        # over JSON first: keys become text there, and only text can be sorted
        plain = json.loads(json.dumps([self.flow, items, self.parameters, self.additional], default=str))
        told = json.dumps(plain, sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Record:
    """What a retry must know: the run's id, what was ordered, in which lineage of tries, and until when it may take.

    :param lineage: the same for all tries of one run of a task, another one after a Clear.
    :param deadline: epoch seconds, or None.
    """

    flow_run_id: str
    fingerprint: str
    lineage: int
    deadline: float | None = None

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
            return cls(**told)
        except TypeError:
            return None


Keep = Callable[[FlowRun], None]


def start(service: Service, order: Order, keep: Keep) -> Conversation[FlowRun]:
    """Start a new run: make it, keep its id, give it its inputs, start it. Until the last step nothing is paid.

    A service that does it all in one request is asked once, and its run is kept afterwards.

    :param keep: called with the run as soon as it has an id; when it returns, the id must be safe.
    :raises FlowServiceError: the run could not be made, filled or started; one that was made is deleted again.
    """
    if not service.steps:
        run = yield from service.start(order.flow, order.inputs, order.parameters, order.additional)
        keep(run)
        return run
    items = service.checked(order.inputs)
    run = yield from service.create(order.flow, order.parameters, order.additional)
    keep(run)
    try:
        for item in items:
            yield from service.add_input(run.flow_run_id, item)
        yield from _begin(service, run.flow_run_id)
    except FlowError:
        yield from _tidied(service, run.flow_run_id)
        raise
    return replace(run, state=FlowState.STARTING, state_word=FlowState.STARTING.value)


def _begin(service: Service, flow_run_id: str) -> Conversation[None]:
    """Start a filled run; an answer that was lost, or is a gateway's, is settled by looking, never by sending again blindly."""
    try:
        yield from service.begin(flow_run_id)
    except FlowServiceError as error:
        if not error.passing or (isinstance(error, FlowUnreachable) and not error.may_have_arrived):
            raise
        run = yield from service.get_run(flow_run_id)
        if run.state is FlowState.CREATED:
            yield from service.begin(flow_run_id)


def _tidied(service: Service, flow_run_id: str) -> Conversation[None]:
    """Delete a run that could not be started, if that can be done; the error that led here matters more."""
    try:
        yield from service.delete(flow_run_id)
    except FlowError:
        return


def picked_up(service: Service, order: Order, record: Record | None, lineage: int) -> Conversation[FlowRun | None]:
    """Give the run that an earlier try of the same request left, None if a new one must be started.

    A run that was made but never started is deleted; one from before a Clear, or of another order, is aborted if it still
    goes on.
    """
    if record is None:
        return None
    try:
        run = yield from service.get_run(record.flow_run_id)
    except FlowNotFound:
        return None
    if run.state is FlowState.CREATED:
        yield from _tidied(service, run.flow_run_id)
        return None
    if record.fits(order, lineage):
        return None if run.state in {FlowState.FAILED, FlowState.ABORTED} else run
    if not run.final:
        yield from _stopped(service, run.flow_run_id)
    return None


def _stopped(service: Service, flow_run_id: str) -> Conversation[None]:
    """Abort a run that nobody waits for any more; it may have ended in between."""
    try:
        yield from service.abort(flow_run_id)
    except (FlowConflict, FlowNotFound):
        return
