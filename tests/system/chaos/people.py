"""The scenarios in which somebody clears or marks a task, or the machine evicts it: what is over is stopped, nothing else.

What a person does is done through Airflow's public API.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from tests.system.chaos import victims
from tests.system.chaos.case import PATIENCE, RUN, Case, Scenario
from tests.system.chaos.deaths import BODY, MODES, STARTING, Place
from tests.system.chaos.services import Plan

SOON = 30.0  # seconds in which a kill must have come to the service
UNDISTURBED = 20.0  # seconds in which nothing must have come of it
ENDLESS = (Plan(3600.0),)
SOMETIME = (
    Plan(200.0),
)  # long enough for all that is done meanwhile; at the emulator a tenth of it is spent in `starting`
WAITING = {"blocking": "running", "deferrable": "deferred"}


def clears() -> Iterator[Scenario]:
    """Give the clears of a green, a red and a waiting task."""
    for mode in MODES:

        def green(case: Case, mode: str = mode) -> dict[str, Any]:
            run_id = case.trigger(mode)
            case.ended(mode, run_id)
            case.clear(mode, run_id)
            case.until(lambda: len(case.book.started) == 2)
            case.ended(mode, run_id)
            return case.facts(mode, run_id)

        def waiting(case: Case, mode: str = mode) -> dict[str, Any]:
            run_id = _waiting(case, mode)
            case.clear(mode, run_id)
            case.until(lambda: len(case.book.started) == 2)
            case.ended(mode, run_id)
            return case.facts(mode, run_id)

        def red(case: Case, mode: str = mode) -> dict[str, Any]:
            marked_while_waiting(case, mode, "failed")
            ((_, run_id),) = case.triggered
            case.clear(mode, run_id)
            case.until(lambda: len(case.book.started) == 2)
            case.ended(mode, run_id)
            return case.facts(mode, run_id)

        again = {"starts": 2, "task": "success", "runs": "2 completed", "files": "all of 2 runs"}
        instead = {"starts": 2, "task": "success", "runs": "1 aborted, 1 completed", "files": "all of 1 run"}
        yield Scenario(f"clear after success, {mode}", again, green)
        yield Scenario(f"clear while it waits, {mode}", instead, waiting, plans=ENDLESS)
        yield Scenario(f"clear after mark failed, {mode}", instead, red, plans=ENDLESS)


def marks() -> Iterator[Scenario]:
    """Give the marks as failed and as success of a waiting task, with and without `abort_on_kill`."""
    for mode in MODES:
        for word in ("failed", "success"):

            def waiting(case: Case, mode: str = mode, word: str = word) -> dict[str, Any]:
                return marked_while_waiting(case, mode, word)

            expected = {"starts": 1, "task": word, "runs": "1 aborted", "within 30 s": True}
            yield Scenario(f"mark {word} while {WAITING[mode]}", expected, waiting, plans=ENDLESS)

        def left_alone(case: Case, mode: str = mode) -> dict[str, Any]:
            dag = f"{mode}_left_alone"
            run_id = _waiting(case, dag)
            case.mark(dag, run_id, "failed")
            time.sleep(UNDISTURBED)
            return case.facts(dag, run_id)

        expected = {"starts": 1, "task": "failed", "runs": "1 running"}
        yield Scenario(
            f"mark failed while {WAITING[mode]}, abort_on_kill=False", expected, left_alone, plans=SOMETIME
        )


def marked_while_waiting(case: Case, dag: str, word: str) -> dict[str, Any]:
    """Mark a task as soon as it waits."""
    return marked(case, dag, _waiting(case, dag), word)


def marked(case: Case, dag: str, run_id: str, word: str) -> dict[str, Any]:
    """Mark a task, and see whether its flow run is aborted soon."""
    case.mark(dag, run_id, word)
    aborted = case.until(lambda: case.service.states(case.book.created) == "1 aborted", SOON)
    return case.facts(dag, run_id) | {"within 30 s": aborted}


def halves() -> Iterator[Scenario]:
    """Give the marks as failed in the middle of the inputs and of a download."""
    second_input = STARTING[2]
    expected = {"starts": 0, "task": "failed", "runs": "none"}
    yield Scenario("mark failed during the inputs", expected, lambda case: _marked_at(case, second_input))
    expected = {"starts": 1, "task": "failed", "runs": "1 completed", "files": "none"}
    yield Scenario("mark failed during a download", expected, lambda case: _marked_at(case, BODY))


def _marked_at(case: Case, place: Place) -> dict[str, Any]:
    """Hold a request up, mark the task meanwhile, and let it go on when the task's process is gone."""
    held, gone = threading.Event(), threading.Event()

    def hold(port: int) -> bool:
        case.note_task(port)
        held.set()
        gone.wait(PATIENCE)
        return False

    case.arm(hold, place.method, place.path, "midway" if place is BODY else "before", place.nth)
    run_id = case.trigger("blocking")
    if not held.wait(PATIENCE):
        return {"trouble": "the request never came"}
    case.mark("blocking", run_id, "failed")
    case.until(lambda: not victims.alive(case.seen_pids[0]), SOON)
    gone.set()
    time.sleep(1)
    return case.facts("blocking", run_id)


def evictions() -> Iterator[Scenario]:
    """Give the signals to a task's process and to the worker above it."""
    expected = {
        "signalled": 1,
        "starts": 1,
        "task": "success",
        "runs": "1 completed",
        "files": "all of 1 run",
    }
    plans = (Plan(30.0),)

    def evicted(case: Case, *, worker: bool, number: signal.Signals) -> dict[str, Any]:
        case.arm(case.note_task, "GET", RUN)
        run_id = case.trigger("blocking")
        if not case.until(lambda: case.seen_pids):
            return {"trouble": "no task was seen"}
        task = case.seen_pids[0]
        both = [victims.parent(task), task] if number == signal.SIGKILL else [victims.parent(task)]
        victims.kill(*(both if worker else [task]), number=number)
        signalled = case.until(lambda: not victims.alive(task), 60)
        case.ended("blocking", run_id)
        return case.facts("blocking", run_id) | {"signalled": int(signalled)}

    def task_evicted(case: Case) -> dict[str, Any]:
        return evicted(case, worker=False, number=signal.SIGTERM)

    def worker_evicted(case: Case) -> dict[str, Any]:
        return evicted(case, worker=True, number=signal.SIGTERM)

    def worker_killed(case: Case) -> dict[str, Any]:
        return evicted(case, worker=True, number=signal.SIGKILL)

    yield Scenario("SIGTERM to the task's process", expected, task_evicted, plans=plans)
    yield Scenario("SIGTERM to the worker above the task", expected, worker_evicted, plans=plans)
    yield Scenario("SIGKILL to the worker and its task", expected, worker_killed, plans=plans)


def _waiting(case: Case, dag: str) -> str:
    """Start a task and give its run's id when its flow run is under way and it waits."""
    run_id = case.trigger(dag)
    if not case.until(lambda: case.waits(dag, run_id)):
        raise TimeoutError(f"the task does not wait; it is {case.state(dag, run_id)}")
    case.until(
        lambda: "running" in case.service.states(case.book.created) or case.scenario.plans == ENDLESS, 60
    )
    time.sleep(3)
    return run_id
