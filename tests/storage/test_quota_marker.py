"""Tests of an account whose quota is used up: how it is recognized, and what later starts do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.models.taskinstance import TaskInstance
from airflow.sdk import DAG
from airflow.utils.session import create_session
from sqlalchemy import select

from airflow_provider_flows.core.exceptions import (
    FlowAuthError,
    FlowInvalid,
    FlowQuotaExceeded,
    FlowRateLimited,
    FlowServiceError,
)
from airflow_provider_flows.core.http import Request
from airflow_provider_flows.core.responses import parse_json
from airflow_provider_flows.core.retry import Retry, with_retries
from airflow_provider_flows.core.start_or_resume import RunRecord
from airflow_provider_flows.emulator import Emulator, Fault
from airflow_provider_flows.hooks import FlowsHook, GenerioHook, PromptChainerHook
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.storage import quota_marker
from tests.support.airflow_run import run_dag
from tests.support.drivers import Driver, settings_for, single_request
from tests.support.modes import FLOW
from tests.support.scripted_transport import json_response
from tests.support.servers import StubResponse, StubServer
from tests.support.tries import CHAIN_ARGUMENTS
from tests.support.versions import needs

pytestmark = pytest.mark.emulator(run_seconds=0)

POST = Request("POST", "/flows", json={})

TEXTS: list[tuple[int, Any, type[FlowServiceError]]] = [
    (402, None, FlowQuotaExceeded),
    (402, {"detail": "Not accepted"}, FlowQuotaExceeded),
    *(
        (status, body, FlowQuotaExceeded)
        for status in (403, 429)
        for body in (
            {"detail": "Generation quota used up"},
            {"message": "Not enough credits"},
            {"error": {"code": "insufficient_quota", "message": "You exceeded it"}},
            {"detail": [{"msg": "No credit left", "loc": ["body"]}]},
            {"message": "Forbidden", "code": "QUOTA_EXCEEDED"},
            {"error": "Insufficient balance"},
            {"error": "insufficient_funds"},
            {"error": "Check your plan and billing details"},
            {"title": "Payment Required"},
            {"error": "Spending limit reached"},
            b"Your daily quota is exhausted.",
            b"You are out of credits",
            {"code": "QuotaExceeded"},
            {"error": {"reason": "insufficientCredits"}},
            {"detail": "Daily quota exceeded: 100 requests per day"},
        )
    ),
    (403, {"detail": "Invalid credentials"}, FlowAuthError),
    (403, {"detail": "This client is not accredited"}, FlowAuthError),
    (403, {"detail": "The key lacks the permission credits:read"}, FlowAuthError),
    (403, {"detail": "Forbidden", "credits": 120, "quota": None}, FlowAuthError),
    (403, b"<html><body>Photo credits: nobody. Access denied.</body></html>", FlowServiceError),
    (429, {"detail": "Too many requests"}, FlowRateLimited),
    (429, {"detail": "Quota of 60 requests per minute exceeded"}, FlowRateLimited),
    (429, {"detail": "quota exceeded: 10 / second"}, FlowRateLimited),
    (429, {"code": "QuotaOfRequestsPerMinute"}, FlowRateLimited),
    (429, {"code": "quota_requests-per-minute"}, FlowRateLimited),
    (429, b"", FlowRateLimited),
    (400, {"detail": "unknown variable: credits"}, FlowInvalid),
    (422, {"detail": [{"msg": "credits must be a number", "loc": ["body", "credits"]}]}, FlowInvalid),
    (401, {"detail": "quota"}, FlowAuthError),
    (500, {"detail": "quota service is down"}, FlowServiceError),
    (503, {"detail": "quota service is down"}, FlowServiceError),
    (200, {"success": False, "detail": "Quota exceeded"}, FlowQuotaExceeded),
    (200, {"success": False, "message": "Not enough credits"}, FlowQuotaExceeded),
    (200, {"success": False, "message": "credits must be a number"}, FlowServiceError),
    (200, {"success": False, "message": "The prompt has not enough words"}, FlowServiceError),
]


@pytest.mark.parametrize(("status", "body", "kind"), TEXTS, ids=str)
def test_quota_error_is_detected_by_status_and_text(
    status: int, body: Any, kind: type[FlowServiceError]
) -> None:
    """A 402 is about the quota, and so is a 403 or 429 that says so; a text elsewhere may say anything."""
    content = b"" if body is None else body
    with pytest.raises(FlowServiceError) as caught:
        parse_json(POST, json_response(content, status))
    assert type(caught.value) is kind
    if kind is FlowQuotaExceeded:
        assert not caught.value.is_transient
        assert not caught.value.outcome_unknown


@pytest.mark.parametrize("status", [402, 403, 429])
def test_quota_is_not_retried(driver: Driver, status: int) -> None:
    """A request that exceeds the quota is sent once, also one with 429."""
    rejection = StubResponse(status, body=b'{"detail": "Out of credits"}')
    with StubServer(lambda _: rejection) as server:
        response = driver(settings_for(server.url), with_retries(single_request(POST), Retry(attempts=3)))
    assert response.status == status
    assert len(server.requests) == 1


STARTS: dict[str, Callable[[FlowsHook], object]] = {
    "start": lambda hook: hook.start(FLOW, "a chair", {"quality": "low"}),
    "start_from_request": lambda hook: hook.start_from_request(
        hook.build_request(FLOW, "a chair", {"quality": "low"}, None)
    ),
    "create": lambda hook: hook.create(FLOW),
    "add_input": lambda hook: hook.add_input("0" * 24, "a chair"),
    "start_created_run": lambda hook: hook.start_created_run("0" * 24),
}


def use_up(emulator: Emulator, quota: int = 402) -> None:
    """Let a start use up the quota, and the account have credit again afterwards."""
    emulator.switches.update({"quota": quota})
    with pytest.raises(FlowQuotaExceeded):
        STARTS["start"](GenerioHook("generio_default"))
    emulator.switches.update({"quota": "plenty"})


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("quota", [402, 403, 429])
def test_later_start_sends_nothing(emulator: Emulator, start: str, quota: int) -> None:
    """After a rejection nothing is created, filled or started; the error says how long, and what lifts it."""
    use_up(emulator, quota)
    sent = len(emulator.requests)
    with pytest.raises(FlowQuotaExceeded, match=r"nothing was sent.*UTC.*another API key.*deleted") as caught:
        STARTS[start](GenerioHook("generio_default"))
    assert "Generation quota used up" in str(caught.value)
    assert len(emulator.requests) == sent
    assert not caught.value.outcome_unknown
    (file,) = quota_marker.FOLDER.iterdir()
    assert str(file) in str(caught.value)
    file.unlink()
    STARTS["start"](GenerioHook("generio_default"))


def test_start_that_succeeds_deletes_the_marker(emulator: Emulator) -> None:
    """A start that was in progress when another was rejected shows that there is credit again, for all."""
    hook = GenerioHook("generio_default")
    marker = quota_marker.QuotaMarker("generio", hook.settings.base_url, hook.settings.secrets)
    emulator.set_request_listener(
        lambda request: marker.set(FlowQuotaExceeded("No credit")) if request.method == "POST" else None
    )
    STARTS["start"](hook)
    assert len(emulator.paid_runs) == 1
    assert [*quota_marker.FOLDER.iterdir()] == []


def test_other_requests_are_sent(emulator: Emulator) -> None:
    """Existing runs are polled, listed, aborted and deleted as before."""
    hook = GenerioHook("generio_default")
    run = hook.start(FLOW, "a chair", {"quality": "low"})
    use_up(emulator)
    assert hook.get_run(run.flow_run_id).is_final
    assert hook.list_runs()
    assert hook.list_outputs(run.flow_run_id)
    hook.delete(run.flow_run_id)


def test_rejected_poll_does_not_prevent_a_start(emulator: Emulator) -> None:
    """A start whose poll was rejected fails, but the next start is sent."""
    hook = GenerioHook("generio_default")
    request = hook.build_request(FLOW, "a chair", {"quality": "low"}, None)
    emulator.add_fault(Fault("PATCH", "*", reset="before"))
    emulator.add_fault(Fault("GET", "/flows/*", status=402))
    record = RunRecord(request.fingerprint, generation=0)
    with pytest.raises(FlowQuotaExceeded):
        hook.start_from_request(request, record=record, save=lambda _: None)
    STARTS["start"](hook)
    assert len(emulator.paid_runs) == 1


def test_other_key_and_other_service_start(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The marker is of one key at one host: another service, or another key, is not affected."""
    use_up(emulator)
    PromptChainerHook("promptchainer_default").start(CHAIN_ARGUMENTS["flow"], CHAIN_ARGUMENTS["inputs"])
    connection = json.loads(emulator.connections["AIRFLOW_CONN_GENERIO_DEFAULT"])
    monkeypatch.setenv("AIRFLOW_CONN_GENERIO_DEFAULT", json.dumps({**connection, "password": "another"}))
    with pytest.raises(FlowAuthError):  # the service was asked
        STARTS["create"](GenerioHook("generio_default"))


