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
from airflow_provider_flows.core.problems import NOTHING_STARTED, Problems
from airflow_provider_flows.core.retry import Retry
from airflow_provider_flows.core.validation import select_definition, validate_arguments

if TYPE_CHECKING:
    from airflow_provider_flows.core.http import Conversation, T
    from airflow_provider_flows.core.start import RunRequest
    from airflow_provider_flows.hooks import FlowsHook

DEFINITION_TTL_SECONDS = 60.0  # for so long an answer serves whoever comes
DEFINITION_TIMEOUT_SECONDS = 15.0  # that one request may take: a run is waiting, and can do without
MAX_DEFINITION_ATTEMPTS = 2
NO_DEFINITION = "Nothing tells what flow %s takes, so its inputs and parameters are not checked: %s"


class _CacheEntry(NamedTuple):
    key: Any
    expires_at: float
    value: Any


class DefinitionCache:
    """Answers that are kept for a moment; those that ended in an error are not. Any thread may ask.

    :param clock: gives monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with nothing."""
        self._clock = clock
        self._lock = Lock()
        self._entries: list[
            _CacheEntry
        ] = []  # a list, because what settings hold cannot be hashed; they are few

    def get(self, key: Any, load: Callable[[], T], *, reload: bool = False) -> tuple[T, bool]:
        """Give what is kept of this, else ask for it; also whether it was asked for just now.

        :param of: compared with `==`.
        :param anew: ask in any case.
        """
        with self._lock:
            now = self._clock()
            self._entries = [entry for entry in self._entries if entry.expires_at > now]
            hit = next((entry for entry in self._entries if entry.key == key), None)
        if hit is not None and not reload:
            return hit.value, False
        value = load()  # not under the lock: others need not wait for this service
        with self._lock:
            others = [entry for entry in self._entries if entry.key != key]
            self._entries = [*others, _CacheEntry(key, self._clock() + DEFINITION_TTL_SECONDS, value)]
        return value, True

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()


DEFINITION_CACHE = DefinitionCache()


def load_definition(
    hook: FlowsHook, flow: str, run: Callable[[Conversation[FlowDefinition]], FlowDefinition]
) -> FlowDefinition:
    """Read a flow's definition: from its service, and where that cannot tell it from an exported graph, if one is at hand.

    :raises FlowServiceError: nothing tells it.
    """
    try:
        return run(hook.service.get_definition(flow))
    except FlowAuthError:
        raise
    except FlowServiceError:
        graph = hook.get_graph(flow)
        if graph is None:
            raise
        return FlowDefinition.from_graph(flow, hook.service.name, graph)


def raise_if_invalid(hook: FlowsHook, request: RunRequest, problems: Problems, *, validate: bool) -> None:
    """Tell findings, if there are any, together with those of a check.

    :raises FlowInputError: naming all of them; no run was made.
    """
    if problems:
        validate_request(hook, request, problems, validate=validate)
        problems.raise_if_any(NOTHING_STARTED)


def validate_request(
    hook: FlowsHook, request: RunRequest, problems: Problems, *, validate: bool
) -> FlowDefinition | None:
    """Note what of an order does not fit its service and its flow; no kept answer is a reason without asking again.

    :param findings: what is known to be wrong already; what it spoils is not looked into.
    :param validate: whether it is asked what the flow takes.
    :returns: None if nothing tells that, which is logged and no reason to fail.
    """
    hook.service.validate(request.inputs, request.parameters, problems)
    if not validate or "flow" in problems.invalid:
        return None
    try:
        known, fresh = _load_definitions(hook, request.flow)
        definition, more = _match_definition(hook, request, known, problems.invalid)
        if more and not fresh:
            known, _ = _load_definitions(hook, request.flow, reload=True)
            definition, more = _match_definition(hook, request, known, problems.invalid)
    except (FlowServiceError, FlowInputError) as error:
        if isinstance(error, FlowInputError) and error.is_permanent:
            problems.add(str(error))
            return None
        is_transient = not isinstance(error, FlowServiceError) or error.is_transient
        hook.log.log(logging.WARNING if is_transient else logging.INFO, NO_DEFINITION, request.flow, error)
        return None
    problems.extend(more)
    return definition


def _load_definitions(
    hook: FlowsHook, flow: str, *, reload: bool = False
) -> tuple[list[FlowDefinition], bool]:
    """Give all definitions where the service lists them, else this flow's alone; also whether it was asked just now.

    :raises FlowServiceError: it cannot tell.
    """
    cache_key = (type(hook), hook.settings, hook.extra)
    if hook.service.supports("list_definitions"):
        return DEFINITION_CACHE.get(
            cache_key, lambda: _run_with_timeout(hook, hook.service.list_definitions()), reload=reload
        )
    if hook.service.supports("get_definition"):
        run = partial(_run_with_timeout, hook)
        return DEFINITION_CACHE.get(
            (*cache_key, flow), lambda: [load_definition(hook, flow, run)], reload=reload
        )
    return [], True


def _run_with_timeout(hook: FlowsHook, conversation: Conversation[T]) -> T:
    retry = Retry(
        attempts=min(MAX_DEFINITION_ATTEMPTS, 1 + hook.extra["retries"]), max_delay=DEFINITION_TIMEOUT_SECONDS
    )
    return hook.run(conversation, retry=retry, timeout=DEFINITION_TIMEOUT_SECONDS)


def _match_definition(
    hook: FlowsHook, request: RunRequest, known: list[FlowDefinition], invalid: Collection[str]
) -> tuple[FlowDefinition | None, Problems]:
    """Give the definition that is the order's flow's, and what does not fit it; where there is none at all, nothing was told."""
    problems = Problems()
    if not known:
        hook.log.info(NO_DEFINITION, request.flow, f"{hook.service.name} has no definitions")
        return None, problems
    can_list = hook.service.supports("list_definitions")
    definition = select_definition(request.flow, hook.service.name, known, problems) if can_list else known[0]
    if definition is not None:
        validate_arguments(definition, request.inputs, request.parameters, problems, invalid)
    return definition, problems
