"""Scenarios in which a user clears tasks or DAG runs through Airflow's API, and the table of their outcomes.

A user who clears wants a new flow run, and the earlier one is aborted. A user who clears with
`keep_task_state` (Airflow 3.4 and later) wants the next try to resume the earlier one. Every version of
Airflow must have the outcomes of the same table.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

from tests.support.versions import FEATURES, has
from tests.system.chaos.case import (
    FINAL_TASK_STATES,
    RUN_PATH,
    Case,
    Scenario,
    is_waiting_instance,
)
from tests.system.chaos.services import Plan
from tests.system.chaos.stage import LONG_SECONDS
from tests.system.chaos.user_actions import start_waiting_task
from tests.system.chaos.worker_kills import MODES
from tools.airflow_stack import Stack

CHOICE = "choice to keep the task state in a Clear"
INSTANCES = 2  # of the mapped task
# A scenario with two blocking instances needs two worker slots at once. If more of them than these had one
# slot each, all would wait for the second one.
WORKER_SLOTS = threading.Semaphore(2)
FINAL_RUN_STATES = {"completed", "failed", "aborted", "gone"}


def _outcome(starts: int, runs: str, *, resumed: int = 0, files: int = 1, tasks: int = 1) -> dict[str, Any]:
    """Return an outcome: each of the facts that a scenario must have.

    :param runs: the number of flow runs in each state, where `active` is any state that is not final.
    :param resumed: the number of cleared task instances whose result is a flow run from before the Clear.
    :param files: the number of flow runs with all of their files.
    :param tasks: the number of task instances, all of which must succeed.
    """
    return {
        "starts": starts,
        "twice": 0,
        "resumed": resumed,
        "task": f"{tasks} success",
        "runs": runs,
        "files": f"all of {files} run{'s' * (files > 1)}",
    }


class Outcomes(NamedTuple):
    """The outcomes of a Clear, by what Airflow does with the task state store."""

    new: dict[str, Any]
    """Of a Clear that deletes the state. Airflow before 3.4 always keeps it, and has the same outcome."""
    resumed: dict[str, Any]
    """Of a Clear with which the user keeps the state."""


SUCCESS, WAITING, MARKED, KILLED, LEFT_ALONE = (
    "after success",
    "while it waits",
    "after mark failed",
    "after a kill without retries",
    "after mark failed, abort_on_kill=False",
)
INSTANCE, MAPPED, ALL_TASKS, DAG_RUN = (
    "one of two mapped instances",
    "a mapped task",
    "all tasks of a DAG run",
    "a DAG run",
)
OUTCOMES: dict[str, Outcomes] = {
    SUCCESS: Outcomes(_outcome(2, "2 completed", files=2), _outcome(1, "1 completed", resumed=1)),
    WAITING: Outcomes(_outcome(2, "1 aborted, 1 completed"), _outcome(1, "1 completed", resumed=1)),
    # an aborted flow run has no result to resume
    MARKED: Outcomes(_outcome(2, "1 aborted, 1 completed"), _outcome(2, "1 aborted, 1 completed")),
    KILLED: Outcomes(_outcome(2, "1 aborted, 1 completed"), _outcome(1, "1 completed", resumed=1)),
    LEFT_ALONE: Outcomes(_outcome(2, "1 active, 1 completed"), _outcome(1, "1 completed", resumed=1)),
    INSTANCE: Outcomes(
        _outcome(3, "1 aborted, 2 completed", files=2, tasks=2),
        _outcome(2, "2 completed", resumed=1, files=2, tasks=2),
    ),
    **dict.fromkeys(
        (MAPPED, ALL_TASKS, DAG_RUN),
        Outcomes(
            _outcome(4, "2 aborted, 2 completed", files=2, tasks=2),
            _outcome(2, "2 completed", resumed=2, files=2, tasks=2),
        ),
    ),
}
"""The outcomes, of a DAG's only task by its situation, and of a mapped task that waits by what is cleared."""


