"""Tests of the errors that users get: the right type, one request, and a message with what to do.

All requests go over a socket to the emulator.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

import airflow_provider_flows
from airflow_provider_flows.core import exceptions
from airflow_provider_flows.core.exceptions import (
    FlowAuthError,
    FlowError,
    FlowInputError,
    FlowInvalid,
    FlowMalformed,
    FlowNotFound,
    FlowQuotaExceeded,
    FlowRunAborted,
    FlowRunFailed,
    FlowServiceError,
    FlowUnreachable,
    error_from_dict,
)
from airflow_provider_flows.core.flow_run import FlowRun, FlowState, failure_error
from airflow_provider_flows.emulator import Emulator, Fault, Plan
from airflow_provider_flows.hooks import GenerioHook, PromptChainerHook
from tests.support.drivers import TOKEN

SAMPLE = "clibnwpno000bmc0k9hvv3y7f"
NO_ID = "0" * 24
GENERIO_CALLS: dict[str, Callable[[GenerioHook], Any]] = {
    "start": lambda hook: hook.start("model_generate_fromprompt", "a chair", validate=False),
    "get_run": lambda hook: hook.get_run(NO_ID),
    "list_runs": lambda hook: hook.list_runs(),
    "abort": lambda hook: hook.abort(NO_ID),
    "delete": lambda hook: hook.delete(NO_ID),
    "add_input": lambda hook: hook.add_input(NO_ID, "a chair"),
    "list_inputs": lambda hook: hook.list_inputs(NO_ID),
    "list_outputs": lambda hook: hook.list_outputs(NO_ID),
    "download_output": lambda hook: hook.download_output(NO_ID, NO_ID),
    "list_definitions": lambda hook: hook.list_definitions(),
    "wait": lambda hook: hook.wait(NO_ID, 0.1, 0.2),
}

pytestmark = pytest.mark.emulator(run_seconds=0, retries=1)


@pytest.mark.parametrize("name", GENERIO_CALLS)
@pytest.mark.parametrize("code", [401, 403])
def test_a_wrong_token_ends_a_wait(
    flow_emulator: Emulator, hook: GenerioHook, capfd: pytest.CaptureFixture[str], name: str, code: int
) -> None:
    """A wrong token is FlowAuthError after one request (a wait: three), without the token in it."""
    flow_emulator.switches.update({"auth_failure": code})
    hook.connection.password = TOKEN
    with pytest.raises(FlowAuthError, match="password") as caught:
        GENERIO_CALLS[name](hook)
    assert len(flow_emulator.requests) == (3 if name == "wait" else 1)
    assert TOKEN not in f"{caught.value!r} {caught.getrepr()} {capfd.readouterr()}"
    assert caught.value.status == code


def test_a_wrong_key_ends_a_chain(flow_emulator: Emulator) -> None:
    """PromptChainer rejects a wrong key at the request that would run the flow: nothing runs."""
    hook = PromptChainerHook("promptchainer_default")
    hook.connection.password = TOKEN
    with pytest.raises(FlowAuthError) as caught:
        hook.start(SAMPLE, {"color": "Red", "item": "Ball"})
    assert ([request.method for request in flow_emulator.requests], flow_emulator.started_count) == (
        ["GET", "POST"],
        0,
    )
    assert TOKEN not in str(caught.value)


def test_a_token_in_a_response_is_redacted(flow_emulator: Emulator, hook: GenerioHook) -> None:
    """An error omits the key, even if the service's response repeats it."""
    hook.connection.password = TOKEN
    flow_emulator.add_fault(Fault(status=401, body=f'{{"detail": "bad key {TOKEN}"}}'.encode()))
    with pytest.raises(FlowAuthError, match=r"bad key \*\*\*"):
        hook.list_runs()


