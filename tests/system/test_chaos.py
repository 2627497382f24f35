"""Tests with processes that die: the quick ones of the scenarios in tests/system/chaos, played in one real Airflow.

`make chaos` plays all of them; what each does and what must come of it stands there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.support.airflow_run import empty_database
from tests.support.versions import lacks, needs
from tests.system.chaos.__main__ import _parser, _select_scenarios
from tests.system.chaos.case import Scenario
from tests.system.chaos.report import Row, play_all
from tests.system.chaos.scenarios import QUICK_NAMES, all_scenarios, quick_scenarios
from tests.system.chaos.services import IndependentService
from tests.system.chaos.stage import Stage

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]

OUTAGE_SECONDS = 15.0  # seconds
# What depends most on how the service answers: the list that is searched, the run that is deleted, and the one that is aborted.
OTHER_SERVER_NAMES = {"kill after POST /flows, blocking", "mark failed while deferred"}


def scenarios_to_play() -> list[Scenario]:
    """Give the quick scenarios, and a few against a server that is not ours."""
    elsewhere = [one for one in all_scenarios() if one.name in OTHER_SERVER_NAMES]
    return quick_scenarios() + [
        replace(one, name=f"{one.name}, another server", server=IndependentService) for one in elsewhere
    ]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Start Airflow, the services and the proxies, once."""
    with Stage(
        tmp_path_factory.mktemp("chaos"),
        scenarios_to_play(),
        outage=OUTAGE_SECONDS,
        database=empty_database(),
    ) as stage:
        yield stage


@pytest.fixture(scope="module")
def rows(stage: Stage) -> dict[str, Row]:
    """Play all scenarios side by side, once."""
    return {row.scenario: row for row in play_all(stage)}


# a retry that goes on with the flow run of a task that died must know it
NEEDS_TASK_STATE = [scenario.name for scenario in scenarios_to_play() if scenario.name.startswith("kill ")]


@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param(
            one, marks=needs("task state store") if one.name in NEEDS_TASK_STATE else (), id=one.name
        )
        for one in scenarios_to_play()
    ],
)
def test_what_is_seen_is_what_is_expected(stage: Stage, rows: dict[str, Row], scenario: Scenario) -> None:
    """A process that dies, a service that is away or a person who clears or marks a task costs no flow run and leaves none."""
    row = rows[scenario.name]
    assert row.actual == row.expected, "\n".join([*row.requests, stage.case(scenario).all_logs()])
    assert row.ok


@lacks("task state store")
@pytest.mark.parametrize("name", NEEDS_TASK_STATE)
def test_task_that_died_is_started_again(rows: dict[str, Row], name: str) -> None:
    """Where Airflow keeps nothing for a task, its retry makes another flow run at the most, and completes."""
    actual = rows[name].actual
    assert re.search(r"killed: 1; starts: [12]; task: success;", actual), actual
    assert "all of 1 run" in actual


def test_all_quick_scenarios_are_there(rows: dict[str, Row]) -> None:
    """Each name on the lists above and in scenarios.py is the name of a scenario."""
    assert set(rows) == QUICK_NAMES | {f"{name}, another server" for name in OTHER_SERVER_NAMES}


def test_what_a_running_server_cannot_be_told_is_listed() -> None:
    """Against a server that takes no orders each scenario is either played or in the table with the reason why it is not."""
    selected, skipped = _select_scenarios(
        _parser().parse_args(["--url", "http://127.0.0.1:1", "--key", "k", "--flow", "f"])
    )

    assert {one.name for one in selected} | {row.scenario for row in skipped} == {
        one.name for one in all_scenarios()
    }
    assert not any(one.plans or one.slow or one.conn_type != "generio" for one in selected)
    assert all(row.ok is None and row.actual.startswith("not played: ") for row in skipped)
