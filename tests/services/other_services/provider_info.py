"""The connection types of two more services."""

from __future__ import annotations

from typing import Any

from airflow_provider_flows.connection import connection_type, fields

FIELDS = fields(read_timeout=30)
HOSTS = {"predictions": "https://api.predictions.example", "queue": "https://queue.example"}


def get_provider_info() -> dict[str, Any]:
    """Return this package's metadata for Airflow."""
    hooks = {"predictions": "predictions.PredictionsHook", "queue": "queued.QueueHook"}
    types = [
        connection_type(
            name,
            hook_name=name.capitalize(),
            hook_class=f"other_services.{hook}",
            default_host=HOSTS[name],
            table=FIELDS,
        )
        for name, hook in hooks.items()
    ]
    return {
        "package-name": "other-services",
        "name": "Other services",
        "description": "A predictions API and a queue API.",
        "connection-types": types,
    }