@pytest.mark.parametrize(
    "name",
    [name for name in GENERIO_CALLS if name not in {"start", "list_runs", "list_definitions", "abort"}],
)
def test_unknown_run_is_named(hook: GenerioHook, name: str) -> None:
    """An id that the service does not know is FlowNotFound, with the id and what to check."""
    with pytest.raises(FlowNotFound, match=f"{NO_ID}.*check it"):
        GENERIO_CALLS[name](hook)


def test_abort_of_an_unknown_run_does_nothing(hook: GenerioHook) -> None:
    """A run that does not exist, for example because a user deleted it, needs no abort."""
    assert hook.abort(NO_ID) is False


def test_unknown_flow_is_not_found(flow_emulator: Emulator, hook: GenerioHook) -> None:
    """An unknown flow is FlowNotFound with both services, and nothing is billed."""
    with pytest.raises(FlowNotFound, match="Template not found"):
        hook.start("model_generate_fromdream", "a chair", validate=False)
    with pytest.raises(FlowNotFound, match="run/cunknown"):
        PromptChainerHook("promptchainer_default").start("cunknown", {"a": "b"})
    assert flow_emulator.started_count == 0


def test_invalid_parameters_have_the_services_reason(hook: GenerioHook) -> None:
    """FastAPI's list of validation errors becomes text: each location with its problem."""
    with pytest.raises(FlowInvalid) as caught:
        hook.start("model_generate_fromprompt", "a chair", {"quality": "best", "seed": "x"}, validate=False)
    assert "body.parameters.quality: Input should be 'low' or 'high'" in str(caught.value)
    assert "body.parameters.seed: Input should be a valid integer" in str(caught.value)


@pytest.mark.parametrize("shape", ["string", "list", "object"])
def test_every_form_of_detail_is_parsed(flow_emulator: Emulator, hook: GenerioHook, shape: str) -> None:
    """`detail` may be a text, a list or an object: the error contains its text."""
    flow_emulator.switches.update({"error_detail": shape})
    with pytest.raises(FlowNotFound, match="Flow not found"):
        hook.get_run(NO_ID)


@pytest.mark.parametrize("way", ["error", "message", "text"])
def test_every_form_of_a_chains_error_is_parsed(flow_emulator: Emulator, way: str) -> None:
    """PromptChainer's errors may be `error`, `message` or plain text: the error contains it."""
    flow_emulator.switches.update({"chain_errors": way})
    with pytest.raises(FlowNotFound, match="Flow not found"):
        PromptChainerHook("promptchainer_default").get_definition("cunknown")


@pytest.mark.parametrize(
    "body",
    [b"<html>It works!</html>", b'{"flow_id": "r", "sta', b"", b"[]", b"null", b'"x"', b"{}", b"[" * 100_000],
)
def test_an_unreadable_response_is_malformed(flow_emulator: Emulator, hook: GenerioHook, body: bytes) -> None:
    """HTML, truncated JSON, an empty body and JSON of another type are FlowMalformed, with their start."""
    flow_emulator.add_fault(Fault(body=body, status=200))
    with pytest.raises(
        FlowMalformed, match=rf"GET /flows/{NO_ID} .*HTTP 200, {len(body)} bytes.*It starts with: "
    ):
        hook.get_run(NO_ID)


def test_html_of_a_gateway_is_a_service_error(flow_emulator: Emulator, hook: GenerioHook) -> None:
    """An HTML page with an error status is reported with that status and its text."""
    flow_emulator.add_fault(Fault(status=502, body=b"<html><title>Bad Gateway</title></html>", times=None))
    hook.connection.extra = '{"retries": 0}'
    with pytest.raises(FlowServiceError, match=r"HTTP 502.*Bad Gateway.*try again later") as caught:
        hook.list_runs()
    assert caught.value.is_transient


def test_a_truncated_response_is_retried_and_then_unreachable(
    flow_emulator: Emulator, hook: GenerioHook
) -> None:
    """An incomplete response is requested again, and is FlowUnreachable if it stays incomplete."""
    flow_emulator.add_fault(Fault(truncate=4, times=None))
    with pytest.raises(FlowUnreachable):
        hook.list_runs()
    assert len(flow_emulator.requests) == 2


