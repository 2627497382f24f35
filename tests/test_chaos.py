"""Tests with processes that die: the quick ones of the scenarios in tests/chaos, played in one real Airflow.

`make chaos` plays all of them; what each does and what must come of it stands there.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.case import Scenario
from tests.chaos.report import Row, play_all
from tests.chaos.scenarios import QUICK, quick
from tests.chaos.stage import Stage

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]

OUTAGE = 15.0  # seconds


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Start Airflow, the emulator and the proxies, once."""
    with Stage(tmp_path_factory.mktemp("chaos"), quick(), outage=OUTAGE) as stage:
        yield stage


@pytest.fixture(scope="module")
def rows(stage: Stage) -> dict[str, Row]:
    """Play all scenarios side by side, once."""
    return {row.scenario: row for row in play_all(stage)}


@pytest.mark.parametrize("scenario", quick(), ids=lambda scenario: scenario.name)
def test_what_is_seen_is_what_is_expected(stage: Stage, rows: dict[str, Row], scenario: Scenario) -> None:
    """A process that dies, a service that is away or a person who clears or marks a task costs no flow run and leaves none."""
    row = rows[scenario.name]
    assert row.seen == row.expected, "\n".join([*row.requests, stage.case(scenario).all_logs()])
    assert row.ok


def test_all_quick_scenarios_are_there(rows: dict[str, Row]) -> None:
    """Each name on the list of quick scenarios is the name of a scenario."""
    assert set(rows) == QUICK
