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
from airflow_provider_flows.emulator.errors import ApiError
from airflow_provider_flows.emulator.generio.routes import GenerioApi
from airflow_provider_flows.emulator.middleware import CONTROL_PREFIX, EmulatorMiddleware, FindConnection
from airflow_provider_flows.emulator.promptchainer.routes import PromptChainerApi
from airflow_provider_flows.emulator.state import EmulatorState

Handler = Callable[[Request, Exception], Response]


def create_app(emulator_state: EmulatorState, find_connection: FindConnection) -> EmulatorMiddleware:
    """Return the application over one world."""
    promptchainer = PromptChainerApi(emulator_state)
    promptchainer_app = FastAPI(title="PromptChainer, emulated")
    promptchainer_app.add_middleware(
        CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"]
    )
    promptchainer_app.include_router(promptchainer.router())
    promptchainer_app.add_exception_handler(ApiError, _create_promptchainer_error_handler(emulator_state))

    app = FastAPI(title="Generio and PromptChainer, emulated")
    app.include_router(promptchainer.image_router())
    app.include_router(GenerioApi(emulator_state).router())
    app.mount("/api", promptchainer_app)
    app.mount(CONTROL_PREFIX, _create_control_app(emulator_state))
    handler = _create_generio_error_handler(emulator_state)
    for kind in (ApiError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, handler)
    return EmulatorMiddleware(app, emulator_state, find_connection)


def _create_control_app(emulator_state: EmulatorState) -> FastAPI:
    """Return the control routes, apart from the rest: the switches must not bend their answers."""
    control = FastAPI(title="The emulator itself")
    control.include_router(ControlApi(emulator_state).router())

    def handle_error(_: Request, error: Exception) -> Response:
        status, detail, headers = _error_parts(error)
        return JSONResponse({"detail": detail}, status, headers)

    control.add_exception_handler(ApiError, handle_error)
    return control


def _create_generio_error_handler(emulator_state: EmulatorState) -> Handler:
    """Return what writes Generio's refusals in the form that the switches have it."""

    def handle_error(_: Request, error: Exception) -> Response:
        status, detail, headers = _error_parts(error)
        if emulator_state.switches.envelope == "hidden_errors":
            return JSONResponse({"success": False, "message": str(detail)})
        if isinstance(detail, str) and emulator_state.switches.error_detail == "list":
            detail = [{"loc": [], "msg": detail, "type": "error"}]
        elif isinstance(detail, str) and emulator_state.switches.error_detail == "object":
            detail = {"message": detail}
        body = {"detail": detail}
        if emulator_state.switches.envelope == "success":
            body |= {"success": False, "message": "Error"}
        return JSONResponse(body, status, headers)

    return handle_error


def _error_parts(error: Exception) -> tuple[int, Any, dict[str, str] | None]:
    if isinstance(error, ApiError):
        return error.status, error.detail, None
    if isinstance(error, HTTPException):
        return error.status_code, error.detail, dict(error.headers or {})
    # What was wrong with the request is said; what the request held may be large, and not even JSON.
    errors = error.errors() if isinstance(error, RequestValidationError) else []
    return 422, [{name: item[name] for name in ("type", "loc", "msg")} for item in errors], None


def _create_promptchainer_error_handler(emulator_state: EmulatorState) -> Handler:
    """Return what writes PromptChainer's refusals in the form that the switch has it."""

    def handle_error(_: Request, error: Exception) -> Response:
        status, text, headers = _error_parts(error)
        way = emulator_state.switches.chain_errors
        if way == "text":
            return PlainTextResponse(text, status, headers)
        if way == "message":
            return JSONResponse({"statusCode": status, "message": text}, status, headers)
        return JSONResponse({"error": text}, status, headers)

    return handle_error
