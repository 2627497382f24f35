"""The Airflow plugin: a listener for finished tasks, and the user interface for flow runs.

Every Airflow process that loads plugins imports this module, task processes included. The user interface is
therefore imported lazily, on its first request.
"""

from __future__ import annotations

from airflow.providers.common.compat.sdk import AirflowPlugin

from airflow_provider_flows.plugin import listener
from airflow_provider_flows.plugin.lazy_app import PREFIX, LazyApp

# Relative URLs: Airflow's UI resolves them against its own base URL.
_BASE_PATH = PREFIX.removeprefix("/")
_ICONS = {"icon": f"{_BASE_PATH}/static/icon.svg", "icon_dark_mode": f"{_BASE_PATH}/static/icon-dark.svg"}


class FlowsPlugin(AirflowPlugin):
    """Add a *Flow run* tab to each task instance, a *Flow runs* page and the listener for finished tasks."""

    name = "flows"
    listeners = [listener]  # noqa: RUF012  # declared as in AirflowPlugin
    fastapi_apps = [{"name": "Flow runs", "app": LazyApp(), "url_prefix": PREFIX}]  # noqa: RUF012  # as in AirflowPlugin
    external_views = [  # noqa: RUF012  # as in AirflowPlugin
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
