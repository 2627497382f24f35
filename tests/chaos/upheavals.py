"""The scenarios in which a process dies or stands still that all tasks need: the triggerer and the scheduler.

They are played one after the other, for each of them disturbs whatever else goes on.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from tests.chaos import victims
from tests.chaos.case import FINAL, Case, Scenario
from tests.chaos.deaths import MODES
from tests.chaos.people import ENDLESS, marked_while_waiting
from tests.chaos.services import Emulated
from tests.chaos.stage import DAG_OF_MANY, LONG_SECONDS

MANY = 50
UNDISTURBED = 25.0  # seconds after which whatever would be aborted wrongly has been


def upheavals() -> Iterator[Scenario]:
    """Give all of them."""
    expected = {"starts": MANY, "twice": 0, "tasks": f"{MANY} success", "runs": f"{MANY} completed"}
    yield Scenario(f"kill -9 of the triggerer, {MANY} deferred", expected, _triggerer_killed, alone=True, service="slow")
    yield Scenario(
        f"triggerer stopped until its triggers are elsewhere, then continued, {MANY} deferred",
        expected | {"moved": True, "aborted": 0},
        _triggerer_stopped,
        alone=True,
        service="slow",
    )
    aborted = {"starts": 1, "task": "failed", "runs": "1 aborted", "within 30 s": True}
    yield Scenario("mark failed while deferred, triggerer just started", aborted, _marked_when_cold, alone=True, plans=ENDLESS)
    once = {"starts": 1, "task": "success", "runs": "1 completed", "files": "2 whole"}
    for mode in MODES:

        def killed(case: Case, mode: str = mode) -> dict[str, Any]:
            return _scheduler_killed(case, mode)

        yield Scenario(f"kill -9 of the scheduler, {mode}", once, killed, alone=True, plans=({"run_seconds": 60.0},))


def _triggerer_killed(case: Case) -> dict[str, Any]:
    run_id = _all_deferred(case)
    airflow = case.stage.airflow
    victims.kill(*victims.family(airflow.process("triggerer").pid))
    airflow.restart("triggerer")
    return _finished(case, run_id)


def _triggerer_stopped(case: Case) -> dict[str, Any]:
    run_id = _all_deferred(case)
    airflow = case.stage.airflow
    first = victims.family(airflow.process("triggerer").pid)
    held_by = set(_triggerers(case, run_id))
    second = airflow.another("triggerer")
    second.start()

    def elsewhere() -> bool:
        second.check()
        held = _triggerers(case, run_id)
        return len(held) == MANY and held_by.isdisjoint(held)

    try:
        victims.kill(*first, number=signal.SIGSTOP)
        moved = case.until(elsewhere)
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


def _scheduler_killed(case: Case, mode: str) -> dict[str, Any]:
    run_id = case.trigger(mode)
    case.until(lambda: case.waits(mode, run_id))
    stage = case.stage
    victims.kill(stage.airflow.process("scheduler").pid)
    stage.airflow.restart("scheduler")
    stage.schedulers.add(stage.airflow.process("scheduler").pid)
    case.ended(mode, run_id)
    return case.facts(mode, run_id)


def _all_deferred(case: Case) -> str:
    """Start all tasks, and give their run's id when all of them wait in the triggerer."""
    run_id = case.trigger("many")
    if not case.until(lambda: len(_triggerers(case, run_id)) == MANY, 400):
        raise TimeoutError(f"not all tasks are deferred: {_states(case, run_id)}")
    time.sleep(5)
    return run_id


def _instances(case: Case, run_id: str) -> list[dict[str, Any]]:
    return case.asked(lambda: case.stage.airflow.task_instances(DAG_OF_MANY, run_id))


def _triggerers(case: Case, run_id: str) -> list[int]:
    """Tell which triggerer holds each of the deferred tasks that one holds."""
    held = [one for one in _instances(case, run_id) if one["state"] == "deferred" and one.get("triggerer_job")]
    return [one["triggerer_job"]["id"] for one in held]


def _states(case: Case, run_id: str) -> str:
    counted = Counter(one["state"] for one in _instances(case, run_id))
    return ", ".join(f"{number} {state}" for state, number in sorted(counted.items(), key=str))


def _finished(case: Case, run_id: str) -> dict[str, Any]:
    """Let all flow runs be done, wait for the tasks, and tell what came of them."""
    assert isinstance(case.service, Emulated)
    case.service.advance(2 * LONG_SECONDS)
    case.until(lambda: all(one["state"] in FINAL for one in _instances(case, run_id)), 400)
    starts = case.book.started
    return {
        "starts": len(starts),
        "twice": len(starts) - len(set(starts)),
        "tasks": _states(case, run_id),
        "runs": case.service.states(case.book.created),
    }
