"""The endpoints of Generio Flows, each as a conversation.

Source of all paths and bodies: the newest version of the vendor's reference, https://docs.generio.ai.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_flows.core.exceptions import (
    FlowConflict,
    FlowInputError,
    FlowNotFound,
    reason_sentence,
)
from airflow_provider_flows.core.flow_run import (
    FlowInput,
    FlowOutput,
    FlowRun,
    FlowState,
    Inputs,
    UploadSource,
)
from airflow_provider_flows.core.http import Purpose, Request, Resend, Response, run_apart, send
from airflow_provider_flows.core.limits import (
    MAX_DEFINITIONS_BYTES,
    MAX_IN_MEMORY_BYTES,
    MAX_LIST_BYTES,
    MAX_LISTED_RUNS,
    MAX_PAGES,
    MAX_RUN_BYTES,
)
from airflow_provider_flows.core.payload import data_uri
from airflow_provider_flows.core.payload.data_uri import Content
from airflow_provider_flows.core.payload.download import DownloadSink, download_file
from airflow_provider_flows.core.payload.sink import MemoryBuffer
from airflow_provider_flows.core.polling.bulk import ActiveRuns
from airflow_provider_flows.core.responses import (
    error_reason,
    expect_success,
    load_json,
    parse_json,
    run_apart_if_large,
)
from airflow_provider_flows.core.service import Pages, RunPage, Service, quote_path_segment
from airflow_provider_flows.core.timestamps import to_epoch
from airflow_provider_flows.services.generio import responses

if TYPE_CHECKING:
    from airflow_provider_flows.core.definition import FlowDefinition
    from airflow_provider_flows.core.http import Conversation
    from airflow_provider_flows.core.payload.sink import Target

MAX_INLINE_ROWS = 1_000  # more rows are sorted in a thread
WRONG_STATE_STATUSES = frozenset({400, 409, 422, 425})  # may mean "not in this state" (vendor_notes.md, 1.8)

ASSET_ARGUMENTS = "flow_run_id, asset_id"  # of the path of an input or an output, for messages


class Generio(Service):
    """The Generio Flows API."""

    name: ClassVar[str] = "generio"
    staged_start: ClassVar[bool] = True
    # hex, as the ids in the vendor's examples (vendor_notes.md, 1.2), or a UUID
    run_id_pattern: ClassVar[re.Pattern[str]] = re.compile(
        r"[0-9A-Fa-f]{16,64}|[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"
    )

    def auth_headers(self, token: str) -> dict[str, str]:
        """Return the bearer token's header, which every endpoint requires."""
        return {"Authorization": f"Bearer {token}"}

    def check_credentials(self) -> Conversation[str]:
        """Send GET /flows?filter_by=running, or GET /templates if that does not exist."""
        request = Request("GET", "/flows", {"filter_by": FlowState.RUNNING.value})
        response = yield from send(request)
        if response.status in {404, 405}:
            request = Request("GET", "/templates")
            response = yield from send(request)
        yield from load_json(request, response)
        return "Generio accepted the API key."

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
        """Send POST /flows with inputs, which creates and starts the run.

        The request costs money, so it is sent again only if it cannot have arrived.
        """
        body = {
            **_creation_body(flow, parameters, additional),
            "inputs": [_escape_prompt(item).to_json() for item in self.to_flow_inputs(inputs)],
        }
        request = Request(
            "POST",
            "/flows",
            json=body,
            resend=Resend.IF_NEVER_ARRIVED,
            purpose=_get_purpose(body["inputs"]),
            argument="flow",
            max_bytes=MAX_RUN_BYTES,
        )
        before_start()
        return (yield from _send_create(request, flow, FlowState.STARTING))

    def to_flow_inputs(self, inputs: Inputs) -> list[FlowInput]:
        """Return the inputs; at least one is required, because a run without inputs does not start.

        :raises FlowInputError: the inputs are a mapping, or there are none.
        """
        if isinstance(inputs, Mapping):
            raise FlowInputError(
                "inputs must be a list of prompts and files for a Generio flow; "
                "a mapping of variables is for PromptChainer, and one input is a text or {'data': 'A chair'}"
            )
        if not inputs:
            raise FlowInputError(
                "inputs must hold at least one prompt or file: "
                "a Generio flow run does not start without inputs"
            )
        return list(inputs)

    def create(self, flow: str, parameters: Any, additional: Any) -> Conversation[FlowRun]:
        """Send POST /flows without inputs, which creates a run that does not start and costs nothing."""
        request = Request(
            "POST",
            "/flows",
            json=_creation_body(flow, parameters, additional),
            argument="flow",
            resend=Resend.IF_REFUSED,
            max_bytes=MAX_RUN_BYTES,
        )
        return (yield from _send_create(request, flow, FlowState.CREATED))

    def add_input(self, flow_run_id: str, item: FlowInput) -> Conversation[str | None]:
        """Send POST /flows/{id}/inputs, or, after 404 or 405, /flows/{id}/input with `file_data` (G-09)."""
        path, body = f"{_path(flow_run_id)}/inputs", _escape_prompt(item).to_json()
        request = Request(
            "POST",
            path,
            json=body,
            resend=Resend.IF_REFUSED,
            purpose=_get_purpose([body]),
            argument="flow_run_id",
        )
        response = yield from send(request)
        if response.status in {404, 405}:
            old_body = {"file_data": body.pop("data"), **body}
            older = replace(request, path=path.removesuffix("s"), json=old_body)
            second = yield from send(older)
            request, response = (older, second) if second.is_success else (request, response)
        return responses.parse_asset_id((yield from load_json(request, response)))

    def start_created_run(self, flow_run_id: str) -> Conversation[None]:
        """Send PATCH /flows/{id} with action start; no error if the run has already started (G-17)."""
        request = Request(
            "PATCH",
            _path(flow_run_id),
            json={"action": "start"},
            resend=Resend.IF_REFUSED,
            argument="flow_run_id",
        )
        yield from self._change_state(flow_run_id, request, lambda state: state is not FlowState.CREATED)

    def abort(self, flow_run_id: str) -> Conversation[None]:
        """Send PATCH /flows/{id} with action abort; no error if the run is already aborting or final."""
        request = Request("PATCH", _path(flow_run_id), json={"action": "abort"}, argument="flow_run_id")
        yield from self._change_state(
            flow_run_id, request, lambda state: state.is_final or state is FlowState.ABORTING
        )

    def _change_state(
        self, flow_run_id: str, request: Request, is_reached: Callable[[FlowState], bool]
    ) -> Conversation[None]:
        """Request a change of state; if it is rejected, poll the run, which may be in that state already.

        See vendor_notes.md, 1.12.

        :param is_reached: whether a state needs no change.
        :raises FlowConflict: the run's state does not allow the change.
        """
        response = yield from send(request)
        if response.status not in WRONG_STATE_STATUSES:
            expect_success(request, response)
            return
        run = yield from self.get_run(flow_run_id)
        if not is_reached(run.state):
            problem = f"{request} was rejected (HTTP {response.status}): the run is {run.raw_state}."
            raise FlowConflict(f"{problem} {reason_sentence(error_reason(response))}", status=response.status)

    def delete(self, flow_run_id: str) -> Conversation[None]:
        """Send DELETE /flows/{id}; possible for a run in state created and for a final one."""
        request = Request("DELETE", _path(flow_run_id), argument="flow_run_id")
        expect_success(request, (yield from send(request)))

    def get_run(self, flow_run_id: str) -> Conversation[FlowRun]:
        """Send GET /flows/{id} (https://docs.generio.ai, "Get flow details")."""
        request = Request("GET", _path(flow_run_id), max_bytes=MAX_RUN_BYTES, argument="flow_run_id")
        response = yield from send(request)
        value = yield from load_json(request, response)
        return responses.parse_run(request, response, value, known_id=flow_run_id)

    def list_runs(self, state: FlowState | None = None) -> Conversation[list[FlowRun]]:
        """Send GET /flows for all pages, newest first."""
        found = yield from self.list_newest(MAX_LISTED_RUNS + 1, state)
        return list(found.runs)

    def list_newest(self, limit: int, state: FlowState | None = None) -> Conversation[RunPage]:
        """Send GET /flows, for no more pages than needed if the service has the newest runs first.

        The documentation is ambiguous about `filter_by`, order and paging (G-06, G-07, G-08), so the result
        is filtered and sorted here as well.
        """
        query = {"sort_by": "created_at"}
        filtered_query = query | ({"filter_by": state.value} if state else {})
        found, has_states, next_page = yield from self._fetch_runs(filtered_query, limit, state)
        if state and not has_states:  # `filter_by` selects fields, not runs
            found, _, next_page = yield from self._fetch_runs(query, limit, state)

        def sort() -> list[FlowRun]:
            matching = (run for run in found if state in {None, run.state})
            return sorted(
                matching, key=lambda run: to_epoch(run.created_at) if run.created_at else 0.0, reverse=True
            )

        newest = (yield from run_apart(sort)) if len(found) > MAX_INLINE_ROWS else sort()
        return RunPage(newest, next_page)

    def list_active(self, flow_run_ids: Collection[str]) -> Conversation[ActiveRuns]:
        """Send GET /flows?filter_by=running for all pages; return the given runs that are running."""
        request: Request | None = Request("GET", "/flows", {"filter_by": FlowState.RUNNING.value})
        found: dict[str, FlowRun] = {}
        ids: set[str] = set()
        pages = Pages(MAX_LIST_BYTES, MAX_PAGES)
        # else polling each run is cheaper
        while request is not None and pages.count <= len(flow_run_ids) and len(ids) <= MAX_LISTED_RUNS:
            response = yield from pages.send(request)
            parse = partial(_parse_running_page, request, response, flow_run_ids)
            paging, new_ids, running = yield from run_apart_if_large(response, parse)
            found |= running
            has_new_rows = not new_ids <= ids
            ids |= new_ids
            request = responses.next_page_request(request, paging, len(ids)) if has_new_rows else None
        return ActiveRuns(found, ids, pages.count, is_complete=request is None)

    def _fetch_runs(
        self, query: dict[str, str], limit: int, state: FlowState | None
    ) -> Conversation[tuple[list[FlowRun], bool, str | None]]:
        """Return the runs of all pages up to one without new rows, or up to one with which there are enough.

        :returns: the runs, whether every row has id and state, and the next page's path if there is another.
        """
        request: Request | None = Request("GET", "/flows", query)
        found: dict[str, FlowRun] = {}
        has_states = True
        pages = Pages(MAX_LIST_BYTES, MAX_PAGES)
        while request is not None:
            response = yield from pages.send(request)
            parse = partial(_parse_page, request, response)
            paging, new, all_have_states = yield from run_apart_if_large(response, parse)
            has_states = has_states and all_have_states
            if len(new) + len(found) > MAX_LISTED_RUNS and len(new | found) > MAX_LISTED_RUNS:
                pages.raise_too_long(request, f"more than {MAX_LISTED_RUNS:,} flow runs")
            has_new_rows = not new.keys() <= found.keys()
            found |= new
            request = responses.next_page_request(request, paging, len(found)) if has_new_rows else None
            if request is not None and limit <= len(found) and _has_newest(found.values(), limit, state):
                return list(found.values()), has_states, request.path
        return list(found.values()), has_states, None

    def list_inputs(self, flow_run_id: str, *, include_data: bool = False) -> Conversation[list[FlowOutput]]:
        """Send GET /flows/{id}/inputs."""
        request, response = yield from _request_assets(flow_run_id, "inputs", include_data=include_data)
        return (yield from _read_assets(request, response, "inputs", include_data=include_data))

    def get_input(self, flow_run_id: str, asset_id: str) -> Conversation[Content]:
        """Send GET /flows/{id}/inputs/{asset_id}."""
        buffer = MemoryBuffer()
        sink = DownloadSink(buffer, allow_text=True)  # a prompt is returned as plain text
        media_type = yield from download_file(
            f"{_path(flow_run_id)}/inputs/{quote_path_segment('asset_id', asset_id)}", sink, ASSET_ARGUMENTS
        )
        return Content(bytes(buffer.data), media_type)

    def list_outputs(self, flow_run_id: str, *, include_data: bool = False) -> Conversation[list[FlowOutput]]:
        """Send GET /flows/{id}/outputs; if rejected, poll the run: only a final one has outputs (G-22)."""
        request, response = yield from _request_assets(flow_run_id, "outputs", include_data=include_data)
        if response.status in WRONG_STATE_STATUSES:
            run = yield from self.get_run(flow_run_id)
            if not run.is_final:
                problem = f"{request} was rejected (HTTP {response.status}): the run is {run.raw_state}"
                raise FlowConflict(
                    f"{problem}, and has outputs only when it is final", status=response.status
                )
        return (yield from _read_assets(request, response, "outputs", include_data=include_data))

    def download_output(
        self, flow_run_id: str, asset_id: str, media_type: str | None = None
    ) -> Conversation[Content]:
        """Send GET /flows/{id}/outputs/{asset_id}: a data URI in JSON, or the raw file (G-02)."""
        buffer = MemoryBuffer()
        kind = yield from self.save_output(flow_run_id, asset_id, buffer, media_type)
        return Content(bytes(buffer.data), kind)

    def save_output(
        self, flow_run_id: str, asset_id: str, target: Target, media_type: str | None = None
    ) -> Conversation[str]:
        """Send GET /flows/{id}/outputs/{asset_id}, a chunk at a time.

        Plain text is accepted only if the list of outputs has a text media type.
        """
        path = f"{_path(flow_run_id)}/outputs/{quote_path_segment('asset_id', asset_id)}"
        return (yield from download_file(path, DownloadSink(target, media_type), ASSET_ARGUMENTS))

    def list_definitions(self) -> Conversation[list[FlowDefinition]]:
        """Send GET /templates, all pages; paging is not documented."""
        request: Request | None = Request("GET", "/templates")
        found: dict[str, FlowDefinition] = {}
        pages = Pages(MAX_DEFINITIONS_BYTES, MAX_PAGES)
        while request is not None:
            response = yield from pages.send(request)
            value = yield from load_json(request, response)
            parsed = responses.parse_definitions(request, response, value)
            new = {definition.flow: definition for definition in parsed}
            has_new_rows = not new.keys() <= found.keys()
            found |= new
            request = (
                responses.next_page_request(request, responses.get_paging(value), len(found))
                if has_new_rows
                else None
            )
        return list(found.values())