def clear_scenarios() -> Iterator[Scenario]:
    """Yield the Clears of a task in each situation, of mapped tasks and of DAG runs."""
    for mode in MODES:
        yield from _both(f"clear {SUCCESS}, {mode}", Clear(mode, SUCCESS, _start_and_finish))
        yield from _both(f"clear {WAITING}, {mode}", Clear(mode, WAITING, start_waiting_task))
        yield from _both(f"clear {MARKED}, {mode}", Clear(mode, MARKED, _start_and_mark))
        yield from _both(
            f"clear {LEFT_ALONE}, {mode}", Clear(f"{mode}_left_alone", LEFT_ALONE, _start_and_mark)
        )
    yield from _both(f"clear {KILLED}, blocking", Clear("blocking_no_retries", KILLED, _start_and_kill))
    for mode in MODES:
        for name, task_ids in {INSTANCE: (("run", 0),), MAPPED: ("run",), ALL_TASKS: ()}.items():
            yield from _both(
                f"clear {name}, {mode}", Clear(f"{mode}_mapped", name, _start_mapped, task_ids=task_ids)
            )
        # this request has no choice: before Airflow 3.4 it is like the others, since then it keeps the state
        clear = Clear(f"{mode}_mapped", DAG_RUN, _start_mapped, task_ids=None)
        yield clear.to_scenario(f"clear {DAG_RUN}, {mode}", _find_choice)
        yield clear.to_scenario(
            f"clear {DAG_RUN}, {mode}, Airflow keeps the state", find_lack_of_choice, is_kept=True
        )


def _both(name: str, clear: Clear) -> Iterator[Scenario]:
    """Yield the scenarios of a Clear without and with `keep_task_state`."""
    yield clear.to_scenario(name)
    yield clear.to_scenario(f"{name}, keep_task_state", find_lack_of_choice, is_kept=True)


def find_lack_of_choice() -> str | None:
    """Return which Airflow has the choice to keep the task state, None if this one has it."""
    return None if has(CHOICE) else f"it needs Airflow {_version()}: {CHOICE}"


def _find_choice() -> str | None:
    return f"it needs Airflow before {_version()}" if has(CHOICE) else None


def _version() -> str:
    return ".".join(map(str, FEATURES[CHOICE].since))


