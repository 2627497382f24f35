"""Generio's routes: authentication, parsing of requests, and responses in the form of the switches."""

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from operator import itemgetter
from typing import Any, Literal

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel

from airflow_provider_flows.emulator.generio_rules import Rules
from airflow_provider_flows.emulator.generio_templates import GLB, TEMPLATES, Template, validation_error
from airflow_provider_flows.emulator.state import (
    ApiError,
    EmulatorState,
    GenerioRun,
    InputAsset,
    OutputAsset,
    StateAt,
    to_data_uri,
    to_iso,
)
from airflow_provider_flows.emulator.switches import Switches

STATES = frozenset({"created", "starting", "running", "aborting", "completed", "aborted", "failed"})
# The vendor's page has two names for one key (vendor_notes.md, G-07).
FIELDS_BY_SORT_KEY = {"status": "state"} | {
    name: name for name in ("state", "progress", "created_at", "started_at", "finished_at")
}


class InputItem(BaseModel):
    """One input; ``file_data`` is the name of ``data`` in the first version of the API."""

    data: str | None = None
    file_data: str | None = None
    additional: Any = None


class CreateBody(BaseModel):
    """The body of POST /flows."""

    template: str
    parameters: Any = None
    inputs: list[InputItem] | None = None
    additional: Any = None


class ActionBody(BaseModel):
    """The body of PATCH /flows/{flow_id}."""

    action: Literal["start", "abort"]


