"""Generio's routes: who asks, what for, and the answer in the form that the switches have it.

The rules decide and the views show; nothing is decided here.
"""

import asyncio
from http import HTTPStatus
from typing import Any, Literal

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel

from airflow_provider_flows.emulator.errors import ApiError, validation_error
from airflow_provider_flows.emulator.generio import templates
from airflow_provider_flows.emulator.generio.inputs import to_data_uri
from airflow_provider_flows.emulator.generio.responses import ResponseBodies, RunQuery
from airflow_provider_flows.emulator.generio.rules import Rules
from airflow_provider_flows.emulator.generio.templates import GLB, Template
from airflow_provider_flows.emulator.runs import InputAsset
from airflow_provider_flows.emulator.state import EmulatorState


class InputItem(BaseModel):
    """One input; ``file_data`` is its oldest name for the data."""

    data: str | None = None
    file_data: str | None = None
    additional: Any = None


class CreateBody(BaseModel):
    """What POST /flows takes."""

    template: str
    parameters: Any = None
    inputs: list[InputItem] | None = None
    additional: Any = None


class ActionBody(BaseModel):
    """What PATCH /flows/{flow_id} takes."""

    action: Literal["start", "abort"]


class GenerioApi:
    """Generio's API over one world."""

    def __init__(self, emulator_state: EmulatorState) -> None:
        self.emulator_state = emulator_state
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
        """Refuse whoever does not send the key as a bearer token."""
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.emulator_state.is_valid_key(key.strip()):
            return
        detail = "Invalid or expired API key" if key else "Not authenticated"
        raise HTTPException(
            self.emulator_state.switches.auth_failure, detail, headers={"WWW-Authenticate": "Bearer"}
        )

    async def list_templates(self) -> Response:
        """List what can be run."""
        self._require_endpoint("templates_endpoint")
        switches = self.emulator_state.switches
        return self._response({"templates": [template.to_json(switches) for template in templates.TEMPLATES]})

    async def get_template(self, template_id: str) -> Response:
        """Show one template."""
        return self._response(self.rules.template(template_id).to_json(self.emulator_state.switches))

    async def create(self, body: CreateBody) -> Response:
        """Create a flow run; with inputs it starts at once."""
        template = self.rules.template(body.template)
        # In a thread: decoding files would hold up everybody else.
        inputs = await asyncio.to_thread(self._parse_inputs, template, body.inputs or [])
        run = await asyncio.to_thread(self.rules.create, template, body.parameters, body.additional, inputs)
        full = self.emulator_state.switches.create_answer == "full"
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
        if self.emulator_state.switches.list_envelope == "array":
            return JSONResponse(rows)
        return self._response({"flows": rows} | hints)

    async def get_flow(self, flow_id: str) -> Response:
        """Show one flow run."""
        return self._response(self.bodies.run(self.rules.run(flow_id)))

    async def act(self, flow_id: str, body: ActionBody) -> Response:
        """Start or abort a flow run."""
        run = self.rules.run(flow_id)
        if body.action == "start":
            await asyncio.to_thread(self.rules.start, run)
        else:
            self.rules.abort(run)
        return self._acknowledgement(self.bodies.run(run), "Flow updated")

    async def delete(self, flow_id: str) -> Response:
        """Delete a flow run and all its assets."""
        run = self.rules.run(flow_id)
        body = self.bodies.run(run)
        self.rules.delete(run)
        return self._acknowledgement(body, "Flow deleted")

    async def add_input(self, flow_id: str, body: InputItem) -> Response:
        """Add one input."""
        if self.emulator_state.switches.input_path == "input":
            raise HTTPException(405, "Method Not Allowed")
        return await self._add_input(flow_id, body)

    async def add_legacy_input(self, flow_id: str, body: InputItem) -> Response:
        """Add one input in the way of the oldest documentation."""
        if self.emulator_state.switches.input_path == "inputs":
            raise HTTPException(404, "Not Found")
        return await self._add_input(flow_id, body)

    async def list_inputs(self, flow_id: str, *, include_data: bool = False) -> Response:
        """List the inputs."""
        run = self.rules.run(flow_id)
        items = await asyncio.to_thread(
            lambda: [self.bodies.input(asset, run, with_data=include_data) for asset in run.inputs]
        )
        return self._response({"flow_id": flow_id, "inputs": items})

    async def get_input(self, flow_id: str, asset_id: str) -> Response:
        """Show one input with its data."""
        run = self.rules.run(flow_id)
        asset = self.rules.input(run, asset_id)
        return self._response(await asyncio.to_thread(self.bodies.input, asset, run, with_data=True))

    async def list_outputs(self, flow_id: str, *, include_data: bool = False) -> Response:
        """List the outputs."""
        run = self.rules.run(flow_id)
        outputs = self.rules.outputs(run)
        items = await asyncio.to_thread(
            lambda: [self.bodies.output(asset, run, with_data=include_data) for asset in outputs]
        )
        return self._response({"flow_id": flow_id, "outputs": items})

    async def get_output(self, flow_id: str, asset_id: str) -> Response:
        """Give one output's file, in the form that the switch has it."""
        run = self.rules.run(flow_id)
        asset = self.rules.output(run, asset_id)
        content = await asyncio.to_thread(lambda: asset.content)
        way = self.emulator_state.switches.download
        if way == "raw":
            return Response(content, media_type=GLB)
        data = await asyncio.to_thread(to_data_uri, GLB, content)
        if way == "text":
            return PlainTextResponse(data)
        more = self.bodies.output(asset, run, with_data=False) if way == "json_more" else {}
        return self._response(more | {"data": data})

    def _require_endpoint(self, endpoint: str) -> None:
        """Refuse what the switch of that name says is not there."""
        status = getattr(self.emulator_state.switches, endpoint)
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
        """Return the data under the name that holds today."""
        path = self.emulator_state.switches.input_path
        data = {"inputs": item.data, "input": item.file_data, "both": item.data or item.file_data}[path]
        if data is None:
            name = "file_data" if path == "input" else "data"
            raise ApiError(
                422, [validation_error([*location, name], "Field required", "missing", item.model_dump())]
            )
        return data

    async def _add_input(self, flow_id: str, body: InputItem) -> Response:
        run = self.rules.run(flow_id)
        data = self._input_data(body, ["body"])
        asset = await asyncio.to_thread(self.rules.add_input, run, data, body.additional)
        return self._response({"flow_id": flow_id} | self.bodies.input(asset, run, with_data=False))

    def _acknowledgement(self, body: dict[str, Any], message: str) -> Response:
        way = self.emulator_state.switches.acknowledgement
        if way == "empty":
            return Response(status_code=200)
        return self._response(body if way == "flow" else {"message": message})

    def _response(self, content: dict[str, Any]) -> Response:
        if self.emulator_state.switches.envelope == "none":
            return JSONResponse(content)
        return JSONResponse({"success": True, "message": "OK"} | content)
