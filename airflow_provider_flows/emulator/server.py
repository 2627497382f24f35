"""The server: both services and the control routes as one ASGI application, run by uvicorn in a thread.

The control routes under `/_emulator` do over HTTP what the class `Emulator` does in Python.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Generator, MutableMapping
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from airflow_provider_flows.emulator.generio import GenerioApi
from airflow_provider_flows.emulator.graph import PromptGraph
from airflow_provider_flows.emulator.middleware import CONTROL_PREFIX, EmulatorMiddleware, FindConnection
from airflow_provider_flows.emulator.promptchainer import PromptChainerApi
from airflow_provider_flows.emulator.scripting import Fault, Plan
from airflow_provider_flows.emulator.state import ApiError, ChainRun, EmulatorState, GenerioRun, to_iso
from airflow_provider_flows.emulator.switches import Switches

START_TIMEOUT_SECONDS = 15
# Longer than the poll interval of most clients, so that they can reuse their connection.
KEEP_ALIVE_SECONDS = 75
# The default key is public, so an emulator that has it accepts connections of its own machine only.
DEFAULT_KEY = "emulator"
ErrorHandler = Callable[[Request, Exception], Response]


class PortTakenError(OSError):
    """The address is in use or may not be used."""

    def __str__(self) -> str:
        """Return the message without the error number."""
        return self.strerror or "Cannot listen"


class Server:
    """A uvicorn server that runs in a daemon thread until it is stopped."""

    def __init__(self, emulator_state: EmulatorState) -> None:
        self._is_key_secret = emulator_state.key.strip() not in {"", DEFAULT_KEY}
        config = uvicorn.Config(
            create_emulator_app(emulator_state, self._find_connection),
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            # Otherwise a client could set its own address, by which its connection is found.
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=1,
        )
        self._uvicorn = uvicorn.Server(config)
        self._thread: threading.Thread | None = None

    def start(self, host: str, port: int) -> tuple[str, int]:
        """Start the server, and return its host and port.

        :raises PortTakenError: the address cannot be used.
        :raises ValueError: other machines can reach the address, and the key is not secret.
        :raises RuntimeError: the server did not start in time.
        """
        listening = _bind_socket(host, port)
        address = listening.getsockname()
        if not self._is_key_secret and not _is_loopback(address[0]):
            listening.close()
            raise ValueError(
                f"The emulator does not listen at {host or address[0]} with its default key or without one, "
                "because other machines can reach that address and everybody knows the key. Choose a key of "
                "your own with --key (in Python: Emulator(key=...)), or listen at 127.0.0.1."
            )
        listening.listen(2048)
        self._thread = threading.Thread(
            target=self._uvicorn.run, kwargs={"sockets": [listening]}, name="flow-emulator", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not self._uvicorn.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                listening.close()
                raise RuntimeError(f"The emulator did not start at {host}:{port}")
            time.sleep(0.005)
        return address[0], address[1]

    def stop(self) -> None:
        """Stop the server, and wait for its thread."""
        self._uvicorn.should_exit = True
        if self._thread is not None:
            self._thread.join(START_TIMEOUT_SECONDS)
            self._thread = None

    def _find_connection(self, scope: MutableMapping[str, Any]) -> asyncio.Transport | None:
        """Return the connection of a request, or None if it is closed."""
        client = tuple(scope["client"])
        for protocol in list(self._uvicorn.server_state.connections):
            transport = protocol.transport
            if tuple(transport.get_extra_info("peername")[:2]) == client:
                return transport
        return None


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
        with _convert_value_errors():
            self.emulator_state.switches.update(values)
        return await self.get_switches()

    async def get_faults(self) -> Response:
        """Return the faults in force, each with its number of hits."""
        return JSONResponse(self.emulator_state.faults.to_json())

    async def add_fault(self, values: dict[str, Any]) -> Response:
        """Activate a fault."""
        with _convert_value_errors():
            self.emulator_state.faults.add(Fault.from_json(values))
        return await self.get_faults()

    async def clear_faults(self) -> Response:
        """Remove all faults."""
        self.emulator_state.faults.clear()
        return await self.get_faults()

    async def add_plan(self, values: dict[str, Any]) -> Response:
        """Queue a plan for the flow runs that are created next."""
        with _convert_value_errors():
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
        with _convert_value_errors():
            graph = PromptGraph.parse(body.graph)
        self.emulator_state.graphs[body.flow_id] = graph
        return JSONResponse({"flow_id": body.flow_id, "variables": graph.variables, "outputs": graph.outputs})

    async def reset(self) -> Response:
        """Restore the state that the emulator was created with."""
        self.emulator_state.reset()
        return await self.get_health()


def create_emulator_app(emulator_state: EmulatorState, find_connection: FindConnection) -> EmulatorMiddleware:
    """Create the ASGI application of one emulator."""
    promptchainer = PromptChainerApi(emulator_state)
    promptchainer_app = FastAPI(title="PromptChainer, emulated")
    promptchainer_app.add_middleware(
        CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"]
    )
    promptchainer_app.include_router(promptchainer.router())
    promptchainer_app.add_exception_handler(
        ApiError, _create_promptchainer_error_handler(emulator_state.switches)
    )

    app = FastAPI(title="Generio and PromptChainer, emulated")
    app.include_router(promptchainer.image_router())
    app.include_router(GenerioApi(emulator_state).router())
    app.mount("/api", promptchainer_app)
    app.mount(CONTROL_PREFIX, _create_control_app(emulator_state))
    handler = _create_generio_error_handler(emulator_state.switches)
    for kind in (ApiError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, handler)
    return EmulatorMiddleware(app, emulator_state, find_connection)


def _create_control_app(emulator_state: EmulatorState) -> FastAPI:
    """Create a separate application for the control routes, whose responses do not depend on switches."""
    control = FastAPI(title="The emulator itself")
    control.include_router(ControlApi(emulator_state).router())

    def handle_error(_: Request, error: Exception) -> Response:
        status, detail, headers = _error_parts(error)
        return JSONResponse({"detail": detail}, status, headers)

    control.add_exception_handler(ApiError, handle_error)
    return control


def _create_generio_error_handler(switches: Switches) -> ErrorHandler:
    """Create the handler that formats Generio's errors according to the switches."""

    def handle_error(_: Request, error: Exception) -> Response:
        status, detail, headers = _error_parts(error)
        if switches.envelope == "hidden_errors":
            return JSONResponse({"success": False, "message": str(detail)})
        if isinstance(detail, str) and switches.error_detail == "list":
            detail = [{"loc": [], "msg": detail, "type": "error"}]
        elif isinstance(detail, str) and switches.error_detail == "object":
            detail = {"message": detail}
        body = {"detail": detail}
        if switches.envelope == "success":
            body |= {"success": False, "message": "Error"}
        return JSONResponse(body, status, headers)

    return handle_error


