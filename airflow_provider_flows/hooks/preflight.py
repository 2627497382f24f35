"""What is checked before a flow run is started: its request, and the quota and the limits of the account."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from math import inf
from typing import TYPE_CHECKING

from airflow_provider_flows.base_hook import warn_once
from airflow_provider_flows.core.account_limits import (
    AccountLimits,
    Reservation,
    StartWait,
    reserve_start,
    wait_for_start,
)
from airflow_provider_flows.core.definition import FlowDefinition
from airflow_provider_flows.core.exceptions import (
    FlowAuthError,
    FlowInputError,
    FlowNotFound,
    FlowQuotaExceeded,
    FlowServiceError,
    FlowUnreachable,
)
from airflow_provider_flows.core.retry import Retry
from airflow_provider_flows.core.single_flight import SingleFlightCache
from airflow_provider_flows.core.validation import (
    NOTHING_STARTED,
    Problems,
    select_definition,
    validate_arguments,
)

if TYPE_CHECKING:
    from airflow_provider_flows.base_hook import BaseFlowsHook
    from airflow_provider_flows.core.graph import FlowGraph
    from airflow_provider_flows.core.http import Conversation, T
    from airflow_provider_flows.core.start_or_resume import RunRequest

DEFINITION_TTL_SECONDS = 60.0
DEFINITION_TIMEOUT_SECONDS = 15.0  # a run can start without a definition, and waits for it
MAX_DEFINITION_ATTEMPTS = 2
NO_LIST_TO_COUNT = (
    "max_active_runs and max_runs_per_day of connection {!r} have no effect: {} does not list its flow runs, "
    "so they cannot be counted"
)
NOT_VALIDATED = (
    "The definition of flow %s is not available, so its inputs and parameters are not validated: %s"
)

DEFINITION_CACHE: SingleFlightCache[list[FlowDefinition]] = SingleFlightCache(
    max_load_seconds=DEFINITION_TTL_SECONDS
)


class _KnownError(Exception):
    """The service returned no definition, which was logged when it was requested."""


@dataclass(frozen=True, slots=True)
class PreflightResult:
    """The result of a check.

    :param problems: all problems of the request.
    :param definition: the flow's definition, or None if it is not available or was not requested.
    """

    problems: Problems
    definition: FlowDefinition | None = None

    def raise_if_invalid(self) -> None:
        """Raise one exception with all problems, if there are any.

        :raises FlowInputError: the request has a problem; no flow run was created.
        """
        self.problems.raise_if_any(NOTHING_STARTED)


class Preflight:
    """Validates the requests of one hook against the definitions of its service's flows.

    :param hook: sends the requests for definitions.
    :param load_graph: returns the exported graph of a flow, or None; used if the service returns no
        definition.
    :param cache: the cache of the definitions of all services and connections.
    :param clock: returns monotonic seconds.
    :param next_requests: when to request a definition again that the service did not return, by its key in
        the cache. Without it, a batch would request the definition for each of its items.
    """

    def __init__(
        self,
        hook: BaseFlowsHook,
        load_graph: Callable[[str], FlowGraph | None],
        cache: SingleFlightCache[list[FlowDefinition]] = DEFINITION_CACHE,
        clock: Callable[[], float] = time.monotonic,
        next_requests: dict[Hashable, float] | None = None,
    ) -> None:
        self._hook = hook
        self._cache, self._clock = cache, clock
        self._next_requests = {} if next_requests is None else next_requests
        self._service = hook.service
        self._load_graph = load_graph

    def check(
        self, request: RunRequest, problems: Problems | None = None, *, validate: bool = True
    ) -> PreflightResult:
        """Validate a request; no flow run is created.

        A definition that is not available is logged, at most once a minute, and is not a problem. A request
        is never invalid because of a cached definition: the definition is loaded again first.

        :param problems: known problems, which become part of the result; arguments in `problems.invalid` are
            not validated.
        :param validate: whether to validate against the flow's definition, which needs a request to the
            service.
        """
        found = Problems()
        if problems is not None:
            found.extend(problems)
        is_valid = "inputs" in found.invalid
        self._service.validate(request.inputs, request.parameters, found)
        if not is_valid and "inputs" in found.invalid:  # they may have the form of another service
            found.context(accepts=self._describe_connection())
        if not validate or "flow" in found.invalid:
            return PreflightResult(found)
        try:
            result = self._check_against_definition(request, found)
        except _KnownError:
            return PreflightResult(found)
        except FlowInputError as error:
            if error.is_permanent:
                found.add(str(error))
            else:
                self._log_not_validated(logging.WARNING, request, error)
            return PreflightResult(found)
        except FlowServiceError as error:
            level = logging.WARNING if error.is_transient else logging.INFO
            self._log_not_validated(level, request, error)
            return PreflightResult(found)
        if found:  # the service would not get the request without validation either
            result.problems.drop_hint()
        found.extend(result.problems)
        return PreflightResult(found, result.definition)

    def load_definition(
        self, flow: str, run: Callable[[Conversation[FlowDefinition]], FlowDefinition]
    ) -> FlowDefinition:
        """Return a flow's definition from the service, or else from the flow's exported graph.

        :param run: runs the conversation with the service.
        :raises FlowServiceError: the service returned no definition, and there is no graph.
        """
        try:
            return run(self._service.get_definition(flow))
        except FlowAuthError:
            raise
        except FlowServiceError:
            graph = self._load_graph(flow)
            if graph is None:
                raise
            return FlowDefinition.from_graph(flow, self._service.name, graph)

    def _check_against_definition(self, request: RunRequest, known_problems: Problems) -> PreflightResult:
        """Return the definition, and the problems that follow from it."""
        definitions, is_fresh = self._load_definitions(request.flow)
        result = self._compare(request, definitions, known_problems)
        if result.problems and not is_fresh:
            definitions, _ = self._load_definitions(request.flow, reload=True)
            result = self._compare(request, definitions, known_problems)
        return result

    def _compare(
        self, request: RunRequest, definitions: list[FlowDefinition], known_problems: Problems
    ) -> PreflightResult:
        problems = Problems()
        if not definitions:
            self._log_not_validated(logging.INFO, request, f"{self._service.name} has no definitions")
            return PreflightResult(problems)
        definition: FlowDefinition | None = definitions[0]
        if self._service.supports("list_definitions"):
            definition = select_definition(request.flow, self._service.name, definitions, problems)
            if definition is None:
                problems.context(accepts=self._describe_connection())
        if definition is not None:
            invalid = known_problems.invalid
            validate_arguments(definition, request.inputs, request.parameters, problems, invalid)
        return PreflightResult(problems, definition)

    def _describe_connection(self) -> str:
        """Return which connection has selected the service, because the flow may be of another one."""
        connection = self._hook.connection
        return (
            f"Connection {self._hook.flows_conn_id!r} (flows_conn_id) has type {connection.conn_type!r}, "
            f"which selects {self._service.name}; a flow of another service needs a connection of its type."
        )

    def _load_definitions(self, flow: str, *, reload: bool = False) -> tuple[list[FlowDefinition], bool]:
        """Return the definitions, and whether this call loaded them.

        These are the definitions of all flows if the service lists them, else the one of this flow.

        :raises FlowServiceError: the service returned no definition.
        :raises _KnownError: the same, in an earlier call.
        """
        load: Callable[[], list[FlowDefinition]]
        if self._service.supports("list_definitions"):
            key, load = self._get_cache_key(), lambda: self._run(self._service.list_definitions())
        elif self._service.supports("get_definition"):
            key, load = self._get_cache_key(flow), lambda: [self.load_definition(flow, self._run)]
        else:
            return [], True
        if self._clock() < self._next_requests.get(key, -inf):
            raise _KnownError
        entry, is_new = self._cache.get(key, should_reload=lambda *_: reload)
        if is_new:
            with self._cache.share_errors(entry):
                self._cache.set_value(entry, load(), DEFINITION_TTL_SECONDS)
        try:
            return entry.future.result(), is_new
        except FlowServiceError:
            self._next_requests[key] = self._clock() + DEFINITION_TTL_SECONDS
            raise

    def _get_cache_key(self, flow: str | None = None) -> Hashable:
        """Return a key of all that definitions depend on, as a digest because it includes the credentials."""
        settings, extra = self._hook.settings, self._hook.extra
        parts = (settings, sorted(settings.credentials.items()), sorted(extra.items()), flow)
        return type(self._hook), sha256(repr(parts).encode()).hexdigest()

    def _run(self, conversation: Conversation[T]) -> T:
        attempts = min(MAX_DEFINITION_ATTEMPTS, 1 + self._hook.extra["retries"])
        retry = Retry(attempts=attempts, max_delay=DEFINITION_TIMEOUT_SECONDS)
        return self._hook.run(conversation, retry=retry, timeout=DEFINITION_TIMEOUT_SECONDS)

    def _log_not_validated(self, level: int, request: RunRequest, reason: object) -> None:
        if isinstance(reason, FlowAuthError | FlowNotFound):  # the start raises the whole error
            reason = reason.summary
        elif isinstance(reason, FlowUnreachable):
            reason = "the service sent no response"
        self._hook.log.log(level, NOT_VALIDATED, request.flow, reason)


class AccountGuard:
    """The checks of an account before a flow run is started: its quota, and the limits in the connection."""

    def __init__(self, hook: BaseFlowsHook) -> None:
        self._hook = hook

    @contextmanager
    def check_quota(self, what: str, *, clear: bool = True) -> Iterator[None]:
        """Run a block that starts a flow run, unless the account's quota was just used up.

        :param what: what is not done then, for the message.
        :param clear: whether the block's success shows that the account has quota or credit again.
        :raises FlowQuotaExceeded: it was, here or in another process of this host; nothing was sent.
        """
        from airflow_provider_flows.storage.quota_marker import QuotaMarker

        hook, settings = self._hook, self._hook.settings
        marker = QuotaMarker(hook.service.name, settings.base_url, settings.secrets)
        with hook.add_connection_to_errors():
            marker.raise_if_set(what)
        try:
            yield
        except FlowQuotaExceeded as error:
            # a poll may have been rejected, or nothing was sent because of max_runs_per_day
            if error.is_permanent and error.status is not None:
                marker.set(error)
            raise
        if clear:
            marker.clear()

    def wait_for_start(self, flow: str, wait: StartWait | None = None) -> Conversation[Reservation]:
        """Wait until the account may have another active flow run, as the connection limits it.

        :param flow: the name of the flow, for messages.
        :param wait: by default without a deadline, with lines in the log of the hook.
        """
        if not self._counts_runs():
            return Reservation(time.time())
        limits, wait = AccountLimits.from_extra(self._hook.extra), wait or StartWait(log=self._hook.log.info)
        account = (*self._account, wait.is_for_other_process)
        return (yield from wait_for_start(self._hook.service, account, limits, flow, wait))

    def reserve_start(self) -> Conversation[Reservation | None]:
        """Return the permission to start one flow run, None if the account has too many active ones."""
        if not self._counts_runs():
            return Reservation(time.time())
        limits = AccountLimits.from_extra(self._hook.extra)
        return (yield from reserve_start(self._hook.service, (*self._account, False), limits))

    def _counts_runs(self) -> bool:
        """Return whether the connection limits the account's flow runs, and its service lists them."""
        if not AccountLimits.from_extra(self._hook.extra):
            return False
        if not self._hook.service.supports("list_runs"):
            warn_once(NO_LIST_TO_COUNT.format(self._hook.flows_conn_id, self._hook.service.name))
            return False
        return True

    @property
    def _account(self) -> tuple[str, ...]:
        settings = self._hook.settings
        return self._hook.service.name, settings.base_url, *settings.secrets
