"""Tests of which modules this provider imports in every process that parses DAG files.

The lists are the same on every machine; `make bench` measures the milliseconds.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

PACKAGE = "airflow_provider_flows"
BASE = (
    "import airflow.sdk\n"
    "from airflow.providers.common.compat.sdk import (AirflowSensorTimeout, AirflowSkipException, BaseHook,\n"
    "    BaseOperator, BaseOperatorLink, BaseSensorOperator, PokeReturnValue, conf)\n"
)
PRINT_NEW_MODULES = """
import json, sys
before = set(sys.modules)
import airflow_provider_flows.operators, airflow_provider_flows.sensors
print(json.dumps(sorted(set(sys.modules) - before)))
"""
HEAVY = {"requests", "aiohttp", "pendulum", "fastapi", "numpy", "PIL", "airflow_provider_flows.emulator"}
# Airflow imports these in every process, for the provider info.
PROVIDER_INFO_MODULES = {
    PACKAGE,
    *(f"{PACKAGE}.{name}" for name in ("provider_info", "connection", "core", "core.exceptions")),
}
# The only other modules that operators and sensors may import in a DAG file: they define the classes and the
# defaults that a DAG names. The folders themselves are empty.
DAG_FILE_MODULES = {
    f"{PACKAGE}.{name}"
    for name in (
        "operators",
        "run_operators",
        "sensors",
        "links",
        "batch",
        "batch.operator",
        "core.batch",
        "core.safe_text",
        "core.polling",
        "core.polling.schedule",
        "core.reuse",
        "core.template_problems",
        "core.timestamps",
        "storage",
        "storage.output_options",
        "worker",
        "worker.check_retry",
        "worker.run_tracking",
        "worker.template_check",
    )
}


def run_script(script: str) -> Any:
    """Run a script in a new Python process, and return the JSON that it prints last."""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_operators_and_sensors_import_few_small_modules() -> None:
    """A DAG file imports no HTTP library, no pendulum, no trigger, no service, and no other package."""
    # Airflow before 3.2 loads the provider info later
    assert set(run_script(BASE + PRINT_NEW_MODULES)) - PROVIDER_INFO_MODULES == DAG_FILE_MODULES


def test_parent_packages_import_nothing() -> None:
    """Importing a module of `core`, `storage` or `worker` imports no other module of its folder."""
    script = (
        f"import json, sys, {PACKAGE}.core.polling, {PACKAGE}.storage, {PACKAGE}.worker\n"
        f"print(json.dumps(sorted(name for name in sys.modules if name.startswith('{PACKAGE}'))))"
    )
    names = ("core", "core.polling", "storage", "worker")
    assert set(run_script(script)) == {PACKAGE, *(f"{PACKAGE}.{name}" for name in names)}


def test_provider_info_imports_two_small_modules() -> None:
    """The provider info, which every Airflow process loads, imports the connection fields and exceptions."""
    script = (
        "import json, sys\nfrom airflow_provider_flows.provider_info import get_provider_info\n"
        "get_provider_info()\n"
        "print(json.dumps(sorted(name for name in sys.modules if name.startswith('airflow'))))"
    )
    assert set(run_script(script)) == PROVIDER_INFO_MODULES


def test_start_of_the_airflow_command_imports_the_parser_only() -> None:
    """Each start of `airflow` imports our parser; a command's own modules are imported when it runs."""
    script = (
        "import json, sys\nimport airflow.cli.cli_config, airflow_provider_flows.provider_info\n"
        "before = set(sys.modules)\n"
        "from airflow_provider_flows.cli.parser import get_commands\nget_commands()\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    assert set(run_script(script)) == {f"{PACKAGE}.cli{name}" for name in ("", ".parser", ".values")}


@pytest.mark.parametrize(
    "module",
    [
        "airflow_provider_flows",
        "airflow_provider_flows.provider_info",
        "airflow_provider_flows.core.flow_run",
    ],
)
def test_metadata_imports_no_airflow(module: str) -> None:
    """The provider's metadata and the description of a run import neither Airflow nor an HTTP library."""
    script = (
        f"import json, sys, {module}\n"
        "print(json.dumps(sorted(name.partition('.')[0] for name in sys.modules)))"
    )
    loaded = set(run_script(script))
    assert not loaded & (HEAVY | {"airflow"})
