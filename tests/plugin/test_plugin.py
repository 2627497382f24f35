"""Tests of the plugin: its declaration, the cost of its import, and its lazily created app."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import entry_points

from airflow_provider_flows.plugin import PREFIX, FlowsPlugin
from airflow_provider_flows.worker.run_tracking import PAGES_PREFIX
from tests.test_import_cost import HEAVY, run_script

UNAVAILABLE_SCRIPT = """
import asyncio, json, sys
sys.modules["airflow.api_fastapi.core_api.security"] = None  # an Airflow that has it elsewhere
from airflow_provider_flows.plugin import FlowsPlugin
sent = []
async def receive(): return {"type": "http.request"}
async def send(message): sent.append(message)
scope = {"type": "http", "method": "GET", "path": "/flows/", "headers": [], "query_string": b""}
for _ in range(2):
    asyncio.run(FlowsPlugin.fastapi_apps[0]["app"](dict(scope), receive, send))
print(json.dumps([[one["status"] for one in sent if "status" in one], sent[1]["body"].decode()]))
"""


def test_airflow_finds_the_plugin_and_its_views() -> None:
    """The entry point names the plugin; each view is below the mounted prefix and valid for Airflow."""
    (entry_point,) = entry_points(group="airflow.plugins", name="flows")
    assert entry_point.load() is FlowsPlugin
    assert FlowsPlugin.fastapi_apps[0]["url_prefix"] == PREFIX == PAGES_PREFIX
    from airflow.api_fastapi.core_api.datamodels.plugins import ExternalViewResponse

    views = [ExternalViewResponse.model_validate(view) for view in FlowsPlugin.external_views]
    assert [(view.name, view.destination) for view in views] == [
        ("Flow run", "task_instance"),
        ("Flow runs", "nav"),
    ]
    assert all(view.href.startswith(f"{PREFIX[1:]}/") and view.icon and view.url_route for view in views)
    assert all(name in views[0].href for name in ("{DAG_ID}", "{RUN_ID}", "{TASK_ID}", "{MAP_INDEX}"))


def test_the_plugin_costs_a_task_two_small_modules() -> None:
    """Every task of every provider loads plugins: ours imports no FastAPI, no template and no hook."""
    script = (
        "import json, sys\n"
        "import airflow.sdk\n"
        "from airflow.providers.common.compat.sdk import AirflowPlugin, hookimpl\n"
        "before = set(sys.modules)\n"
        "import airflow_provider_flows.plugin\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    package = "airflow_provider_flows"
    own = {f"{package}.plugin", f"{package}.plugin.listener"}
    loaded = run_script(script)
    assert {
        name for name in loaded if name.startswith(f"{package}.") or name.partition(".")[0] in HEAVY
    } == own


def test_an_airflow_without_the_private_apis_is_reported_once() -> None:
    """If Airflow has moved a private API, the pages are unavailable; the rest of the provider works."""
    process = subprocess.run(
        [sys.executable, "-c", UNAVAILABLE_SCRIPT], capture_output=True, text=True, check=True, timeout=60
    )
    statuses, body = json.loads(process.stdout.splitlines()[-1])
    assert statuses == [503, 503]
    assert "not available in this version of Airflow" in body
    assert (process.stdout + process.stderr).count("not available in this version of Airflow: ") == 1
