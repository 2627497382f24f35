"""Tests of the quick chaos scenarios in a real Airflow; `make chaos` runs all of tests/system/chaos."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.support.airflow_run import empty_database
from tests.support.postgresql import missing_requirement
from tests.support.versions import has, lacks, needs
from tests.system.chaos.__main__ import _parser, _select_scenarios
from tests.system.chaos.case import Scenario
from tests.system.chaos.clears import CHOICE, DAG_RUN, OUTCOMES, clear_scenarios
from tests.system.chaos.report import Row, run_all
from tests.system.chaos.scenarios import QUICK_NAMES, all_scenarios, quick_scenarios
from tests.system.chaos.services import IndependentService
from tests.system.chaos.stage import Stage
from tests.system.chaos.worker_kills import MODES

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]

OUTAGE_SECONDS = 15.0
# The scenarios that depend most on the service's responses: a list that is searched, a run that is aborted.
OTHER_SERVER_NAMES = {"kill after POST /flows, blocking", "mark failed while deferred"}


def scenarios_to_run() -> list[Scenario]:
    """Return the quick scenarios, and a few with the independent server."""
    elsewhere = [one for one in all_scenarios() if one.name in OTHER_SERVER_NAMES]
    return [one for one in quick_scenarios() if one.find_missing() is None] + [
        replace(one, name=f"{one.name}, another server", server=IndependentService) for one in elsewhere
    ]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Start Airflow, the services and the proxies, once."""
    with Stage(
        tmp_path_factory.mktemp("chaos"),
        scenarios_to_run(),
        outage=OUTAGE_SECONDS,
        database=empty_database(),
    ) as stage:
        yield stage


@pytest.fixture(scope="module")
def rows(stage: Stage) -> dict[str, Row]:
    """Run all scenarios in parallel, once."""
    return {row.scenario: row for row in run_all(stage)}


# a retry that resumes the flow run of a killed task must know it
NEEDS_TASK_STATE = [scenario.name for scenario in scenarios_to_run() if scenario.name.startswith("kill ")]


@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param(
            one, marks=needs("task state store") if one.name in NEEDS_TASK_STATE else (), id=one.name
        )
        for one in scenarios_to_run()
    ],
)
def test_scenario_has_the_expected_result(stage: Stage, rows: dict[str, Row], scenario: Scenario) -> None:
    """A killed process, an outage, a Clear or a mark bills no flow run twice and leaves none in progress."""
    row = rows[scenario.name]
    assert row.actual == row.expected, "\n".join([*row.requests, stage.case(scenario).all_logs()])
    assert row.ok


@lacks("task state store")
@pytest.mark.parametrize("name", NEEDS_TASK_STATE)
def test_killed_task_starts_again(rows: dict[str, Row], name: str) -> None:
    """Without a task state store the retry starts at most one more flow run, and completes."""
    actual = rows[name].actual
    assert re.search(r"killed: 1; starts: [12]; task: success;", actual), actual
    assert "all of 1 run" in actual


def test_all_quick_scenarios_exist(rows: dict[str, Row]) -> None:
    """Each name on the lists of quick scenarios is the name of a scenario."""
    missing = {one.name for one in quick_scenarios() if one.find_missing() is not None}

    assert {one.name for one in quick_scenarios()} == QUICK_NAMES
    assert set(rows) == QUICK_NAMES - missing | {f"{name}, another server" for name in OTHER_SERVER_NAMES}


def test_scenarios_that_an_external_server_cannot_run_are_listed() -> None:
    """With an external server each scenario runs, or is in the table with the reason why it does not."""
    selected, skipped = _select_scenarios(
        _parser().parse_args(["--url", "http://127.0.0.1:1", "--key", "k", "--flow", "f"])
    )

    assert {one.name for one in selected} | {row.scenario for row in skipped} == {
        one.name for one in all_scenarios()
    }
    assert not any(one.plans or one.slow or one.conn_type != "generio" for one in selected)
    assert all(row.ok is None and row.actual.startswith("not run: it needs ") for row in skipped)


def test_clears_that_this_airflow_lacks_are_listed() -> None:
    """A Clear whose request this Airflow does not have is in the table, with the version that has it."""
    selected, skipped = _select_scenarios(_parser().parse_args(["--only", "clear "]))

    keeping = {one.name for one in clear_scenarios() if one.name.endswith(("keep_task_state", "the state"))}
    without_choice = {f"clear {DAG_RUN}, {mode}" for mode in MODES}
    reasons = {row.scenario: row.actual for row in skipped}
    assert set(reasons) == (without_choice if has(CHOICE) else keeping)
    assert {one.name for one in selected} | set(reasons) == {one.name for one in clear_scenarios()}
    assert all("Airflow" in reason and "3.4" in reason for reason in reasons.values())


def test_each_clear_has_an_outcome() -> None:
    """Each outcome of the table is expected of a scenario, in every version of Airflow the same."""
    expected = [one.expected for one in clear_scenarios()]

    for subject, outcomes in OUTCOMES.items():
        assert outcomes.new in expected, subject
        assert outcomes.resumed in expected, subject
    assert all(one["twice"] == 0 for one in expected)


@pytest.mark.parametrize("scenario", [one for one in clear_scenarios() if one.slow], ids=lambda one: one.name)
def test_clock_is_advanced_only_where_the_service_has_one(scenario: Scenario) -> None:
    """A flow run that must complete after the Clear belongs to a service with a clock of its own."""
    assert not scenario.plans
    assert scenario.service_requirement == "a clock that can be advanced"


def test_scenarios_that_this_machine_cannot_run_are_listed() -> None:
    """A scenario that needs a program runs, or is in the table with the program that has to be installed."""
    selected, skipped = _select_scenarios(_parser().parse_args(["--only", "PostgreSQL"]))

    reason = missing_requirement()
    assert len(selected) + len(skipped) == 1
    assert [row.actual for row in skipped] == ([] if reason is None else [f"not run: {reason}"])
