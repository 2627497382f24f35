"""All scenarios, and the quick ones that `make test` runs."""

from __future__ import annotations

from collections.abc import Iterator

from tests.system.chaos.batches import batch_scenarios
from tests.system.chaos.case import Scenario
from tests.system.chaos.clears import clear_scenarios
from tests.system.chaos.component_failures import MANY, infrastructure_scenarios
from tests.system.chaos.outages import failover_scenarios, outage_scenarios
from tests.system.chaos.user_actions import mark_scenarios, partial_transfer_scenarios
from tests.system.chaos.worker_kills import (
    chain_scenarios,
    control_scenarios,
    double_kill_scenario,
    eviction_scenarios,
    kill_scenarios,
)


def all_scenarios(many: int = MANY) -> Iterator[Scenario]:
    """Yield all scenarios.

    :param many: the number of deferred tasks in the scenarios of the triggerer.
    """
    yield from outage_scenarios()  # first, because they take longest
    yield from failover_scenarios()
    yield from eviction_scenarios()
    yield from clear_scenarios()
    yield from mark_scenarios()
    yield from partial_transfer_scenarios()
    yield from kill_scenarios()
    yield double_kill_scenario()
    yield from control_scenarios()
    yield from chain_scenarios()
    yield from batch_scenarios()
    yield from infrastructure_scenarios(many)


QUICK_NAMES = frozenset(
    {
        "kill after PATCH start, blocking",
        "kill after PATCH start, deferrable",
        "kill before the second input, blocking",
        "kill in the middle of a download's body, deferrable",
        "the service is down during the wait, deferrable",
        "clear after success, deferrable",
        "clear while it waits, blocking",
        "clear while it waits, deferrable, keep_task_state",
        "mark failed while deferred",
        "mark failed while running",
        "SIGTERM to the task's process",
        "control: kill after POST /flows, durable=False",
    }
)


def quick_scenarios() -> list[Scenario]:
    """Return the scenarios of `make test`."""
    return [scenario for scenario in all_scenarios() if scenario.name in QUICK_NAMES]
