"""The scenarios in which a task's process dies at an exact moment, and the controls that show that the harness can fail.

Those that stop a process which all tasks need stand in upheavals.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.system.chaos.case import RUN, Case, Scenario
from tests.system.chaos.proxy import CHAINS, When
from tests.system.chaos.services import Plan

WORDS = {"midway": "in the middle of", "before": "before", "after": "after"}
MODES = ("blocking", "deferrable")


@dataclass(frozen=True)
class Place:
    """A request, by the number that it has among those of its kind."""

    name: str
    method: str
    path: str
    nth: int = 1


STARTING = (
    Place("POST /flows", "POST", r"/flows"),
    Place("the first input", "POST", rf"{RUN}/inputs?"),
    Place("the second input", "POST", rf"{RUN}/inputs?", 2),
    Place("PATCH start", "PATCH", RUN),
)
FIRST_LOOK = Place("the first look", "GET", RUN)
MIDDLE_LOOK = Place("a look in the middle", "GET", RUN, 3)
OUTPUTS = Place("the list of outputs", "GET", rf"{RUN}/outputs")
DOWNLOAD = Place("a download", "GET", rf"{RUN}/outputs/[^/]+")
BODY = Place("a download's body", "GET", rf"{RUN}/outputs/[^/]+")
WRITTEN = Place("the task's end, all files written", "GET", "/chaos/written")
LATER: tuple[tuple[Place, When], ...] = (
    (FIRST_LOOK, "after"),
    (MIDDLE_LOOK, "before"),
    (OUTPUTS, "after"),
    (DOWNLOAD, "after"),
    (BODY, "midway"),
    (WRITTEN, "before"),
)


def killed_at(place: Place, when: When, mode: str) -> Scenario:
    """Kill the task's process at a request: the retry must end with the one flow run."""

    def play(case: Case) -> dict[str, Any]:
        case.arm(case.kill_task, place.method, place.path, when, place.nth)
        return case.played(mode)

    expected = {"killed": 1, "starts": 1, "task": "success", "runs": "1 completed", "files": "all of 1 run"}
    return Scenario(f"kill {WORDS[when]} {place.name}, {mode}", expected, play)


def kills() -> Iterator[Scenario]:
    """Give the kills at every request of the start and at the moments of waiting and fetching."""
    for mode in MODES:
        for place in STARTING:
            yield killed_at(place, "before", mode)
            yield killed_at(place, "after", mode)
        for place, when in LATER:
            if mode == "blocking" or place is not MIDDLE_LOOK:  # a deferred task's looks are the triggerer's
                yield killed_at(place, when, mode)


def twice_killed() -> Scenario:
    """Kill the first try at the start and the second at the fetching."""

    def play(case: Case) -> dict[str, Any]:
        for place in (STARTING[-1], DOWNLOAD):
            case.arm(case.kill_task, place.method, place.path, "after")
        return case.played("blocking")

    expected = {"killed": 2, "starts": 1, "task": "success", "runs": "1 completed", "files": "all of 1 run"}
    return Scenario("kill after PATCH start and again after a download, blocking", expected, play)


def chains() -> Iterator[Scenario]:
    """Give the kills for PromptChainer, whose one request is paid for at once."""

    def after_the_answer(case: Case) -> dict[str, Any]:
        case.arm(case.kill_task, "GET", "/chaos/written")
        return case.played("chain")

    once = {"killed": 1, "starts": 1, "task": "success"}
    yield Scenario(
        "kill after the answer came, PromptChainer", once, after_the_answer, conn_type="promptchainer"
    )

    def in_doubt(case: Case) -> dict[str, Any]:
        case.arm(case.kill_task, "POST", rf"{CHAINS}.+", "after")
        seen = case.played("chain")
        log = case.stage.airflow.log("chaos_chain", case.triggered[-1][1], "run", 2)
        return seen | {"warned": any("warning" in line and "before" in line for line in log.splitlines())}

    twice = {"killed": 1, "starts": 2, "task": "success", "warned": True}
    yield Scenario("kill before the answer came, PromptChainer", twice, in_doubt, conn_type="promptchainer")


def controls() -> Iterator[Scenario]:
    """Give what shows that the harness can see two starts, and where two are right."""

    def forgetful(case: Case) -> dict[str, Any]:
        case.arm(case.kill_task, "POST", r"/flows", "after")
        return case.played("blocking_forgetful")

    twice = {"killed": 1, "starts": 2, "task": "success", "runs": "2 completed"}
    yield Scenario("control: kill after POST /flows, durable=False", twice, forgetful)
    for mode in MODES:

        def failing(case: Case, mode: str = mode) -> dict[str, Any]:
            return case.played(mode)

        expected = {"starts": 2, "task": "success", "runs": "1 completed, 1 failed", "files": "all of 1 run"}
        yield Scenario(f"the flow run fails, {mode}", expected, failing, plans=(Plan(error="No."),))
