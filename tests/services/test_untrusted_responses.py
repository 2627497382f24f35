"""Tests of unusual and untrusted responses, sent by a stub server over HTTP, and of the resulting files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_flows.core.exceptions import FlowMalformed, FlowServiceError
from airflow_provider_flows.core.flow_run import FlowOutput, FlowState
from airflow_provider_flows.hooks import FlowsHook, GenerioHook, PromptChainerHook
from airflow_provider_flows.storage.output_options import OutputOptions
from tests.support.downloads import fetch_or_raise
from tests.support.servers import StubResponse, StubServer

LOW = {"quality": "low"}


def stub_hook(
    stub: StubServer, monkeypatch: pytest.MonkeyPatch, kind: str = "generio", key: str = "a-key"
) -> FlowsHook:
    """Return the hook of a connection to a stub server."""
    connection = {"conn_type": kind, "host": stub.url, "password": key, "extra": json.dumps({"retries": 0})}
    monkeypatch.setenv("AIRFLOW_CONN_STUB", json.dumps(connection))
    return FlowsHook.get_hook("stub")


class HookWithoutOutputWait(GenerioHook):
    """A hook that does not wait for pending outputs."""

    def list_ready_outputs(self, flow_run_id: str) -> list[FlowOutput]:
        """Return them as they are."""
        return self.list_outputs(flow_run_id)


@pytest.mark.parametrize("row", [{"id": "a1"}, "a1", {"asset_id": "a1", "status": "succeeded"}])
def test_output_without_known_status_is_fetched(
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


def test_internal_url_in_text_is_not_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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


def test_linked_content_that_is_no_image_is_not_stored(
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
def test_key_repeated_in_response_is_masked(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A response that repeats the API key, a success or not, does not cause an error that has it."""
    page = b"<html>you sent Authorization: Bearer SECRETKEY123</html>"
    with StubServer(lambda _: StubResponse(status=status, body=page)) as stub:
        hook = stub_hook(stub, monkeypatch, key="SECRETKEY123")
        with pytest.raises(FlowServiceError) as caught:
            hook.get_run("r1")
    assert "SECRETKEY123" not in str(caught.value)
    assert ("you sent" in str(caught.value)) == (status == 200)  # of an error page only the title
    assert isinstance(caught.value, FlowMalformed) == (status == 200)