def set_age(file: Path, seconds: float) -> None:
    """Let a marker be this old."""
    data = json.loads(file.read_text())
    file.write_text(json.dumps({**data, "set_at": time.time() - seconds}))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: set_age(file, 301),
        lambda file: set_age(file, -3600),
        lambda file: file.write_text("{"),
        lambda file: file.write_text('{"set_at": null, "message": ""}'),
        lambda file: file.write_text("[]"),
        lambda file: os.utime(file, (1, 1)),
        lambda file: file.parent.chmod(0o777),
    ],
    ids=["expired", "from the future", "cut", "no time", "a list", "old file", "a folder that all can write"],
)
def test_marker_that_is_not_valid_is_ignored(emulator: Emulator, spoil: Callable[[Path], object]) -> None:
    """An expired or damaged marker, or one that another user may have written, prevents no start."""
    use_up(emulator)
    (file,) = quota_marker.FOLDER.iterdir()
    spoil(file)
    STARTS["start"](GenerioHook("generio_default"))


def test_marker_reveals_no_key(emulator: Emulator) -> None:
    """Neither name nor content of the file contains the key, and only its user can read it."""
    use_up(emulator)
    (file,) = quota_marker.FOLDER.iterdir()
    assert emulator.key not in file.name + file.read_text()
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_marker_is_in_memory_if_no_file_can_be_written(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without a folder of its own, the process remembers the rejection for itself."""
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(quota_marker, "FOLDER", tmp_path / "file")
    use_up(emulator)
    with pytest.raises(FlowQuotaExceeded, match="nothing was sent"):
        STARTS["start"](GenerioHook("generio_default"))
    monkeypatch.setattr(quota_marker, "MARKER_SECONDS", 0)
    STARTS["start"](GenerioHook("generio_default"))


SIBLING = """
import sys
from airflow_provider_flows.core.exceptions import FlowQuotaExceeded
from airflow_provider_flows.hooks import FlowsHook
flow, inputs, conn_id = eval(sys.argv[1])
try:
    FlowsHook.get_hook(conn_id).start(flow, inputs, validate=False)
except FlowQuotaExceeded as error:
    print("quota", error)
"""


@pytest.mark.parametrize(
    ("arguments", "paths"),
    [
        ((FLOW, "a chair", "generio_default"), ["/flows"]),
        ((CHAIN_ARGUMENTS["flow"], CHAIN_ARGUMENTS["inputs"], "promptchainer_default"), None),
    ],
    ids=["generio", "promptchainer"],
)
def test_processes_of_one_host_send_one_start(
    emulator: Emulator, tmp_path: Path, arguments: tuple[Any, ...], paths: list[str] | None
) -> None:
    """Of five processes with the same connection one sends a start; the others fail before they send one."""
    emulator.switches.update({"quota": 402})
    environment = {**os.environ, **emulator.connections, "TMPDIR": str(tmp_path)}
    for number in range(5):
        done = subprocess.run(
            [sys.executable, "-c", SIBLING, repr(arguments)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        assert "quota" in done.stdout
        assert ("nothing was sent" in done.stdout) == (number > 0)
    sent = [request.path for request in emulator.requests if request.method != "GET"]
    assert len(sent) == 1
    assert paths is None or sent == paths


@needs("retry policies")
def test_mapped_siblings_send_one_start(emulator: Emulator) -> None:
    """Of five mapped tasks the first creates a run, fills and deletes it; the others send no such request.

    None of them has a second try.
    """
    emulator.switches.update({"quota": 402})
    with DAG("quota_mapped", schedule=None) as dag:
        RunFlowOperator.partial(
            task_id="run", flow=FLOW, retries=2, retry_delay=timedelta(0), validate=False
        ).expand(inputs=[f"chair {number}" for number in range(5)])
    result = run_dag(dag)
    assert {type(error) for error in result.errors.values()} == {FlowQuotaExceeded}
    sent = [request.method for request in emulator.requests if request.method != "GET"]
    assert sent == ["POST", "POST", "PATCH", "DELETE"]
    assert len(emulator.runs) == 0
    with create_session() as session:
        tries = session.scalars(select(TaskInstance.try_number).where(TaskInstance.run_id == result.run_id))
        assert [*tries] == [1] * 5