class GenerioApi:
    """The Generio API of one emulator."""

    def __init__(self, emulator_state: EmulatorState) -> None:
        self.emulator_state = emulator_state
        self.switches = emulator_state.switches
        self.rules = Rules(emulator_state)
        self.bodies = ResponseBodies(emulator_state.switches)

    def router(self) -> APIRouter:
        """Return the routes."""
        router = APIRouter(dependencies=[Depends(self.authorise)], tags=["Generio"])
        for method, path, endpoint in (
            ("GET", "/templates", self.list_templates),
            ("GET", "/templates/{template_id}", self.get_template),
            ("POST", "/flows", self.create),
            ("GET", "/flows", self.list_flows),
            ("GET", "/flows/{flow_id}", self.get_flow),
            ("PATCH", "/flows/{flow_id}", self.act),
            ("DELETE", "/flows/{flow_id}", self.delete),
            ("POST", "/flows/{flow_id}/inputs", self.add_input),
            ("POST", "/flows/{flow_id}/input", self.add_legacy_input),
            ("GET", "/flows/{flow_id}/inputs", self.list_inputs),
            ("GET", "/flows/{flow_id}/inputs/{asset_id}", self.get_input),
            ("GET", "/flows/{flow_id}/outputs", self.list_outputs),
            ("GET", "/flows/{flow_id}/outputs/{asset_id}", self.get_output),
        ):
            router.add_api_route(
                path, endpoint, methods=[method], response_class=JSONResponse, response_model=None
            )
        return router

    def authorise(self, request: Request) -> None:
        """Reject a request without the key as a bearer token."""
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.emulator_state.is_valid_key(key.strip()):
            return
        detail = "Invalid or expired API key" if key else "Not authenticated"
        raise HTTPException(self.switches.auth_failure, detail, headers={"WWW-Authenticate": "Bearer"})

    async def list_templates(self) -> Response:
        """List the templates."""
        self._require_endpoint("templates_endpoint")
        return self._response({"templates": [template.to_json(self.switches) for template in TEMPLATES]})

    async def get_template(self, template_id: str) -> Response:
        """Return one template."""
        return self._response(self.rules.get_template(template_id).to_json(self.switches))

    async def create(self, body: CreateBody) -> Response:
        """Create a flow run, and start it if it has inputs."""
        template = self.rules.get_template(body.template)
        # In a thread, because decoding files would block all other requests.
        inputs = await asyncio.to_thread(self._parse_inputs, template, body.inputs or [])
        run = await asyncio.to_thread(self.rules.create, template, body.parameters, body.additional, inputs)
        full = self.switches.create_response == "full"
        return self._response(self.bodies.run(run) if full else {"flow_id": run.flow_run_id})

    async def list_flows(
        self,
        filter_by: str | None = None,
        sort_by: str = "created_at",
        limit: int | None = Query(None, ge=1),
        offset: int = Query(0, ge=0),
        page: int = Query(1, ge=1),
    ) -> Response:
        """List the flow runs."""
        self._require_endpoint("list_endpoint")
        with self.emulator_state.lock:
            runs = list(self.emulator_state.runs.values())
        rows, hints = self.bodies.runs(runs, RunQuery(filter_by, sort_by, limit, offset, page))
        if self.switches.list_envelope == "array":
            return JSONResponse(rows)
        return self._response({"flows": rows} | hints)

    async def get_flow(self, flow_id: str) -> Response:
        """Return one flow run."""
        return self._response(self.bodies.run(self.rules.get_run(flow_id)))

    async def act(self, flow_id: str, body: ActionBody) -> Response:
        """Start or abort a flow run."""
        run = self.rules.get_run(flow_id)
        if body.action == "start":
            await asyncio.to_thread(self.rules.start, run)
        else:
            self.rules.abort(run)
        return self._acknowledgement(self.bodies.run(run), "Flow updated")

    async def delete(self, flow_id: str) -> Response:
        """Delete a flow run and all its assets."""
        run = self.rules.get_run(flow_id)
        body = self.bodies.run(run)
        self.rules.delete(run)
        return self._acknowledgement(body, "Flow deleted")

    async def add_input(self, flow_id: str, body: InputItem) -> Response:
        """Add one input."""
        if self.switches.input_path == "input":
            raise HTTPException(405, "Method Not Allowed")
        return await self._add_input(flow_id, body)

    async def add_legacy_input(self, flow_id: str, body: InputItem) -> Response:
        """Add one input by the route of the first version of the API."""
        if self.switches.input_path == "inputs":
            raise HTTPException(404, "Not Found")
        return await self._add_input(flow_id, body)

    async def list_inputs(self, flow_id: str, *, include_data: bool = False) -> Response:
        """List the inputs."""
        run = self.rules.get_run(flow_id)
        items = await asyncio.to_thread(
            lambda: [self.bodies.input(asset, run, with_data=include_data) for asset in run.inputs]
        )
        return self._response({"flow_id": flow_id, "inputs": items})

    async def get_input(self, flow_id: str, asset_id: str) -> Response:
        """Return one input with its data."""
        run = self.rules.get_run(flow_id)
        asset = self.rules.get_input(run, asset_id)
        return self._response(await asyncio.to_thread(self.bodies.input, asset, run, with_data=True))

    async def list_outputs(self, flow_id: str, *, include_data: bool = False) -> Response:
        """List the outputs."""
        run = self.rules.get_run(flow_id)
        outputs = self.rules.get_outputs(run)
        items = await asyncio.to_thread(
            lambda: [self.bodies.output(asset, run, with_data=include_data) for asset in outputs]
        )
        return self._response({"flow_id": flow_id, "outputs": items})

    async def get_output(self, flow_id: str, asset_id: str) -> Response:
        """Return the file of one output, in the form of the switch `download`."""
        run = self.rules.get_run(flow_id)
        asset = self.rules.get_output(run, asset_id)
        content = await asyncio.to_thread(lambda: asset.content)
        mode = self.switches.download
        if mode == "raw":
            return Response(content, media_type=GLB)
        data = await asyncio.to_thread(to_data_uri, GLB, content)
        if mode == "text":
            return PlainTextResponse(data)
        more = self.bodies.output(asset, run, with_data=False) if mode == "json_more" else {}
        return self._response(more | {"data": data})

    def _require_endpoint(self, switch: str) -> None:
        """Reject the request if a switch says that the endpoint does not exist."""
        status = getattr(self.switches, switch)
        if status != "present":
            raise HTTPException(status, HTTPStatus(status).phrase)

    def _parse_inputs(self, template: Template, items: list[InputItem]) -> list[InputAsset]:
        return [
            self.rules.parse_input(
                template,
                self._input_data(item, ["body", "inputs", number]),
                item.additional,
                ["body", "inputs", number],
            )
            for number, item in enumerate(items)
        ]

    def _input_data(self, item: InputItem, location: list[str | int]) -> str:
        """Return the data under the key, or keys, of the switch `input_path`."""
        path = self.switches.input_path
        data = {"inputs": item.data, "input": item.file_data, "both": item.data or item.file_data}[path]
        if data is None:
            name = "file_data" if path == "input" else "data"
            raise ApiError(
                422, [validation_error([*location, name], "Field required", "missing", item.model_dump())]
            )
        return data

    async def _add_input(self, flow_id: str, body: InputItem) -> Response:
        run = self.rules.get_run(flow_id)
        data = self._input_data(body, ["body"])
        asset = await asyncio.to_thread(self.rules.add_input, run, data, body.additional)
        return self._response({"flow_id": flow_id} | self.bodies.input(asset, run, with_data=False))

    def _acknowledgement(self, body: dict[str, Any], message: str) -> Response:
        mode = self.switches.acknowledgement
        if mode == "empty":
            return Response(status_code=200)
        return self._response(body if mode == "flow" else {"message": message})

    def _response(self, content: dict[str, Any]) -> Response:
        if self.switches.envelope == "none":
            return JSONResponse(content)
        return JSONResponse({"success": True, "message": "OK"} | content)


