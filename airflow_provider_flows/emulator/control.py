"""The emulator's own routes under `/_emulator`: what can be set from Python can be set here over HTTP.

Nothing of either vendor is in them.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from airflow_provider_flows.emulator.clock import iso
from airflow_provider_flows.emulator.errors import Refusal
from airflow_provider_flows.emulator.faults import Fault
from airflow_provider_flows.emulator.plans import Plan
from airflow_provider_flows.emulator.promptchainer.graph import FlowGraph
from airflow_provider_flows.emulator.runs import ChainRun, GenerioRun
from airflow_provider_flows.emulator.state import World


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

    def __init__(self, world: World) -> None:
        self.world = world

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
        if not self.world.knows(request.headers.get("x-api-key", bearer)):
            raise HTTPException(401, "Not authenticated", headers={"WWW-Authenticate": "Bearer"})

    async def health(self) -> Response:
        """Tell that the emulator is up."""
        return JSONResponse({"ready": True, "services": ["generio", "promptchainer"]})

    async def get_switches(self) -> Response:
        """Tell all switches."""
        return JSONResponse(self.world.switches.as_dict())

    async def set_switches(self, values: dict[str, Any]) -> Response:
        """Set some switches, or none if one of them is wrong."""
        with _explained():
            self.world.switches.update(values)
        return await self.get_switches()

    async def get_faults(self) -> Response:
        """Tell the faults in force, and how often each has struck."""
        return JSONResponse(self.world.faults.as_json())

    async def add_fault(self, values: dict[str, Any]) -> Response:
        """Put a fault in force."""
        with _explained():
            self.world.faults.add(Fault.from_json(values))
        return await self.get_faults()

    async def clear_faults(self) -> Response:
        """Let everything go right again."""
        self.world.faults.clear()
        return await self.get_faults()

    async def add_plan(self, values: dict[str, Any]) -> Response:
        """Say how the next flow runs go."""
        with _explained():
            self.world.plans.add(Plan.from_json(values))
        return JSONResponse(values)

    async def get_requests(self) -> Response:
        """Tell what was asked."""
        return JSONResponse([record.as_json() for record in self.world.records.all()])

    async def clear_requests(self) -> Response:
        """Forget what was asked."""
        self.world.records.clear()
        return JSONResponse([])

    async def get_runs(self) -> Response:
        """Tell the flow runs that are there, and those that were paid for, deleted ones among them."""
        with self.world.lock:
            runs, paid = list(self.world.runs.values()), list(self.world.paid)
        return JSONResponse(
            {
                "runs": [_shown(run) for run in runs],
                "paid_runs": [_shown(run) for run in paid],
                "started": len(paid),
            }
        )

    async def get_settings(self) -> Response:
        """Tell the settings."""
        return JSONResponse({"run_seconds": self.world.run_seconds, "now": iso(self.world.clock.now())})

    async def set_settings(self, body: SettingsBody) -> Response:
        """Change the settings."""
        if body.run_seconds is not None:
            self.world.run_seconds = body.run_seconds
        self.world.clock.advance(body.advance)
        return await self.get_settings()

    async def add_graph(self, body: GraphBody) -> Response:
        """Add a flow of PromptChainer's."""
        with _explained():
            graph = FlowGraph.read(body.graph)
        self.world.graphs[body.flow_id] = graph
        return JSONResponse({"flow_id": body.flow_id, "variables": graph.variables, "outputs": graph.outputs})

    async def reset(self) -> Response:
        """Forget everything."""
        self.world.reset()
        return await self.health()


@contextmanager
def _explained() -> Generator[None]:
    """Turn the error of wrong values into an answer that says what is wrong."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise Refusal(422, str(error)) from error


def _shown(run: GenerioRun | ChainRun) -> dict[str, Any]:
    return {
        "flow_run_id": run.flow_run_id,
        "service": run.service,
        "flow": run.flow,
        "state": run.state,
        "error": run.error,
        "created_at": iso(run.created_at),
        "ever_started": run.ever_started,
        "parameters": dict(run.parameters),
        "additional": run.additional,
        "inputs": len(run.inputs),
        "outputs": len(run.outputs),
    }
