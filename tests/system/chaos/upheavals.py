"""The scenarios in which a process dies or stands still that all tasks need: the triggerer and the scheduler.

They are played one after the other, for each of them disturbs whatever else goes on.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any
from urllib.parse import quote

from tests.system.chaos import victims
from tests.system.chaos.case import FINAL, Case, Scenario
from tests.system.chaos.deaths import MODES
from tests.system.chaos.people import ENDLESS, marked, marked_while_waiting
from tests.system.chaos.services import Plan
from tests.system.chaos.stage import DAG_OF_MANY, LONG_SECONDS

MANY = 50
EACH = 8.0  # seconds that one task among many may take, on a machine with few cores
PAGE = 100
UNDISTURBED = 25.0  # seconds after which whatever would be aborted wrongly has been


def upheavals(many: int) -> Iterator[Scenario]:
    """Give all of them."""
    expected = {"starts": many, "twice": 0, "tasks": f"{many} success", "runs": f"{many} completed"}
    killed_triggerer = partial(_triggerer_killed, many=many)
    yield Scenario(
        f"kill -9 of the triggerer, {many} deferred", expected, killed_triggerer, alone=True, slow=True
    )
    yield Scenario(
        f"triggerer stopped until its triggers are elsewhere, then continued, {many} deferred",
        expected | {"moved": True, "aborted": 0},
        partial(_triggerer_stopped, many=many),
        alone=True,
        slow=True,
    )
    aborted = {"starts": 1, "task": "failed", "runs": "1 aborted", "within 30 s": True}
    yield Scenario(
        "mark failed while deferred, triggerer just started",
        aborted,
        _marked_when_cold,
        alone=True,
        plans=ENDLESS,
    )
    yield Scenario(
        "mark failed while deferred, no triggerer there", aborted, _marked_unseen, alone=True, plans=ENDLESS
    )
    once = {"starts": 1, "task": "success", "runs": "1 completed", "files": "all of 1 run"}
    for mode in MODES:

        def killed(case: Case, mode: str = mode) -> dict[str, Any]:
            return _scheduler_killed(case, mode)

        yield Scenario(f"kill -9 of the scheduler, {mode}", once, killed, alone=True, plans=(Plan(60.0),))


def _triggerer_killed(case: Case, many: int) -> dict[str, Any]:
    run_id = _all_deferred(case, many)
    airflow = case.stage.airflow
    victims.kill(*victims.family(airflow.process("triggerer").pid))
    airflow.restart("triggerer")
    return _finished(case, run_id)


def _triggerer_stopped(case: Case, many: int) -> dict[str, Any]:
    run_id = _all_deferred(case, many)
    airflow = case.stage.airflow
    first = victims.family(airflow.process("triggerer").pid)
    held_by = set(_triggerers(case, run_id))
    second = airflow.another("triggerer")
    second.start()

    def elsewhere() -> bool:
        second.check()
        held = _triggerers(case, run_id)
        return len(held) == many and held_by.isdisjoint(held)

    try:
        victims.kill(*first, number=signal.SIGSTOP)
        moved = case.until(elsewhere, _patience(many))
        time.sleep(3)
        victims.kill(*first, number=signal.SIGCONT)
        time.sleep(UNDISTURBED)
        states = case.service.states(case.book.created)
        seen = _finished(case, run_id)
    finally:
        victims.kill(*first, number=signal.SIGCONT)
        second.stop()
    return seen | {"moved": moved, "aborted": states if "aborted" in states else 0}


def _marked_when_cold(case: Case) -> dict[str, Any]:
    """Mark right after a start: a triggerer's first question to Airflow takes seconds, in which the kill has to wait."""
    case.stage.airflow.restart("triggerer")
    return marked_while_waiting(case, "deferrable", "failed")


def _marked_unseen(case: Case) -> dict[str, Any]:
    """Mark while no triggerer has the task, and so none is told."""
    airflow = case.stage.airflow
    victims.kill(*victims.family(airflow.process("triggerer").pid))
    try:
        run_id = case.trigger("deferrable")
        case.until(lambda: case.state("deferrable", run_id) == "deferred")
        return marked(case, "deferrable", run_id, "failed")
    finally:
        airflow.restart("triggerer")


def _scheduler_killed(case: Case, mode: str) -> dict[str, Any]:
    run_id = case.trigger(mode)
    case.until(lambda: case.waits(mode, run_id))
    stage = case.stage
    victims.kill(stage.airflow.process("scheduler").pid)
    stage.airflow.restart("scheduler")
    stage.schedulers.add(stage.airflow.process("scheduler").pid)
    case.ended(mode, run_id)
    return case.facts(mode, run_id)


def _patience(many: int) -> float:
    return max(400.0, EACH * many)


def _all_deferred(case: Case, many: int) -> str:
    """Start all tasks, and give their run's id when all of them wait in the triggerer."""
    run_id = case.trigger("many")
    if not case.until(lambda: len(_triggerers(case, run_id)) == many, _patience(many)):
        raise TimeoutError(f"not all tasks are deferred: {_states(case, run_id)}")
    time.sleep(5)
    return run_id


def _instances(case: Case, run_id: str) -> list[dict[str, Any]]:
    """Give the task instances, page by page: Airflow gives a hundred at most."""
    path = f"dags/{DAG_OF_MANY}/dagRuns/{quote(run_id, safe='')}/taskInstances"
    found: list[dict[str, Any]] = []
    while True:
        params = {"limit": PAGE, "offset": len(found), "order_by": "map_index"}
        told = case.asked(partial(case.stage.airflow.call, "GET", path, params=params)).json()
        found += told["task_instances"]
        if len(told["task_instances"]) < PAGE:
            return found


def _triggerers(case: Case, run_id: str) -> list[int]:
    """Tell which triggerer holds each of the deferred tasks that one holds."""
    held = [
        one for one in _instances(case, run_id) if one["state"] == "deferred" and one.get("triggerer_job")
    ]
    return [one["triggerer_job"]["id"] for one in held]


def _states(case: Case, run_id: str) -> str:
    counted = Counter(one["state"] for one in _instances(case, run_id))
    return ", ".join(f"{number} {state}" for state, number in sorted(counted.items(), key=str))


def _finished(case: Case, run_id: str) -> dict[str, Any]:
    """Let all flow runs be done, wait for the tasks, and tell what came of them."""
    case.service.advance(2 * LONG_SECONDS)
    starts = case.book.started
    case.until(lambda: all(one["state"] in FINAL for one in _instances(case, run_id)), _patience(len(starts)))
    return {
        "starts": len(starts),
        "twice": len(starts) - len(set(starts)),
        "tasks": _states(case, run_id),
        "runs": case.service.states(case.book.created),
    }
