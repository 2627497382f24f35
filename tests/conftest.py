"""Gives the tests an Airflow of their own: a folder that is thrown away, set before Airflow is first imported.

It has no fixtures for the package's own parts; those stand beside the tests that use them.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest

from tools.airflow_settings import own_environment

if "airflow" in sys.modules:
    # Airflow reads its settings once, at its first import: it would work on the developer's own database.
    raise pytest.UsageError("Airflow was imported before tests/conftest.py could give it a folder of its own")

# The files that take longest, the longest first, but those that start a whole Airflow not side by side.
LONGEST = (
    "test_chaos.py",
    "test_modes.py",
    "test_docs.py",
    "test_lineage.py",
    "test_deadlines.py",
    "test_third_service.py",
    "test_retries.py",
    "test_faults.py",
    "test_other_server.py",
    "test_stack.py",
    "test_docs_cli.py",
    "test_sensors.py",
    "test_watch_lists.py",
    "test_hostile.py",
    "test_decorators.py",
    "test_downloads.py",
    "test_plugin_site.py",
    "test_operators.py",
    "test_provider_info.py",
    "test_delivery.py",
)

_HOME = Path(tempfile.mkdtemp(prefix="flows-tests-"))
(_HOME / "dags").mkdir()
for _name in [name for name in os.environ if name.startswith("AIRFLOW_")]:
    del os.environ[_name]
os.environ.update(own_environment(_HOME, _HOME / "dags"))
os.environ["AIRFLOW__OPENLINEAGE__DISABLED"] = "True"  # whatever the shell says: only test_lineage.py wants its listener


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that starts us in the background has it ignored, and whatever the tests start and interrupt would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the files that take longest begin first: a long one that began last would be waited for alone."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


def pytest_unconfigure() -> None:
    """Throw the folder away."""
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def airflow_home() -> Path:
    """Name the folder of the Airflow that this test session has for itself."""
    return _HOME


@pytest.fixture(scope="session")
def airflow_database() -> None:
    """Create an empty metadata database, for tests that talk to it without `run_dag`."""
    from tests.airflow_run import ensure_database

    ensure_database()


@pytest.fixture(autouse=True)
def fresh_settings() -> None:
    """Let each test's own Airflow settings count: a triggerer reads some of them once only."""
    triggers = sys.modules.get("airflow_provider_flows.triggers")
    if triggers is not None:
        triggers.settling_seconds.cache_clear()


@pytest.fixture(autouse=True)
def fresh_definitions() -> None:
    """Let each test's own service say what flows take: a process keeps what it was told for a moment."""
    definitions = sys.modules.get("airflow_provider_flows.definitions")
    if definitions is not None:
        definitions.RECENT.clear()
