"""The list of all scenarios, and the few of them that are quick and tell the most.

What each of them does stands in the modules that are imported here.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.system.chaos.case import Scenario
from tests.system.chaos.deaths import chains, controls, kills, twice_killed
from tests.system.chaos.outages import outages
from tests.system.chaos.people import clears, evictions, halves, marks
from tests.system.chaos.upheavals import MANY, upheavals


def every(many: int = MANY) -> Iterator[Scenario]:
    """Give all scenarios.

    :param many: how many tasks are deferred when something befalls the triggerer.
    """
    yield from outages()  # first, because they take the longest
    yield from evictions()
    yield from clears()
    yield from marks()
    yield from halves()
    yield from kills()
    yield twice_killed()
    yield from controls()
    yield from chains()
    yield from upheavals(many)


QUICK = frozenset(
    {
        "kill after PATCH start, blocking",
        "kill after PATCH start, deferrable",
        "kill before the second input, blocking",
        "kill in the middle of a download's body, deferrable",
        "the service is away during the wait, deferrable",
        "clear after success, deferrable",
        "clear while it waits, blocking",
        "mark failed while deferred",
        "mark failed while running",
        "SIGTERM to the task's process",
        "control: kill after POST /flows, durable=False",
    }
)


def quick() -> list[Scenario]:
    """Give the scenarios for every day."""
    return [scenario for scenario in every() if scenario.name in QUICK]
