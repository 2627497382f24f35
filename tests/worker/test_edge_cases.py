"""Tests of edge cases that once lost money or outputs.

Killed processes are tested in tests/system/chaos.
"""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_provider_flows.core.exceptions import FlowMalformed, FlowServiceError, FlowTimeout
from airflow_provider_flows.core.flow_run import FlowOutput, FlowState
from airflow_provider_flows.core.start_or_resume import RunRecord, RunRequest
from airflow_provider_flows.emulator import Emulator, Fault
from airflow_provider_flows.hooks import FlowsHook, GenerioHook, PromptChainerHook
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.storage.output_options import OutputOptions
from tests.support.airflow_run import THREAD_TIMEOUT, run_dag
from tests.support.downloads import fetch_or_raise
from tests.support.modes import FLOW
from tests.support.servers import StubResponse, StubServer

LOW = {"quality": "low"}


def stub_hook(
    stub: StubServer, monkeypatch: pytest.MonkeyPatch, kind: str = "generio", key: str = "a-key"
) -> FlowsHook:
    """Return the hook of a connection to a stub server."""
    told = {"conn_type": kind, "host": stub.url, "password": key, "extra": json.dumps({"retries": 0})}
    monkeypatch.setenv("AIRFLOW_CONN_STUB", json.dumps(told))
    return FlowsHook.get_hook("stub")


@pytest.mark.parametrize("run_seconds", [0, 60])
def test_run_that_may_have_started_is_left_to_the_next_try(
    flow_emulator: Emulator, run_seconds: float
) -> None:
    """After a lost start and a lost poll nothing is deleted; the next try resumes the one run."""
    flow_emulator.run_seconds = run_seconds
    hook = GenerioHook("generio_default")
    run_request: RunRequest = hook.build_request(FLOW, "a chair", LOW, None)
    records: list[RunRecord | None] = []
    flow_emulator.add_fault(Fault(method="PATCH", path="/flows/*", reset="after"))
    flow_emulator.add_fault(Fault(method="GET", path="/flows/*", status=404, times=1))
    with pytest.raises(FlowServiceError):
        hook.start_from_request(
            run_request, record=RunRecord(run_request.fingerprint, 0), save=records.append
        )
    assert not [sent for sent in flow_emulator.requests if sent.method == "DELETE"]
    run = hook.resume(run_request.fingerprint, records[-1], 0)
    assert run is not None
    assert run.flow_run_id in flow_emulator.runs
    assert flow_emulator.started_count == 1


