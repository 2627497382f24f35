"""Generio's routes: who asks, what for, and the answer in the form that the switches have it.

The rules decide and the views show; nothing is decided here.
"""

import asyncio
from http import HTTPStatus
from typing import Any, Literal

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel

from airflow_provider_flows.emulator.errors import Refusal, complaint
from airflow_provider_flows.emulator.generio import templates
from airflow_provider_flows.emulator.generio.inputs import data_uri
from airflow_provider_flows.emulator.generio.responses import ListQuery, Views
from airflow_provider_flows.emulator.generio.rules import Rules
from airflow_provider_flows.emulator.generio.templates import GLB, Template
from airflow_provider_flows.emulator.runs import InputAsset
from airflow_provider_flows.emulator.state import World


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

    def __init__(self, world: World) -> None:
        self.world = world
        self.rules = Rules(world)
        self.views = Views(world.switches)

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
            ("POST", "/flows/{flow_id}/input", self.add_input_of_old),
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
        if scheme.lower() == "bearer" and self.world.knows(key.strip()):
            return
        detail = "Invalid or expired API key" if key else "Not authenticated"
        raise HTTPException(self.world.switches.auth_failure, detail, headers={"WWW-Authenticate": "Bearer"})

    async def list_templates(self) -> Response:
        """List what can be run."""
        self._need("templates_endpoint")
        switches = self.world.switches
        return self._answer({"templates": [template.as_json(switches) for template in templates.TEMPLATES]})

    async def get_template(self, template_id: str) -> Response:
        """Show one template."""
        return self._answer(self.rules.template(template_id).as_json(self.world.switches))

    async def create(self, body: CreateBody) -> Response:
        """Create a flow run; with inputs it starts at once."""
        template = self.rules.template(body.template)
        # In a thread: decoding files would hold up everybody else.
        inputs = await asyncio.to_thread(self._read_inputs, template, body.inputs or [])
        run = await asyncio.to_thread(self.rules.create, template, body.parameters, body.additional, inputs)
        full = self.world.switches.create_answer == "full"
        return self._answer(self.views.run(run) if full else {"flow_id": run.flow_run_id})

    async def list_flows(
        self,
        filter_by: str | None = None,
        sort_by: str = "created_at",
        limit: int | None = Query(None, ge=1),
        offset: int = Query(0, ge=0),
        page: int = Query(1, ge=1),
    ) -> Response:
        """List the flow runs."""
        self._need("list_endpoint")
        with self.world.lock:
            runs = list(self.world.runs.values())
        rows, hints = self.views.runs(runs, ListQuery(filter_by, sort_by, limit, offset, page))
        if self.world.switches.list_envelope == "array":
            return JSONResponse(rows)
        return self._answer({"flows": rows} | hints)

    async def get_flow(self, flow_id: str) -> Response:
        """Show one flow run."""
        return self._answer(self.views.run(self.rules.run(flow_id)))

    async def act(self, flow_id: str, body: ActionBody) -> Response:
        """Start or abort a flow run."""
        run = self.rules.run(flow_id)
        if body.action == "start":
            await asyncio.to_thread(self.rules.start, run)
        else:
            self.rules.abort(run)
        return self._acknowledge(self.views.run(run), "Flow updated")

    async def delete(self, flow_id: str) -> Response:
        """Delete a flow run and all its assets."""
        run = self.rules.run(flow_id)
        shown = self.views.run(run)
        self.rules.delete(run)
        return self._acknowledge(shown, "Flow deleted")

    async def add_input(self, flow_id: str, body: InputItem) -> Response:
        """Add one input."""
        if self.world.switches.input_path == "input":
            raise HTTPException(405, "Method Not Allowed")
        return await self._add(flow_id, body)

    async def add_input_of_old(self, flow_id: str, body: InputItem) -> Response:
        """Add one input in the way of the oldest documentation."""
        if self.world.switches.input_path == "inputs":
            raise HTTPException(404, "Not Found")
        return await self._add(flow_id, body)

    async def list_inputs(self, flow_id: str, *, include_data: bool = False) -> Response:
        """List the inputs."""
        run = self.rules.run(flow_id)
        shown = await asyncio.to_thread(
            lambda: [self.views.input(asset, run, with_data=include_data) for asset in run.inputs]
        )
        return self._answer({"flow_id": flow_id, "inputs": shown})

    async def get_input(self, flow_id: str, asset_id: str) -> Response:
        """Show one input with its data."""
        run = self.rules.run(flow_id)
        asset = self.rules.input(run, asset_id)
        return self._answer(await asyncio.to_thread(self.views.input, asset, run, with_data=True))

    async def list_outputs(self, flow_id: str, *, include_data: bool = False) -> Response:
        """List the outputs."""
        run = self.rules.run(flow_id)
        outputs = self.rules.outputs(run)
        shown = await asyncio.to_thread(
            lambda: [self.views.output(asset, run, with_data=include_data) for asset in outputs]
        )
        return self._answer({"flow_id": flow_id, "outputs": shown})

    async def get_output(self, flow_id: str, asset_id: str) -> Response:
        """Give one output's file, in the form that the switch has it."""
        run = self.rules.run(flow_id)
        asset = self.rules.output(run, asset_id)
        content = await asyncio.to_thread(lambda: asset.content)
        way = self.world.switches.download
        if way == "raw":
            return Response(content, media_type=GLB)
        data = await asyncio.to_thread(data_uri, GLB, content)
        if way == "text":
            return PlainTextResponse(data)
        more = self.views.output(asset, run, with_data=False) if way == "json_more" else {}
        return self._answer(more | {"data": data})

    def _need(self, endpoint: str) -> None:
        """Refuse what the switch of that name says is not there."""
        absent = getattr(self.world.switches, endpoint)
        if absent != "present":
            raise HTTPException(absent, HTTPStatus(absent).phrase)

    def _read_inputs(self, template: Template, items: list[InputItem]) -> list[InputAsset]:
        return [
            self.rules.read_input(
                template,
                self._data(item, ["body", "inputs", number]),
                item.additional,
                ["body", "inputs", number],
            )
            for number, item in enumerate(items)
        ]

    def _data(self, item: InputItem, where: list[str | int]) -> str:
        """Return the data under the name that holds today."""
        path = self.world.switches.input_path
        data = {"inputs": item.data, "input": item.file_data, "both": item.data or item.file_data}[path]
        if data is None:
            name = "file_data" if path == "input" else "data"
            raise Refusal(422, [complaint([*where, name], "Field required", "missing", item.model_dump())])
        return data

    async def _add(self, flow_id: str, body: InputItem) -> Response:
        run = self.rules.run(flow_id)
        data = self._data(body, ["body"])
        asset = await asyncio.to_thread(self.rules.add_input, run, data, body.additional)
        return self._answer({"flow_id": flow_id} | self.views.input(asset, run, with_data=False))

    def _acknowledge(self, shown: dict[str, Any], text: str) -> Response:
        way = self.world.switches.acknowledgement
        if way == "empty":
            return Response(status_code=200)
        return self._answer(shown if way == "flow" else {"message": text})

    def _answer(self, content: dict[str, Any]) -> Response:
        if self.world.switches.envelope == "none":
            return JSONResponse(content)
        return JSONResponse({"success": True, "message": "OK"} | content)
