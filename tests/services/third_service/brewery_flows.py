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
from airflow_provider_flows.core.payload.download import RawFile, saved
from airflow_provider_flows.core.payload.sink import Target
from airflow_provider_flows.core.run import (
    PENDING,
    READY,
    FlowInput,
    FlowOutput,
    FlowRun,
    FlowState,
    read_progress,
)
from airflow_provider_flows.core.service import Inputs, Service, asked, segment
from airflow_provider_flows.core.timestamps import read_time
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
    steps: ClassVar[bool] = True  # a brew is made, given its hops and lit by separate requests

    def __init__(self, console: str | None = None) -> None:
        """Take the web address at which a person finds a brew, if there is one."""
        self._console = console

    def headers(self, token: str) -> dict[str, str]:
        """Give the key."""
        return {"X-Brew-Token": token}

    def check(self) -> Conversation[str]:
        """GET /v2/whoami."""
        brewer = yield from asked(Request("GET", "/v2/whoami"), lambda told: str(told["brewer"]))
        return f"The brewery answers and takes the key of {brewer}."

    def checked(self, inputs: Inputs) -> list[FlowInput]:
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
        return asked(Request("POST", "/v2/brews", json=body, resend=Resend.IF_REFUSED), read_brew)

    def add_input(self, flow_run_id: str, item: FlowInput) -> Conversation[str | None]:
        """POST /v2/brews/{number}/hops."""
        request = Request(
            "POST", f"{_path(flow_run_id)}/hops", json={"hop": item.data}, resend=Resend.IF_REFUSED
        )
        return asked(request, lambda told: str(told["place"]))

    def begin(self, flow_run_id: str) -> Conversation[None]:
        """POST /v2/brews/{number}/fire: from here on it costs money."""
        request = Request("POST", f"{_path(flow_run_id)}/fire", resend=Resend.IF_NEVER_ARRIVED)
        return asked(request, lambda _: None)

    def get_run(self, flow_run_id: str) -> Conversation[FlowRun]:
        """GET /v2/brews/{number}."""
        return asked(Request("GET", _path(flow_run_id)), read_brew)

    def list_runs(self, state: FlowState | None = None) -> Conversation[list[FlowRun]]:
        """GET /v2/brews, all of them, newest first."""
        brews = yield from asked(
            Request("GET", "/v2/brews"), lambda told: [read_brew(row) for row in told["brews"]]
        )
        return [brew for brew in brews if state in {None, brew.state}]

    def abort(self, flow_run_id: str) -> Conversation[None]:
        """POST /v2/brews/{number}/spill; one that is over stays as it is."""
        return asked(Request("POST", f"{_path(flow_run_id)}/spill"), lambda _: None)

    def delete(self, flow_run_id: str) -> Conversation[None]:
        """DELETE /v2/brews/{number}."""
        return asked(Request("DELETE", _path(flow_run_id)), lambda _: None)

    def list_outputs(self, flow_run_id: str, *, include_data: bool = False) -> Conversation[list[FlowOutput]]:  # noqa: ARG002  # no list has data
        """GET /v2/brews/{number}/barrels."""
        request = Request("GET", f"{_path(flow_run_id)}/barrels")
        return asked(request, lambda told: [_output(row) for row in told["barrels"]])

    def save_output(
        self, flow_run_id: str, asset_id: str, target: Target, media_type: str | None = None
    ) -> Conversation[str | None]:
        """GET /v2/brews/{number}/barrels/{number}: the file as it is."""
        return saved(
            f"{_path(flow_run_id)}/barrels/{segment('asset_id', asset_id)}", RawFile(target, media_type)
        )

    def list_definitions(self) -> Conversation[list[FlowDefinition]]:
        """GET /v2/recipes."""
        request = Request("GET", "/v2/recipes")
        return asked(request, lambda told: [_definition(name, row) for name, row in told["recipes"].items()])

    def address_of(self, flow_run_id: str, flow: str | None) -> str | None:  # noqa: ARG002  # the brew's number is enough
        """Give the page of a brew, else the API's path."""
        return f"{self._console.rstrip('/')}/brews/{flow_run_id}" if self._console else _path(flow_run_id)


class BreweryHook(FlowsHook):
    """The brewery: connection type `brewery`, password = brew token."""

    conn_type = "brewery"
    hook_name = "Brewery"
    default_host = HOST
    fields = FIELDS

    def make_service(self, extra: Mapping[str, Any]) -> Service:
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
    return f"/v2/brews/{segment('flow_run_id', flow_run_id)}"


def read_brew(told: Any) -> FlowRun:
    """Read a brew; whatever is missing makes the answer a malformed one."""
    word = str(told["stage"])
    return FlowRun(
        flow_run_id=str(int(told["number"])),
        service=Brewery.name,
        flow=str(told["recipe"]),
        state=STAGES.get(word, FlowState.UNKNOWN),
        state_word=word,
        progress=read_progress(told["percent"] / 100),
        created_at=read_time(told["made"]),
        started_at=read_time(told["lit"]),
        finished_at=read_time(told["over"]),
        parameters=told["knobs"],
        additional=told["note"],
        error=None if told["trouble"] is None else str(told["trouble"]),
        raw=told,
    )


def _output(told: Any) -> FlowOutput:
    number, words = str(int(told["number"])), told.get("words")
    return FlowOutput(
        name=str(told["label"]),
        asset_id=number,
        status=READY if told["full"] else PENDING,
        media_type=str(told["kind"]),
        value=None if words is None else str(words),
    )


def _definition(name: str, told: Any) -> FlowDefinition:
    knobs = {
        knob: Parameter(knob, ("integer",), minimum=row["from"], maximum=row["to"], required=row["needed"])
        for knob, row in told["knobs"].items()
    }
    return FlowDefinition(name, Brewery.name, inputs=("text/plain",), parameters=knobs, whole=True, raw=told)
