"""PromptChainer's routes: definitions, runs, and images behind signed URLs like Azure's.

The real service links images on another host, which accepts the signature in place of an API key
(vendor_notes.md, 2.5).
"""

import asyncio
import base64
import hashlib
import hmac
import html
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from airflow_provider_flows.emulator.colours import digest
from airflow_provider_flows.emulator.graph import (
    GraphOutput,
    PromptGraph,
    PromptNode,
    create_image,
    create_text,
)
from airflow_provider_flows.emulator.state import ApiError, ChainRun, EmulatorState

IMAGES_PATH = "/private/org-emulator/user-emulator"
SEPARATORS = {"newline": "\n", "space": " "}
SIGNED_FIELDS = ("st", "se", "sp", "sv", "sr", "rscd", "rsct")
# A signed URL is valid from so long before its creation.
START_MARGIN_SECONDS = 3600
BAD_SIGNATURE_MESSAGE = (
    "Server failed to authenticate the request. "
    "Make sure the value of the signature is formed correctly."
)  # fmt: skip


class PromptChainerApi:
    """The PromptChainer API of one emulator."""

    def __init__(self, emulator_state: EmulatorState) -> None:
        self.emulator_state = emulator_state
        self.switches = emulator_state.switches

    def router(self) -> APIRouter:
        """Return the routes of the API."""
        router = APIRouter(tags=["PromptChainer"])
        for method, path, endpoint in (
            ("GET", "/flows/getFlowInfo/{flow_id}", self.get_info),
            ("POST", "/flows/run/{flow_id}", self.run),
        ):
            router.add_api_route(path, endpoint, methods=[method], response_model=None)
        return router

    def image_router(self) -> APIRouter:
        """Return the route of the images, which requires no key."""
        router = APIRouter(tags=["PromptChainer"])
        path = f"{IMAGES_PATH}/{{name}}.png"
        router.add_api_route(path, self.get_image, methods=["GET"], response_model=None)
        return router

    async def get_info(self, flow_id: str, request: Request) -> Response:
        """Return a flow's variables and outputs."""
        self._authorise(request, {})
        graph = self._get_graph(flow_id)
        mode = self.switches.info_response
        if mode == "graph":
            return self._response(graph.source)
        items = [{"name": name, "type": "variable"} for name in graph.variables]
        items += [{"name": name, "type": "output"} for name in graph.outputs]
        return self._response(items if mode == "array" else {mode: items})

    async def run(self, flow_id: str, request: Request) -> Response:
        """Run a flow, and return its outputs."""
        body = await _parse_body(request)
        self._authorise(request, body)
        graph = self._get_graph(flow_id)
        variables = self._parse_variables(graph, body)
        quota = self.switches.quota
        if quota != "plenty":
            raise ApiError(quota, "Not enough credits")
        run = ChainRun(flow_id, variables, self.emulator_state.clock.now())
        self.emulator_state.paid_runs.append(run)
        seconds = self.switches.chain_seconds
        await asyncio.sleep(self.emulator_state.run_seconds if seconds is None else seconds)
        return self._response(self._evaluate(graph, run, str(request.base_url).rstrip("/")))

    async def get_image(self, name: str, request: Request) -> Response:
        """Return an image if the URL's signature is valid and has not expired."""
        path, query = request.url.path, dict(request.query_params)
        rejection = rejection_reason(
            self.emulator_state.signing_key, path, query, self.emulator_state.clock.now()
        )
        if rejection is not None:
            return _error_response(403, "AuthenticationFailed", BAD_SIGNATURE_MESSAGE, rejection)
        prompt = self.emulator_state.images.get(name)
        if prompt is None:
            return _error_response(404, "BlobNotFound", "The specified blob does not exist.")
        return Response(await asyncio.to_thread(create_image, prompt), media_type="image/png")

    def _evaluate(
        self, graph: PromptGraph, run: ChainRun, base: str
    ) -> list[dict[str, Any]] | dict[str, Any]:
        """Evaluate the graph, store the outputs in the run, and return the body of the response."""
        failure = self.switches.model_failure
        run.state = "failed" if failure != "none" else "completed"
        if failure == "status":
            run.error = "The model failed"
            raise ApiError(500, run.error)

        def model(node: PromptNode, prompt: str) -> str | None:
            if failure != "none":
                return None
            return self._create_image_url(prompt, base) if node.kind == "imageNode" else create_text(prompt)

        outputs = graph.evaluate(run.inputs, model)
        if failure == "missing":
            # Only outputs that depend on a model are missing.
            outputs = [output for output in outputs if None not in output.values.values()]
        items = run.outputs = [self._output_item(output) for output in outputs]
        if self.switches.run_items == "all":
            items = [
                {"name": name, "type": "variable", "output": value} for name, value in run.inputs.items()
            ] + items
        mode = self.switches.run_response
        return items if mode == "array" else {mode: items}

    def _output_item(self, output: GraphOutput) -> dict[str, Any]:
        values = [value or "" for value in output.values.values()]
        output_value: Any
        if self.switches.output_value == "map":
            output_value = {node: value or "" for node, value in output.values.items()}
        elif self.switches.join in SEPARATORS:
            output_value = SEPARATORS[self.switches.join].join(values)
        else:
            output_value = (values or [""])[0 if self.switches.join == "first" else -1]
        if self.switches.model_failure == "null" and None in output.values.values():
            output_value = None
        kind = {} if self.switches.run_items == "untyped" else {"type": "output"}
        return {"name": output.name, **kind, "output": output_value}

    def _create_image_url(self, prompt: str, base: str) -> str:
        """Store the prompt of an image, and return the signed URL from which the image can be downloaded."""
        name = f"img-{digest('image', prompt).hex()[:24]}"
        self.emulator_state.images[name] = prompt
        path, now = f"{IMAGES_PATH}/{name}.png", self.emulator_state.clock.now()
        query = sign_path(self.emulator_state.signing_key, path, now, self.switches.image_url_seconds)
        return f"{base}{path}?{query}"

    def _authorise(self, request: Request, body: dict[str, Any]) -> None:
        key = request.headers.get("x-api-key")
        if key is None and self.switches.chain_key_in_body:
            key = body.get("apiKey")
        if not self.emulator_state.is_valid_key(key if isinstance(key, str) else None):
            raise ApiError(self.switches.auth_failure, "Invalid API key" if key else "Missing API key")

    def _get_graph(self, flow_id: str) -> PromptGraph:
        graph = self.emulator_state.graphs.get(flow_id)
        if graph is None:
            raise ApiError(404, "Flow not found")
        return graph

    def _parse_variables(self, graph: PromptGraph, body: dict[str, Any]) -> dict[str, str]:
        """Return a value for each variable of the flow; other variables in the request are ignored."""
        values = body.get("variables", {})
        if not isinstance(values, dict):
            raise ApiError(400, "variables is not an object")
        status = self.switches.missing_variable
        missing = [name for name in graph.variables if name not in values]
        if missing and status != "blank":
            raise ApiError(status, f"Missing variable: {', '.join(missing)}")
        wrong = [name for name in graph.variables if not isinstance(values.get(name, ""), str)]
        if wrong:
            raise ApiError(400, f"Variable is not a string: {', '.join(wrong)}")
        return {name: values.get(name, "") for name in graph.variables}

    def _response(self, content: object) -> Response:
        if self.switches.chain_content_type == "text":
            return PlainTextResponse(json.dumps(content))
        return JSONResponse(content)


