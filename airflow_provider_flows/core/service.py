"""The interface of a service: the class that each service implements, helpers for its endpoints, aborts."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn
from urllib.parse import quote

from airflow_provider_flows.core.definition import find_definition
from airflow_provider_flows.core.exceptions import FlowConflict, FlowInputError, FlowMalformed, FlowNotFound
from airflow_provider_flows.core.flow_run import FlowState, parse_run_id
from airflow_provider_flows.core.http import Sleep, map_requests, send
from airflow_provider_flows.core.limits import MAX_LIST_BYTES, MAX_LISTED_RUNS, MAX_PAGES, MIB
from airflow_provider_flows.core.safe_text import has_control_characters
from airflow_provider_flows.core.validation import find_unsendable_values

if TYPE_CHECKING:
    from airflow_provider_flows.core.definition import FlowDefinition
    from airflow_provider_flows.core.flow_run import FlowInput, FlowOutput, FlowRun, Inputs
    from airflow_provider_flows.core.http import Conversation, Request, Response
    from airflow_provider_flows.core.payload.data_uri import Content
    from airflow_provider_flows.core.payload.sink import Target
    from airflow_provider_flows.core.polling.bulk import ActiveRuns
    from airflow_provider_flows.core.validation import Problems


# letters, digits, dashes and underscores, with a digit or too long for the usual name of a folder
DEFAULT_RUN_ID_PATTERN = re.compile(r"(?=[^0-9]*[0-9]|.{16})[A-Za-z0-9](?:[A-Za-z0-9_-]{0,98}[A-Za-z0-9])?")

NOT_FOUND_RETRY_SECONDS = (0.5, 1.0)
ABORT_POLL_SECONDS = (0.5, 1.0, 1.5, 2.0, 2.0, 3.0)


@dataclass(frozen=True, slots=True)
class RunPage:
    """A page of a list of runs, or several of them, newest first.

    :param runs: the runs.
    :param next_page: with what `list_page` returns the next page, such as a cursor or a path; None if there
        is none.
    """

    runs: Sequence[FlowRun]
    next_page: str | None = None


class Service(ABC):
    """One service that runs flows; each method that contacts it returns a conversation.

    A service implements `auth_headers` and `check_credentials`, and one way to start a run: `start`, or, with
    `staged_start = True`, all of `to_flow_inputs`, `create`, `add_input`, `start_created_run`, `get_run` and
    `delete`. A service whose runs have an id implements `get_run`. A method that a service does not implement
    raises `FlowInputError`.

    `run_id_pattern` matches the ids of its runs. The Flow run tab serves files of such runs only, so the
    pattern must match no separator, no dots and no name that another folder may have.
    """

    name: ClassVar[str]
    staged_start: ClassVar[bool] = False  # whether creation, inputs and start are separate requests
    accepts_file_variables: ClassVar[bool] = False  # whether a file may be (in) a variable, as a data URI
    has_variables: ClassVar[bool] = False  # whether the inputs of every flow are a mapping of variables
    # other hosts, all of them the service's own, to which its outputs link or its downloads redirect: names,
    # and patterns such as `*.example.com`
    picture_hosts: ClassVar[tuple[str, ...]] = ()
    run_id_pattern: ClassVar[re.Pattern[str]] = DEFAULT_RUN_ID_PATTERN

    @abstractmethod
    def auth_headers(self, token: str) -> dict[str, str]:
        """Return the headers that carry the credentials."""

    @abstractmethod
    def check_credentials(self) -> Conversation[str]:
        """Test the credentials; return a message for the user.

        :raises FlowServiceError: the service rejected the credentials or is not reachable.
        """

    def start(
        self,
        flow: str,
        inputs: Inputs,
        parameters: Any,
        additional: Any,
        *,
        before_start: Callable[[], None] = lambda: None,
        expected_outputs: Collection[str] | None = None,
    ) -> Conversation[FlowRun]:
        """Start a flow run in as few requests as possible.

        The returned run need not be final if the service implements `get_run`.

        :param before_start: called after all checks, directly before the request that may cost money.
        :param expected_outputs: names of the outputs in the flow's definition, None if it is not available;
            for a service that returns the outputs in its response to the start.
        """
        raise self._unsupported_error("start a flow run in one request")

    def to_flow_inputs(self, inputs: Inputs) -> list[FlowInput]:
        """Return the inputs in the form in which `add_input` takes them.

        :raises FlowInputError: the service does not take such inputs; nothing was sent.
        """
        raise self._unsupported_error("add inputs one at a time")

    def validate(self, inputs: Inputs, parameters: Any, problems: Problems) -> None:
        """Add a problem for everything that no flow of this service accepts; no request is sent."""
        has_problems = any(part.startswith("inputs") for part in problems.invalid)
        if self.supports("to_flow_inputs") and not has_problems:
            with problems.collect("inputs"):
                self.to_flow_inputs(inputs)
        elif isinstance(inputs, Mapping):
            problems.add(*find_unsendable_values(inputs, accepts_files=self.accepts_file_variables))

    def create(self, flow: str, parameters: Any, additional: Any) -> Conversation[FlowRun]:
        """Create a flow run without starting it; this costs nothing.

        The start protocol may send the request again, and then deletes the extra runs (`list_runs`).
        """
        raise self._unsupported_error("create a flow run without starting it")

    def add_input(self, flow_run_id: str, item: FlowInput) -> Conversation[str | None]:
        """Add an input to a run in state created; return the input's asset id, or None if unknown."""
        raise self._unsupported_error("add inputs to a flow run")

    def start_created_run(self, flow_run_id: str) -> Conversation[None]:
        """Start a run in state created."""
        raise self._unsupported_error("start a created flow run")

    def get_run(self, flow_run_id: str) -> Conversation[FlowRun]:
        """Return the current state of a run."""
        raise self._unsupported_error(
            "poll a flow run: its flow runs have no id and are final in the response to the start. The "
            "task that started one returns its outputs. For a flow run of another service, set flows_conn_id "
            "to its connection"
        )

    def run_url(self, flow_run_id: str, flow: str | None) -> str | None:
        """Return the URL of a run's page at the service, or None: then the link is the provider's own page.

        A browser must be able to open it, without the API key. All users with access to the task can see it,
        so it must not contain credentials.
        """
        return None

    def list_runs(self, state: FlowState | None = None) -> Conversation[list[FlowRun]]:
        """Return the account's runs, or only those in `state`; by default from all pages (`list_page`)."""
        found = yield from self.list_newest(MAX_LISTED_RUNS + 1, state)
        if len(found.runs) > MAX_LISTED_RUNS:
            raise _too_long_error(f"of {self.name}'s flow runs", f"more than {MAX_LISTED_RUNS:,} flow runs")
        return list(found.runs)

    def list_page(self, state: FlowState | None, page: str | None) -> Conversation[RunPage]:
        """Return one page of the account's runs, newest first; for a service that lists them page by page.

        A caller who needs the newest runs only ends the list early.

        :param state: only runs in this state are needed; others may be in the page as well.
        :param page: the `next_page` of the page before, None for the first one.
        """
        raise self._unsupported_error("list flow runs")

    def list_newest(self, limit: int, state: FlowState | None = None) -> Conversation[RunPage]:
        """Return the newest runs, or the newest of those in `state`, in as few requests as possible.

        :param limit: how many are needed; there may be more in the result.
        :returns: the runs, with a `next_page` if the list was not read to its end.
        :raises FlowMalformed: the list is too long, or refers to a page for the second time.
        """
        if not self.supports("list_page"):
            if not self.supports("list_runs"):
                raise self._unsupported_error("list flow runs")
            return RunPage((yield from self.list_runs(state)))
        pages = Pages()
        found: dict[str, FlowRun] = {}
        next_page: str | None = None
        seen: set[str | None] = set()
        while next_page not in seen:
            seen.add(next_page)
            page = yield from map_requests(self.list_page(state, next_page), pages.send)
            found |= {run.flow_run_id: run for run in page.runs if state in {None, run.state}}
            next_page = page.next_page
            if next_page is None or len(found) >= limit:
                return RunPage([*found.values()], next_page)
        message = f"The list of {self.name}'s flow runs refers to the same page for the second time."
        raise FlowMalformed(message)

    def list_active(self, flow_run_ids: Collection[str]) -> Conversation[ActiveRuns]:
        """Return which of these runs are running, with their progress, in as few requests as possible.

        A run that is missing from the result may be final, not started, or omitted by the service.
        """
        raise self._unsupported_error("list active flow runs")

    def abort(self, flow_run_id: str) -> Conversation[None]:
        """Request that a run be aborted; the run may take some time to become final."""
        raise self._unsupported_error("abort a flow run")

    def delete(self, flow_run_id: str) -> Conversation[None]:
        """Delete a run with its inputs and outputs; this cannot be undone."""
        raise self._unsupported_error("delete a flow run")

    def list_inputs(self, flow_run_id: str, *, include_data: bool = False) -> Conversation[list[FlowOutput]]:
        """Return a run's inputs, in the form of outputs."""
        raise self._unsupported_error("list a flow run's inputs")

    def get_input(self, flow_run_id: str, asset_id: str) -> Conversation[Content]:
        """Return the content of one input."""
        raise self._unsupported_error("return a flow run's inputs")

    def list_outputs(self, flow_run_id: str, *, include_data: bool = False) -> Conversation[list[FlowOutput]]:
        """Return the outputs of a final run."""
        raise self._unsupported_error("list a flow run's outputs")

    def download_output(
        self, flow_run_id: str, asset_id: str, media_type: str | None = None
    ) -> Conversation[Content]:
        """Return the complete content of one output."""
        raise self._unsupported_error("download a flow run's outputs")

    def save_output(
        self, flow_run_id: str, asset_id: str, target: Target, media_type: str | None = None
    ) -> Conversation[str | None]:
        """Write the content of one output to `target`, preferably a chunk at a time; return its media type.

        :param media_type: the media type in the list of outputs.
        """
        content = yield from self.download_output(flow_run_id, asset_id, media_type)
        target.restart()
        target.write(content.data)
        return content.media_type

    def get_definition(self, flow: str) -> Conversation[FlowDefinition]:
        """Return the definition of a flow, by name or id; by default it is searched in `list_definitions`.

        :raises FlowNotFound: there is no such flow; the message lists all flows.
        :raises FlowInputError: several flows have this name; the message lists their ids.
        """
        if not self.supports("list_definitions"):
            raise self._unsupported_error("return a flow's definition")
        definitions = yield from self.list_definitions()
        if (found := find_definition(flow, definitions)) is not None:
            return found
        names = ", ".join(sorted(definition.display_name for definition in definitions))
        message = f"{self.name} has no flow {flow!r}. It has: {names or 'none'}."
        raise FlowNotFound(message, status=404)

    def list_definitions(self) -> Conversation[list[FlowDefinition]]:
        """Return the definitions of all flows."""
        raise self._unsupported_error("list its flows")

    def supports(self, method: str) -> bool:
        """Return whether this service implements an optional method of this class."""
        if method == "list_runs" and self.supports("list_page"):
            return True
        return getattr(type(self), method) is not getattr(Service, method)

    def _unsupported_error(self, action: str) -> FlowInputError:
        return FlowInputError(f"The service {self.name} cannot {action}.")


