"""Scenarios with a batch: a killed worker or triggerer, a mark, a used-up quota, and a Clear.

Each item that completes is started exactly once, no flow run is left active, and the
manifest names all items.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from airflow_provider_flows.core.start_or_resume import STAMP_KEY
from airflow_provider_flows.storage.quota_marker import QuotaMarker
from tests.support.versions import has
from tests.system.chaos import processes
from tests.system.chaos.case import (
    FINAL_TASK_STATES,
    RUN_PATH,
    Case,
    Scenario,
    is_complete_glb,
    is_waiting_instance,
)
from tests.system.chaos.clears import CHOICE, count_runs, find_lack_of_choice
from tests.system.chaos.proxy import When
from tests.system.chaos.stage import LONG_SECONDS
from tests.system.chaos.user_actions import MAX_ABORT_SECONDS
from tests.system.chaos.worker_kills import (
    BODY,
    DOWNLOAD,
    FILES_WRITTEN,
    MODES,
    WHEN_TEXT,
    RequestPoint,
)

ITEMS = 24
MAX_ACTIVE = 8  # of the DAGs `..._batch`
MANY = 200  # as many as the DAGs `..._batch_wide` have active at the same time
HALF_DONE_ITEMS = 2 * MAX_ACTIVE
QUOTA_STARTS = 10  # after which the quota is used up
MAX_END_SECONDS = 900.0  # a busy machine takes long for the many deferrals of a batch
ADVANCE_SECONDS = 5.0  # between two advances of a service's clock

KILLS: tuple[tuple[RequestPoint, When], ...] = (
    (RequestPoint("POST /flows of the fifth item", "POST", r"/flows", 5), "after"),
    (RequestPoint("the input of the fifth item", "POST", rf"{RUN_PATH}/inputs?", 5), "after"),
    (RequestPoint("PATCH start of the fifth item", "PATCH", RUN_PATH, 5), "before"),
    (RequestPoint("PATCH start of the fifth item", "PATCH", RUN_PATH, 5), "after"),
    (RequestPoint("a poll", "GET", RUN_PATH, 12), "after"),
    (RequestPoint("a download", "GET", DOWNLOAD.path, 5), "after"),
    (RequestPoint("a download's body", "GET", BODY.path, 5), "midway"),
    (RequestPoint("the first manifest is in its place", "GET", "/chaos/manifest.jsonl"), "before"),
    (RequestPoint("the last manifest is in its place", "GET", "/chaos/manifest.jsonl", 2), "before"),
    (RequestPoint("the failed items are in their place", "GET", "/chaos/failed.jsonl"), "before"),
    (FILES_WRITTEN, "before"),
)


def batch_scenarios() -> Iterator[Scenario]:
    """Yield all of them."""
    yield from _kill_scenarios()
    yield from _mark_scenarios()
    yield from _quota_scenarios()
    yield from _clear_scenarios()
    yield _triggerer_scenario()


def _expect(starts: int = ITEMS, runs: str = f"{ITEMS} completed", items: int = ITEMS) -> dict[str, Any]:
    """Return what a batch whose items all complete must have."""
    return {
        "starts": starts,
        "items started twice": 0,
        "task": "success",
        "runs": runs,
        "manifest": f"{items} completed, with all files",
    }


def _kill_scenarios() -> Iterator[Scenario]:
    """Yield the kills of the worker: at a start, in the wait, in a download, and at the manifest's write."""
    for mode in MODES:
        dag = f"{mode}_batch"
        for point, when in KILLS:

            def run(case: Case, dag: str = dag, point: RequestPoint = point, when: When = when) -> Any:
                case.arm(case.kill_task, point.method, point.path, when, point.nth)
                return _run_to_end(case, dag)

            name = f"batch: kill {WHEN_TEXT[when]} {point.name}, {mode}"
            yield Scenario(name, {"killed": 1, **_expect()}, run)

        def run_twice(case: Case, dag: str = dag) -> dict[str, Any]:
            case.arm(case.kill_task, "PATCH", RUN_PATH, "after", 5)
            case.arm(case.kill_task, DOWNLOAD.method, DOWNLOAD.path, "after", 5)
            return _run_to_end(case, dag)

        name = f"batch: kill after PATCH start and again after a download, {mode}"
        yield Scenario(name, {"killed": 2, **_expect()}, run_twice)


def _mark_scenarios() -> Iterator[Scenario]:
    """Yield the marks as failed with many active flow runs."""
    for mode in MODES:

        def run(case: Case, dag: str = f"{mode}_batch_wide") -> dict[str, Any]:
            run_id = _start_waiting(case, dag, MANY, MANY)
            all_aborted = f"{MANY} aborted"
            case.mark(dag, run_id, "failed")
            is_in_time = case.wait_until(
                lambda: case.service.states(case.traffic.created_ids) == all_aborted, MAX_ABORT_SECONDS
            )
            return _facts(case, dag, run_id) | {"within 30 s": is_in_time}

        expected = {
            "starts": MANY,
            "items started twice": 0,
            "task": "failed",
            "runs": f"{MANY} aborted",
            "within 30 s": True,
        }
        yield Scenario(f"batch: mark failed with {MANY} active, {mode}", expected, run, slow=True)


