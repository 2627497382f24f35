"""PromptChainer: its two endpoints, and the parser of their responses.

Source: the vendor's documentation, https://docs.promptchainer.io (pages "Get Flow Info" and "Run Flow").
"""

from __future__ import annotations

import json
import re
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
from airflow_provider_flows.core.flow_run import (
    ERROR,
    READY,
    FlowOutput,
    FlowRun,
    FlowState,
    Inputs,
    OwnReason,
    bound_outputs,
)
from airflow_provider_flows.core.graph import FlowGraph
from airflow_provider_flows.core.http import Purpose, Request, Resend, send
from airflow_provider_flows.core.limits import MAX_DEFINITIONS_BYTES, MAX_NAME_LENGTH, MAX_URL_LENGTH
from airflow_provider_flows.core.payload import data_uri
from airflow_provider_flows.core.redaction import SIGNATURE_PARAMETERS
from airflow_provider_flows.core.responses import load_json, malformed_message
from airflow_provider_flows.core.safe_text import to_safe_text
from airflow_provider_flows.core.service import Service, quote_path_segment
from airflow_provider_flows.core.timestamps import parse_timestamp
from airflow_provider_flows.core.validation import Problems, find_unsendable_variables, shorten

if TYPE_CHECKING:
    from pendulum import DateTime

    from airflow_provider_flows.core.http import Conversation, Response

IMAGE_HOST = "oaidalleapiprodscus.blob.core.windows.net"  # OpenAI's, in the vendor's sample graph
BLOB_HOST_SUFFIX = ".blob.core.windows.net"  # of anybody's store at Azure
PROBE_FLOW_ID = "airflow-connection-test"


class PromptChainer(Service):
    """The PromptChainer API; a run is one synchronous request.

    The service has no ids of runs. This class generates one, for logs and file names.

    :param test_flow: id of a flow for `check_credentials`, from the connection.
    """

    name: ClassVar[str] = "promptchainer"
    has_variables: ClassVar[bool] = True
    picture_hosts: ClassVar[tuple[str, ...]] = (IMAGE_HOST,)
    run_id_pattern: ClassVar[re.Pattern[str]] = re.compile(r"[0-9a-f]{32}")

    def __init__(self, test_flow: str | None = None) -> None:
        self._test_flow = test_flow

    def auth_headers(self, token: str) -> dict[str, str]:
        """Return the header with the API key (docs, "API key"; P-05)."""
        return {"x-api-key": token}

    def check_credentials(self) -> Conversation[str]:
        """Send GET /api/flows/getFlowInfo/{id}, because no endpoint only tests a key.

        Without a test flow, a response other than 401 and 403 counts as success.
        """
        try:
            yield from self.get_definition(self._test_flow or PROBE_FLOW_ID)
        except FlowAuthError:
            raise
        except (FlowInvalid, FlowNotFound) as error:
            if self._test_flow:
                raise type(error)(
                    f"PromptChainer has no flow {shorten(repr(self._test_flow))} for this API key (HTTP "
                    f"{error.status}). Set the field Test flow to the id of one of your flows, or leave it "
                    "blank; else check the host",
                    status=error.status,
                ) from None
            hint = "Set a test flow in the connection for a definite result."
            return f"PromptChainer did not reject the API key. {hint}"
        return "PromptChainer accepted the API key."

    def get_definition(self, flow: str) -> Conversation[FlowDefinition]:
        """Send GET /api/flows/getFlowInfo/{id}.

        The response is an array of `{name, type}`, a wrapped array, or a graph (P-03).
        """
        path = f"/api/flows/getFlowInfo/{quote_path_segment('flow', flow)}"
        request = Request("GET", path, max_bytes=MAX_DEFINITIONS_BYTES, argument="flow")
        response = yield from send(request)
        value = yield from load_json(request, response)
        if isinstance(value, Mapping) and isinstance(value.get("nodes"), list):
            try:
                return FlowDefinition.from_graph(flow, self.name, FlowGraph.parse(value), raw=value)
            except FlowInputError as error:
                raise FlowMalformed(
                    malformed_message(request, response, str(error)), status=response.status
                ) from error
        rows = _parse_rows(request, response, value)
        entries = [(_row_kind(row), row["name"]) for row in rows if _is_name(row.get("name"))]
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
        """Add a problem for each variable that is not text, a number or a Boolean, and for each parameter."""
        if isinstance(inputs, Mapping):
            problems.add(*find_unsendable_variables(inputs))
        elif inputs:
            example = "such as {'color': 'red'}"
            message = (
                f"inputs must be a mapping of variable names to values for a PromptChainer flow, {example}"
            )
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
        """Send POST /api/flows/run/{id}; the response has the outputs of the finished run.

        Each request may cost credits, so it is sent again only if it cannot have arrived.

        :raises FlowInputError: the variables cannot be sent, or there are parameters; no run was created.
        """
        problems = Problems()
        self.validate(inputs, parameters, problems)
        problems.raise_if_any()
        variables = _to_variables(inputs)
        path = f"/api/flows/run/{quote_path_segment('flow', flow)}"
        request = Request(
            "POST",
            path,
            json={"variables": variables},
            resend=Resend.IF_NEVER_ARRIVED,
            purpose=Purpose.RUN,
            argument="flow",
        )
        before_start()
        started_at = _now()
        response = yield from send(request)
        rows = _parse_rows(request, response, (yield from load_json(request, response)))
        run = _build_finished_run(flow, parse_output_rows(rows), expected_outputs=expected_outputs)
        return replace(
            run, created_at=started_at, started_at=started_at, additional=additional, raw={"outputs": rows}
        )


