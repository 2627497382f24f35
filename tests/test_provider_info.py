"""Tests of the provider's metadata through Airflow itself: discovery, connection forms, the Test button.

The effects of a connection's fields are tested with the hooks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module, resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from airflow.api_fastapi.core_api.datamodels.connections import ConnectionBody, ConnectionTestResponse
from airflow.api_fastapi.core_api.routes.public import connections
from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService
from airflow.models.connection import Connection
from airflow.sdk import BaseHook
from fastapi import HTTPException

from airflow_provider_flows import __version__
from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.hooks import FlowsHook, GenerioHook, PromptChainerHook
from airflow_provider_flows.provider_info import get_provider_info
from tests.support.versions import has, lacks, needs
from tools.processes import free_port

# Airflow's own web server finds a hook in a deprecated way
PORTLESS_TESTS = "tests of stored connections without a port"
airflows_own_way = pytest.mark.filterwarnings("ignore:ProvidersManager.hooks is deprecated")
HOOKS: dict[str, type[FlowsHook]] = {"generio": GenerioHook, "promptchainer": PromptChainerHook}


def airflow(*arguments: str) -> list[dict[str, Any]]:
    """Run an `airflow` command in a process of its own, and return the JSON that it prints."""
    command = [sys.executable, "-m", "airflow", *arguments, "--output", "json"]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=True)
    rows: list[dict[str, Any]] = json.loads(done.stdout[done.stdout.index("[") :])
    return rows


def test_it_is_valid_against_airflows_schema() -> None:
    """The provider's metadata is valid against the schema that Airflow itself checks it with."""
    schema = json.loads(resources.files("airflow").joinpath("provider_info.schema.json").read_text())

    jsonschema.validate(get_provider_info(), schema)


@pytest.mark.usefixtures("airflow_database")
def test_airflow_lists_the_provider() -> None:
    """`airflow providers list` shows the package with its version."""
    (row,) = [row for row in airflow("providers", "list") if row["package_name"] == "airflow-provider-flows"]

    assert row["version"] == __version__
    assert "Generio" in row["description"]
    assert "PromptChainer" in row["description"]


@pytest.mark.usefixtures("airflow_database")
def test_airflow_lists_the_hooks() -> None:
    """`airflow providers hooks` shows both connection types, and Airflow can import their hooks."""
    found = {row["connection_type"]: row for row in airflow("providers", "hooks")}

    for name, hook in HOOKS.items():
        assert found[name]["class"] == f"{hook.__module__}.{hook.__qualname__}"
        assert found[name]["conn_id_attribute_name"] == "flows_conn_id"
        assert found[name]["hook_name"] == hook.hook_name
        assert found[name]["package_name"] == "airflow-provider-flows"


@lacks("commands of providers")
@pytest.mark.usefixtures("airflow_database")
def test_airflow_without_commands_of_providers() -> None:
    """An Airflow without commands of providers reports that it has no `flows`, and still works."""
    with pytest.raises(subprocess.CalledProcessError) as caught:
        airflow("flows", "list")

    assert caught.value.returncode == 2
    assert "invalid choice: 'flows'" in caught.value.stderr
    assert any(row["package_name"] == "airflow-provider-flows" for row in airflow("providers", "list"))


@needs("connection form fields")
@pytest.mark.filterwarnings("ignore:ProvidersManager.hooks is deprecated")  # raised by Airflow 3.2 itself
@pytest.mark.parametrize("name", HOOKS)
def test_connection_form(name: str) -> None:
    """The connection form has host and key under the service's names, and every field of the hook."""
    (form,) = [meta for meta in HookMetaService.hook_meta_data() if meta.connection_type == name]
    hook = HOOKS[name]

    standard = form.standard_fields
    assert standard is not None
    assert all(
        field is not None and field.hidden for field in (standard.login, standard.url_schema, standard.port)
    )
    assert standard.host is not None
    assert (standard.host.title, standard.host.placeholder) == ("Host", hook.default_host)
    assert standard.password is not None
    assert standard.password.title == {"generio": "API token", "promptchainer": "API key"}[name]
    assert standard.password.placeholder
    shown = form.extra_fields
    assert shown is not None
    assert set(shown) == set(hook.fields)
    for key, field in hook.fields.items():
        assert shown[key]["schema"]["title"] == field.label
        assert shown[key]["value"] == field.default
        assert shown[key]["description"] == field.description


@lacks("connection form fields")
@pytest.mark.parametrize("name", HOOKS)
def test_plain_connection_form(name: str) -> None:
    """An Airflow that reads no fields from the provider info has the type, with its standard form."""
    (form,) = [meta for meta in HookMetaService.hook_meta_data() if meta.connection_type == name]

    assert form.hook_name == HOOKS[name].hook_name
    assert (form.standard_fields, form.extra_fields) == (None, None)  # None: the form shows all of its own


