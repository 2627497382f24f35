"""The plugin: what this provider adds to Airflow itself, loaded by every process of Airflow that knows plugins.

It only names things; they are imported by whoever needs them, for every task pays for what is imported here.
"""

from __future__ import annotations

from airflow.providers.common.compat.sdk import AirflowPlugin

from airflow_provider_flows.plugin import listener


class FlowsPlugin(AirflowPlugin):
    """Listens for tasks that are over."""

    name = "flows"
    listeners = [listener]  # noqa: RUF012  # Airflow declares it so
