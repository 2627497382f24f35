"""Generio Flows: its paths and request bodies, each endpoint a conversation.

How its answers are read stands in generio_answers.py; nothing else knows the service.

Source of every path and body: the vendor's reference, https://docs.generio.ai, in its newest wording ("docs C").
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_flows.core.exceptions import FlowConflict, FlowInputError, FlowNotFound
from airflow_provider_flows.core.http import Request, Resend, Response, Sleep, send
from airflow_provider_flows.core.payload import data_uri
from airflow_provider_flows.core.payload.data_uri import Content
from airflow_provider_flows.core.payload.download import DownloadSink, download
from airflow_provider_flows.core.payload.sink import MemoryBuffer
from airflow_provider_flows.core.polling.bulk import ActiveRuns
from airflow_provider_flows.core.responses import error_reason, expect_success, parse_json
from airflow_provider_flows.core.run import FlowInput, FlowOutput, FlowRun, FlowState
from airflow_provider_flows.core.service import Inputs, Service, quote_path_segment
from airflow_provider_flows.core.timestamps import to_epoch
from airflow_provider_flows.services.generio import responses

if TYPE_CHECKING:
    from airflow_provider_flows.core.definition import FlowDefinition
    from airflow_provider_flows.core.http import Conversation
    from airflow_provider_flows.core.payload.sink import Target

MAX_PAGES = 1000
ROWS_PER_YIELD = 200  # rows of a long list that are read before others have their turn
WRONG_STATE_STATUSES = frozenset(
    {400, 409, 422, 425}
)  # what may stand for "not in this state" (vendor-api 1.8)


class Generio(Service):
    """The Generio Flows API."""

    name: ClassVar[str] = "generio"
    staged_start: ClassVar[bool] = True

    def auth_headers(self, token: str) -> dict[str, str]:
        """Bearer token, on every call (docs C, all pages)."""
        return {"Authorization": f"Bearer {token}"}

    def check_credentials(self) -> Conversation[str]:
        """GET /flows?filter_by=running: the account's own runs, so it needs the key; where that is missing, GET /templates."""
        request = Request("GET", "/flows", {"filter_by": FlowState.RUNNING.value})
        response = yield from send(request)
        if response.status in {404, 405}:
            request = Request("GET", "/templates")
            response = yield from send(request)
        parse_json(request, response)
        return "Generio accepted the API key."

    def start(
        self,
        flow: str,
        inputs: Inputs,
        parameters: Any,
        additional: Any,
        *,
        before_start: Callable[[], None] = lambda: None,
        expected_outputs: Collection[str] | None = None,  # it takes a while until there are any
    ) -> Conversation[FlowRun]:
        """POST /flows with inputs: one request, and the run starts by itself. It is never sent twice: it costs money."""
        body = {
            **_creation_body(flow, parameters, additional),
            "inputs": [_escape_prompt(item).to_json() for item in self.to_flow_inputs(inputs)],
        }
        before_start()
        return (
            yield from _send_create(
                Request("POST", "/flows", json=body, resend=Resend.IF_NEVER_ARRIVED), flow, FlowState.STARTING
            )
        )

    def to_flow_inputs(self, inputs: Inputs) -> list[FlowInput]:
        """Refuse a mapping, and nothing at all: without an input a run would never start."""
        if isinstance(inputs, Mapping):
            message = "inputs must be a list of prompts and files for a Generio flow; a mapping of variables is for PromptChainer"
            raise FlowInputError(message)
        if not inputs:
            message = "inputs must hold at least one prompt or file: without one a Generio flow run would never start"
            raise FlowInputError(message)
        return list(inputs)

    def create(self, flow: str, parameters: Any, additional: Any) -> Conversation[FlowRun]:
        """POST /flows without inputs: the run is made, does not start and costs nothing."""
        request = Request(
            "POST", "/flows", json=_creation_body(flow, parameters, additional), resend=Resend.IF_REFUSED
        )
        return (yield from _send_create(request, flow, FlowState.CREATED))

    def add_input(self, flow_run_id: str, item: FlowInput) -> Conversation[str | None]:
        """POST /flows/{id}/inputs; on 404 or 405 once /flows/{id}/input with `file_data`, as the oldest docs have it (G-09)."""
        path, body = f"{_path(flow_run_id)}/inputs", _escape_prompt(item).to_json()
        request = Request("POST", path, json=body, resend=Resend.IF_REFUSED)
        response = yield from send(request)
        if response.status in {404, 405}:
            old_body = {"file_data": body.pop("data"), **body}
            older = Request("POST", path.removesuffix("s"), json=old_body, resend=Resend.IF_REFUSED)
            second = yield from send(older)
            request, response = (older, second) if second.is_success else (request, response)
        return responses.parse_asset_id(parse_json(request, response))

    def start_created(self, flow_run_id: str) -> Conversation[None]:
        """PATCH /flows/{id} with action start; a run that is not in state created has started already (G-17)."""
        request = Request("PATCH", _path(flow_run_id), json={"action": "start"}, resend=Resend.IF_REFUSED)
        yield from self._change_state(flow_run_id, request, lambda state: state is not FlowState.CREATED)

    def abort(self, flow_run_id: str) -> Conversation[None]:
        """PATCH /flows/{id} with action abort; a run that is aborting or final needs none."""
        request = Request("PATCH", _path(flow_run_id), json={"action": "abort"})
        yield from self._change_state(
            flow_run_id, request, lambda state: state.is_final or state is FlowState.ABORTING
        )

    def _change_state(
        self, flow_run_id: str, request: Request, is_reached: Callable[[FlowState], bool]
    ) -> Conversation[None]:
        """Ask for a change of state; a refusal is settled by reading the run: it may be there already (vendor-api 1.12.9).

        :raises FlowConflict: the run is in a state that does not allow it, whichever status said so.
        """
        response = yield from send(request)
        if response.status not in WRONG_STATE_STATUSES:
            expect_success(request, response)
            return
        run = yield from self.get_run(flow_run_id)
        if not is_reached(run.state):
            message = f"{request} was refused (HTTP {response.status}): the run is {run.raw_state}. {error_reason(response)}"
            raise FlowConflict(message, status=response.status)

    def delete(self, flow_run_id: str) -> Conversation[None]:
        """DELETE /flows/{id}; only a run in state created or a final one takes it."""
        request = Request("DELETE", _path(flow_run_id))
        expect_success(request, (yield from send(request)))

    def run_url(self, flow_run_id: str, flow: str | None) -> str | None:
        """Give the API's own path of the run, for no page of the vendor tells of a console that shows one."""
        return _path(flow_run_id)

    def get_run(self, flow_run_id: str) -> Conversation[FlowRun]:
        """GET /flows/{id}: https://docs.generio.ai, "Get flow details"."""
        request = Request("GET", _path(flow_run_id))
        response = yield from send(request)
        return responses.parse_run(request, response, parse_json(request, response), known_id=flow_run_id)

    def list_runs(self, state: FlowState | None = None) -> Conversation[list[FlowRun]]:
        """GET /flows, newest first. What `filter_by` and paging really do is not known (G-06, G-07, G-08): done here again."""
        query = {"sort_by": "created_at"}
        found, has_states = yield from self._fetch_runs(query | ({"filter_by": state.value} if state else {}))
        if state and not has_states:  # `filter_by` took the states away: it selects fields, not runs
            found, _ = yield from self._fetch_runs(query)
        matching = (run for run in found if state in {None, run.state})
        return sorted(
            matching, key=lambda run: to_epoch(run.created_at) if run.created_at else 0.0, reverse=True
        )

    def list_active(self, flow_run_ids: Collection[str]) -> Conversation[ActiveRuns]:
        """GET /flows?filter_by=running, page after page: of all that it lists, these runs, if it says that they are running."""
        request: Request | None = Request("GET", "/flows", {"filter_by": FlowState.RUNNING.value})
        found: dict[str, FlowRun] = {}
        ids: set[str] = set()
        pages = 0
        while request is not None and pages <= len(
            flow_run_ids
        ):  # with more requests than runs it would be of no use
            response = yield from send(request)
            value = parse_json(request, response)
            rows = responses.rows_by_id(request, response, value)
            for number, key in enumerate(key for key in rows if key in flow_run_ids):
                if (run := responses.parse_running_row(key, rows[key])) is not None:
                    found[key] = run
                if number % ROWS_PER_YIELD == ROWS_PER_YIELD - 1:
                    yield Sleep(0.0)
            has_new_rows = not rows.keys() <= ids
            ids |= rows.keys()
            pages += 1
            request = responses.next_page_request(request, value, len(ids)) if has_new_rows else None
        return ActiveRuns(found, ids, pages, is_complete=request is None)

    def _fetch_runs(self, query: dict[str, str]) -> Conversation[tuple[list[FlowRun], bool]]:
        """Read the list, page after page while there are new rows; also tell whether every row told an id and a state."""
        request: Request | None = Request("GET", "/flows", query)
        found: dict[str, FlowRun] = {}
        has_states = True
        for _ in range(MAX_PAGES):
            if request is None:
                break
            response = yield from send(request)
            value = parse_json(request, response)
            new: dict[str, FlowRun] = {}
            for number, run in enumerate(responses.parse_runs(request, response, value)):
                new[run.flow_run_id] = run
                if number % ROWS_PER_YIELD == ROWS_PER_YIELD - 1:
                    yield Sleep(0.0)
            has_states = has_states and responses.has_states(value)
            has_new_rows = not new.keys() <= found.keys()
            found |= new
            request = responses.next_page_request(request, value, len(found)) if has_new_rows else None
        return list(found.values()), has_states

    def list_inputs(self, flow_run_id: str, *, include_data: bool = False) -> Conversation[list[FlowOutput]]:
        """GET /flows/{id}/inputs."""
        request, response = yield from _request_assets(flow_run_id, "inputs", include_data=include_data)
        return responses.parse_assets(
            request, response, parse_json(request, response), "inputs", include_data=include_data
        )

    def get_input(self, flow_run_id: str, asset_id: str) -> Conversation[Content]:
        """GET /flows/{id}/inputs/{asset_id}."""
        buffer = MemoryBuffer()
        sink = DownloadSink(buffer, allow_text=True)  # a prompt is given back as it was sent
        media_type = yield from download(
            f"{_path(flow_run_id)}/inputs/{quote_path_segment('asset_id', asset_id)}", sink
        )
        return Content(bytes(buffer.data), media_type)

    def list_outputs(self, flow_run_id: str, *, include_data: bool = False) -> Conversation[list[FlowOutput]]:
        """GET /flows/{id}/outputs; only a final run has them, and a refusal is settled by reading the run (G-22)."""
        request, response = yield from _request_assets(flow_run_id, "outputs", include_data=include_data)
        if response.status in WRONG_STATE_STATUSES:
            run = yield from self.get_run(flow_run_id)
            if not run.is_final:
                message = f"{request} was refused (HTTP {response.status}): the run is {run.raw_state}, outputs come at its end"
                raise FlowConflict(message, status=response.status)
        return responses.parse_assets(
            request, response, parse_json(request, response), "outputs", include_data=include_data
        )

    def download_output(
        self, flow_run_id: str, asset_id: str, media_type: str | None = None
    ) -> Conversation[Content]:
        """GET /flows/{id}/outputs/{asset_id}: a data URI in JSON, or the raw file (G-02)."""
        buffer = MemoryBuffer()
        kind = yield from self.save_output(flow_run_id, asset_id, buffer, media_type)
        return Content(bytes(buffer.data), kind)

    def save_output(
        self, flow_run_id: str, asset_id: str, target: Target, media_type: str | None = None
    ) -> Conversation[str]:
        """GET /flows/{id}/outputs/{asset_id}, a piece at a time; a plain text only if the list told of one."""
        return (
            yield from download(
                f"{_path(flow_run_id)}/outputs/{quote_path_segment('asset_id', asset_id)}",
                DownloadSink(target, media_type),
            )
        )

    def list_definitions(self) -> Conversation[list[FlowDefinition]]:
        """GET /templates, page after page if the answer tells of more (it is not documented to)."""
        request: Request | None = Request("GET", "/templates")
        found: dict[str, FlowDefinition] = {}
        for _ in range(MAX_PAGES):
            if request is None:
                break
            response = yield from send(request)
            value = parse_json(request, response)
            new = {
                definition.flow: definition
                for definition in responses.parse_definitions(request, response, value)
            }
            has_new_rows = not new.keys() <= found.keys()
            found |= new
            request = responses.next_page_request(request, value, len(found)) if has_new_rows else None
        return list(found.values())


