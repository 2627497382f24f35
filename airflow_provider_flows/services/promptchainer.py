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
from airflow_provider_flows.core.http import Request, Resend, send
from airflow_provider_flows.core.payload import data_uri
from airflow_provider_flows.core.problems import Problems
from airflow_provider_flows.core.responses import MAX_EXCERPT_CHARS, malformed_message, parse_json
from airflow_provider_flows.core.run import ERROR, READY, FlowOutput, FlowRun, FlowState
from airflow_provider_flows.core.service import Inputs, Service, quote_path_segment
from airflow_provider_flows.core.signed_urls import SIGNATURE_PARAMETERS
from airflow_provider_flows.core.timestamps import parse_timestamp
from airflow_provider_flows.core.validation import find_unsendable_variables, shorten

if TYPE_CHECKING:
    from pendulum import DateTime

    from airflow_provider_flows.core.http import Conversation, Response

IMAGE_HOST = ".blob.core.windows.net"  # where the sample's images lie (the page's sample graph)
PROBE_FLOW_ID = "airflow-connection-test"


class PromptChainer(Service):
    """The PromptChainer API: a run is one synchronous request and has no id; we give it one, for logs and files."""

    name: ClassVar[str] = "promptchainer"

    def __init__(self, test_flow: str | None = None) -> None:
        """Keep the flow id that `check` asks for, if the connection names one."""
        self._test_flow = test_flow

    def auth_headers(self, token: str) -> dict[str, str]:
        """Put the key into a header (docs, "API key"; P-05)."""
        return {"x-api-key": token}

    def check_credentials(self) -> Conversation[str]:
        """Ask getFlowInfo: no endpoint only checks a key, so without a known flow any answer but 401 and 403 counts."""
        try:
            yield from self.get_definition(self._test_flow or PROBE_FLOW_ID)
        except FlowAuthError:
            raise
        except (FlowInvalid, FlowNotFound):
            if self._test_flow:
                raise
            return "PromptChainer answers and does not refuse the key. Set a test flow in the connection to be sure of it."
        return "PromptChainer accepted the API key."

    def get_definition(self, flow: str) -> Conversation[FlowDefinition]:
        """GET /api/flows/getFlowInfo/{id}: an array of `{name, type}`; a graph, or a wrapped array, is read as well (P-03)."""
        request = Request("GET", f"/api/flows/getFlowInfo/{quote_path_segment('flow', flow)}")
        response = yield from send(request)
        value = parse_json(request, response)
        if isinstance(value, Mapping) and isinstance(value.get("nodes"), list):
            try:
                return FlowDefinition.from_graph(flow, self.name, FlowGraph.parse(value), raw=value)
            except FlowInputError as error:
                raise FlowMalformed(
                    malformed_message(request, response, str(error)), status=response.status
                ) from error
        rows = _parse_rows(request, response, value)
        entries = [(_row_kind(row), str(row["name"])) for row in rows if row.get("name") is not None]
        return FlowDefinition(
            flow=flow,
            service=self.name,
            inputs=tuple(name for kind, name in entries if kind == "variable"),
            has_variables=True,
            outputs=tuple(name for kind, name in entries if kind == "output"),
            is_complete=0 < len(entries) == len(rows)
            and all(kind in {"variable", "output"} for kind, _ in entries),
            raw=value,
        )

    def validate(self, inputs: Inputs, parameters: Any, problems: Problems) -> None:
        """Note whatever is no mapping of names to text, numbers or Booleans, and all parameters, for no flow has any."""
        if isinstance(inputs, Mapping):
            problems.add(*find_unsendable_variables(inputs))
        elif inputs:
            message = "inputs must be a mapping of variable names to values for a PromptChainer flow, such as {'color': 'red'}"
            problems.add(message, invalidates="inputs")
        what = "is not known: a PromptChainer flow has variables only; put them into inputs"
        problems.add(
            *(f"parameter {shorten(repr(name))} {what}" for name in parameters or ()),
            invalidates="parameters",
        )

    def start(
        self,
        flow: str,
        inputs: Inputs,
        parameters: Any,
        additional: Any,
        *,
        before_start: Callable[[], None] = lambda: None,
        expected_outputs: Collection[str] | None = None,
    ) -> Conversation[FlowRun]:
        """POST /api/flows/run/{id}: its answer is the finished run.

        It is sent again only if it cannot have arrived: every arrival may cost credits.

        :raises FlowInputError: the variables cannot be sent, or there are parameters; no run was made.
        """
        problems = Problems()
        self.validate(inputs, parameters, problems)
        problems.raise_if_any()
        variables = _to_variables(inputs)
        path = f"/api/flows/run/{quote_path_segment('flow', flow)}"
        request = Request("POST", path, json={"variables": variables}, resend=Resend.IF_NEVER_ARRIVED)
        before_start()
        started_at = _now()
        response = yield from send(request)
        rows = _parse_rows(request, response, parse_json(request, response))
        run = _build_finished_run(flow, parse_output_rows(rows), expected_outputs=expected_outputs)
        return replace(
            run, created_at=started_at, started_at=started_at, additional=additional, raw={"outputs": rows}
        )


