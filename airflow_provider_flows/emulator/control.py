"""The control API under `/_emulator`: does over HTTP what the class `Emulator` does in Python."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from airflow_provider_flows.emulator.errors import ApiError
from airflow_provider_flows.emulator.promptchainer.graph import FlowGraph
from airflow_provider_flows.emulator.runs import ChainRun, GenerioRun
from airflow_provider_flows.emulator.scripting import Fault, Plan
from airflow_provider_flows.emulator.state import EmulatorState
from airflow_provider_flows.emulator.timeline import to_iso


class GraphBody(BaseModel):
    """A PromptChainer flow to add."""

    flow_id: str
    graph: dict[str, Any]


class SettingsBody(BaseModel):
    """The settings to change; ``advance`` moves the clock forward by so many seconds."""

    run_seconds: float | None = Field(None, ge=0)
    advance: float = Field(0.0, ge=0)


class ControlApi:
    """The control routes of one emulator; all but the health check require its key."""

    def __init__(self, emulator_state: EmulatorState) -> None:
        self.emulator_state = emulator_state

    def router(self) -> APIRouter:
        """Return the routes."""
        guarded = APIRouter(dependencies=[Depends(self.authorise)])
        for method, path, endpoint in (
            ("GET", "/switches", self.get_switches),
            ("PATCH", "/switches", self.set_switches),
            ("GET", "/faults", self.get_faults),
            ("POST", "/faults", self.add_fault),
            ("DELETE", "/faults", self.clear_faults),
            ("POST", "/plans", self.add_plan),
            ("GET", "/requests", self.get_requests),
            ("DELETE", "/requests", self.clear_requests),
            ("GET", "/runs", self.get_runs),
            ("GET", "/settings", self.get_settings),
            ("PATCH", "/settings", self.set_settings),
            ("POST", "/graphs", self.add_graph),
            ("POST", "/reset", self.reset),
        ):
            guarded.add_api_route(path, endpoint, methods=[method], response_model=None)
        router = APIRouter(tags=["Emulator"])
        router.add_api_route("/health", self.get_health, methods=["GET"], response_model=None)
        router.include_router(guarded)
        return router

    def authorise(self, request: Request) -> None:
        """Reject a request without the key in the header of either service."""
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if not self.emulator_state.is_valid_key(request.headers.get("x-api-key", bearer)):
            raise HTTPException(401, "Not authenticated", headers={"WWW-Authenticate": "Bearer"})

    async def get_health(self) -> Response:
        """Return that the emulator is running."""
        return JSONResponse({"ready": True, "services": ["generio", "promptchainer"]})

    async def get_switches(self) -> Response:
        """Return all switches by name."""
        return JSONResponse(self.emulator_state.switches.to_dict())

    async def set_switches(self, values: dict[str, Any]) -> Response:
        """Set switches by name, or none of them if one is not valid."""
        with convert_value_errors():
            self.emulator_state.switches.update(values)
        return await self.get_switches()

    async def get_faults(self) -> Response:
        """Return the faults in force, each with its number of hits."""
        return JSONResponse(self.emulator_state.faults.to_json())

    async def add_fault(self, values: dict[str, Any]) -> Response:
        """Activate a fault."""
        with convert_value_errors():
            self.emulator_state.faults.add(Fault.from_json(values))
        return await self.get_faults()

    async def clear_faults(self) -> Response:
        """Remove all faults."""
        self.emulator_state.faults.clear()
        return await self.get_faults()

    async def add_plan(self, values: dict[str, Any]) -> Response:
        """Queue a plan for the flow runs that are created next."""
        with convert_value_errors():
            self.emulator_state.plans.add(Plan.from_json(values))
        return JSONResponse(values)

    async def get_requests(self) -> Response:
        """Return the recorded requests, oldest first."""
        return JSONResponse([record.to_json() for record in self.emulator_state.request_log.all()])

    async def clear_requests(self) -> Response:
        """Remove the recorded requests."""
        self.emulator_state.request_log.clear()
        return JSONResponse([])

    async def get_runs(self) -> Response:
        """Return the existing flow runs, and all that were started, including deleted ones."""
        with self.emulator_state.lock:
            runs, paid = list(self.emulator_state.runs.values()), list(self.emulator_state.paid_runs)
        return JSONResponse(
            {
                "runs": [_run_to_json(run) for run in runs],
                "paid_runs": [_run_to_json(run) for run in paid],
                "started": len(paid),
            }
        )

    async def get_settings(self) -> Response:
        """Return the settings and the emulator's time."""
        return JSONResponse(
            {"run_seconds": self.emulator_state.run_seconds, "now": to_iso(self.emulator_state.clock.now())}
        )

    async def set_settings(self, body: SettingsBody) -> Response:
        """Change the settings."""
        if body.run_seconds is not None:
            self.emulator_state.run_seconds = body.run_seconds
        self.emulator_state.clock.advance(body.advance)
        return await self.get_settings()

    async def add_graph(self, body: GraphBody) -> Response:
        """Add or replace a PromptChainer flow."""
        with convert_value_errors():
            graph = FlowGraph.parse(body.graph)
        self.emulator_state.graphs[body.flow_id] = graph
        return JSONResponse({"flow_id": body.flow_id, "variables": graph.variables, "outputs": graph.outputs})

    async def reset(self) -> Response:
        """Restore the state that the emulator was created with."""
        self.emulator_state.reset()
        return await self.get_health()


@contextmanager
def convert_value_errors() -> Generator[None]:
    """Convert errors about values into a response with status 422 and the error's message."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise ApiError(422, str(error)) from error


def _run_to_json(run: GenerioRun | ChainRun) -> dict[str, Any]:
    return {
        "flow_run_id": run.flow_run_id,
        "service": run.service,
        "flow": run.flow,
        "state": run.state,
        "error": run.error,
        "created_at": to_iso(run.created_at),
        "ever_started": run.has_started,
        "parameters": dict(run.parameters),
        "additional": run.additional,
        "inputs": len(run.inputs),
        "outputs": len(run.outputs),
    }
