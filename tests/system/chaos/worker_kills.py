"""Scenarios in which a task's process or its worker is killed or evicted, and controls of the harness."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.system.chaos import processes
from tests.system.chaos.case import RUN_PATH, Case, Scenario
from tests.system.chaos.proxy import CHAIN_PATH, When
from tests.system.chaos.services import Plan

WHEN_TEXT = {"midway": "in the middle of", "before": "before", "after": "after"}
MODES = ("blocking", "deferrable")


@dataclass(frozen=True)
class RequestPoint:
    """The n-th request of a kind."""

    name: str
    method: str
    path: str
    nth: int = 1


START_POINTS = (
    RequestPoint("POST /flows", "POST", r"/flows"),
    RequestPoint("the first input", "POST", rf"{RUN_PATH}/inputs?"),
    RequestPoint("the second input", "POST", rf"{RUN_PATH}/inputs?", 2),
    RequestPoint("PATCH start", "PATCH", RUN_PATH),
)
FIRST_POLL = RequestPoint("the first poll", "GET", RUN_PATH)
MIDDLE_POLL = RequestPoint("a later poll", "GET", RUN_PATH, 3)
OUTPUTS = RequestPoint("the list of outputs", "GET", rf"{RUN_PATH}/outputs")
DOWNLOAD = RequestPoint("a download", "GET", rf"{RUN_PATH}/outputs/[^/]+")
BODY = RequestPoint("a download's body", "GET", rf"{RUN_PATH}/outputs/[^/]+")
FILES_WRITTEN = RequestPoint("the task's end, all files written", "GET", "/chaos/written")
LATER_POINTS: tuple[tuple[RequestPoint, When], ...] = (
    (FIRST_POLL, "after"),
    (MIDDLE_POLL, "before"),
    (OUTPUTS, "after"),
    (DOWNLOAD, "after"),
    (BODY, "midway"),
    (FILES_WRITTEN, "before"),
)


def kill_scenario(point: RequestPoint, when: When, mode: str) -> Scenario:
    """Return a scenario that kills the task's process at a request; the retry must resume the flow run."""

    def run(case: Case) -> dict[str, Any]:
        case.arm(case.kill_task, point.method, point.path, when, point.nth)
        return case.run_to_end(mode)

    expected = {"killed": 1, "starts": 1, "task": "success", "runs": "1 completed", "files": "all of 1 run"}
    return Scenario(f"kill {WHEN_TEXT[when]} {point.name}, {mode}", expected, run)


def kill_scenarios() -> Iterator[Scenario]:
    """Yield the kills at every request of the start, while waiting and while fetching."""
    for mode in MODES:
        for point in START_POINTS:
            yield kill_scenario(point, "before", mode)
            yield kill_scenario(point, "after", mode)
        for point, when in LATER_POINTS:
            if mode == "blocking" or point is not MIDDLE_POLL:  # a deferred task is polled by the triggerer
                yield kill_scenario(point, when, mode)


def double_kill_scenario() -> Scenario:
    """Return a scenario that kills the first try at the start, and the second while fetching."""

    def run(case: Case) -> dict[str, Any]:
        for point in (START_POINTS[-1], DOWNLOAD):
            case.arm(case.kill_task, point.method, point.path, "after")
        return case.run_to_end("blocking")

    expected = {"killed": 2, "starts": 1, "task": "success", "runs": "1 completed", "files": "all of 1 run"}
    return Scenario("kill after PATCH start and again after a download, blocking", expected, run)


def chain_scenarios() -> Iterator[Scenario]:
    """Yield the kills for PromptChainer, whose one request is billed immediately."""

    def kill_after_response(case: Case) -> dict[str, Any]:
        case.arm(case.kill_task, "GET", "/chaos/written")
        return case.run_to_end("chain")

    once = {"killed": 1, "starts": 1, "task": "success"}
    yield Scenario(
        "kill after the response arrived, PromptChainer", once, kill_after_response, conn_type="promptchainer"
    )

    def kill_before_response(case: Case) -> dict[str, Any]:
        case.arm(case.kill_task, "POST", rf"{CHAIN_PATH}.+", "after")
        facts = case.run_to_end("chain")
        log = case.stage.airflow.log("chaos_chain", case.dag_runs[-1][1], "run", 2)
        return facts | {"warned": any("warning" in line and "before" in line for line in log.splitlines())}

    twice = {"killed": 1, "starts": 2, "task": "success", "warned": True}
    yield Scenario(
        "kill before the response arrived, PromptChainer",
        twice,
        kill_before_response,
        conn_type="promptchainer",
    )


def control_scenarios() -> Iterator[Scenario]:
    """Yield controls: scenarios in which two starts are expected."""

    def forgetful(case: Case) -> dict[str, Any]:
        case.arm(case.kill_task, "POST", r"/flows", "after")
        return case.run_to_end("blocking_forgetful")

    twice = {"killed": 1, "starts": 2, "task": "success", "runs": "2 completed"}
    yield Scenario("control: kill after POST /flows, durable=False", twice, forgetful)
    for mode in MODES:

        def failing(case: Case, mode: str = mode) -> dict[str, Any]:
            return case.run_to_end(mode)

        expected = {"starts": 2, "task": "success", "runs": "1 completed, 1 failed", "files": "all of 1 run"}
        yield Scenario(f"the flow run fails, {mode}", expected, failing, plans=(Plan(error="No."),))


def eviction_scenarios() -> Iterator[Scenario]:
    """Yield the signals to a task's process and to its worker."""
    expected = {
        "signalled": 1,
        "starts": 1,
        "task": "success",
        "runs": "1 completed",
        "files": "all of 1 run",
    }
    plans = (Plan(30.0),)

    def evict(case: Case, *, worker: bool, number: signal.Signals) -> dict[str, Any]:
        case.arm(case.record_task, "GET", RUN_PATH)
        run_id = case.trigger("blocking")
        if not case.wait_until(lambda: case.task_pids):
            return {"error": "no task sent a request"}
        task = case.task_pids[0]
        both = (
            [processes.parent_pid(task), task] if number == signal.SIGKILL else [processes.parent_pid(task)]
        )
        processes.kill(*(both if worker else [task]), number=number)
        signalled = case.wait_until(lambda: not processes.is_alive(task), 60)
        case.wait_for_end("blocking", run_id)
        return case.facts("blocking", run_id) | {"signalled": int(signalled)}

    def evict_task(case: Case) -> dict[str, Any]:
        return evict(case, worker=False, number=signal.SIGTERM)

    def evict_worker(case: Case) -> dict[str, Any]:
        return evict(case, worker=True, number=signal.SIGTERM)

    def kill_worker(case: Case) -> dict[str, Any]:
        return evict(case, worker=True, number=signal.SIGKILL)

    yield Scenario("SIGTERM to the task's process", expected, evict_task, plans=plans)
    yield Scenario("SIGTERM to the worker above the task", expected, evict_worker, plans=plans)
    yield Scenario("SIGKILL to the worker and its task", expected, kill_worker, plans=plans)
