"""The emulator's own routes under `/_emulator`: what can be set from Python can be set here over HTTP.

Nothing of either vendor is in them.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from airflow_provider_flows.emulator.clock import to_iso
from airflow_provider_flows.emulator.errors import ApiError
from airflow_provider_flows.emulator.faults import Fault
from airflow_provider_flows.emulator.plans import Plan
from airflow_provider_flows.emulator.promptchainer.graph import FlowGraph
from airflow_provider_flows.emulator.runs import ChainRun, GenerioRun
from airflow_provider_flows.emulator.state import EmulatorState


class GraphBody(BaseModel):
    """A flow to add."""

    flow_id: str
    graph: dict[str, Any]


class SettingsBody(BaseModel):
    """What PATCH settings takes; ``advance`` pushes the clock forward."""

    run_seconds: float | None = Field(None, ge=0)
    advance: float = Field(0.0, ge=0)


class ControlApi:
    """The control routes over one world."""

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
        router.add_api_route("/health", self.health, methods=["GET"], response_model=None)
        router.include_router(guarded)
        return router

    def authorise(self, request: Request) -> None:
        """Refuse whoever does not send the key, in either service's way."""
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if not self.emulator_state.is_valid_key(request.headers.get("x-api-key", bearer)):
            raise HTTPException(401, "Not authenticated", headers={"WWW-Authenticate": "Bearer"})

    async def health(self) -> Response:
        """Tell that the emulator is up."""
        return JSONResponse({"ready": True, "services": ["generio", "promptchainer"]})

    async def get_switches(self) -> Response:
        """Tell all switches."""
        return JSONResponse(self.emulator_state.switches.to_dict())

    async def set_switches(self, values: dict[str, Any]) -> Response:
        """Set some switches, or none if one of them is wrong."""
        with convert_value_errors():
            self.emulator_state.switches.update(values)
        return await self.get_switches()

    async def get_faults(self) -> Response:
        """Tell the faults in force, and how often each has struck."""
        return JSONResponse(self.emulator_state.faults.to_json())

    async def add_fault(self, values: dict[str, Any]) -> Response:
        """Put a fault in force."""
        with convert_value_errors():
            self.emulator_state.faults.add(Fault.from_json(values))
        return await self.get_faults()

    async def clear_faults(self) -> Response:
        """Let everything go right again."""
        self.emulator_state.faults.clear()
        return await self.get_faults()

    async def add_plan(self, values: dict[str, Any]) -> Response:
        """Say how the next flow runs go."""
        with convert_value_errors():
            self.emulator_state.plans.add(Plan.from_json(values))
        return JSONResponse(values)

    async def get_requests(self) -> Response:
        """Tell what was asked."""
        return JSONResponse([record.to_json() for record in self.emulator_state.request_log.all()])

    async def clear_requests(self) -> Response:
        """Forget what was asked."""
        self.emulator_state.request_log.clear()
        return JSONResponse([])

    async def get_runs(self) -> Response:
        """Tell the flow runs that are there, and those that were paid for, deleted ones among them."""
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
        """Tell the settings."""
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
        """Add a flow of PromptChainer's."""
        with convert_value_errors():
            graph = FlowGraph.parse(body.graph)
        self.emulator_state.graphs[body.flow_id] = graph
        return JSONResponse({"flow_id": body.flow_id, "variables": graph.variables, "outputs": graph.outputs})

    async def reset(self) -> Response:
        """Forget everything."""
        self.emulator_state.reset()
        return await self.health()


@contextmanager
def convert_value_errors() -> Generator[None]:
    """Turn the error of wrong values into an answer that says what is wrong."""
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
