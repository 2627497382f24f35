"""PromptChainer: its two endpoints, how their answers are read, and the reading of an exported flow graph.

It draws nothing and downloads nothing: an output that is a link is marked as one, and outputs.py saves it.

Source: the vendor's documentation, https://docs.promptchainer.io (pages "Get Flow Info" and "Run Flow").
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

from airflow_provider_flows.flow import data_uri
from airflow_provider_flows.flow.definition import FlowDefinition
from airflow_provider_flows.flow.errors import (
    FlowAuthError,
    FlowInputError,
    FlowInvalid,
    FlowMalformed,
    FlowNotFound,
    FlowServiceError,
)
from airflow_provider_flows.flow.exchange import SHOWN, Request, Resend, ask, malformed, read_json
from airflow_provider_flows.flow.links import SIGNATURES
from airflow_provider_flows.flow.moments import read_time
from airflow_provider_flows.flow.run import ERROR, READY, FlowOutput, FlowRun, FlowState
from airflow_provider_flows.flow.services import Inputs, Service, segment

if TYPE_CHECKING:
    from pendulum import DateTime

    from airflow_provider_flows.flow.exchange import Conversation, Response

IMAGE_HOST = ".blob.core.windows.net"  # where the sample's images lie (the page's sample graph)
NO_FLOW = "airflow-connection-test"


class PromptChainer(Service):
    """The PromptChainer API: a run is one synchronous request and has no id; we give it one, for logs and files."""

    name: ClassVar[str] = "promptchainer"

    def __init__(self, test_flow: str | None = None) -> None:
        """Keep the flow id that `check` asks for, if the connection names one."""
        self._test_flow = test_flow

    def headers(self, token: str) -> dict[str, str]:
        """Put the key into a header (docs, "API key"; P-05)."""
        return {"x-api-key": token}

    def check(self) -> Conversation[str]:
        """Ask getFlowInfo: no endpoint only checks a key, so without a known flow any answer but 401 and 403 counts."""
        try:
            yield from self.get_definition(self._test_flow or NO_FLOW)
        except FlowAuthError:
            raise
        except (FlowInvalid, FlowNotFound):
            if self._test_flow:
                raise
            return "PromptChainer answers and does not refuse the key. Set a test flow in the connection to be sure of it."
        return "PromptChainer answers and takes the key."

    def get_definition(self, flow: str) -> Conversation[FlowDefinition]:
        """GET /api/flows/getFlowInfo/{id}: an array of `{name, type}`; a graph, or a wrapped array, is read as well (P-03)."""
        request = Request("GET", f"/api/flows/getFlowInfo/{segment('flow', flow)}")
        response = yield from ask(request)
        value = read_json(request, response)
        if isinstance(value, Mapping) and isinstance(value.get("nodes"), list):
            return read_graph(value, flow)
        rows = _rows(request, response, value)
        return FlowDefinition(
            flow=flow,
            service=self.name,
            inputs=tuple(str(row["name"]) for row in rows if row.get("type") == "variable" and row.get("name") is not None),
            outputs=tuple(str(row["name"]) for row in rows if row.get("type") == "output" and row.get("name") is not None),
            raw=value,
        )

    def start(
        self, flow: str, inputs: Inputs, parameters: Any, additional: Any, about: Callable[[], None] = lambda: None
    ) -> Conversation[FlowRun]:
        """Check the variables against getFlowInfo, then POST /api/flows/run/{id}: its answer is the finished run.

        The POST is sent again only if it cannot have arrived: every arrival may cost credits.

        :raises FlowInputError: the variables do not fit, or there are parameters; no run was made.
        """
        variables = _variables(inputs)
        if parameters:
            message = "parameters must be empty for a PromptChainer flow: it has variables only; put them into inputs"
            raise FlowInputError(message)
        definition = yield from self.get_definition(flow)
        definition.check_variables(variables)
        path = f"/api/flows/run/{segment('flow', flow)}"
        request = Request("POST", path, json={"variables": variables}, resend=Resend.IF_NEVER_ARRIVED)
        about()
        began = _now()
        response = yield from ask(request)
        rows = _rows(request, response, read_json(request, response))
        run = _finished(flow, read_outputs(rows), promised=definition.outputs)
        return replace(run, created_at=began, started_at=began, additional=additional, raw={"outputs": rows})


def _variables(inputs: Inputs) -> dict[str, str]:
    """Give all values as strings (vendor-api 2.3: none else was ever seen).

    :raises FlowInputError: it is not a mapping of names to text, numbers or Booleans.
    """
    if not isinstance(inputs, Mapping):
        message = "inputs must be a mapping of variable names to values for a PromptChainer flow, such as {'color': 'red'}"
        raise FlowInputError(message)
    for name, value in inputs.items():
        if not isinstance(value, (str, int, float, bool)):
            message = f"inputs[{name!r}] must be text, a number or a Boolean, not {type(value).__name__}"
            raise FlowInputError(message)
    return {str(name): value if isinstance(value, str) else json.dumps(value) for name, value in inputs.items()}


def _rows(request: Request, response: Response, value: Any) -> list[Mapping[str, Any]]:
    """Find the array, bare or wrapped (vendor-api 2.7)."""
    if isinstance(value, Mapping):
        value = next((value[key] for key in ("outputs", "data", "list") if isinstance(value.get(key), list)), None)
    if not isinstance(value, list):
        raise FlowMalformed(malformed(request, response, "is not the JSON array that is documented"), status=response.status)
    return [row for row in value if isinstance(row, Mapping)]


def read_outputs(rows: list[Mapping[str, Any]]) -> tuple[FlowOutput, ...]:
    """Read the outputs in their order, duplicates too; a row of another type is passed over where types are told (P-12)."""
    named = (row for row in rows if row.get("type") in (None, "output"))
    return tuple(_output(str(row.get("name") or "")[:SHOWN], row.get("output")) for row in named)


def _output(name: str, told: Any) -> FlowOutput:
    if isinstance(told, Mapping) and len(told) == 1:
        told = next(iter(told.values()))  # a map by upstream node, as in the graph (P-07)
    if told is None or told == "":
        return FlowOutput(name, status=ERROR, value="", error="The output came back empty.")  # P-08
    text = told if isinstance(told, str) else json.dumps(told)
    image = image_type(text)
    return FlowOutput(
        name,
        status=READY,
        media_type=image or "text/plain",
        value=text,
        link=image is not None,
        expires_at=expiry(text) if image else None,
    )


def image_type(text: str) -> str | None:
    """Tell the media type if a text is nothing but an image's URL: by its `rsct`, its name, its host, or its signature (P-11).

    Whether it really is one shows when it is fetched.
    """
    url = text.strip()
    if not url.lower().startswith(("https://", "http://")) or len(url.split()) != 1:
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    query = parse_qs(parts.query)
    told = query.get("rsct", [""])[0] or data_uri.sniff(b"", PurePosixPath(parts.path).name) or ""
    if told.startswith("image/"):
        return data_uri.normal_media_type(told)
    signed = any(name.lower() in SIGNATURES for name in query)
    return "image/png" if signed or (parts.hostname or "").endswith(IMAGE_HOST) else None


def expiry(url: str) -> str | None:
    """Give the moment (ISO 8601) at which a signed URL ends, from its `se`, or None (vendor-api 2.5)."""
    moment = read_time(parse_qs(urlsplit(url).query).get("se", [None])[0])
    return None if moment is None else moment.isoformat()


def _now() -> DateTime:
    import pendulum  # first used here: importing this module stays cheap

    return pendulum.now("UTC")


def _finished(flow: str, outputs: tuple[FlowOutput, ...], promised: tuple[str, ...]) -> FlowRun:
    """Make the run: failed if nothing at all came out although something was promised, else completed."""
    there = {output.name for output in outputs}
    names = (name[:SHOWN] for name in promised)
    lost = tuple(FlowOutput(name, status=ERROR, error="The output is missing.") for name in names if name not in there)
    everything = outputs + lost
    failed = bool(everything) and all(output.status == ERROR for output in everything)
    state = FlowState.FAILED if failed else FlowState.COMPLETED
    return FlowRun(
        flow_run_id=uuid4().hex,
        service=PromptChainer.name,
        flow=flow,
        state=state,
        state_word=state.value,
        progress=1.0,
        finished_at=_now(),
        error="every output came back empty or is missing" if failed else None,
        outputs=everything,
    )


def read_graph(graph: Mapping[str, Any], flow: str) -> FlowDefinition:
    """Read an exported flow graph (`nodes`, `edges`) into the definition that getFlowInfo would give (vendor-api 2.4).

    :raises FlowServiceError: it is no flow graph.
    """
    nodes = graph.get("nodes")
    if not isinstance(nodes, list):
        message = f"The flow graph of {flow} has no list of nodes; export it again from PromptChainer"
        raise FlowServiceError(message)
    data = [
        (node.get("type"), node["data"]) for node in nodes if isinstance(node, Mapping) and isinstance(node.get("data"), Mapping)
    ]
    variables = (inner.get("variable") for kind, inner in data if kind == "variableNode")
    labels = (variable.get("label") for variable in variables if isinstance(variable, Mapping))
    names = (inner.get("name") for kind, inner in data if kind == "outputNode")
    return FlowDefinition(
        flow=flow,
        service=PromptChainer.name,
        inputs=tuple(label for label in labels if isinstance(label, str)),
        outputs=tuple(name for name in names if isinstance(name, str)),
        raw=graph,
    )
