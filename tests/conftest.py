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

pytest_plugins = ("tests.support.fixtures",)

if "airflow" in sys.modules:
    # Airflow reads its settings once, at its first import: it would work on the developer's own database.
    raise pytest.UsageError("Airflow was imported before tests/conftest.py could give it a folder of its own")

# The files that take longest, the longest first, but those that start a whole Airflow not side by side.
SLOWEST_FILES = (
    "system/test_chaos.py",
    "test_modes.py",
    "docs/test_docs.py",
    "worker/test_lineage.py",
    "worker/test_deadlines.py",
    "services/test_third_service.py",
    "worker/test_task_retries.py",
    "transport/test_faults.py",
    "services/test_other_server.py",
    "system/test_stack.py",
    "docs/test_docs_cli.py",
    "test_sensors.py",
    "triggerer/test_poller_lists.py",
    "services/test_hostile_responses.py",
    "test_decorators.py",
    "storage/test_output_download.py",
    "plugin/test_pages.py",
    "test_operators.py",
    "test_provider_info.py",
    "worker/test_finish.py",
)

_HOME = Path(tempfile.mkdtemp(prefix="flows-tests-"))
(_HOME / "dags").mkdir()
for _name in [name for name in os.environ if name.startswith("AIRFLOW_")]:
    del os.environ[_name]
os.environ.update(own_environment(_HOME, _HOME / "dags"))
os.environ["AIRFLOW__OPENLINEAGE__DISABLED"] = (
    "True"  # whatever the shell says: only test_lineage.py wants its listener
)


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that starts us in the background has it ignored, and whatever the tests start and interrupt would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the files that take longest begin first: a long one that began last would be waited for alone."""
    ranks = {name: rank for rank, name in enumerate(SLOWEST_FILES)}
    tests = Path(__file__).parent
    items.sort(key=lambda item: ranks.get(item.path.relative_to(tests).as_posix(), len(ranks)))


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
    from tests.support.airflow_run import ensure_database

    ensure_database()


@pytest.fixture(autouse=True)
def fresh_settings() -> None:
    """Let each test's own Airflow settings count: a triggerer reads some of them once only."""
    triggers = sys.modules.get("airflow_provider_flows.triggers")
    if triggers is not None:
        triggers.min_event_delay.cache_clear()


@pytest.fixture(autouse=True)
def fresh_definitions() -> None:
    """Let each test's own service say what flows take: a process keeps what it was told for a moment."""
    definitions = sys.modules.get("airflow_provider_flows.preflight")
    if definitions is not None:
        definitions.DEFINITION_CACHE.clear()