def _path(flow_run_id: str) -> str:
    return f"/flows/{quote_path_segment('flow_run_id', flow_run_id)}"


def _creation_body(flow: str, parameters: Any, additional: Any) -> dict[str, Any]:
    """Give the body of POST /flows: `template`, and what there is of `parameters` and `additional`."""
    optional = {"parameters": parameters, "additional": additional}
    return {"template": flow, **{key: value for key, value in optional.items() if value is not None}}


def _escape_prompt(item: FlowInput) -> FlowInput:
    """Give the input as it is sent: a prompt that merely begins like a data URI gets a leading blank (vendor-api G-15)."""
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
        value = parse_json(request, response)
    except FlowNotFound as error:
        message = (
            f"flow {flow!r} is not known to Generio; list_definitions() of the hook tells what is. {error}"
        )
        raise FlowNotFound(message, status=error.status) from None
    return responses.parse_run(request, response, value, known_flow=flow, default_state=default_state)


def _request_assets(
    flow_run_id: str, kind: str, *, include_data: bool
) -> Conversation[tuple[Request, Response]]:
    # true and false in lower case: whether the service reads a string or a Boolean is not known (G-25)
    query = {"include_data": str(include_data).lower()}
    buffer = MemoryBuffer()  # with the files in it, it may be of any size
    request = Request("GET", f"{_path(flow_run_id)}/{kind}", query, sink=buffer if include_data else None)
    response = yield from send(request)
    return request, response if response.bytes_received is None else replace(
        response, body=bytes(buffer.data)
    )