def _quota_scenarios() -> Iterator[Scenario]:
    """Yield a quota that is used up in the middle: the active runs finish, and a Clear runs the others."""
    for mode in MODES:

        def run(case: Case, dag: str = f"{mode}_batch") -> dict[str, Any]:
            def use_up_quota(_port: int) -> bool:
                # only once, because it is called at each later start
                case.proxy.is_quota_used_up = not is_over
                return False

            is_over = False
            case.arm(use_up_quota, "PATCH", RUN_PATH, "after", QUOTA_STARTS)
            run_id = _trigger(case, dag, ITEMS)
            case.wait_for_end(dag, run_id, MAX_END_SECONDS)
            task, completed = case.task_instances(dag, run_id)[0], len(case.traffic.started_ids)
            states = Counter(line["state"] for line in _read_manifest(case))
            are_right = states == {"completed": completed, "skipped": ITEMS - completed}
            stopped = {
                "at 402": f"{task['state']} in try {task['try_number']}",
                "runs at 402": count_runs(case) == f"{completed} completed" or count_runs(case),
                "manifest at 402": are_right or dict(states),
            }
            is_over, case.proxy.is_quota_used_up = True, False
            QuotaMarker(case.scenario.conn_type, case.proxy.url, [case.service.key]).clear()
            case.clear(dag, run_id, lambda airflow: _clear_and_keep(airflow, dag, run_id))
            case.wait_until(lambda: case.task_instances(dag, run_id)[0]["try_number"] > task["try_number"])
            case.wait_for_end(dag, run_id, MAX_END_SECONDS)
            return _facts(case, dag, run_id) | stopped

        expected = {"at 402": "failed in try 1", "runs at 402": True, "manifest at 402": True, **_expect()}
        yield Scenario(f"batch: 402 in the middle, then a Clear, {mode}", expected, run)


def _clear_scenarios() -> Iterator[Scenario]:
    """Yield the Clears of a batch of which half of the items have completed, and the others are active."""
    for mode in MODES:
        for is_kept in (False, True):

            def run(case: Case, dag: str = f"{mode}_batch", *, is_kept: bool = is_kept) -> dict[str, Any]:
                run_id = _start_waiting(case, dag, HALF_DONE_ITEMS, MAX_ACTIVE)
                case.service.advance(2 * LONG_SECONDS)
                _wait_for_starts(case, dag, run_id, HALF_DONE_ITEMS)
                starts = len(case.traffic.started_ids)
                try_number = case.task_instances(dag, run_id)[0]["try_number"]
                case.clear(
                    dag, run_id,
                    lambda airflow: airflow.clear(f"chaos_{dag}", run_id, "run", keep_task_state=is_kept),
                )  # fmt: skip
                case.wait_until(lambda: case.task_instances(dag, run_id)[0]["try_number"] > try_number)
                if not is_kept:  # the next try aborts first, unless the flow runs have ended before
                    case.wait_until(lambda: len(case.traffic.started_ids) > starts)
                _finish(case, dag, run_id)
                return _facts(case, dag, run_id, since=0 if is_kept else starts)

            expected = (
                _expect(HALF_DONE_ITEMS, f"{HALF_DONE_ITEMS} completed", HALF_DONE_ITEMS)
                if is_kept
                else _expect(
                    2 * HALF_DONE_ITEMS,
                    f"{MAX_ACTIVE} aborted, {HALF_DONE_ITEMS + MAX_ACTIVE} completed",
                    HALF_DONE_ITEMS,
                )
            )
            name = f"batch: a Clear when half is done, {mode}"
            if is_kept:
                yield Scenario(
                    f"{name}, keep_task_state", expected, run, slow=True, find_missing=find_lack_of_choice
                )
            else:
                yield Scenario(name, expected, run, slow=True)


def _triggerer_scenario() -> Scenario:
    """Return the scenario that kills the triggerer twice, each time while it waits for active flow runs."""
    dag = "deferrable_batch"

    def run(case: Case) -> dict[str, Any]:
        run_id = _start_waiting(case, dag, ITEMS, MAX_ACTIVE)
        airflow = case.stage.airflow
        for starts in (2 * MAX_ACTIVE, 3 * MAX_ACTIVE):
            processes.kill(*processes.process_tree(airflow.process("triggerer").pid))
            case.service.advance(2 * LONG_SECONDS)  # while no triggerer runs
            airflow.restart("triggerer")
            _wait_for_starts(case, dag, run_id, starts)
        _finish(case, dag, run_id)
        return _facts(case, dag, run_id)

    name = "batch: kill -9 of the triggerer, twice, deferrable"
    return Scenario(name, _expect(), run, slow=True, is_exclusive=True)