def sign_path(key: bytes, path: str, now: float, seconds: float) -> str:
    """Return the query string that makes a path valid from an hour ago until `seconds` from now."""
    values = {
        "st": _format_time(now - START_MARGIN_SECONDS),
        "se": _format_time(now + seconds),
        "sp": "r",
        "sv": "2021-08-06",
        "sr": "b",
        "rscd": "inline",
        "rsct": "image/png",
    }
    return urlencode(values | {"sig": _signature(key, path, values)}, safe="/")


def rejection_reason(key: bytes, path: str, query: Mapping[str, str], now: float) -> str | None:
    """Return why the query is not valid for the path, or None if it is valid."""
    if not hmac.compare_digest(_signature(key, path, query).encode(), query.get("sig", "").encode()):
        return "Signature did not match. String to sign used was not as expected."
    start, end, current = query["st"], query["se"], _format_time(now)
    # All times have the same format, so they can be compared as text.
    if current >= end:
        return f"Signed expiry time [{end}] has to be after [{current}]"
    return None if start <= current else f"Signed start time [{start}] has to be before [{current}]"


async def _parse_body(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.body() or b"{}")
    except ValueError as error:
        raise ApiError(400, "The body is not JSON") from error
    if not isinstance(body, dict):
        raise ApiError(400, "The body is not a JSON object")
    return body


def _error_response(status: int, code: str, message: str, detail: str | None = None) -> Response:
    """Return an error in the form of Azure's blob storage."""
    more = (
        ""
        if detail is None
        else f"<AuthenticationErrorDetail>{html.escape(detail)}</AuthenticationErrorDetail>"
    )
    text = f"<Error><Code>{html.escape(code)}</Code><Message>{html.escape(message)}</Message>{more}</Error>"
    content = b'\xef\xbb\xbf<?xml version="1.0" encoding="utf-8"?>' + text.encode()
    return Response(content, status, media_type="application/xml")


def _signature(key: bytes, path: str, values: Mapping[str, str]) -> str:
    text = "\n".join([path, *(values.get(name, "") for name in SIGNED_FIELDS)])
    return base64.b64encode(hmac.digest(key, text.encode(), hashlib.sha256)).decode()


def _format_time(timestamp: float) -> str:
    # In whole seconds, as Azure writes them.
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