class Pages:
    """The requests for all pages of one list, whose number and size is bounded together.

    :param max_bytes: maximum size of all pages.
    :param max_pages: maximum number of pages.
    """

    def __init__(self, max_bytes: int = MAX_LIST_BYTES, max_pages: int = MAX_PAGES) -> None:
        self.count = 0
        self._max_pages = max_pages
        self._max_bytes = max_bytes
        self._bytes_left = max_bytes

    def send(self, request: Request) -> Conversation[Response]:
        """Send the request for the next page.

        :raises FlowMalformed: there are too many pages, or they are too large.
        """
        if self.count == self._max_pages:
            self.raise_too_long(request, f"more than {self._max_pages:,} pages")
        if self._bytes_left <= 0:
            self.raise_too_long(request, f"more than {self._max_bytes // MIB} MiB")
        response = yield from send(replace(request, max_bytes=self._bytes_left))
        self._bytes_left -= len(response.body)
        self.count += 1
        return response

    def raise_too_long(self, request: Request, size: str) -> NoReturn:
        """Raise FlowMalformed, because a list that lacks its end would look like a complete one."""
        raise _too_long_error(f"of {request}", size)


def _too_long_error(what: str, size: str) -> FlowMalformed:
    return FlowMalformed(
        f"The list {what} has {size}, over all pages together. Delete at the service what you no longer need."
    )