def test_run_that_completed_in_the_last_moment_is_brought_home(
    flow_emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deferred task whose run completed right after its deadline succeeds, with the files."""
    monkeypatch.setenv(
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL", "1"
    )  # the event is held back for as long, and a second
    flow_emulator.run_seconds = 0.6
    with DAG("last_moment", schedule=None) as dag:
        RunFlowOperator(
            task_id="make",
            flow=FLOW,
            inputs="a chair",
            parameters=LOW,
            deferrable=True,
            poll_interval=5,
            timeout=0.3,
            output_path=tmp_path.as_uri(),
        )
    result = run_dag(dag)
    assert result.states == {"make": "success"}, result.errors
    assert result.xcoms["make"]["return_value"]["state"] == "completed"
    assert list(tmp_path.glob("*/*.glb"))


@THREAD_TIMEOUT
@pytest.mark.parametrize("deferrable", [False, True])
def test_execution_timeout_of_the_last_try_stops_the_run(
    flow_emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    *,
    deferrable: bool,
) -> None:
    """A task without a retry left aborts its run at its execution_timeout, deferred or not."""
    monkeypatch.setenv("AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL", "-1")
    flow_emulator.run_seconds = 6
    with DAG(f"execution_timeout_{deferrable}", schedule=None) as dag:
        RunFlowOperator(
            task_id="make",
            flow=FLOW,
            inputs="a chair",
            deferrable=deferrable,
            poll_interval=0.2,
            execution_timeout=timedelta(seconds=2),
        )
    result = run_dag(dag)
    assert result.states == {"make": "failed"}
    assert isinstance(result.errors["make"], FlowTimeout)
    (run,) = flow_emulator.runs.values()
    assert run.state in {"aborting", "aborted"}


class HookWithoutOutputWait(GenerioHook):
    """A hook that does not wait for pending outputs."""

    def list_ready_outputs(self, flow_run_id: str) -> list[FlowOutput]:
        """Return them as they are."""
        return self.list_outputs(flow_run_id)


@pytest.mark.parametrize("row", [{"id": "a1"}, "a1", {"asset_id": "a1", "status": "succeeded"}])
def test_output_that_nobody_calls_ready_is_fetched_all_the_same(
    row: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An output of a completed run is downloaded even if its row has no status, or an unknown one."""
    glb = b"glTF" + (2).to_bytes(4, "little") + (12).to_bytes(4, "little")
    responses = {
        "/flows/r1": {"flow_id": "r1", "state": "completed"},
        "/flows/r1/outputs": {"outputs": [row]},
    }

    def reply(received: Any) -> StubResponse:
        response = responses.get(received.path.partition("?")[0])
        return (
            StubResponse(body=glb) if response is None else StubResponse(body=json.dumps(response).encode())
        )

    with StubServer(reply) as stub:
        stub_hook(stub, monkeypatch)
        hook = HookWithoutOutputWait("stub")
        run = fetch_or_raise(hook, hook.get_run("r1"), OutputOptions(tmp_path.as_uri()))
    assert [output.status for output in run.outputs] == ["ready"]
    (file,) = tmp_path.glob("*/*.glb")
    assert file.read_bytes() == glb


def test_text_that_names_an_address_inside_is_not_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A text with an image URL on an internal host remains a text, and no request is sent there."""
    with (
        StubServer() as inside,
        StubServer(
            lambda received: StubResponse(body=chain_response(received, f"{inside.url}/admin/x.png"))
        ) as stub,
    ):
        hook = stub_hook(stub, monkeypatch, "promptchainer")
        run = fetch_or_raise(hook, hook.start("c", {}), OutputOptions(tmp_path.as_uri()))
        assert run.outputs[0].value == f"{inside.url}/admin/x.png"
        assert not inside.requests
    assert not list(tmp_path.glob("*/*"))


def test_link_to_something_else_than_a_picture_is_kept_as_text(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A linked image is stored only if its content is an image."""

    def reply(received: Any) -> StubResponse:
        return StubResponse(
            body=b"<html>"
            if received.path.startswith("/x.png")
            else chain_response(received, f"{stub.url}/x.png")
        )

    with StubServer(reply) as stub:
        hook = stub_hook(stub, monkeypatch, "promptchainer")
        assert isinstance(hook, PromptChainerHook)
        run = fetch_or_raise(hook, hook.start("c", {}), OutputOptions(tmp_path.as_uri()))
    assert run.state is FlowState.COMPLETED
    assert run.outputs[0].uri is None
    assert not list(tmp_path.glob("*/*"))


def chain_response(received: Any, output: str) -> bytes:
    """Return a response of a chain without variables, with one output."""
    item = {"name": "picture", "type": "output"}
    return json.dumps([item] if "getFlowInfo" in received.path else [{**item, "output": output}]).encode()


@pytest.mark.parametrize("status", [200, 400])
def test_key_that_an_answer_repeats_is_not_shown(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A response that repeats the API key, a success or not, does not bring it into the error."""
    page = b"<html>you sent Authorization: Bearer SECRETKEY123</html>"
    with StubServer(lambda _: StubResponse(status=status, body=page)) as stub:
        hook = stub_hook(stub, monkeypatch, key="SECRETKEY123")
        with pytest.raises(FlowServiceError) as caught:
            hook.get_run("r1")
    assert "SECRETKEY123" not in str(caught.value)
    assert "you sent" in str(caught.value)
    assert isinstance(caught.value, FlowMalformed) == (status == 200)