@pytest.mark.parametrize("name", HOOKS)
def test_every_field_of_the_form_is_parsed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An invalid value in any field of the form is an error that names the field: the hook reads it."""
    for field in (entry for entry, shown in HOOKS[name].fields.items() if shown.kind != "string"):
        extra = {field: "non sense"}
        monkeypatch.setenv(
            "AIRFLOW_CONN_FORM", json.dumps({"conn_type": name, "password": "k" * 8, "extra": extra})
        )
        is_ok, message = FlowsHook.get_hook("form").test_connection()
        assert not is_ok
        assert field in message


def test_declared_classes_exist() -> None:
    """Every module and class that the metadata names can be imported."""
    info = get_provider_info()

    for kind in ("hooks", "operators", "sensors", "triggers"):
        for entry in info[kind]:
            assert all(import_module(module) for module in entry["python-modules"])
    (commands,) = (path.rpartition(".") for path in info["cli"])
    assert [group.name for group in getattr(import_module(commands[0]), commands[2])()] == ["flows"]
    for entry in info["connection-types"]:
        module, _, name = entry["hook-class-name"].rpartition(".")
        hook = getattr(import_module(module), name)
        assert issubclass(hook, BaseHook)
        assert (hook.conn_type, hook.hook_name) == (entry["connection-type"], entry["hook-name"])
    for path in [*info["extra-links"], *(entry["class-name"] for entry in info["task-decorators"])]:
        module, _, name = path.rpartition(".")
        assert callable(getattr(import_module(module), name))


@airflows_own_way
@pytest.mark.parametrize("name", HOOKS)
def test_the_test_button(flow_emulator: Emulator, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Test button distinguishes a right key, a wrong key and a closed port, and never shows the key."""
    extra = json.dumps({"test_flow": "clibnwpno000bmc0k9hvv3y7f"} if name == "promptchainer" else {})

    def press_test(host: str, password: str) -> tuple[bool, str]:
        """Test a connection as Airflow's web server does: it passes it as a URI in the environment."""
        connection = Connection(conn_id="tested", conn_type=name, host=host, password=password, extra=extra)
        monkeypatch.setenv("AIRFLOW_CONN_TESTED", connection.get_uri())
        is_ok, message = connection.test_connection()
        assert password == flow_emulator.key or password not in message
        return is_ok, message

    closed_url = f"http://127.0.0.1:{free_port()}"
    assert press_test(flow_emulator.url, flow_emulator.key) == (
        True,
        f"{HOOKS[name].hook_name} accepted the API key.",
    )
    is_ok, message = press_test(flow_emulator.url, "wrong-key-of-mine")
    assert not is_ok
    assert "does not accept the API key" in message
    is_ok, message = press_test(closed_url, "wrong-key-of-mine")
    assert not is_ok
    assert closed_url in message


class EverythingAllowed:
    """An auth manager that allows everything."""

    def is_authorized_connection(self, **_: Any) -> bool:
        """Return that it is allowed."""
        return True


@airflows_own_way
@pytest.mark.usefixtures("airflow_database")
@pytest.mark.skipif(not hasattr(connections, "_same_endpoint"), reason="this Airflow compares no endpoints")
@pytest.mark.parametrize(
    ("stored_port", "typed_key", "works"),
    [(None, "***", has(PORTLESS_TESTS)), (None, "KEY", True), ("PORT", "***", True)],
)
def test_the_test_button_on_a_stored_connection(
    flow_emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    stored_port: str | None,
    typed_key: str,
    works: bool,
) -> None:
    """The form's port 0 is an error on Airflow 3.3; typing the key, or storing a port, avoids it.

    When no supported Airflow does this, docs/howto/connection.md need not mention it.
    """
    monkeypatch.setenv("AIRFLOW__CORE__TEST_CONNECTION", "Enabled")
    port = None if stored_port is None else int(flow_emulator.url.rpartition(":")[2])
    stored = {"conn_type": "generio", "host": flow_emulator.url, "password": flow_emulator.key, "port": port}
    monkeypatch.setenv("AIRFLOW_CONN_STORED", json.dumps(stored))
    password = flow_emulator.key if typed_key == "KEY" else typed_key
    body = ConnectionBody.model_validate(
        {**stored, "connection_id": "stored", "password": password, "port": port or 0, "extra": "{}"}
    )

    def press_test() -> ConnectionTestResponse:
        return connections.test_connection(body, user=None, auth_manager=EverythingAllowed())

    if works:
        assert press_test().status, press_test().message
        return
    with pytest.raises(HTTPException, match="The host or port to test differs from the stored connection"):
        press_test()
    page = (Path(__file__).parent.parent / "docs" / "howto" / "connection.md").read_text()
    assert "The host or port to test differs from the stored connection" in page
