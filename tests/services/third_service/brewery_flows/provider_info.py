"""This package's metadata for Airflow, which imports this module whenever it starts.

It imports neither Airflow nor the hook: both would be imported in a circle.
"""

from __future__ import annotations

from typing import Any

from airflow_provider_flows.connection import Field, connection_type, fields

HOST = "https://api.brewery.example"
FIELDS = {
    **fields(read_timeout=30),
    "console": Field("Console", "Web address of the brewery's own pages.", "string"),
}


def get_provider_info() -> dict[str, Any]:
    """Return this package's metadata for Airflow."""
    brewery = connection_type(
        "brewery",
        hook_name="Brewery",
        hook_class="brewery_flows.service.BreweryHook",
        default_host=HOST,
        table=FIELDS,
        key="Brew token",
    )
    return {
        "package-name": "brewery-flows",
        "name": "Brewery",
        "description": "Flows at the brewery.",
        "connection-types": [brewery],
    }
