"""What Airflow is told about this provider: its connection types with their forms, and where its classes are.

It declares and does nothing; Airflow imports it in every process, so it imports nothing heavy.
"""

from __future__ import annotations

from typing import Any

from airflow_provider_flows import __version__
from airflow_provider_flows.connection import GENERIO_FIELDS, PROMPTCHAINER_FIELDS, Field

PACKAGE = "airflow_provider_flows"
SERVICES = ("Generio", "PromptChainer")


def _connection_type(name: str, hook: str, key: str, host: str, fields: dict[str, Field]) -> dict[str, Any]:
    return {
        "connection-type": name,
        "hook-name": hook.removesuffix("Hook"),
        "hook-class-name": f"{PACKAGE}.hooks.{hook}",
        "ui-field-behaviour": {
            "hidden-fields": ["login", "schema", "port"],
            "relabeling": {"password": key, "host": "Host"},
            "placeholders": {"host": host, "password": f"the {key} of your account"},
        },
        "conn-fields": {field: shown.as_form() for field, shown in fields.items()},
    }


def get_provider_info() -> dict[str, Any]:
    """Give the provider's metadata, in the form of Airflow's provider_info schema."""
    return {
        "package-name": "airflow-provider-flows",
        "name": "Flows",
        "description": "Run flows at Generio and PromptChainer: start a flow run, wait for it, fetch what it made.",
        "versions": [__version__],
        "connection-types": [
            _connection_type("generio", "GenerioHook", "API token", "https://flows.generio.ai", GENERIO_FIELDS),
            _connection_type(
                "promptchainer", "PromptChainerHook", "API key", "https://api.promptchainer.io", PROMPTCHAINER_FIELDS
            ),
        ],
        "cli": [f"{PACKAGE}.cli.definition.get_commands"],  # Airflow 3.2 and later
        "integrations": [
            {"integration-name": "Generio", "external-doc-url": "https://docs.generio.ai", "tags": ["service"]},
            {
                "integration-name": "PromptChainer",
                "external-doc-url": "https://docs.promptchainer.io",
                "tags": ["service"],
            },
        ],
        "task-decorators": [{"name": "flow", "class-name": f"{PACKAGE}.decorators.flow_task"}],
        "extra-links": [f"{PACKAGE}.links.FlowRunLink", f"{PACKAGE}.links.FlowOutputsLink"],
        **{
            kind: [{"integration-name": service, "python-modules": [f"{PACKAGE}.{kind}"]} for service in SERVICES]
            for kind in ("hooks", "operators", "sensors", "triggers")
        },
    }