def _clear_and_keep(airflow: Any, dag: str, run_id: str) -> None:
    """Clear a task whose task state is kept, as every Clear does before Airflow 3.4."""
    airflow.clear(f"chaos_{dag}", run_id, "run", keep_task_state=has(CHOICE))


def _trigger(case: Case, dag: str, count: int) -> str:
    """Start a batch with so many items, and return the DAG run's id."""
    path = case.stage.home / "items" / f"{case.tag}.jsonl"
    path.parent.mkdir(exist_ok=True)
    items = [
        {"key": f"item-{number}", "inputs": f"Chair {number}", "additional": {"tag": case.tag}}
        for number in range(1, count + 1)
    ]
    path.write_text("".join(f"{json.dumps(item)}\n" for item in items))
    return case.trigger(dag, items=path.as_uri())


def _run_to_end(case: Case, dag: str) -> dict[str, Any]:
    run_id = _trigger(case, dag, ITEMS)
    case.wait_for_end(dag, run_id, MAX_END_SECONDS)
    return _facts(case, dag, run_id)


def _start_waiting(case: Case, dag: str, count: int, starts: int) -> str:
    """Start a batch, and return the DAG run's id when it waits for its first flow runs."""
    run_id = _trigger(case, dag, count)
    _wait_for_starts(case, dag, run_id, starts)
    return run_id


def _wait_for_starts(case: Case, dag: str, run_id: str, starts: int) -> None:
    """Wait until so many flow runs were started, those before them are fetched, and the task waits.

    :raises TimeoutError: that is not so in time.
    """
    fetched = starts - min(starts, MANY if "wide" in dag else MAX_ACTIVE)

    def is_waiting() -> bool:
        if len(case.traffic.started_ids) < starts or len(list(case.output.glob("*/*.glb"))) < fetched:
            return False
        return all(is_waiting_instance(dag, one) for one in case.task_instances(dag, run_id))

    if not case.wait_until(is_waiting, MAX_END_SECONDS):
        raise TimeoutError(f"the batch does not wait; {len(case.traffic.started_ids)} runs were started")
    time.sleep(3)


def _finish(case: Case, dag: str, run_id: str) -> None:
    """Advance the service's clock until the task has ended."""
    deadline = time.monotonic() + MAX_END_SECONDS
    while case.state(dag, run_id) not in FINAL_TASK_STATES and time.monotonic() < deadline:
        case.service.advance(2 * LONG_SECONDS)
        case.stage.stop_event.wait(ADVANCE_SECONDS)


def _facts(case: Case, dag: str, run_id: str, since: int = 0) -> dict[str, Any]:
    """Return the facts about a batch at its end.

    :param since: the number of starts after which an item that is started more than once counts.
    """
    keys = Counter(_get_item_key(case, one) for one in case.traffic.started_ids[since:])
    return {
        "killed": len(case.killed_pids),
        "starts": case.count_starts(),
        "items started twice": sum(number > 1 for number in keys.values()),
        "task": case.state(dag, run_id),
        "runs": count_runs(case),
        "manifest": _describe_manifest(case),
    }


def _get_item_key(case: Case, flow_run_id: str) -> str:
    """Return the key of a flow run's item, from the service's own record of the run."""
    response = case.service.send("GET", f"/flows/{flow_run_id}")
    response.raise_for_status()
    return str(response.json()["additional"][STAMP_KEY]["batch_key"])


def _read_manifest(case: Case) -> list[dict[str, Any]]:
    path = case.output / "manifest.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _describe_manifest(case: Case) -> str:
    """Return how many items the manifest has in each state, and whether runs and files are as it says."""
    lines = _read_manifest(case)
    counts = Counter(line["state"] for line in lines)
    parts = [f"{number} {state}" for state, number in sorted(counts.items())]
    completed = [line for line in lines if line["state"] == "completed"]
    wrong = [line["key"] for line in completed if not _is_right(case, line)]
    temporary = [
        path for path in case.output.rglob("*") if path.name.startswith(".") or path.suffix == ".part"
    ]
    parts += [f"{len(lines) - len({line['key'] for line in lines})} twice"] * (
        len({line["key"] for line in lines}) != len(lines)
    )
    parts += [f"wrong lines: {', '.join(wrong)}"] if wrong else []
    parts += [f"{len(temporary)} temporary"] if temporary else []
    return ", ".join([*parts, "with all files"] if completed and not wrong else parts) or "none"


def _is_right(case: Case, line: dict[str, Any]) -> bool:
    """Return whether a completed item has a completed flow run of its own, with all files of it."""
    flow_run_id, paths = (
        line["flow_run_id"],
        [Path(unquote(urlsplit(one["uri"]).path)) for one in line["outputs"]],
    )
    is_own = flow_run_id in case.traffic.started_ids and _get_item_key(case, flow_run_id) == line["key"]
    has_all = len(paths) == case.service.outputs(flow_run_id)
    are_complete = all(path.parent.name == line["key"] and is_complete_glb(path) for path in paths)
    return is_own and has_all and are_complete and case.service.state(flow_run_id) == "completed"