def _path(flow_run_id: str) -> str:
    return f"/flows/{quote_path_segment('flow_run_id', flow_run_id)}"


def _creation_body(flow: str, parameters: Any, additional: Any) -> dict[str, Any]:
    """Return the body of POST /flows: `template`, and `parameters` and `additional` unless they are None."""
    optional = {"parameters": parameters, "additional": additional}
    return {"template": flow, **{key: value for key, value in optional.items() if value is not None}}


def _get_purpose(inputs: Iterable[Mapping[str, Any]]) -> Purpose:
    """Return the purpose of a request with these inputs: a TRANSFER if any of them is a file."""
    has_file = any(isinstance(item["data"], UploadSource) for item in inputs)
    return Purpose.TRANSFER if has_file else Purpose.QUESTION


def _escape_prompt(item: FlowInput) -> FlowInput:
    """Return the input, with a leading space if it is a prompt that starts with "data:" (G-15)."""
    if not isinstance(item.data, str) or item.data[:5].lower() != "data:":
        return item
    try:
        data_uri.decode(item.data)
    except ValueError:
        return FlowInput(" " + item.data, item.additional)
    return item


def _send_create(request: Request, flow: str, default_state: FlowState) -> Conversation[FlowRun]:
    response = yield from send(request)
    try:
        value = yield from load_json(request, response)
    except FlowNotFound as error:
        message = f"Generio has no flow {flow!r}; list_definitions() of the hook returns all flows. {error}"
        raise FlowNotFound(message, status=error.status) from None
    return responses.parse_run(request, response, value, known_flow=flow, default_state=default_state)