def _is_name(value: Any) -> bool:
    """Return whether a value is the name of a variable or an output; a cut name would be another name."""
    return isinstance(value, str) and len(value) <= MAX_NAME_LENGTH


def _row_kind(row: Mapping[str, Any]) -> str:
    """Return the kind of a row of getFlowInfo: `variable` or `output` (vendor_notes.md, 2.2)."""
    return str(row.get("type"))[:MAX_NAME_LENGTH].lower().removesuffix("node")


def _to_variables(inputs: Inputs) -> dict[str, str]:
    """Return all values as strings, the only type in the documentation (vendor_notes.md, 2.3)."""
    if not isinstance(inputs, Mapping):
        return {}
    return {
        str(name): value if isinstance(value, str) else json.dumps(value) for name, value in inputs.items()
    }


def _parse_rows(request: Request, response: Response, value: Any) -> list[Mapping[str, Any]]:
    """Return the objects of the array, which may be wrapped in an object (vendor_notes.md, 2.7).

    :raises FlowMalformed: the response contains no array.
    """
    if isinstance(value, Mapping):
        value = next(
            (value[key] for key in ("outputs", "data", "list") if isinstance(value.get(key), list)), None
        )
    if not isinstance(value, list):
        raise FlowMalformed(
            malformed_message(request, response, "is not the documented JSON array"), status=response.status
        )
    return [row for row in value if isinstance(row, Mapping)]


def parse_output_rows(rows: list[Mapping[str, Any]]) -> tuple[FlowOutput, ...]:
    """Return the outputs in their order, including duplicates; rows of another type are skipped (P-12)."""
    output_rows = (row for row in rows if row.get("type") in (None, "output"))
    return tuple(
        _parse_output(str(row.get("name") or "")[:MAX_NAME_LENGTH], row.get("output")) for row in output_rows
    )


def _parse_output(name: str, raw: Any) -> FlowOutput:
    if isinstance(raw, Mapping) and len(raw) == 1:
        raw = next(iter(raw.values()))  # a mapping by upstream node, as in the graph (P-07)
    if raw is None or raw == "":
        return FlowOutput(name, status=ERROR, value="", error=OwnReason("The output is empty."))  # P-08
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
    """Return the media type of the image if a text is an image's URL, else None (P-11).

    The URL is recognized by its parameter `rsct`, file name, host or signature. The content is not checked.
    """
    if len(text) > MAX_URL_LENGTH:
        return None
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
        return data_uri.normalize_media_type(to_safe_text(media_type))  # the query may hold a %00
    has_signature = any(name.lower() in SIGNATURE_PARAMETERS for name in query)
    return "image/png" if has_signature or (parts.hostname or "").endswith(BLOB_HOST_SUFFIX) else None


def get_expires_at(url: str) -> str | None:
    """Return the expiry time of a signed URL (ISO 8601), from its `se`, or None (vendor_notes.md, 2.5)."""
    expires_at = parse_timestamp(parse_qs(urlsplit(url).query).get("se", [None])[0])
    return None if expires_at is None else expires_at.isoformat()


def _now() -> DateTime:
    import pendulum  # expensive to import

    return pendulum.now("UTC")


def _build_finished_run(
    flow: str, outputs: tuple[FlowOutput, ...], expected_outputs: Collection[str] | None
) -> FlowRun:
    """Return the run: failed if all outputs are empty or missing, unless the flow has no outputs."""
    present = {output.name for output in outputs}
    names = (name[:MAX_NAME_LENGTH] for name in expected_outputs or ())
    missing = tuple(
        FlowOutput(name, status=ERROR, error=OwnReason("The output is missing."))
        for name in names
        if name not in present
    )
    all_outputs = tuple(bound_outputs(outputs + missing, "The service does not return them a second time."))
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
        error=OwnReason("all outputs are empty or missing") if failed else None,
        outputs=all_outputs,
    )