def quote_path_segment(name: str, value: str) -> str:
    """Quote an id as one segment of a URL path.

    :param name: the argument's name, for the message.
    :raises FlowInputError: the id is empty, `.` or `..`, has control characters, or cannot be encoded.
    """
    if name == "flow_run_id":
        value = parse_run_id(value)
    elif not isinstance(value, str):
        raise FlowInputError(f"{name} must be a string, not {type(value).__name__}")
    quoted = "" if has_control_characters(value) else quote(value, safe="")  # a lone surrogate is one as well
    if quoted in {"", ".", ".."}:
        raise FlowInputError(f"{name} must be an id, not {value!r}")
    return quoted


def abort_run(service: Service, flow_run_id: str) -> Conversation[bool]:
    """Delete a run that never started, abort an active one, and leave a final one unchanged.

    :returns: whether the run was deleted or its abort was requested.
    :raises FlowInputError: the service cannot abort runs.
    :raises FlowServiceError: the service could not be reached, or rejected the request.
    """
    if not service.supports("get_run"):
        yield from service.abort(flow_run_id)
        return True
    for is_last_attempt in (False, True):  # the run's state may change between the poll and the request
        try:
            run = yield from _get_existing_run(service, flow_run_id)
            if run.state is FlowState.CREATED:
                yield from service.delete(flow_run_id)
            elif run.is_final or run.state is FlowState.ABORTING:
                return False
            else:
                yield from service.abort(flow_run_id)
        except FlowNotFound:
            return False
        except FlowConflict:
            if is_last_attempt:
                raise
        else:
            return True
    return False


def abort_run_and_wait(service: Service, flow_run_id: str) -> Conversation[FlowRun | None]:
    """Abort a run as `abort_run` does, and wait up to about ten seconds until it is final.

    :returns: the run as last polled; None if it no longer exists.
    :raises FlowServiceError: the service could not be reached, or rejected the request.
    """
    yield from abort_run(service, flow_run_id)
    run = None
    for delay in ABORT_POLL_SECONDS:
        try:
            run = yield from service.get_run(flow_run_id)
        except FlowNotFound:
            return None
        if run.is_final:
            return run
        yield Sleep(delay)
    return run


def _get_existing_run(service: Service, flow_run_id: str) -> Conversation[FlowRun]:
    """Return a run that was created earlier.

    A 404 is accepted on its third occurrence only, because a run may not be visible everywhere at once.

    :raises FlowNotFound: the run no longer exists.
    """
    for delay in NOT_FOUND_RETRY_SECONDS:
        try:
            return (yield from service.get_run(flow_run_id))
        except FlowNotFound:
            yield Sleep(delay)
    return (yield from service.get_run(flow_run_id))