def _request_assets(
    flow_run_id: str, kind: str, *, include_data: bool
) -> Conversation[tuple[Request, Response]]:
    # in lower case, because the documentation is ambiguous about the type: a string or a Boolean (G-25)
    query = {"include_data": str(include_data).lower()}
    buffer = MemoryBuffer()  # a response with data can be larger than a list
    request = Request(
        "GET",
        f"{_path(flow_run_id)}/{kind}",
        query,
        argument="flow_run_id",
        sink=buffer if include_data else None,
        max_bytes=MAX_IN_MEMORY_BYTES if include_data else MAX_LIST_BYTES,
    )
    response = yield from send(request)
    if response.bytes_received is not None:
        response = replace(response, body=bytes(buffer.data))
    return request, response


def _read_assets(
    request: Request, response: Response, kind: str, *, include_data: bool
) -> Conversation[list[FlowOutput]]:
    parse = partial(responses.parse_asset_page, request, response, kind, include_data=include_data)
    return (yield from run_apart_if_large(response, parse))


def _has_newest(runs: Collection[FlowRun], limit: int, state: FlowState | None) -> bool:
    """Return whether the first rows of a list have the newest runs, which their order proves."""
    times = [to_epoch(run.created_at) for run in runs if run.created_at is not None]
    is_descending = all(first >= second for first, second in pairwise(times)) and times[0] > times[-1]
    has_times = len(times) == len(runs)
    return has_times and is_descending and sum(state in {None, run.state} for run in runs) >= limit


