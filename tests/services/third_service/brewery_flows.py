"""A brewery's flows in Airflow: the service, its hook and its connection type, for airflow-provider-flows.

Operator, sensor, trigger, decorator, watchers and command line are that provider's, and know nothing of breweries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from airflow_provider_flows.connection import Field, connection_type, fields
from airflow_provider_flows.core.definition import FlowDefinition, Parameter
from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.http import Conversation, Request, Resend
from airflow_provider_flows.core.payload.download import RawFileSink, download
from airflow_provider_flows.core.payload.sink import Target
from airflow_provider_flows.core.responses import request_json
from airflow_provider_flows.core.run import (
    PENDING,
    READY,
    FlowInput,
    FlowOutput,
    FlowRun,
    FlowState,
    parse_progress,
)
from airflow_provider_flows.core.service import Inputs, Service, quote_path_segment
from airflow_provider_flows.core.timestamps import parse_timestamp
from airflow_provider_flows.hooks import FlowsHook

HOST = "https://api.brewery.example"
FIELDS = {
    **fields(read_timeout=30),
    "console": Field("Console", "Web address of the brewery's own pages.", "string"),
}
STAGES = {
    "queued": FlowState.CREATED,  # made, not started, not paid
    "kindled": FlowState.STARTING,
    "brewing": FlowState.RUNNING,
    "spilling": FlowState.ABORTING,
    "done": FlowState.COMPLETED,
    "spoilt": FlowState.FAILED,
    "spilt": FlowState.ABORTED,
}


class Brewery(Service):
    """The brewery's API; a flow is a recipe, a flow run a brew, an input a hop, an output a barrel."""

    name: ClassVar[str] = "brewery"
    staged_start: ClassVar[bool] = True  # a brew is made, given its hops and lit by separate requests

    def __init__(self, console: str | None = None) -> None:
        """Take the web address at which a person finds a brew, if there is one."""
        self._console = console

    def auth_headers(self, token: str) -> dict[str, str]:
        """Give the key."""
        return {"X-Brew-Token": token}

    def check_credentials(self) -> Conversation[str]:
        """GET /v2/whoami."""
        brewer = yield from request_json(Request("GET", "/v2/whoami"), lambda value: str(value["brewer"]))
        return f"The brewery answers and takes the key of {brewer}."

    def to_flow_inputs(self, inputs: Inputs) -> list[FlowInput]:
        """Take texts only, one at the least."""
        if (
            isinstance(inputs, Mapping)
            or not inputs
            or not all(isinstance(item.data, str) for item in inputs)
        ):
            message = "inputs must be a list of the names of hops for a brew"
            raise FlowInputError(message)
        return list(inputs)

    def create(self, flow: str, parameters: Any, additional: Any) -> Conversation[FlowRun]:
        """POST /v2/brews: nothing is lit yet."""
        body = {"recipe": flow, "knobs": parameters or {}, "note": additional}
        return request_json(Request("POST", "/v2/brews", json=body, resend=Resend.IF_REFUSED), parse_brew)

    def add_input(self, flow_run_id: str, item: FlowInput) -> Conversation[str | None]:
        """POST /v2/brews/{number}/hops."""
        request = Request(
            "POST", f"{_path(flow_run_id)}/hops", json={"hop": item.data}, resend=Resend.IF_REFUSED
        )
        return request_json(request, lambda value: str(value["place"]))

    def start_created(self, flow_run_id: str) -> Conversation[None]:
        """POST /v2/brews/{number}/fire: from here on it costs money."""
        request = Request("POST", f"{_path(flow_run_id)}/fire", resend=Resend.IF_NEVER_ARRIVED)
        return request_json(request, lambda _: None)

    def get_run(self, flow_run_id: str) -> Conversation[FlowRun]:
        """GET /v2/brews/{number}."""
        return request_json(Request("GET", _path(flow_run_id)), parse_brew)

    def list_runs(self, state: FlowState | None = None) -> Conversation[list[FlowRun]]:
        """GET /v2/brews, all of them, newest first."""
        brews = yield from request_json(
            Request("GET", "/v2/brews"), lambda value: [parse_brew(row) for row in value["brews"]]
        )
        return [brew for brew in brews if state in {None, brew.state}]

    def abort(self, flow_run_id: str) -> Conversation[None]:
        """POST /v2/brews/{number}/spill; one that is over stays as it is."""
        return request_json(Request("POST", f"{_path(flow_run_id)}/spill"), lambda _: None)

    def delete(self, flow_run_id: str) -> Conversation[None]:
        """DELETE /v2/brews/{number}."""
        return request_json(Request("DELETE", _path(flow_run_id)), lambda _: None)

    def list_outputs(self, flow_run_id: str, *, include_data: bool = False) -> Conversation[list[FlowOutput]]:  # noqa: ARG002  # no list has data
        """GET /v2/brews/{number}/barrels."""
        request = Request("GET", f"{_path(flow_run_id)}/barrels")
        return request_json(request, lambda value: [_parse_output(row) for row in value["barrels"]])

    def save_output(
        self, flow_run_id: str, asset_id: str, target: Target, media_type: str | None = None
    ) -> Conversation[str | None]:
        """GET /v2/brews/{number}/barrels/{number}: the file as it is."""
        return download(
            f"{_path(flow_run_id)}/barrels/{quote_path_segment('asset_id', asset_id)}",
            RawFileSink(target, media_type),
        )

    def list_definitions(self) -> Conversation[list[FlowDefinition]]:
        """GET /v2/recipes."""
        request = Request("GET", "/v2/recipes")
        return request_json(
            request, lambda value: [_parse_definition(name, row) for name, row in value["recipes"].items()]
        )

    def run_url(self, flow_run_id: str, flow: str | None) -> str | None:  # noqa: ARG002  # the brew's number is enough
        """Give the page of a brew, else the API's path."""
        return f"{self._console.rstrip('/')}/brews/{flow_run_id}" if self._console else _path(flow_run_id)


class BreweryHook(FlowsHook):
    """The brewery: connection type `brewery`, password = brew token."""

    conn_type = "brewery"
    hook_name = "Brewery"
    default_host = HOST
    fields = FIELDS

    def create_service(self, extra: Mapping[str, Any]) -> Service:
        """Make the service."""
        return Brewery(extra["console"])


def get_provider_info() -> dict[str, Any]:
    """Give this package's metadata to Airflow."""
    brewery = connection_type(
        BreweryHook.conn_type,
        hook_name=BreweryHook.hook_name,
        hook_class="brewery_flows.BreweryHook",
        default_host=HOST,
        table=FIELDS,
        key="Brew token",
    )
    return {
        "package-name": "brewery-flows",
        "name": "Brewery",
        "description": "Flows at the brewery.",
        "connection-types": [brewery],
    }


def _path(flow_run_id: str) -> str:
    return f"/v2/brews/{quote_path_segment('flow_run_id', flow_run_id)}"


def parse_brew(value: Any) -> FlowRun:
    """Read a brew; whatever is missing makes the answer a malformed one."""
    stage = str(value["stage"])
    return FlowRun(
        flow_run_id=str(int(value["number"])),
        service=Brewery.name,
        flow=str(value["recipe"]),
        state=STAGES.get(stage, FlowState.UNKNOWN),
        raw_state=stage,
        progress=parse_progress(value["percent"] / 100),
        created_at=parse_timestamp(value["made"]),
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
