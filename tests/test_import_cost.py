"""Tests of what importing this provider costs every process that reads DAG files.

Each measurement is a Python of its own, and the best of several counts: the machine may be busy.
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
    "    BaseSensorOperator, PokeReturnValue, conf)\n"
)
MEASURE = """
import gc, json, sys, time
gc.collect()
before = set(sys.modules)
began = time.process_time()
import airflow_provider_flows.operators, airflow_provider_flows.sensors
spent = time.process_time() - began
print(json.dumps({"ms": spent * 1000, "new": sorted(set(sys.modules) - before)}))
"""
MOST_MS = 20
HEAVY = {"requests", "aiohttp", "pendulum", "fastapi", "numpy", "PIL", "airflow_provider_flows.emulator"}


def fresh(script: str) -> Any:
    """Run a script in a Python of its own, and give what it prints last."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def measured() -> list[dict[str, Any]]:
    """Import operators and sensors on top of Airflow's SDK, up to five times until it was cheap."""
    told: list[dict[str, Any]] = []
    while len(told) < 5 and not (told and told[-1]["ms"] <= MOST_MS):
        told.append(fresh(BASE + MEASURE))
    return told


def test_operators_and_sensors_cost_little_cpu(measured: list[dict[str, Any]]) -> None:
    """Importing the operators and sensors costs at most 20 ms of CPU on top of Airflow's SDK."""
    assert min(told["ms"] for told in measured) <= MOST_MS


def test_operators_and_sensors_import_nothing_heavy(measured: list[dict[str, Any]]) -> None:
    """No HTTP library, no pendulum, no trigger and no service's module is imported by reading a DAG file."""
    new = set(measured[0]["new"])
    assert not new & HEAVY
    assert "airflow.triggers.base" not in new
    assert not [
        name for name in new if name.startswith(("airflow_provider_flows.flow.services", "airflow_provider_flows.transport."))
    ]


@pytest.mark.parametrize(
    "module", ["airflow_provider_flows", "airflow_provider_flows.provider_info", "airflow_provider_flows.flow.run"]
)
def test_metadata_imports_no_airflow(module: str) -> None:
    """What Airflow asks in every process, and what describes a run, import neither Airflow nor an HTTP library."""
    script = f"import json, sys, {module}\nprint(json.dumps(sorted(name.partition('.')[0] for name in sys.modules)))"
    loaded = set(fresh(script))
    assert not loaded & (HEAVY | {"airflow"})


def test_provider_info_is_cheap_to_ask() -> None:
    """Asking for the provider info imports nothing heavy either."""
    script = (
        "import json, sys\nfrom airflow_provider_flows.provider_info import get_provider_info\nget_provider_info()\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    assert not set(fresh(script)) & (HEAVY | {"airflow"})