def _create_promptchainer_error_handler(switches: Switches) -> ErrorHandler:
    """Create the handler that formats PromptChainer's errors according to the switches."""

    def handle_error(_: Request, error: Exception) -> Response:
        status, text, headers = _error_parts(error)
        if switches.chain_errors == "text":
            return PlainTextResponse(text, status, headers)
        if switches.chain_errors == "message":
            return JSONResponse({"statusCode": status, "message": text}, status, headers)
        return JSONResponse({"error": text}, status, headers)

    return handle_error


def _error_parts(error: Exception) -> tuple[int, Any, dict[str, str] | None]:
    """Return status, detail and headers of the response to an exception."""
    if isinstance(error, ApiError):
        return error.status, error.detail, None
    if isinstance(error, HTTPException):
        return error.status_code, error.detail, dict(error.headers or {})
    # Without the rejected value, which may be large and may not even be JSON.
    errors = error.errors() if isinstance(error, RequestValidationError) else []
    return 422, [{name: item[name] for name in ("type", "loc", "msg")} for item in errors], None


def _bind_socket(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio disables Nagle's algorithm, which delays a response by 40 ms, only if the protocol is given.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    # Allows an address whose old connections are in TIME_WAIT; a port in use is still an error.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        message = (
            f"Cannot listen at {host}:{port}: {error.strerror}. Choose another port, or 0 for any free one"
        )
        raise PortTakenError(error.errno, message) from error
    return listening


def _is_loopback(address: str) -> bool:
    """Return whether only this machine reaches an address, to which a socket is bound."""
    ip = ipaddress.ip_address(address.partition("%")[0])  # without a zone
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback


@contextmanager
def _convert_value_errors() -> Generator[None]:
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
