"""Both services and the control routes as one ASGI application.

Serving it is the server's affair.
"""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from airflow_provider_flows.emulator.control import ControlApi
from airflow_provider_flows.emulator.errors import Refusal
from airflow_provider_flows.emulator.generio.routes import GenerioApi
from airflow_provider_flows.emulator.middleware import CONTROL_PREFIX, FindConnection, Gate
from airflow_provider_flows.emulator.promptchainer.routes import PromptChainerApi
from airflow_provider_flows.emulator.state import World

Handler = Callable[[Request, Exception], Response]


def build(world: World, find_connection: FindConnection) -> Gate:
    """Return the application over one world."""
    promptchainer = PromptChainerApi(world)
    chains = FastAPI(title="PromptChainer, emulated")
    chains.add_middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"])
    chains.include_router(promptchainer.router())
    chains.add_exception_handler(Refusal, _chain_refusal(world))

    app = FastAPI(title="Generio and PromptChainer, emulated")
    app.include_router(promptchainer.image_router())
    app.include_router(GenerioApi(world).router())
    app.mount("/api", chains)
    app.mount(CONTROL_PREFIX, _control(world))
    handler = _flows_refusal(world)
    for kind in (Refusal, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, handler)
    return Gate(app, world, find_connection)


def _control(world: World) -> FastAPI:
    """Return the control routes, apart from the rest: the switches must not bend their answers."""
    control = FastAPI(title="The emulator itself")
    control.include_router(ControlApi(world).router())

    def refuse(_: Request, error: Exception) -> Response:
        status, detail, headers = _parts(error)
        return JSONResponse({"detail": detail}, status, headers)

    control.add_exception_handler(Refusal, refuse)
    return control


def _flows_refusal(world: World) -> Handler:
    """Return what writes Generio's refusals in the form that the switches have it."""

    def refuse(_: Request, error: Exception) -> Response:
        status, detail, headers = _parts(error)
        if world.switches.envelope == "hidden_errors":
            return JSONResponse({"success": False, "message": str(detail)})
        if isinstance(detail, str) and world.switches.error_detail == "list":
            detail = [{"loc": [], "msg": detail, "type": "error"}]
        elif isinstance(detail, str) and world.switches.error_detail == "object":
            detail = {"message": detail}
        body = {"detail": detail}
        if world.switches.envelope == "success":
            body |= {"success": False, "message": "Error"}
        return JSONResponse(body, status, headers)

    return refuse


def _parts(error: Exception) -> tuple[int, Any, dict[str, str] | None]:
    if isinstance(error, Refusal):
        return error.status, error.detail, None
    if isinstance(error, HTTPException):
        return error.status_code, error.detail, dict(error.headers or {})
    # What was wrong with the request is said; what the request held may be large, and not even JSON.
    errors = error.errors() if isinstance(error, RequestValidationError) else []
    return 422, [{name: item[name] for name in ("type", "loc", "msg")} for item in errors], None


def _chain_refusal(world: World) -> Handler:
    """Return what writes PromptChainer's refusals in the form that the switch has it."""

    def refuse(_: Request, error: Exception) -> Response:
        status, text, headers = _parts(error)
        way = world.switches.chain_errors
        if way == "text":
            return PlainTextResponse(text, status, headers)
        if way == "message":
            return JSONResponse({"statusCode": status, "message": text}, status, headers)
        return JSONResponse({"error": text}, status, headers)

    return refuse
