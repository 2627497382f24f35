"""A predictions API: a POST starts at once, variables are typed, lists have cursors, outputs are links.

A flow is a model, such as `acme/upscale`, and a flow run a prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar
from uuid import uuid4

from airflow_provider_flows.hooks import FlowsHook
from airflow_provider_flows.services import (
    READY,
    Conversation,
    FlowDefinition,
    FlowOutput,
    FlowRun,
    FlowState,
    Inputs,
    Parameter,
    Purpose,
    Request,
    Resend,
    RunPage,
    Service,
    parse_timestamp,
    quote_path_segment,
    request_json,
)
from other_services.provider_info import FIELDS, HOSTS

ANY_TYPE = "application/octet-stream"  # that of a file is in the response to its download
STATES = {
    "starting": FlowState.STARTING,
    "processing": FlowState.RUNNING,
    "succeeded": FlowState.COMPLETED,
    "failed": FlowState.FAILED,
    "canceled": FlowState.ABORTED,
}


class Predictions(Service):
    """The predictions API."""

    name: ClassVar[str] = "predictions"
    accepts_file_variables: ClassVar[bool] = True
    picture_hosts: ClassVar[tuple[str, ...]] = ("*.predictions-delivery.example",)

    def auth_headers(self, token: str) -> dict[str, str]:
        """Return the header with the API token."""
        return {"Authorization": f"Bearer {token}"}

    def check_credentials(self) -> Conversation[str]:
        """Send GET /v1/account."""
        return request_json(Request("GET", "/v1/account"), lambda value: f"Welcome, {value['username']}.")

    def start(
        self,
        flow: str,
        inputs: Inputs,
        parameters: Any,  # noqa: ARG002  # a model has none
        additional: Any,  # noqa: ARG002  # a prediction has none
        *,
        before_start: Callable[[], None] = lambda: None,
        expected_outputs: Collection[str] | None = None,  # noqa: ARG002  # the outputs follow later
    ) -> Conversation[FlowRun]:
        """Send POST /v1/models/{owner}/{name}/predictions.

        Its key makes the service return the prediction that it has, if the request arrives for a second time.
        """
        request = Request(
            "POST",
            f"{_model_path(flow)}/predictions",
            json={"input": dict(inputs) if isinstance(inputs, Mapping) else {}},
            headers={"Idempotency-Key": uuid4().hex},
            resend=Resend.ALWAYS,
            purpose=Purpose.TRANSFER,
        )
        before_start()
        return (yield from request_json(request, parse_prediction))

    def get_run(self, flow_run_id: str) -> Conversation[FlowRun]:
        """Send GET /v1/predictions/{id}."""
        return request_json(Request("GET", _path(flow_run_id)), parse_prediction)

    def abort(self, flow_run_id: str) -> Conversation[None]:
        """Send POST /v1/predictions/{id}/cancel."""
        return request_json(Request("POST", f"{_path(flow_run_id)}/cancel"), lambda _: None)

    def list_page(self, state: FlowState | None, page: str | None) -> Conversation[RunPage]:  # noqa: ARG002  # lists have all states
        """Send GET /v1/predictions, or what the page before refers to."""
        return request_json(
            Request("GET", page or "/v1/predictions"),
            lambda value: RunPage([parse_prediction(row) for row in value["results"]], value["next"]),
        )

    def get_definition(self, flow: str) -> Conversation[FlowDefinition]:
        """Send GET /v1/models/{owner}/{name}."""
        return request_json(Request("GET", _model_path(flow)), lambda value: _parse_model(flow, value))


class PredictionsHook(FlowsHook):
    """The predictions API: connection type `predictions`, password = API token."""

    conn_type = "predictions"
    hook_name = "Predictions"
    default_host = HOSTS["predictions"]
    fields = FIELDS

    def create_service(self, extra: Mapping[str, Any]) -> Service:  # noqa: ARG002  # it has no settings
        """Create the service."""
        return Predictions()


def _path(flow_run_id: str) -> str:
    return f"/v1/predictions/{quote_path_segment('flow_run_id', flow_run_id)}"


def _model_path(flow: str) -> str:
    return "/v1/models/" + "/".join(quote_path_segment("flow", part) for part in flow.split("/"))


def parse_prediction(value: Any) -> FlowRun:
    """Parse a prediction, with its outputs once it has succeeded."""
    links = value["output"] or []
    outputs = tuple(
        FlowOutput(
            f"output_{number}",
            status=READY,
            media_type="application/octet-stream",
            value=str(link),
            is_url=True,
        )
        for number, link in enumerate([links] if isinstance(links, str) else links)
    )
    return FlowRun(
        flow_run_id=str(value["id"]),
        service=Predictions.name,
        flow=str(value["model"]),
        state=STATES.get(value["status"], FlowState.UNKNOWN),
        raw_state=str(value["status"]),
        created_at=parse_timestamp(value["created_at"]),
        started_at=parse_timestamp(value["started_at"]),
        finished_at=parse_timestamp(value["completed_at"]),
        error=None if value["error"] is None else str(value["error"]),
        outputs=outputs,
        raw=value,
    )


def _parse_model(flow: str, value: Any) -> FlowDefinition:
    schema = value["input_schema"]
    variables = {
        name: Parameter(
            name,
            (row["type"],),
            default=row.get("default"),
            values=tuple(row.get("enum", ())),
            minimum=row.get("minimum"),
            maximum=row.get("maximum"),
            required=name in schema["required"],
        )
        for name, row in schema["properties"].items()
    }
    return FlowDefinition(flow, Predictions.name, variables=variables, is_complete=True, raw=value)
