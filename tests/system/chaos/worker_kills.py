"""The scenarios in which a task's process dies at an exact moment, and the controls that show that the harness can fail.

Those that stop a process which all tasks need stand in upheavals.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.system.chaos.case import RUN_PATH, Case, Scenario
from tests.system.chaos.proxy import CHAIN_PATH, When
from tests.system.chaos.services import Plan

WHEN_TEXT = {"midway": "in the middle of", "before": "before", "after": "after"}
MODES = ("blocking", "deferrable")


@dataclass(frozen=True)
class RequestPoint:
    """A request, by the number that it has among those of its kind."""

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
FIRST_POLL = RequestPoint("the first look", "GET", RUN_PATH)
MIDDLE_POLL = RequestPoint("a look in the middle", "GET", RUN_PATH, 3)
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
    """Kill the task's process at a request: the retry must end with the one flow run."""

    def play(case: Case) -> dict[str, Any]:
        case.arm(case.kill_task, point.method, point.path, when, point.nth)
        return case.run_to_end(mode)

    expected = {"killed": 1, "starts": 1, "task": "success", "runs": "1 completed", "files": "all of 1 run"}
    return Scenario(f"kill {WHEN_TEXT[when]} {point.name}, {mode}", expected, play)


def kill_scenarios() -> Iterator[Scenario]:
    """Give the kills at every request of the start and at the moments of waiting and fetching."""
    for mode in MODES:
        for point in START_POINTS:
            yield kill_scenario(point, "before", mode)
            yield kill_scenario(point, "after", mode)
        for point, when in LATER_POINTS:
            if mode == "blocking" or point is not MIDDLE_POLL:  # a deferred task's looks are the triggerer's
                yield kill_scenario(point, when, mode)


def double_kill_scenario() -> Scenario:
    """Kill the first try at the start and the second at the fetching."""

    def play(case: Case) -> dict[str, Any]:
        for point in (START_POINTS[-1], DOWNLOAD):
            case.arm(case.kill_task, point.method, point.path, "after")
        return case.run_to_end("blocking")

    expected = {"killed": 2, "starts": 1, "task": "success", "runs": "1 completed", "files": "all of 1 run"}
    return Scenario("kill after PATCH start and again after a download, blocking", expected, play)


def chain_scenarios() -> Iterator[Scenario]:
    """Give the kills for PromptChainer, whose one request is paid for at once."""

    def kill_after_response(case: Case) -> dict[str, Any]:
        case.arm(case.kill_task, "GET", "/chaos/written")
        return case.run_to_end("chain")

    once = {"killed": 1, "starts": 1, "task": "success"}
    yield Scenario(
        "kill after the answer came, PromptChainer", once, kill_after_response, conn_type="promptchainer"
    )

    def kill_before_response(case: Case) -> dict[str, Any]:
        case.arm(case.kill_task, "POST", rf"{CHAIN_PATH}.+", "after")
        facts = case.run_to_end("chain")
        log = case.stage.airflow.log("chaos_chain", case.dag_runs[-1][1], "run", 2)
        return facts | {"warned": any("warning" in line and "before" in line for line in log.splitlines())}

    twice = {"killed": 1, "starts": 2, "task": "success", "warned": True}
    yield Scenario(
        "kill before the answer came, PromptChainer", twice, kill_before_response, conn_type="promptchainer"
    )


def control_scenarios() -> Iterator[Scenario]:
    """Give what shows that the harness can see two starts, and where two are right."""

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
