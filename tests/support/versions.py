"""The differences between the supported versions of Airflow: features, and names that have moved.

The package has no such table: it detects each feature.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import NamedTuple

import pytest

try:
    from airflow.sdk.exceptions import AirflowRescheduleException, TaskDeferralError
except ImportError:  # before Airflow 3.2
    from airflow.exceptions import AirflowRescheduleException, TaskDeferralError

try:
    from airflow.dag_processing.dagbag import DagBag
except ImportError:  # before Airflow 3.2
    from airflow.models.dagbag import DagBag

try:
    from airflow.sdk.serde import deserialize, serialize
except ImportError:  # before Airflow 3.2
    from airflow.serialization.serde import deserialize, serialize

__all__ = [
    "FEATURES",
    "AirflowRescheduleException",
    "DagBag",
    "TaskDeferralError",
    "deserialize",
    "has",
    "lacks",
    "needs",
    "serialize",
]

AIRFLOW = tuple(int(part) for part in version("apache-airflow-core").split(".")[:2])


class Feature(NamedTuple):
    """A feature that an older supported Airflow does not have."""

    since: tuple[int, int]
    """The first version of Airflow with it."""
    fallback_test: str
    """The test of the package's behavior without it."""


FEATURES = {
    "attempts": Feature(
        (3, 4), "plugin/test_attempts.py::test_a_task_that_waits_for_its_retry_shows_the_failed_try"
    ),
    "choice to keep the task state in a Clear": Feature(
        (3, 4), "system/test_chaos.py::test_clears_that_this_airflow_lacks_are_listed"
    ),
    "task loops": Feature((3, 4), "docs/test_examples.py::test_lesson_of_loops_without_loops"),
    "tests of stored connections without a port": Feature(
        (3, 4), "test_provider_info.py::test_the_test_button_on_a_stored_connection"
    ),
    "task state store": Feature(
        (3, 3), "worker/test_task_try.py::test_retry_without_store_resumes_listed_run"
    ),
    "asset state store": Feature(
        (3, 3), "triggerer/test_asset_watchers.py::test_watcher_without_a_store_repeats_no_event"
    ),
    "retry policies": Feature(
        (3, 3), "test_retry_policy.py::test_without_retry_policies_every_error_is_retried"
    ),
    "on_kill of triggers": Feature(
        (3, 3), "system/test_stack.py::test_deferred_task_logs_that_kills_do_not_abort"
    ),
    "connection form fields": Feature((3, 2), "test_provider_info.py::test_plain_connection_form"),
    "teams": Feature((3, 2), "plugin/test_teams.py::test_without_teams_a_connection_is_looked_up_by_its_id"),
    "commands of providers": Feature(
        (3, 2), "test_provider_info.py::test_airflow_without_commands_of_providers"
    ),
}


def has(feature: str) -> bool:
    """Return whether the installed Airflow has a feature."""
    return FEATURES[feature].since <= AIRFLOW


def needs(feature: str) -> pytest.MarkDecorator:
    """Mark a test that needs a feature of Airflow."""
    since = ".".join(map(str, FEATURES[feature].since))
    return pytest.mark.skipif(not has(feature), reason=f"needs Airflow {since}: {feature}")


def lacks(feature: str) -> pytest.MarkDecorator:
    """Mark a test of the behavior without a feature of Airflow."""
    since = ".".join(map(str, FEATURES[feature].since))
    return pytest.mark.skipif(has(feature), reason=f"for Airflow before {since} only: {feature}")
