"""Tests that every module can be the first import of a script while a package with a service is installed.

Airflow imports such packages when it is imported itself, which is in the middle of an import of this package.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.provider_packages import install_provider

ROOT = Path(__file__).parents[2]
PACKAGE = "airflow_provider_flows"
TYPE_SOURCE = """
from airflow_provider_flows.connection import Field, connection_type, fields

FIELDS = {**fields(read_timeout=30), "console": Field("Console", "Its web address.", "string")}

def get_provider_info():
    row = connection_type("brew", hook_name="Brew", hook_class="{module}.BrewHook", table=FIELDS,
                          default_host="https://brew.example")
    return {"package-name": "brew-flows", "name": "Brew", "description": "Brews.", "connection-types": [row]}
"""
HOOK_SOURCE = """
from airflow_provider_flows.exceptions import FlowInputError
from airflow_provider_flows.hooks import FlowsHook
from airflow_provider_flows.services import Service, request_json

class BrewHook(FlowsHook):
    conn_type = "brew"
    hook_name = "Brew"
    default_host = "https://brew.example"
    fields = FIELDS
"""
TWO_MODULES = {
    "brew_flows/__init__.py": "",
    "brew_flows/provider_info.py": TYPE_SOURCE.replace("{module}", "brew_flows.hook"),
    "brew_flows/hook.py": f"from brew_flows.provider_info import FIELDS\n{HOOK_SOURCE}",
}
ONE_MODULE = {"brew_flows.py": TYPE_SOURCE.replace("{module}", "brew_flows") + HOOK_SOURCE}
FIRST_IMPORTS = (
    f"from {PACKAGE}.hooks import FlowsHook",
    f"import {PACKAGE}.hooks",
    *(
        f"import {PACKAGE}.{name}"
        for name in ("operators", "sensors", "triggers", "decorators", "links", "services", "worker.task_try")
    ),
    "import airflow",
)
RUN = """
import json
from airflow_provider_flows.hooks import FlowsHook
hook = FlowsHook.get_hook("brew_default")
print(json.dumps([type(hook).__name__, isinstance(hook, FlowsHook), sorted(set(hook.fields) & {"console"})]))
"""


def run_script(site: Path, first_import: str) -> subprocess.CompletedProcess[str]:
    """Run a script like the README's in a new process, with the package of a folder installed."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (site, ROOT))),
        "AIRFLOW_CONN_BREW_DEFAULT": json.dumps({"conn_type": "brew", "password": "hops"}),
    }
    script = [sys.executable, "-c", f"{first_import}\n{RUN}"]
    return subprocess.run(script, env=environment, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("first_import", [*FIRST_IMPORTS, "import brew_flows.hook"])
def test_any_module_is_imported_first_with_two_modules(tmp_path: Path, first_import: str) -> None:
    """With the documented package of two modules installed, a script may begin with any import."""
    install_provider(tmp_path, "brew-flows", "brew_flows.provider_info:get_provider_info", TWO_MODULES)
    done = run_script(tmp_path, first_import)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == ["BrewHook", True, ["console"]]


@pytest.mark.parametrize("first_import", FIRST_IMPORTS)
def test_any_module_is_imported_first_with_one_module(tmp_path: Path, first_import: str) -> None:
    """Even if the module with the metadata has the hook as well, a script may begin with any import."""
    install_provider(tmp_path, "brew-flows", "brew_flows:get_provider_info", ONE_MODULE)
    done = run_script(tmp_path, first_import)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == ["BrewHook", True, ["console"]]
