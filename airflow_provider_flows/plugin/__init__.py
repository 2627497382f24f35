"""The plugin: what this provider adds to Airflow itself, loaded by every process of Airflow that knows plugins.

It only names things; they are imported by whoever needs them, for every task pays for what is imported here.
"""

from __future__ import annotations

from airflow.providers.common.compat.sdk import AirflowPlugin

from airflow_provider_flows.plugin import listener
from airflow_provider_flows.plugin.lazy_app import PREFIX, LazyApp

# Relative addresses: Airflow's page resolves them against its own, wherever it is served.
_BASE_PATH = PREFIX.removeprefix("/")
_ICONS = {"icon": f"{_BASE_PATH}/static/icon.svg", "icon_dark_mode": f"{_BASE_PATH}/static/icon-dark.svg"}


class FlowsPlugin(AirflowPlugin):
    """Listens for tasks that are over; shows flow runs: a tab on each task instance, and a page in the navigation."""

    name = "flows"
    listeners = [listener]  # noqa: RUF012  # Airflow declares it so
    fastapi_apps = [{"name": "Flow runs", "app": LazyApp(), "url_prefix": PREFIX}]  # noqa: RUF012  # Airflow declares it so
    external_views = [  # noqa: RUF012  # Airflow declares it so
        {
            "name": "Flow run",
            "href": f"{_BASE_PATH}/task/{{DAG_ID}}/{{RUN_ID}}/{{TASK_ID}}/{{MAP_INDEX}}",
            "destination": "task_instance",
            "url_route": "flow-run",
            **_ICONS,
        },
        {
            "name": "Flow runs",
            "href": f"{_BASE_PATH}/",
            "destination": "nav",
            "category": "browse",
            "url_route": "flow-runs",
            **_ICONS,
        },
    ]
