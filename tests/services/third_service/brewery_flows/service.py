"""The brewery's API as a service for airflow-provider-flows, and its hook."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from airflow_provider_flows.exceptions import FlowInputError
from airflow_provider_flows.hooks import FlowsHook
from airflow_provider_flows.services import (
    PENDING,
    READY,
    Conversation,
    FlowDefinition,
    FlowInput,
    FlowOutput,
    FlowRun,
    FlowState,
    Inputs,
    Parameter,
    RawFileSink,
    Request,
    Resend,
    Service,
    Target,
    download_file,
    parse_progress,
    parse_timestamp,
    quote_path_segment,
    request_json,
)
from brewery_flows.provider_info import FIELDS, HOST

STAGES = {
    "queued": FlowState.CREATED,  # not started and not paid
    "kindled": FlowState.STARTING,
    "brewing": FlowState.RUNNING,
    "spilling": FlowState.ABORTING,
    "done": FlowState.COMPLETED,
    "spoilt": FlowState.FAILED,
    "spilt": FlowState.ABORTED,
}


class Brewery(Service):
    """The brewery's API: a flow is a recipe, a flow run a brew, an input a hop, an output a barrel.

    :param console: URL of the brewery's web site, if it has one.
    """

    name: ClassVar[str] = "brewery"
    staged_start: ClassVar[bool] = True  # creation, hops and start are separate requests

    def __init__(self, console: str | None = None) -> None:
        self._console = console

    def auth_headers(self, token: str) -> dict[str, str]:
        """Return the header with the API key."""
        return {"X-Brew-Token": token}

    def check_credentials(self) -> Conversation[str]:
        """Send GET /v2/whoami."""
        brewer = yield from request_json(Request("GET", "/v2/whoami"), lambda value: str(value["brewer"]))
        return f"The brewery accepted the API key of {brewer}."

    def to_flow_inputs(self, inputs: Inputs) -> list[FlowInput]:
        """Return the inputs; they must be at least one text."""
        if (
            isinstance(inputs, Mapping)
            or not inputs
            or not all(isinstance(item.data, str) for item in inputs)
        ):
            message = "inputs must be a list of the names of hops for a brew"
            raise FlowInputError(message)
        return list(inputs)

    def create(self, flow: str, parameters: Any, additional: Any) -> Conversation[FlowRun]:
        """Send POST /v2/brews, which creates a brew that is not started."""
        body = {"recipe": flow, "knobs": parameters or {}, "note": additional}
        return request_json(Request("POST", "/v2/brews", json=body, resend=Resend.IF_REFUSED), parse_brew)

    def add_input(self, flow_run_id: str, item: FlowInput) -> Conversation[str | None]:
        """Send POST /v2/brews/{number}/hops."""
        request = Request(
            "POST", f"{_path(flow_run_id)}/hops", json={"hop": item.data}, resend=Resend.IF_REFUSED
        )
        return request_json(request, lambda value: str(value["place"]))

    def start_created_run(self, flow_run_id: str) -> Conversation[None]:
        """Send POST /v2/brews/{number}/fire, which starts the brew and costs money."""
        request = Request("POST", f"{_path(flow_run_id)}/fire", resend=Resend.IF_NEVER_ARRIVED)
        return request_json(request, lambda _: None)

    def get_run(self, flow_run_id: str) -> Conversation[FlowRun]:
        """Send GET /v2/brews/{number}."""
        return request_json(Request("GET", _path(flow_run_id)), parse_brew)

    def list_runs(self, state: FlowState | None = None) -> Conversation[list[FlowRun]]:
        """Send GET /v2/brews, newest first."""
        brews = yield from request_json(
            Request("GET", "/v2/brews"), lambda value: [parse_brew(row) for row in value["brews"]]
        )
        return [brew for brew in brews if state in {None, brew.state}]

    def abort(self, flow_run_id: str) -> Conversation[None]:
        """Send POST /v2/brews/{number}/spill; this has no effect on a final brew."""
        return request_json(Request("POST", f"{_path(flow_run_id)}/spill"), lambda _: None)

    def delete(self, flow_run_id: str) -> Conversation[None]:
        """Send DELETE /v2/brews/{number}."""
        return request_json(Request("DELETE", _path(flow_run_id)), lambda _: None)

    def list_outputs(self, flow_run_id: str, *, include_data: bool = False) -> Conversation[list[FlowOutput]]:  # noqa: ARG002  # the service's lists have no data
        """Send GET /v2/brews/{number}/barrels."""
        request = Request("GET", f"{_path(flow_run_id)}/barrels")
        return request_json(request, lambda value: [_parse_output(row) for row in value["barrels"]])

    def save_output(
        self, flow_run_id: str, asset_id: str, target: Target, media_type: str | None = None
    ) -> Conversation[str | None]:
        """Send GET /v2/brews/{number}/barrels/{number}, which returns the file itself."""
        return download_file(
            f"{_path(flow_run_id)}/barrels/{quote_path_segment('asset_id', asset_id)}",
            RawFileSink(target, media_type),
        )

    def list_definitions(self) -> Conversation[list[FlowDefinition]]:
        """Send GET /v2/recipes."""
        request = Request("GET", "/v2/recipes")
        return request_json(
            request, lambda value: [_parse_definition(name, row) for name, row in value["recipes"].items()]
        )

    def run_url(self, flow_run_id: str, flow: str | None) -> str | None:  # noqa: ARG002  # the brew's number is enough
        """Return the URL of the brew's page, if the brewery has a web site."""
        return f"{self._console.rstrip('/')}/brews/{flow_run_id}" if self._console else None


class BreweryHook(FlowsHook):
    """The brewery: connection type `brewery`, password = brew token."""

    conn_type = "brewery"
    hook_name = "Brewery"
    default_host = HOST
    fields = FIELDS

    def create_service(self, extra: Mapping[str, Any]) -> Service:
        """Create the service."""
        return Brewery(extra["console"])


def _path(flow_run_id: str) -> str:
    return f"/v2/brews/{quote_path_segment('flow_run_id', flow_run_id)}"


def parse_brew(value: Any) -> FlowRun:
    """Parse a brew; `request_json` raises FlowMalformed if a field is missing."""
    stage = str(value["stage"])
    return FlowRun(
        flow_run_id=str(int(value["number"])),
        service=Brewery.name,
        flow=str(value["recipe"]),
        state=STAGES.get(stage, FlowState.UNKNOWN),
        raw_state=stage,
        progress=parse_progress(value["percent"] / 100),
        created_at=parse_timestamp(value["created"]),
        started_at=parse_timestamp(value["lit"]),
        finished_at=parse_timestamp(value["over"]),
        parameters=value["knobs"],
        additional=value["note"],
        error=None if value["trouble"] is None else str(value["trouble"]),
        raw=value,
    )


def _parse_output(value: Any) -> FlowOutput:
    number, text = str(int(value["number"])), value.get("words")
    return FlowOutput(
        name=str(value["label"]),
        asset_id=number,
        status=READY if value["full"] else PENDING,
        media_type=str(value["kind"]),
        value=None if text is None else str(text),
    )


def _parse_definition(name: str, value: Any) -> FlowDefinition:
    knobs = {
        knob: Parameter(knob, ("integer",), minimum=row["from"], maximum=row["to"], required=row["needed"])
        for knob, row in value["knobs"].items()
    }
    return FlowDefinition(
        name, Brewery.name, inputs=("text/plain",), parameters=knobs, is_complete=True, raw=value
    )