@dataclass(frozen=True)
class RunQuery:
    """The query parameters of GET /flows."""

    filter_by: str | None = None
    sort_by: str = "created_at"
    limit: int | None = None
    offset: int = 0
    page: int = 1


@dataclass(frozen=True)
class ResponseBodies:
    """The bodies, in the form of one set of switches."""

    switches: Switches

    def run(self, run: GenerioRun) -> dict[str, Any]:
        """Return a flow run."""
        current = run.current
        style = self.switches.timestamps
        body: dict[str, Any] = {
            "flow_id": run.flow_run_id,
            "template": run.template,
            **self._state_fields(current),
            **self._progress_field(current),
            "created_at": to_iso(run.created_at, style),
            "started_at": to_iso(run.timeline.started_at, style),
            "finished_at": to_iso(current.finished_at, style),
            "parameters": run.parameters,
            "additional": run.additional,
        }
        if current.state == "failed" and self.switches.error_field != "none":
            body[self.switches.error_field] = run.error
        return body

    def runs(self, runs: list[GenerioRun], query: RunQuery) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Return one page of the list of flow runs, and the keys that describe the pages.

        :raises ApiError: a query parameter has an unknown value.
        """
        self._validate_query(query)
        key = FIELDS_BY_SORT_KEY[query.sort_by]
        rows = [
            (self._sort_value(run, key), run) for run in runs if self._matches_filter(run, query.filter_by)
        ]
        rows.sort(key=itemgetter(0), reverse=self.switches.sort_order == "descending")
        window, hints = self._select_page(len(rows), query)
        return [self._select_fields(self.run(run), query.filter_by) for _, run in rows[window]], hints

    def input(self, asset: InputAsset, run: GenerioRun, *, with_data: bool) -> dict[str, Any]:
        """Return one input, optionally with its data."""
        body = self._id_fields(asset.asset_id) | {
            "status": self.switches.ready_word,
            **self._processed_field(run.current.finished_at),
            "additional": asset.additional,
        }
        return body | ({"data": asset.data} if with_data else {})

    def output(self, asset: OutputAsset, run: GenerioRun, *, with_data: bool) -> dict[str, Any]:
        """Return one output as in the list of outputs, optionally with its data."""
        body = self._id_fields(asset.asset_id)
        body["status"] = self.switches.ready_word if asset.error is None else "error"
        body |= self._processed_field(run.current.finished_at) | {"additional": asset.additional}
        if asset.error is not None:
            return body | {"error": asset.error}
        if self.switches.outputs_ready == "later" and not run.has_ready_outputs:
            return body | {"status": "processing"}
        return body | ({"data": to_data_uri(GLB, asset.content)} if with_data else {})

    def _id_fields(self, asset_id: str) -> dict[str, Any]:
        """Return an asset's id under the key, or keys, of the switch `output_id`."""
        mode = self.switches.output_id
        return dict.fromkeys(("asset_id", "id") if mode == "both" else (mode,), asset_id)

    def _state_fields(self, current: StateAt) -> dict[str, Any]:
        raw_state = current.state.upper() if self.switches.state_case == "upper" else current.state
        keys = ("state", "status") if self.switches.state_key == "both" else (self.switches.state_key,)
        return dict.fromkeys(keys, raw_state)

    def _progress_field(self, current: StateAt) -> dict[str, Any]:
        mode = self.switches.progress
        if mode == "missing":
            return {}
        if mode == "null":
            return {"progress": None}
        fraction = current.fraction
        if mode == "late":
            fraction = 1.0 if current.state == "completed" else 0.0
        elif mode == "steps":
            fraction = int(fraction * 4) / 4
        return {"progress": round(fraction * (100 if mode == "percent" else 1), 4)}

    def _processed_field(self, finished_at: float | None) -> dict[str, Any]:
        values = {
            "timestamp": to_iso(finished_at, self.switches.timestamps),
            "bool": finished_at is not None,
            "null": None,
        }
        mode = self.switches.processed
        return {} if mode == "missing" else {"processed": values[mode]}

    def _validate_query(self, query: RunQuery) -> None:
        if query.sort_by not in FIELDS_BY_SORT_KEY:
            raise _unknown_value_error("sort_by", query.sort_by, sorted(FIELDS_BY_SORT_KEY))
        if self.switches.filter_by == "state" and query.filter_by and query.filter_by not in STATES:
            raise _unknown_value_error("filter_by", query.filter_by, sorted(STATES))

    def _matches_filter(self, run: GenerioRun, filter_by: str | None) -> bool:
        return self.switches.filter_by != "state" or not filter_by or run.state == filter_by

    def _select_fields(self, body: dict[str, Any], filter_by: str | None) -> dict[str, Any]:
        if not filter_by or not self.switches.filter_by.startswith("fields"):
            return body
        names = {name.strip() for name in filter_by.split(",")}
        if self.switches.filter_by == "fields":
            names.add("flow_id")
        return {name: value for name, value in body.items() if name in names}

    @staticmethod
    def _sort_value(run: GenerioRun, key: str) -> tuple[Any, str]:
        current = run.current
        values = {
            "state": current.state,
            "progress": current.fraction,
            "created_at": run.created_at,
            "started_at": run.timeline.started_at or 0.0,
            "finished_at": current.finished_at or 0.0,
        }
        # Ids increase with time, and decide between equal timestamps.
        return values[key], run.flow_run_id

    def _select_page(self, total: int, query: RunQuery) -> tuple[slice, dict[str, Any]]:
        mode, size = self.switches.paging, self.switches.page_size
        hints: dict[str, Any]
        if mode == "offset":
            limit = min(size, query.limit or size)
            hints = {"total": total, "limit": limit, "offset": query.offset}
            return slice(query.offset, query.offset + limit), hints
        if mode == "page":
            pages = max(1, -(-total // size))
            next_page = f"/flows?page={query.page + 1}" if query.page < pages else None
            hints = {"next": next_page, "total": total, "page": query.page, "pages": pages}
            return slice((query.page - 1) * size, query.page * size), hints
        return slice(0, size if mode == "silent" else None), {}


def _unknown_value_error(name: str, value: str, known: list[str]) -> ApiError:
    choices = ", ".join(f"'{choice}'" for choice in known)
    return ApiError(
        422, [validation_error(["query", name], f"Input should be one of {choices}", "enum", value)]
    )