@dataclass(frozen=True)
class Clear:
    """A request that clears something of a DAG run, and the situation in which it is sent."""

    dag: str
    subject: str
    """The key of its outcomes."""
    start: Callable[[Case, str], str]
    """Starts a DAG run, and returns its id when the situation is there."""
    task_ids: tuple[str | tuple[str, int], ...] | None = ("run",)
    """What is cleared: tasks, or the DAG run with all of its tasks, or, if None, by the DAG run's request."""

    def to_scenario(
        self, name: str, find_missing: Callable[[], str | None] = lambda: None, *, is_kept: bool = False
    ) -> Scenario:
        """Return the scenario.

        :param is_kept: whether Airflow keeps the state of the cleared tasks.
        """
        has_choice = self.task_ids is not None
        expected = OUTCOMES[self.subject].resumed if is_kept else OUTCOMES[self.subject].new

        def run(case: Case) -> dict[str, Any]:
            with WORKER_SLOTS if self.dag == "blocking_mapped" else nullcontext():
                return self._run(case, expected, keep_task_state=is_kept and has_choice)

        # Only a service's own clock ends a flow run that must be active at the Clear and complete later.
        resumes_active = bool(expected["resumed"]) and self.subject != SUCCESS
        slow = resumes_active or self.subject == INSTANCE
        endless_plans = () if slow or self.subject == SUCCESS else (Plan(LONG_SECONDS),) * self.task_count
        return Scenario(name, expected, run, slow=slow, plans=endless_plans, find_missing=find_missing)

    @property
    def task_count(self) -> int:
        """The number of task instances."""
        return INSTANCES if self.dag.endswith("_mapped") else 1

    @property
    def cleared_indices(self) -> set[int]:
        """The map indices of the cleared task instances."""
        if self.task_count == 1:
            return {-1}
        return {0} if self.subject == INSTANCE else set(range(INSTANCES))

    def _run(self, case: Case, expected: dict[str, Any], *, keep_task_state: bool) -> dict[str, Any]:
        """Start the tasks, send the request, and return the facts when all tasks have ended."""
        run_id = self.start(case, self.dag)
        earlier_ids = set(case.traffic.started_ids)
        tries = {one["map_index"]: one["try_number"] for one in case.task_instances(self.dag, run_id)}

        def send(airflow: Stack) -> None:
            if self.task_ids is None:
                airflow.clear_run(f"chaos_{self.dag}", run_id)
            else:
                airflow.clear(f"chaos_{self.dag}", run_id, *self.task_ids, keep_task_state=keep_task_state)

        def is_next_try_waiting() -> bool:
            instances = case.task_instances(self.dag, run_id)
            after_clear = {one["map_index"] for one in instances if _is_after_clear(self.dag, one, tries)}
            return len(case.traffic.started_ids) >= expected["starts"] and after_clear >= self.cleared_indices

        case.clear(self.dag, run_id, send)
        case.wait_until(is_next_try_waiting)
        if case.scenario.slow:
            time.sleep(3)  # the next try reads what the earlier one has saved; it may do so later as well
            case.service.advance(2 * LONG_SECONDS)
        case.wait_until(lambda: self._is_finished(case, run_id))
        return self._facts(case, run_id, earlier_ids)

    def _is_finished(self, case: Case, run_id: str) -> bool:
        instances = case.task_instances(self.dag, run_id)
        return len(instances) == self.task_count and all(
            one["state"] in FINAL_TASK_STATES for one in instances
        )

    def _facts(self, case: Case, run_id: str, earlier_ids: set[str]) -> dict[str, Any]:
        started_ids = case.traffic.started_ids
        states = Counter(one["state"] for one in case.task_instances(self.dag, run_id))
        return {
            "starts": case.count_starts(),
            "twice": len(started_ids) - len(set(started_ids)),
            "resumed": sum(
                self._result_id(case, run_id, index) in earlier_ids for index in self.cleared_indices
            ),
            "task": ", ".join(f"{number} {state}" for state, number in sorted(states.items(), key=str)),
            "runs": count_runs(case),
            "files": case.describe_files(),
        }

    def _result_id(self, case: Case, run_id: str, map_index: int) -> str | None:
        """Return the id of the flow run in a task instance's result, None if it has no result."""
        try:
            result = case.airflow.xcom(f"chaos_{self.dag}", run_id, "run", map_index=map_index)
        except RuntimeError:  # 404; what is missing is in the other facts
            return None
        return str(result["flow_run_id"])


def _is_after_clear(dag: str, instance: dict[str, Any], tries: dict[int, int]) -> bool:
    """Return whether a cleared task instance waits or has ended in the try after the Clear."""
    index = instance["map_index"]
    if index not in tries or instance["try_number"] <= tries[index]:
        return False
    return instance["state"] in FINAL_TASK_STATES or is_waiting_instance(dag, instance)


def count_runs(case: Case) -> str:
    """Return the number of flow runs in each final state, and of the active ones, as text."""
    states = [case.service.state(one) for one in dict.fromkeys(case.traffic.created_ids)]
    counted = Counter(state if state in FINAL_RUN_STATES else "active" for state in states if state != "gone")
    return ", ".join(f"{number} {state}" for state, number in sorted(counted.items()))


def _start_and_finish(case: Case, dag: str) -> str:
    run_id = case.trigger(dag)
    case.wait_for_end(dag, run_id)
    return run_id


def _start_and_mark(case: Case, dag: str) -> str:
    """Start a task, and mark it as failed; without `abort_on_kill=False` its flow run is aborted."""
    run_id = start_waiting_task(case, dag)
    case.mark(dag, run_id, "failed")
    if "left_alone" not in dag:
        case.wait_until(lambda: case.service.states(case.traffic.created_ids) == "1 aborted", 60)
    return run_id


def _start_and_kill(case: Case, dag: str) -> str:
    """Start a task, and kill its process, so that the task fails while its flow run is active."""
    case.arm(case.kill_task, "GET", RUN_PATH, "after", 2)
    run_id = case.trigger(dag)
    case.wait_for_end(dag, run_id)
    return run_id


def _start_mapped(case: Case, dag: str) -> str:
    run_id = case.trigger(dag)
    if not case.wait_until(lambda: case.is_waiting(dag, run_id, INSTANCES)):
        raise TimeoutError(f"the mapped task does not wait: {case.task_instances(dag, run_id)}")
    time.sleep(3)
    return run_id
