"""PromptChainer: its two endpoints, and how their answers are read.

It draws nothing and downloads nothing: an output that is a link is marked as one, and outputs.py saves it.

Source: the vendor's documentation, https://docs.promptchainer.io (pages "Get Flow Info" and "Run Flow").
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

from airflow_provider_flows.core.definition import FlowDefinition
from airflow_provider_flows.core.exceptions import (
    FlowAuthError,
    FlowInputError,
    FlowInvalid,
    FlowMalformed,
    FlowNotFound,
)
from airflow_provider_flows.core.graph import FlowGraph
from airflow_provider_flows.core.http import SHOWN, Request, Resend, ask, malformed, read_json
from airflow_provider_flows.core.payload import data_uri
from airflow_provider_flows.core.problems import Findings
from airflow_provider_flows.core.run import ERROR, READY, FlowOutput, FlowRun, FlowState
from airflow_provider_flows.core.service import Inputs, Service, segment
from airflow_provider_flows.core.signed_urls import SIGNATURES
from airflow_provider_flows.core.timestamps import read_time
from airflow_provider_flows.core.validation import cut, unsendable

if TYPE_CHECKING:
    from pendulum import DateTime

    from airflow_provider_flows.core.http import Conversation, Response

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
            try:
                return FlowDefinition.of_graph(flow, self.name, FlowGraph.read(value), raw=value)
            except FlowInputError as error:
                raise FlowMalformed(
                    malformed(request, response, str(error)), status=response.status
                ) from error
        rows = _rows(request, response, value)
        named = [(_kind(row), str(row["name"])) for row in rows if row.get("name") is not None]
        return FlowDefinition(
            flow=flow,
            service=self.name,
            inputs=tuple(name for kind, name in named if kind == "variable"),
            variables=True,
            outputs=tuple(name for kind, name in named if kind == "output"),
            whole=0 < len(named) == len(rows) and all(kind in {"variable", "output"} for kind, _ in named),
            raw=value,
        )

    def examine(self, inputs: Inputs, parameters: Any, findings: Findings) -> None:
        """Note whatever is no mapping of names to text, numbers or Booleans, and all parameters, for no flow has any."""
        if isinstance(inputs, Mapping):
            findings.add(*unsendable(inputs))
        elif inputs:
            message = "inputs must be a mapping of variable names to values for a PromptChainer flow, such as {'color': 'red'}"
            findings.add(message, spoils="inputs")
        what = "is not known: a PromptChainer flow has variables only; put them into inputs"
        findings.add(
            *(f"parameter {cut(repr(name))} {what}" for name in parameters or ()), spoils="parameters"
        )

    def start(
        self,
        flow: str,
        inputs: Inputs,
        parameters: Any,
        additional: Any,
        *,
        about: Callable[[], None] = lambda: None,
        promised: Collection[str] | None = None,
    ) -> Conversation[FlowRun]:
        """POST /api/flows/run/{id}: its answer is the finished run.

        It is sent again only if it cannot have arrived: every arrival may cost credits.

        :raises FlowInputError: the variables cannot be sent, or there are parameters; no run was made.
        """
        findings = Findings()
        self.examine(inputs, parameters, findings)
        findings.tell()
        variables = _variables(inputs)
        path = f"/api/flows/run/{segment('flow', flow)}"
        request = Request("POST", path, json={"variables": variables}, resend=Resend.IF_NEVER_ARRIVED)
        about()
        began = _now()
        response = yield from ask(request)
        rows = _rows(request, response, read_json(request, response))
        run = _finished(flow, read_outputs(rows), promised=promised)
        return replace(run, created_at=began, started_at=began, additional=additional, raw={"outputs": rows})


def _kind(row: Mapping[str, Any]) -> str:
    """Give what a row of getFlowInfo is about: `variable` or `output` (vendor-api 2.2), also in the words of a graph."""
    return str(row.get("type")).lower().removesuffix("node")


def _variables(inputs: Inputs) -> dict[str, str]:
    """Give all values as strings (vendor-api 2.3: none else was ever seen); no inputs at all are no variables."""
    if not isinstance(inputs, Mapping):
        return {}
    return {
        str(name): value if isinstance(value, str) else json.dumps(value) for name, value in inputs.items()
    }


def _rows(request: Request, response: Response, value: Any) -> list[Mapping[str, Any]]:
    """Find the array, bare or wrapped (vendor-api 2.7)."""
    if isinstance(value, Mapping):
        value = next(
            (value[key] for key in ("outputs", "data", "list") if isinstance(value.get(key), list)), None
        )
    if not isinstance(value, list):
        raise FlowMalformed(
            malformed(request, response, "is not the JSON array that is documented"), status=response.status
        )
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


def _finished(flow: str, outputs: tuple[FlowOutput, ...], promised: Collection[str] | None) -> FlowRun:
    """Make the run: failed if nothing at all came out, unless it is known that nothing was promised; else completed."""
    there = {output.name for output in outputs}
    names = (name[:SHOWN] for name in promised or ())
    lost = tuple(
        FlowOutput(name, status=ERROR, error="The output is missing.") for name in names if name not in there
    )
    everything = outputs + lost
    failed = (bool(everything) or promised is None) and all(output.status == ERROR for output in everything)
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
