"""Tests of what importing this provider costs every process that reads DAG files.

It is told by what is imported, which is the same on every machine; `make bench` measures the milliseconds.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

BASE = (
    "import airflow.sdk\n"
    "from airflow.providers.common.compat.sdk import (AirflowSensorTimeout, AirflowSkipException, BaseHook, BaseOperator,\n"
    "    BaseOperatorLink, BaseSensorOperator, PokeReturnValue, conf)\n"
)
TELL = """
import json, sys
before = set(sys.modules)
import airflow_provider_flows.operators, airflow_provider_flows.sensors
print(json.dumps(sorted(set(sys.modules) - before)))
"""
HEAVY = {"requests", "aiohttp", "pendulum", "fastapi", "numpy", "PIL", "airflow_provider_flows.emulator"}
PACKAGE = "airflow_provider_flows"
# what a DAG file's imports may load beyond what Airflow has loaded: the modules whose classes and defaults a DAG names
PARSED = {
    f"{PACKAGE}.{name}"
    for name in (
        "operators",
        "sensors",
        "ending",
        "delivery",
        "flow.schedule",
        "flow.moments",
        "traced",
        "links",
    )
}
# what Airflow itself loads of ours in every process, because it asks for the provider info
ASKED = {PACKAGE, *(f"{PACKAGE}.{name}" for name in ("provider_info", "connection", "flow", "flow.errors"))}


def fresh(script: str) -> Any:
    """Run a script in a Python of its own, and give what it prints last."""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_operators_and_sensors_import_eight_small_modules() -> None:
    """Reading a DAG file imports no HTTP library, no pendulum, no trigger, no service, and nothing at all of other packages."""
    assert set(fresh(BASE + TELL)) - ASKED == PARSED  # Airflow before 3.2 asks later for the provider info


def test_provider_info_imports_three_small_modules() -> None:
    """Every process of Airflow pays for this one."""
    script = (
        "import json, sys\nfrom airflow_provider_flows.provider_info import get_provider_info\nget_provider_info()\n"
        "print(json.dumps(sorted(name for name in sys.modules if name.startswith('airflow'))))"
    )
    assert set(fresh(script)) == ASKED


def test_the_command_line_adds_three_small_modules_to_each_start_of_airflow() -> None:
    """Airflow asks for our commands at every start of `airflow`; what they do is imported when one is run."""
    script = (
        "import json, sys\nimport airflow.cli.cli_config, airflow_provider_flows.provider_info\nbefore = set(sys.modules)\n"
        "from airflow_provider_flows.cli.parser import get_commands\nget_commands()\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    assert set(fresh(script)) == {f"{PACKAGE}.cli{name}" for name in ("", ".parser", ".exit_codes")}


@pytest.mark.parametrize(
    "module",
    ["airflow_provider_flows", "airflow_provider_flows.provider_info", "airflow_provider_flows.core.run"],
)
def test_metadata_imports_no_airflow(module: str) -> None:
    """What Airflow asks in every process, and what describes a run, import neither Airflow nor an HTTP library."""
    script = f"import json, sys, {module}\nprint(json.dumps(sorted(name.partition('.')[0] for name in sys.modules)))"
    loaded = set(fresh(script))
    assert not loaded & (HEAVY | {"airflow"})