def test_a_wait_continues_through_an_unknown_state(
    flow_emulator: Emulator, hook: GenerioHook, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wait continues through an unknown state, and logs it once."""
    flow_emulator.add_plan(Plan(run_seconds=0.6, unknown_state="polishing"))
    run = hook.start("model_generate_fromprompt", "a chair")
    assert hook.wait(run.flow_run_id, poll_interval=0.05, timeout=10).state is FlowState.COMPLETED
    assert capsys.readouterr().out.count("'polishing', which this provider does not know") == 1


@pytest.mark.parametrize(("outcome", "kind"), [("failed", FlowRunFailed), ("aborted", FlowRunAborted)])
def test_the_error_of_an_unsuccessful_run_has_the_run(
    flow_emulator: Emulator, hook: GenerioHook, outcome: str, kind: type[FlowRunFailed]
) -> None:
    """A failed or aborted run is an error with the run, the service's reason and what to do."""
    flow_emulator.add_plan(Plan(outcome, "out of clay" if outcome == "failed" else None))
    run = hook.wait(hook.start("model_generate_fromprompt", "a chair").flow_run_id)
    error = failure_error(run)
    assert (type(error), error.run) == (kind, run)
    assert re.search(f"{run.flow_run_id}.*un the task again", str(error))
    assert ("out of clay" in str(error)) == (outcome == "failed")


def test_package_exports_every_error() -> None:
    """Every type of error can be imported from the package itself, which loads it on first use."""
    errors = {
        name
        for name, kind in vars(exceptions).items()
        if isinstance(kind, type) and issubclass(kind, FlowError)
    }
    others = {"FlowRun", "FlowState", "__version__", "read_manifest"}
    assert errors == {*airflow_provider_flows.__all__} - others
    for name in errors:
        assert getattr(airflow_provider_flows, name) is getattr(exceptions, name)
    with pytest.raises(AttributeError, match="no attribute 'FlowNothing'"):
        airflow_provider_flows.FlowNothing  # noqa: B018  # the access raises


def test_errors_are_restored_from_a_trigger_event() -> None:
    """Every type of error is restored from its dict with the same type, message and status."""
    kinds = [
        kind for kind in vars(exceptions).values() if isinstance(kind, type) and issubclass(kind, FlowError)
    ]
    assert len(kinds) == 15
    for kind in kinds:
        error = (
            kind("what happened", status=418) if issubclass(kind, FlowServiceError) else kind("what happened")
        )
        restored = error_from_dict(error.to_dict())
        assert (type(restored), str(restored), getattr(restored, "status", None)) == (
            kind,
            str(error),
            getattr(error, "status", None),
        )
    for is_permanent in (True, False):
        quota = error_from_dict(FlowQuotaExceeded("empty", status=402, is_permanent=is_permanent).to_dict())
        assert isinstance(quota, FlowQuotaExceeded)
        assert quota.is_permanent is is_permanent
    assert type(error_from_dict({"type": "Mapping", "message": "x"})) is FlowError


@pytest.mark.parametrize("flow_run_id", ["", ".", "..", "\ud800"])
def test_an_id_that_changes_the_path_is_rejected(
    flow_emulator: Emulator, hook: GenerioHook, flow_run_id: str
) -> None:
    """An invalid id is rejected before anything is sent; one with slashes is quoted."""
    with pytest.raises(FlowInputError, match="flow_run_id must be"):
        hook.get_run(flow_run_id)
    assert flow_emulator.requests == ()
    with pytest.raises(FlowServiceError):
        hook.get_run("../templates")


def test_repr_of_a_run_omits_the_response() -> None:
    """The repr of a run does not contain the complete response."""
    assert "secret" not in repr(FlowRun("r", "generio", raw={"additional": "secret"}))