def _parse_page(request: Request, response: Response) -> tuple[Any, dict[str, FlowRun], bool]:
    """Parse a page of a list of runs; rows without an id are skipped.

    :returns: the reference to the next page, the runs by id, and whether every row has an id and a state.
    :raises FlowServiceError: the response is not a success, or contains no list.
    """
    value = parse_json(request, response)
    rows = responses.rows_by_id(request, response, value)
    runs = {key: responses.parse_row(key, row) for key, row in rows.items()}
    return responses.get_paging(value), runs, responses.has_states(value)


def _parse_running_page(
    request: Request, response: Response, flow_run_ids: Collection[str]
) -> tuple[Any, AbstractSet[str], dict[str, FlowRun]]:
    """Parse a page of a list of running runs.

    :param flow_run_ids: the runs that are parsed.
    :returns: the reference to the next page, the ids of all rows, and those of the requested runs that are
        running.
    :raises FlowServiceError: the response is not a success, or contains no list.
    """
    value = parse_json(request, response)
    rows = responses.rows_by_id(request, response, value)
    value, paging = None, responses.get_paging(value)
    ids, runs = set[str](), dict[str, FlowRun]()
    while rows:  # one at a time, because no other thread runs while all of a large value is freed
        key, row = rows.popitem()
        ids.add(key)
        if key in flow_run_ids and (run := responses.parse_running_row(key, row)) is not None:
            runs[key] = run
    return paging, ids, runs
