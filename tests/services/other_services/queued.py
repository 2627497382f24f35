"""A queue API: a POST queues a request; its status and its result have other paths, and a PUT cancels it.

A flow is an application such as `acme/upscale`, and a run's id is the application's name with the request's
id, because all paths need both: `acme/upscale/7f3a`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

from airflow_provider_flows.exceptions import FlowInvalid
from airflow_provider_flows.hooks import FlowsHook
from airflow_provider_flows.services import (
    READY,
    Conversation,
    FlowOutput,
    FlowRun,
    FlowState,
    Inputs,
    Purpose,
    Request,
    Resend,
    Service,
    quote_path_segment,
    request_json,
)
from other_services.provider_info import FIELDS, HOSTS

STATES = {
    "IN_QUEUE": FlowState.STARTING,
    "IN_PROGRESS": FlowState.RUNNING,
    "COMPLETED": FlowState.COMPLETED,
    "CANCELED": FlowState.ABORTED,
}


class Queue(Service):
    """The queue API."""

    name: ClassVar[str] = "queue"
    accepts_file_variables: ClassVar[bool] = True

    def auth_headers(self, token: str) -> dict[str, str]:
        """Return the header with the API key."""
        return {"Authorization": f"Key {token}"}

    def check_credentials(self) -> Conversation[str]:
        """Send GET /health."""
        return request_json(Request("GET", "/health"), lambda _: "The queue accepted the API key.")

    def start(
        self,
        flow: str,
        inputs: Inputs,
        parameters: Any,
        additional: Any,  # noqa: ARG002  # a request has none
        *,
        before_start: Callable[[], None] = lambda: None,
        expected_outputs: Collection[str] | None = None,  # noqa: ARG002  # the outputs follow later
    ) -> Conversation[FlowRun]:
        """Send POST /{application}. A second one would be a second request, so it is not sent again."""
        variables = dict(inputs) if isinstance(inputs, Mapping) else {"prompts": [one.data for one in inputs]}
        request = Request(
            "POST",
            f"/{_quote_all(flow)}",
            json={**variables, **(parameters or {})},
            resend=Resend.IF_NEVER_ARRIVED,
            purpose=Purpose.TRANSFER,
        )
        before_start()
        return (
            yield from request_json(
                request, lambda value: _parse_status(f"{flow}/{value['request_id']}", value)
            )
        )

    def get_run(self, flow_run_id: str) -> Conversation[FlowRun]:
        """Send GET .../status, and once that is completed, GET the result, which may be an error."""
        path = _path(flow_run_id)
        run = yield from request_json(
            Request("GET", f"{path}/status"), lambda value: _parse_status(flow_run_id, value)
        )
        if not run.is_completed:
            return run
        try:
            files = yield from request_json(Request("GET", path), lambda value: list(value["files"]))
        except FlowInvalid as error:
            return FlowRun(
                run.flow_run_id, run.service, run.flow, FlowState.FAILED, "FAILED", error=str(error)
            )
        return run.with_outputs(tuple(map(_parse_file, files)))

    def abort(self, flow_run_id: str) -> Conversation[None]:
        """Send PUT .../cancel."""
        return request_json(Request("PUT", f"{_path(flow_run_id)}/cancel"), lambda _: None)


class QueueHook(FlowsHook):
    """The queue API: connection type `queue`, password = API key."""

    conn_type = "queue"
    hook_name = "Queue"
    default_host = HOSTS["queue"]
    fields = FIELDS

    def create_service(self, extra: Mapping[str, Any]) -> Service:  # noqa: ARG002  # it has no settings
        """Create the service."""
        return Queue()


def _path(flow_run_id: str) -> str:
    flow, _, request_id = flow_run_id.rpartition("/")
    return f"/{_quote_all(flow)}/requests/{quote_path_segment('flow_run_id', request_id)}"


def _quote_all(flow: str) -> str:
    return "/".join(quote_path_segment("flow", part) for part in flow.split("/"))


def _parse_status(flow_run_id: str, value: Any) -> FlowRun:
    status, position = str(value["status"]), value.get("queue_position")
    return FlowRun(
        flow_run_id=flow_run_id,
        service=Queue.name,
        flow=flow_run_id.rpartition("/")[0],
        state=STATES.get(status, FlowState.UNKNOWN),
        raw_state=status if position is None else f"{status}, position {position}",
        raw=value,
    )


def _parse_file(value: Any) -> FlowOutput:
    return FlowOutput(
        str(value["file_name"]),
        status=READY,
        media_type=str(value["content_type"]),
        value=str(value["url"]),
        is_url=True,
    )
