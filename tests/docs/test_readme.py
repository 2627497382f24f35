"""Tests that the lists and tables of the README match the code."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from airflow.sdk.definitions.connection import Connection

from airflow_provider_flows.connection import PROMPTCHAINER_FIELDS
from airflow_provider_flows.core import exceptions
from airflow_provider_flows.hooks import GenerioHook
from airflow_provider_flows.operators import RunFlowOperator

README = (Path(__file__).parents[2] / "README.md").read_text()


def parse_table(heading: str) -> list[list[str]]:
    """Return the cells of the table rows between a heading and the next one."""
    section = README.split(f"# {heading}\n")[1].split("\n#")[0]
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in section.splitlines()
        if line.startswith("| `")
    ]


@pytest.mark.parametrize("spelling", re.findall(r"AIRFLOW_CONN_FLOWS_DEFAULT='(.*?)'", README))
def test_connection_spellings_reach_the_service_itself(
    spelling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each spelling of the default connection has Generio's own host and the token TOKEN."""
    monkeypatch.setenv("AIRFLOW_CONN_FLOWS_DEFAULT", spelling)
    settings = GenerioHook("flows_default").settings
    assert settings.base_url == "https://flows.generio.ai"
    assert settings.credentials == {"Authorization": "Bearer TOKEN"}


def test_the_uri_with_another_host_means_that_host() -> None:
    """The URI with scheme, host and port has exactly that address."""
    (uri,) = re.findall(r"`(generio://http://.*?)`", README)
    connection = Connection.from_uri(uri, conn_id="elsewhere")
    hook = GenerioHook("elsewhere")
    hook._connection = connection
    assert hook.settings.base_url == "http://127.0.0.1:8084"


def test_the_operators_arguments_are_the_ones_listed() -> None:
    """The README lists all arguments of the operator in order, with the templated ones marked."""
    rows = parse_table("`RunFlowOperator`")
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row[0])]
    parameters = inspect.signature(RunFlowOperator.__init__).parameters
    assert listed == [name for name in parameters if name not in {"self", "kwargs"}]
    templated = {name for row in rows if "*t*" in row[0] for name in re.findall(r"`(\w+)`", row[0])}
    assert templated == set(RunFlowOperator.template_fields)
    defaults = {row[0].split("`")[1]: row[1] for row in rows}
    assert defaults["durable"] == str(parameters["durable"].default)
    assert defaults["flows_conn_id"] == f"`{parameters['flows_conn_id'].default}`"


def test_the_connections_fields_are_the_ones_listed() -> None:
    """The README lists all fields of a connection's extra."""
    section = README.split("More fields")[1].split("\n#")[0]
    assert re.findall(r"^\| `(\w+)`", section, re.MULTILINE) == list(PROMPTCHAINER_FIELDS)


def test_the_table_of_errors_is_complete() -> None:
    """The README's table of errors lists all error classes except the root."""
    section = README.split("\n## Errors\n")[1].split("\n#")[0]
    known = [
        name
        for name, value in vars(exceptions).items()
        if isinstance(value, type) and issubclass(value, exceptions.FlowError)
    ]
    assert re.findall(r"^\| `(\w+)`", section, re.MULTILINE) == [
        name for name in known if name != "FlowError"
    ]