def _row_kind(row: Mapping[str, Any]) -> str:
    """Give what a row of getFlowInfo is about: `variable` or `output` (vendor-api 2.2), also in the words of a graph."""
    return str(row.get("type")).lower().removesuffix("node")


def _to_variables(inputs: Inputs) -> dict[str, str]:
    """Give all values as strings (vendor-api 2.3: none else was ever seen); no inputs at all are no variables."""
    if not isinstance(inputs, Mapping):
        return {}
    return {
        str(name): value if isinstance(value, str) else json.dumps(value) for name, value in inputs.items()
    }


def _parse_rows(request: Request, response: Response, value: Any) -> list[Mapping[str, Any]]:
    """Find the array, bare or wrapped (vendor-api 2.7)."""
    if isinstance(value, Mapping):
        value = next(
            (value[key] for key in ("outputs", "data", "list") if isinstance(value.get(key), list)), None
        )
    if not isinstance(value, list):
        raise FlowMalformed(
            malformed_message(request, response, "is not the JSON array that is documented"),
            status=response.status,
        )
    return [row for row in value if isinstance(row, Mapping)]


def parse_output_rows(rows: list[Mapping[str, Any]]) -> tuple[FlowOutput, ...]:
    """Read the outputs in their order, duplicates too; a row of another type is passed over where types are told (P-12)."""
    output_rows = (row for row in rows if row.get("type") in (None, "output"))
    return tuple(
        _parse_output(str(row.get("name") or "")[:MAX_EXCERPT_CHARS], row.get("output"))
        for row in output_rows
    )


def _parse_output(name: str, raw: Any) -> FlowOutput:
    if isinstance(raw, Mapping) and len(raw) == 1:
        raw = next(iter(raw.values()))  # a map by upstream node, as in the graph (P-07)
    if raw is None or raw == "":
        return FlowOutput(name, status=ERROR, value="", error="The output came back empty.")  # P-08
    text = raw if isinstance(raw, str) else json.dumps(raw)
    image = get_image_media_type(text)
    return FlowOutput(
        name,
        status=READY,
        media_type=image or "text/plain",
        value=text,
        is_url=image is not None,
        expires_at=get_expires_at(text) if image else None,
    )


def get_image_media_type(text: str) -> str | None:
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
    media_type = query.get("rsct", [""])[0] or data_uri.sniff(b"", PurePosixPath(parts.path).name) or ""
    if media_type.startswith("image/"):
        return data_uri.normalize_media_type(media_type)
    has_signature = any(name.lower() in SIGNATURE_PARAMETERS for name in query)
    return "image/png" if has_signature or (parts.hostname or "").endswith(IMAGE_HOST) else None


def get_expires_at(url: str) -> str | None:
    """Give the moment (ISO 8601) at which a signed URL ends, from its `se`, or None (vendor-api 2.5)."""
    expires_at = parse_timestamp(parse_qs(urlsplit(url).query).get("se", [None])[0])
    return None if expires_at is None else expires_at.isoformat()


def _now() -> DateTime:
    import pendulum  # first used here: importing this module stays cheap

    return pendulum.now("UTC")


def _build_finished_run(
    flow: str, outputs: tuple[FlowOutput, ...], expected_outputs: Collection[str] | None
) -> FlowRun:
    """Make the run: failed if nothing at all came out, unless it is known that nothing was promised; else completed."""
    present = {output.name for output in outputs}
    names = (name[:MAX_EXCERPT_CHARS] for name in expected_outputs or ())
    missing = tuple(
        FlowOutput(name, status=ERROR, error="The output is missing.")
        for name in names
        if name not in present
    )
    all_outputs = outputs + missing
    failed = (bool(all_outputs) or expected_outputs is None) and all(
        output.status == ERROR for output in all_outputs
    )
    state = FlowState.FAILED if failed else FlowState.COMPLETED
    return FlowRun(
        flow_run_id=uuid4().hex,
        service=PromptChainer.name,
        flow=flow,
        state=state,
        raw_state=state.value,
        progress=1.0,
        finished_at=_now(),
        error="every output came back empty or is missing" if failed else None,
        outputs=all_outputs,
    )
