"""What the flows of a connection take, asked for now and then for the whole process, and an order checked against it.

What fits is for flow/checking.py to say, how a service is asked for flow/services.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow_provider_flows.flow.checking import check, chosen
from airflow_provider_flows.flow.definition import FlowDefinition
from airflow_provider_flows.flow.errors import FlowAuthError, FlowInputError, FlowServiceError

if TYPE_CHECKING:
    from airflow_provider_flows.flow.exchange import Conversation, T
    from airflow_provider_flows.flow.starting import Order
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


def definition_of(hook: FlowsHook, flow: str, hold: Callable[[Conversation[FlowDefinition]], FlowDefinition]) -> FlowDefinition:
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


def checked(hook: FlowsHook, order: Order) -> FlowDefinition | None:
    """Check an order against what its flow takes; nothing is refused for an answer that was kept, without asking again.

    :returns: None if nothing tells what the flow takes, which is logged and no reason to fail.
    :raises FlowInputError: naming all that does not fit.
    """
    if hook.service.offers("checked"):
        hook.service.checked(order.inputs)
    try:
        known, fresh = _known(hook, order.flow)
        try:
            return _fitted(hook, order, known)
        except FlowInputError:
            if fresh:
                raise
        known, _ = _known(hook, order.flow, anew=True)
    except (FlowServiceError, FlowInputError) as error:
        if isinstance(error, FlowInputError) and error.lasting:
            raise
        passing = not isinstance(error, FlowServiceError) or error.passing
        hook.log.log(logging.WARNING if passing else logging.INFO, UNCHECKED, order.flow, error)
        return None
    return _fitted(hook, order, known)


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


def _fitted(hook: FlowsHook, order: Order, known: list[FlowDefinition]) -> FlowDefinition | None:
    """Check an order against the definition that is its flow's; where there is none at all, nothing was told.

    :raises FlowInputError: it does not fit.
    """
    if not known:
        hook.log.info(UNCHECKED, order.flow, f"{hook.service.name} has no definitions")
        return None
    listed = hook.service.offers("list_definitions")
    definition = chosen(order.flow, hook.service.name, known) if listed else known[0]
    check(definition, order.inputs, order.parameters)
    return definition
