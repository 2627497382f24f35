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
from tests.system.chaos.__main__ import _chosen, _parser
from tests.system.chaos.case import Scenario
from tests.system.chaos.report import Row, play_all
from tests.system.chaos.scenarios import QUICK, every, quick
from tests.system.chaos.services import Other
from tests.system.chaos.stage import Stage

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]

OUTAGE = 15.0  # seconds
# What depends most on how the service answers: the list that is searched, the run that is deleted, and the one that is aborted.
ELSEWHERE = {"kill after POST /flows, blocking", "mark failed while deferred"}


def played() -> list[Scenario]:
    """Give the quick scenarios, and a few against a server that is not ours."""
    elsewhere = [one for one in every() if one.name in ELSEWHERE]
    return quick() + [replace(one, name=f"{one.name}, another server", server=Other) for one in elsewhere]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Start Airflow, the services and the proxies, once."""
    with Stage(tmp_path_factory.mktemp("chaos"), played(), outage=OUTAGE, database=empty_database()) as stage:
        yield stage


@pytest.fixture(scope="module")
def rows(stage: Stage) -> dict[str, Row]:
    """Play all scenarios side by side, once."""
    return {row.scenario: row for row in play_all(stage)}


# a retry that goes on with the flow run of a task that died must know it
REMEMBERED = [scenario.name for scenario in played() if scenario.name.startswith("kill ")]


@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param(one, marks=needs("task state store") if one.name in REMEMBERED else (), id=one.name)
        for one in played()
    ],
)
def test_what_is_seen_is_what_is_expected(stage: Stage, rows: dict[str, Row], scenario: Scenario) -> None:
    """A process that dies, a service that is away or a person who clears or marks a task costs no flow run and leaves none."""
    row = rows[scenario.name]
    assert row.seen == row.expected, "\n".join([*row.requests, stage.case(scenario).all_logs()])
    assert row.ok


@lacks("task state store")
@pytest.mark.parametrize("name", REMEMBERED)
def test_task_that_died_is_started_again(rows: dict[str, Row], name: str) -> None:
    """Where Airflow keeps nothing for a task, its retry makes another flow run at the most, and completes."""
    seen = rows[name].seen
    assert re.search(r"killed: 1; starts: [12]; task: success;", seen), seen
    assert "all of 1 run" in seen


def test_all_quick_scenarios_are_there(rows: dict[str, Row]) -> None:
    """Each name on the lists above and in scenarios.py is the name of a scenario."""
    assert set(rows) == QUICK | {f"{name}, another server" for name in ELSEWHERE}


def test_what_a_running_server_cannot_be_told_is_listed() -> None:
    """Against a server that takes no orders each scenario is either played or in the table with the reason why it is not."""
    wanted, left_out = _chosen(
        _parser().parse_args(["--url", "http://127.0.0.1:1", "--key", "k", "--flow", "f"])
    )

    assert {one.name for one in wanted} | {row.scenario for row in left_out} == {one.name for one in every()}
    assert not any(one.plans or one.slow or one.conn_type != "generio" for one in wanted)
    assert all(row.ok is None and row.seen.startswith("not played: ") for row in left_out)
