"""The provider's metadata for Airflow: connection types with their forms, commands and classes.

Airflow imports this module in every process, so it must stay cheap to import.
"""

from __future__ import annotations

from typing import Any

from airflow_provider_flows import __version__
from airflow_provider_flows.connection import GENERIO_FIELDS, PROMPTCHAINER_FIELDS, connection_type

PACKAGE = "airflow_provider_flows"
SERVICES = ("Generio", "PromptChainer")
LOG_SERVICE_ERRORS_DESCRIPTION = """\
Whether logs, errors, events and pages contain the text with which a service explains an error. It is at most
200 characters long, and parts of it that equal an input of the task's flow run are replaced. If a service may
still repeat what must not be logged, set this to False.
"""


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata, according to Airflow's `provider_info.schema.json`."""
    return {
        "package-name": "airflow-provider-flows",
        "name": "Flows",
        "description": "Start flow runs on Generio and PromptChainer, wait for them, fetch their outputs.",
        "versions": [__version__],
        "connection-types": [
            connection_type(
                "generio",
                hook_name="Generio",
                hook_class=f"{PACKAGE}.hooks.GenerioHook",
                default_host="https://flows.generio.ai",
                table=GENERIO_FIELDS,
                key="API token",
            ),
            connection_type(
                "promptchainer",
                hook_name="PromptChainer",
                hook_class=f"{PACKAGE}.hooks.PromptChainerHook",
                default_host="https://api.promptchainer.io",
                table=PROMPTCHAINER_FIELDS,
            ),
        ],
        "config": {
            "flows": {
                "description": "Settings of the provider for flow services.",
                "options": {
                    "log_service_errors": {
                        "description": LOG_SERVICE_ERRORS_DESCRIPTION,
                        "version_added": __version__,
                        "type": "boolean",
                        "example": None,
                        "default": "True",
                    }
                },
            }
        },
        "cli": [f"{PACKAGE}.cli.parser.get_commands"],  # Airflow 3.2 and later
        "integrations": [
            {
                "integration-name": "Generio",
                "external-doc-url": "https://docs.generio.ai",
                "tags": ["service"],
            },
            {
                "integration-name": "PromptChainer",
                "external-doc-url": "https://docs.promptchainer.io",
                "tags": ["service"],
            },
        ],
        "task-decorators": [{"name": "flow", "class-name": f"{PACKAGE}.decorators.flow_task"}],
        "extra-links": [f"{PACKAGE}.links.FlowRunLink", f"{PACKAGE}.links.FlowOutputsLink"],
        **{
            kind: [
                {"integration-name": service, "python-modules": [f"{PACKAGE}.{kind}"]} for service in SERVICES
            ]
            for kind in ("hooks", "operators", "sensors", "triggers")
        },
    }
