"""PromptChainer's routes: what a flow needs, running one, and the pictures that runs made.

Evaluating the graph is the graphs' affair; the stubs say what a model would.
"""

import asyncio
import json
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from airflow_provider_flows.emulator.errors import Refusal
from airflow_provider_flows.emulator.models.colours import digest
from airflow_provider_flows.emulator.promptchainer import fake_models, signed_urls
from airflow_provider_flows.emulator.promptchainer.graph import FlowGraph, Node, Output
from airflow_provider_flows.emulator.runs import ChainRun
from airflow_provider_flows.emulator.state import World

IMAGES_PATH = "/private/org-emulator/user-emulator"
JOINTS = {"newline": "\n", "space": " "}


class PromptChainerApi:
    """PromptChainer's API over one world."""

    def __init__(self, world: World) -> None:
        self.world = world

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
        if self.world.switches.info_answer == "graph":
            return self._answer(graph.source)
        items = [{"name": name, "type": "variable"} for name in graph.variables]
        items += [{"name": name, "type": "output"} for name in graph.outputs]
        way = self.world.switches.info_answer
        return self._answer(items if way == "array" else {way: items})

    async def run(self, flow_id: str, request: Request) -> Response:
        """Run a flow and answer its outputs."""
        body = await self._body(request)
        self._authorise(request, body)
        graph = self._graph(flow_id)
        variables = self._variables(graph, body)
        quota = self.world.switches.quota
        if quota != "plenty":
            raise Refusal(quota, "Not enough credits")
        run = ChainRun(flow_id, variables, self.world.clock.now())
        self.world.paid.append(run)
        seconds = self.world.switches.chain_seconds
        await asyncio.sleep(self.world.run_seconds if seconds is None else seconds)
        return self._answer(self._evaluate(graph, run, str(request.base_url).rstrip("/")))

    async def image(self, name: str, request: Request) -> Response:
        """Give a picture to whoever has its signed URL, as long as that holds."""
        path, query = request.url.path, dict(request.query_params)
        closed = signed_urls.why_closed(self.world.signing_key, path, query, self.world.clock.now())
        if closed is not None:
            text = "Server failed to authenticate the request. Make sure the value of the signature is formed correctly."
            return Response(
                signed_urls.error_xml("AuthenticationFailed", text, closed), 403, media_type="application/xml"
            )
        prompt = self.world.images.get(name)
        if prompt is None:
            text = "The specified blob does not exist."
            return Response(signed_urls.error_xml("BlobNotFound", text), 404, media_type="application/xml")
        return Response(await asyncio.to_thread(fake_models.picture, prompt), media_type="image/png")

    def _evaluate(self, graph: FlowGraph, run: ChainRun, base: str) -> list[dict[str, Any]] | dict[str, Any]:
        failure = self.world.switches.model_failure
        run.state = "failed" if failure != "none" else "completed"
        if failure == "status":
            run.error = "The model failed"
            raise Refusal(500, run.error)

        def model(node: Node, prompt: str) -> str | None:
            if failure != "none":
                return None
            return self._image_url(prompt, base) if node.kind == "imageNode" else fake_models.text(prompt)

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
        if self.world.switches.run_items == "all":
            items = [
                {"name": name, "type": "variable", "output": value} for name, value in run.inputs.items()
            ] + items
        way = self.world.switches.run_answer
        return items if way == "array" else {way: items}

    def _item(self, output: Output) -> dict[str, Any]:
        switches = self.world.switches
        values = [value or "" for value in output.values.values()]
        shown: Any
        if switches.output_value == "map":
            shown = {node: value or "" for node, value in output.values.items()}
        elif switches.join in JOINTS:
            shown = JOINTS[switches.join].join(values)
        else:
            shown = (values or [""])[0 if switches.join == "first" else -1]
        if switches.model_failure == "null" and None in output.values.values():
            shown = None
        kind = {} if switches.run_items == "untyped" else {"type": "output"}
        return {"name": output.name, **kind, "output": shown}

    def _image_url(self, prompt: str, base: str) -> str:
        name = f"img-{digest('image', prompt).hex()[:24]}"
        self.world.images[name] = prompt
        path = f"{IMAGES_PATH}/{name}.png"
        seconds = self.world.switches.image_url_seconds
        return f"{base}{path}?{signed_urls.signed_query(self.world.signing_key, path, self.world.clock.now(), seconds)}"

    def _authorise(self, request: Request, body: dict[str, Any]) -> None:
        key = request.headers.get("x-api-key")
        if key is None and self.world.switches.chain_key_in_body:
            key = body.get("apiKey")
        if not self.world.knows(key if isinstance(key, str) else None):
            raise Refusal(self.world.switches.auth_failure, "Invalid API key" if key else "Missing API key")

    def _graph(self, flow_id: str) -> FlowGraph:
        graph = self.world.graphs.get(flow_id)
        if graph is None:
            raise Refusal(404, "Flow not found")
        return graph

    @staticmethod
    async def _body(request: Request) -> dict[str, Any]:
        try:
            body = json.loads(await request.body() or b"{}")
        except ValueError as error:
            raise Refusal(400, "The body is not JSON") from error
        if not isinstance(body, dict):
            raise Refusal(400, "The body is not a JSON object")
        return body

    def _variables(self, graph: FlowGraph, body: dict[str, Any]) -> dict[str, str]:
        """Return a value for each variable of the flow; what else was sent is passed over."""
        given = body.get("variables", {})
        if not isinstance(given, dict):
            raise Refusal(400, "variables is not an object")
        way = self.world.switches.missing_variable
        missing = [name for name in graph.variables if name not in given]
        if missing and way != "blank":
            raise Refusal(way, f"Missing variable: {', '.join(missing)}")
        wrong = [name for name in graph.variables if not isinstance(given.get(name, ""), str)]
        if wrong:
            raise Refusal(400, f"Variable is not a string: {', '.join(wrong)}")
        return {name: given.get(name, "") for name in graph.variables}

    def _answer(self, content: object) -> Response:
        if self.world.switches.chain_content_type == "text":
            return PlainTextResponse(json.dumps(content))
        return JSONResponse(content)
