"""Tests of what all hooks share: the choice of the hook by its connection, the Test button, and errors."""

from __future__ import annotations

import pytest

from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.hooks import FlowsHook, GenerioHook, PromptChainerHook


@pytest.mark.parametrize("kind", [FlowsHook, GenerioHook, PromptChainerHook])
def test_the_connection_type_selects_the_hook(flow_emulator: Emulator, kind: type[FlowsHook]) -> None:
    """`FlowsHook.get_hook` returns the hook of the connection's type, through Airflow's registry."""
    assert flow_emulator.url
    assert type(FlowsHook.get_hook("flows_default")) is GenerioHook
    assert type(FlowsHook.get_hook("promptchainer_default")) is PromptChainerHook
    assert kind.conn_name_attr == "flows_conn_id"


def test_connection_of_another_type_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that runs no flows is an error that names its type and the right ones."""
    monkeypatch.setenv("AIRFLOW_CONN_FILES", '{"conn_type": "fs"}')
    with pytest.raises(FlowInputError, match=r"'fs', which is not a flow service.*generio or promptchainer"):
        FlowsHook.get_hook("files")


def test_test_button_distinguishes_a_wrong_key_from_a_wrong_host(flow_emulator: Emulator) -> None:
    """The Test button distinguishes an accepted key, a rejected key and no response, and never raises."""
    for kind in (GenerioHook, PromptChainerHook):
        hook = kind(f"{kind.conn_type}_default")
        assert hook.test_connection()[0], hook.test_connection()
        hook.connection.password = "wrong"
        is_ok, message = hook.test_connection()
        assert not is_ok
        assert "password" in message
        hook.connection.host = "http://127.0.0.1:9"
        is_ok, message = hook.test_connection()
        assert not is_ok
        assert "got no response" in message
    assert flow_emulator.requests


@pytest.mark.parametrize("absent", [404, 405])
def test_test_button_works_without_a_list_of_runs(flow_emulator: Emulator, absent: int) -> None:
    """Without a list of runs, the Test button uses Generio's templates."""
    flow_emulator.switches.update({"list_endpoint": absent})
    assert GenerioHook("generio_default").test_connection()[0]


@pytest.mark.usefixtures("flow_emulator")
def test_an_unsupported_operation_is_named() -> None:
    """What a service does not support is an error that states it, not an AttributeError."""
    hook = PromptChainerHook("promptchainer_default")
    for call in (hook.get_run, hook.abort, hook.delete, hook.list_outputs):
        with pytest.raises(FlowInputError, match="The service promptchainer cannot "):
            call("r")


@pytest.mark.usefixtures("flow_emulator")
def test_the_base_hook_names_the_right_hook() -> None:
    """The base hook has no service; its error says how to get the right hook."""
    with pytest.raises(FlowInputError, match="get_hook"):
        FlowsHook("generio_default").list_runs()
