"""What the flows of a connection take, asked for now and then for the whole process, and an order checked against it.

What fits is for flow/checking.py to say, how a service is asked for flow/services.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow_provider_flows.core.definition import FlowDefinition
from airflow_provider_flows.core.exceptions import FlowAuthError, FlowInputError, FlowServiceError
from airflow_provider_flows.core.problems import NOTHING_MADE, Findings
from airflow_provider_flows.core.validation import check, chosen

if TYPE_CHECKING:
    from airflow_provider_flows.core.http import Conversation, T
    from airflow_provider_flows.core.start import Order
    from airflow_provider_flows.hooks import FlowsHook

FRESH_SECONDS = 60.0  # for so long an answer serves whoever comes
HURRY_SECONDS = 15.0  # that one request may take: a run is waiting, and can do without
HURRY_ATTEMPTS = 2
UNCHECKED = "Nothing tells what flow %s takes, so its inputs and parameters are not checked: %s"


class _Entry(NamedTuple):
    of: Any
    until: float
    value: Any


class Recent:
    """Answers that are kept for a moment; those that ended in an error are not. Any thread may ask.

    :param clock: gives monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with nothing."""
        self._clock = clock
        self._lock = Lock()
        self._entries: list[_Entry] = []  # a list, because what settings hold cannot be hashed; they are few

    def get(self, of: Any, ask: Callable[[], T], *, anew: bool = False) -> tuple[T, bool]:
        """Give what is kept of this, else ask for it; also whether it was asked for just now.

        :param of: compared with `==`.
        :param anew: ask in any case.
        """
        with self._lock:
            now = self._clock()
            self._entries = [entry for entry in self._entries if entry.until > now]
            kept = next((entry for entry in self._entries if entry.of == of), None)
        if kept is not None and not anew:
            return kept.value, False
        value = ask()  # not under the lock: others need not wait for this service
        with self._lock:
            others = [entry for entry in self._entries if entry.of != of]
            self._entries = [*others, _Entry(of, self._clock() + FRESH_SECONDS, value)]
        return value, True

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()


RECENT = Recent()


def definition_of(
    hook: FlowsHook, flow: str, hold: Callable[[Conversation[FlowDefinition]], FlowDefinition]
) -> FlowDefinition:
    """Read a flow's definition: from its service, and where that cannot tell it from an exported graph, if one is at hand.

    :raises FlowServiceError: nothing tells it.
    """
    try:
        return hold(hook.service.get_definition(flow))
    except FlowAuthError:
        raise
    except FlowServiceError:
        graph = hook.get_graph(flow)
        if graph is None:
            raise
        return FlowDefinition.of_graph(flow, hook.service.name, graph)


def refuse(hook: FlowsHook, order: Order, findings: Findings, *, validate: bool) -> None:
    """Tell findings, if there are any, together with those of a check.

    :raises FlowInputError: naming all of them; no run was made.
    """
    if findings:
        checked(hook, order, findings, validate=validate)
        findings.tell(NOTHING_MADE)


def checked(hook: FlowsHook, order: Order, findings: Findings, *, validate: bool) -> FlowDefinition | None:
    """Note what of an order does not fit its service and its flow; no kept answer is a reason without asking again.

    :param findings: what is known to be wrong already; what it spoils is not looked into.
    :param validate: whether it is asked what the flow takes.
    :returns: None if nothing tells that, which is logged and no reason to fail.
    """
    hook.service.examine(order.inputs, order.parameters, findings)
    if not validate or "flow" in findings.spoilt:
        return None
    try:
        known, fresh = _known(hook, order.flow)
        definition, more = _compared(hook, order, known, findings.spoilt)
        if more and not fresh:
            known, _ = _known(hook, order.flow, anew=True)
            definition, more = _compared(hook, order, known, findings.spoilt)
    except (FlowServiceError, FlowInputError) as error:
        if isinstance(error, FlowInputError) and error.lasting:
            findings.add(str(error))
            return None
        passing = not isinstance(error, FlowServiceError) or error.passing
        hook.log.log(logging.WARNING if passing else logging.INFO, UNCHECKED, order.flow, error)
        return None
    findings.join(more)
    return definition


def _known(hook: FlowsHook, flow: str, *, anew: bool = False) -> tuple[list[FlowDefinition], bool]:
    """Give all definitions where the service lists them, else this flow's alone; also whether it was asked just now.

    :raises FlowServiceError: it cannot tell.
    """
    connection = (type(hook), hook.settings, hook.extra)
    if hook.service.offers("list_definitions"):
        return RECENT.get(connection, lambda: _hurried(hook, hook.service.list_definitions()), anew=anew)
    if hook.service.offers("get_definition"):
        hold = partial(_hurried, hook)
        return RECENT.get((*connection, flow), lambda: [definition_of(hook, flow, hold)], anew=anew)
    return [], True


def _hurried(hook: FlowsHook, conversation: Conversation[T]) -> T:
    return hook.hurried(conversation, HURRY_SECONDS, HURRY_ATTEMPTS)


def _compared(
    hook: FlowsHook, order: Order, known: list[FlowDefinition], spoilt: Collection[str]
) -> tuple[FlowDefinition | None, Findings]:
    """Give the definition that is the order's flow's, and what does not fit it; where there is none at all, nothing was told."""
    found = Findings()
    if not known:
        hook.log.info(UNCHECKED, order.flow, f"{hook.service.name} has no definitions")
        return None, found
    listed = hook.service.offers("list_definitions")
    definition = chosen(order.flow, hook.service.name, known, found) if listed else known[0]
    if definition is not None:
        check(definition, order.inputs, order.parameters, found, spoilt)
    return definition, found
