"""PromptChainer's routes: what a flow needs, running one, and the pictures that runs made.

Evaluating the graph is the graphs' affair; the stubs say what a model would.
"""

import asyncio
import json
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from airflow_provider_flows.emulator.errors import ApiError
from airflow_provider_flows.emulator.models.colours import digest
from airflow_provider_flows.emulator.promptchainer import fake_models, signed_urls
from airflow_provider_flows.emulator.promptchainer.graph import FlowGraph, Node, Output
from airflow_provider_flows.emulator.runs import ChainRun
from airflow_provider_flows.emulator.state import EmulatorState

IMAGES_PATH = "/private/org-emulator/user-emulator"
SEPARATORS = {"newline": "\n", "space": " "}


class PromptChainerApi:
    """PromptChainer's API over one world."""

    def __init__(self, emulator_state: EmulatorState) -> None:
        self.emulator_state = emulator_state

    def router(self) -> APIRouter:
        """Return the routes of the API."""
        router = APIRouter(tags=["PromptChainer"])
        router.add_api_route("/flows/getFlowInfo/{flow_id}", self.info, methods=["GET"], response_model=None)
        router.add_api_route("/flows/run/{flow_id}", self.run, methods=["POST"], response_model=None)
        return router

    def image_router(self) -> APIRouter:
        """Return the route of the pictures, which in truth are at another host and take no key."""
        router = APIRouter(tags=["PromptChainer"])
        router.add_api_route(f"{IMAGES_PATH}/{{name}}.png", self.image, methods=["GET"], response_model=None)
        return router

    async def info(self, flow_id: str, request: Request) -> Response:
        """Tell a flow's variables and outputs."""
        self._authorise(request, {})
        graph = self._graph(flow_id)
        if self.emulator_state.switches.info_answer == "graph":
            return self._response(graph.source)
        items = [{"name": name, "type": "variable"} for name in graph.variables]
        items += [{"name": name, "type": "output"} for name in graph.outputs]
        way = self.emulator_state.switches.info_answer
        return self._response(items if way == "array" else {way: items})

    async def run(self, flow_id: str, request: Request) -> Response:
        """Run a flow and answer its outputs."""
        body = await self._body(request)
        self._authorise(request, body)
        graph = self._graph(flow_id)
        variables = self._variables(graph, body)
        quota = self.emulator_state.switches.quota
        if quota != "plenty":
            raise ApiError(quota, "Not enough credits")
        run = ChainRun(flow_id, variables, self.emulator_state.clock.now())
        self.emulator_state.paid_runs.append(run)
        seconds = self.emulator_state.switches.chain_seconds
        await asyncio.sleep(self.emulator_state.run_seconds if seconds is None else seconds)
        return self._response(self._evaluate(graph, run, str(request.base_url).rstrip("/")))

    async def image(self, name: str, request: Request) -> Response:
        """Give a picture to whoever has its signed URL, as long as that holds."""
        path, query = request.url.path, dict(request.query_params)
        rejection = signed_urls.rejection_reason(
            self.emulator_state.signing_key, path, query, self.emulator_state.clock.now()
        )
        if rejection is not None:
            text = "Server failed to authenticate the request. Make sure the value of the signature is formed correctly."
            return Response(
                signed_urls.error_xml("AuthenticationFailed", text, rejection),
                403,
                media_type="application/xml",
            )
        prompt = self.emulator_state.images.get(name)
        if prompt is None:
            text = "The specified blob does not exist."
            return Response(signed_urls.error_xml("BlobNotFound", text), 404, media_type="application/xml")
        return Response(await asyncio.to_thread(fake_models.fake_image, prompt), media_type="image/png")

    def _evaluate(self, graph: FlowGraph, run: ChainRun, base: str) -> list[dict[str, Any]] | dict[str, Any]:
        failure = self.emulator_state.switches.model_failure
        run.state = "failed" if failure != "none" else "completed"
        if failure == "status":
            run.error = "The model failed"
            raise ApiError(500, run.error)

        def model(node: Node, prompt: str) -> str | None:
            if failure != "none":
                return None
            return (
                self._image_url(prompt, base) if node.kind == "imageNode" else fake_models.fake_text(prompt)
            )

        outputs = graph.evaluate(run.inputs, model)
        items = [self._item(output) for output in outputs]
        if failure == "missing":
            # A model that failed leaves no element; what needs no model is there all the same.
            items = [
                item
                for item, output in zip(items, outputs, strict=True)
                if None not in output.values.values()
            ]
        run.outputs = items
        if self.emulator_state.switches.run_items == "all":
            items = [
                {"name": name, "type": "variable", "output": value} for name, value in run.inputs.items()
            ] + items
        way = self.emulator_state.switches.run_answer
        return items if way == "array" else {way: items}

    def _item(self, output: Output) -> dict[str, Any]:
        switches = self.emulator_state.switches
        values = [value or "" for value in output.values.values()]
        output_value: Any
        if switches.output_value == "map":
            output_value = {node: value or "" for node, value in output.values.items()}
        elif switches.join in SEPARATORS:
            output_value = SEPARATORS[switches.join].join(values)
        else:
            output_value = (values or [""])[0 if switches.join == "first" else -1]
        if switches.model_failure == "null" and None in output.values.values():
            output_value = None
        kind = {} if switches.run_items == "untyped" else {"type": "output"}
        return {"name": output.name, **kind, "output": output_value}

    def _image_url(self, prompt: str, base: str) -> str:
        name = f"img-{digest('image', prompt).hex()[:24]}"
        self.emulator_state.images[name] = prompt
        path = f"{IMAGES_PATH}/{name}.png"
        seconds = self.emulator_state.switches.image_url_seconds
        return f"{base}{path}?{signed_urls.signed_query(self.emulator_state.signing_key, path, self.emulator_state.clock.now(), seconds)}"

    def _authorise(self, request: Request, body: dict[str, Any]) -> None:
        key = request.headers.get("x-api-key")
        if key is None and self.emulator_state.switches.chain_key_in_body:
            key = body.get("apiKey")
        if not self.emulator_state.is_valid_key(key if isinstance(key, str) else None):
            raise ApiError(
                self.emulator_state.switches.auth_failure, "Invalid API key" if key else "Missing API key"
            )

    def _graph(self, flow_id: str) -> FlowGraph:
        graph = self.emulator_state.graphs.get(flow_id)
        if graph is None:
            raise ApiError(404, "Flow not found")
        return graph

    @staticmethod
    async def _body(request: Request) -> dict[str, Any]:
        try:
            body = json.loads(await request.body() or b"{}")
        except ValueError as error:
            raise ApiError(400, "The body is not JSON") from error
        if not isinstance(body, dict):
            raise ApiError(400, "The body is not a JSON object")
        return body

    def _variables(self, graph: FlowGraph, body: dict[str, Any]) -> dict[str, str]:
        """Return a value for each variable of the flow; what else was sent is passed over."""
        values = body.get("variables", {})
        if not isinstance(values, dict):
            raise ApiError(400, "variables is not an object")
        way = self.emulator_state.switches.missing_variable
        missing = [name for name in graph.variables if name not in values]
        if missing and way != "blank":
            raise ApiError(way, f"Missing variable: {', '.join(missing)}")
        wrong = [name for name in graph.variables if not isinstance(values.get(name, ""), str)]
        if wrong:
            raise ApiError(400, f"Variable is not a string: {', '.join(wrong)}")
        return {name: values.get(name, "") for name in graph.variables}

    def _response(self, content: object) -> Response:
        if self.emulator_state.switches.chain_content_type == "text":
            return PlainTextResponse(json.dumps(content))
        return JSONResponse(content)
