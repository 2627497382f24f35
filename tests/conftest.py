"""Set up an Airflow for the tests in a temporary folder, before Airflow is imported; load shared fixtures."""

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
    # Airflow reads its settings once, when it is imported: it would use the developer's database.
    raise pytest.UsageError("Airflow was imported before tests/conftest.py could set its folder")

# The slowest files, slowest first; those that start all of Airflow are not next to each other.
SLOWEST_FILES = (
    "batch/test_resume.py",
    "system/test_stack.py",
    "transport/test_deadlines.py",
    "worker/test_deadlines.py",
    "system/test_chaos.py",
    "docs/test_examples.py",
    "test_modes.py",
    "storage/test_unconfirmed_files.py",
    "system/test_postgresql.py",
    "plugin/test_slow_services.py",
    "docs/test_docs.py",
    "storage/test_output_download.py",
    "worker/test_task_try.py",
    "services/test_installed_services.py",
    "batch/test_program.py",
    "worker/test_saved_run.py",
    "cli/test_terminal.py",
    "services/test_hostile_responses.py",
    "services/test_other_services.py",
    "triggerer/test_shared_poller_lists.py",
    "batch/test_kills.py",
    "test_run_operators.py",
    "worker/test_lineage.py",
    "services/test_other_server.py",
    "test_sensors.py",
    "plugin/test_listener.py",
    "storage/test_batch_items.py",
    "worker/test_invalid_connections.py",
    "triggerer/test_slow_services.py",
    "services/test_third_service.py",
    "docs/test_docs_cli.py",
    "test_unsafe_texts.py",
)

_HOME = Path(tempfile.mkdtemp(prefix="flows-tests-"))
(_HOME / "dags").mkdir()
for _name in [name for name in os.environ if name.startswith("AIRFLOW_")]:
    del os.environ[_name]
os.environ.update(own_environment(_HOME, _HOME / "dags"))
# only test_lineage.py needs the listener
os.environ["AIRFLOW__OPENLINEAGE__DISABLED"] = "True"
# Airflow's commands write these warnings, which Python ignores, to standard output; Python 3.14 causes two.
os.environ["PYTHONWARNINGS"] = "ignore::PendingDeprecationWarning"


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Shells ignore SIGINT in background jobs; the processes that tests interrupt would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slowest files first, so that none of them runs alone at the end."""
    ranks = {name: rank for rank, name in enumerate(SLOWEST_FILES)}
    tests = Path(__file__).parent
    items.sort(key=lambda item: ranks.get(item.path.relative_to(tests).as_posix(), len(ranks)))


def pytest_unconfigure() -> None:
    """Delete the folder."""
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def airflow_home() -> Path:
    """Return the folder of the test session's Airflow."""
    return _HOME


@pytest.fixture(scope="session")
def airflow_database() -> None:
    """Create an empty metadata database, for tests that use it without `run_dag`."""
    from tests.support.airflow_run import ensure_database

    ensure_database()


@pytest.fixture(autouse=True)
def fresh_settings() -> None:
    """Clear the settings that triggers cache, so that each test's own settings apply."""
    triggers = sys.modules.get("airflow_provider_flows.triggers")
    if triggers is not None:
        triggers.min_event_delay.cache_clear()


@pytest.fixture(autouse=True)
def fresh_definitions() -> None:
    """Clear the cache of flow definitions, so that each test's own service is queried."""
    definitions = sys.modules.get("airflow_provider_flows.hooks.preflight")
    if definitions is not None:
        definitions.DEFINITION_CACHE.clear()


@pytest.fixture(autouse=True)
def fresh_limits() -> None:
    """Forget what the services of other tests have limited, and which runs their accounts have."""
    rate_limiter = sys.modules.get("airflow_provider_flows.transport.rate_limiter")
    if rate_limiter is not None:
        rate_limiter.SHARED_RATE_LIMITERS.clear()
    account_limits = sys.modules.get("airflow_provider_flows.core.account_limits")
    if account_limits is not None:
        account_limits.USAGES.clear()


@pytest.fixture(autouse=True)
def fresh_quota_markers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test find that the quota of another test's account is used up."""
    from airflow_provider_flows.storage import quota_marker

    folder = _HOME / "quota"
    shutil.rmtree(folder, ignore_errors=True)
    monkeypatch.setattr(quota_marker, "FOLDER", folder)
