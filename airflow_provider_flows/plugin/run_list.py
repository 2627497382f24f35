"""A connection's runs as a table: filtered, sorted, a page at a time; and the flows of which it has exported graphs.

The whole list is asked for once and kept for a moment, whatever part of it is shown; who may see it inside.py decides before.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from fastapi.concurrency import run_in_threadpool

from airflow_provider_flows.core.definition import FlowDefinition
from airflow_provider_flows.core.exceptions import FlowAuthError, FlowError, FlowInputError
from airflow_provider_flows.core.graph import FlowGraph
from airflow_provider_flows.core.polling.schedule import expected_end
from airflow_provider_flows.core.run import FlowRun, FlowState
from airflow_provider_flows.hooks import FlowsHook
from airflow_provider_flows.plugin.cache import Answer
from airflow_provider_flows.plugin.run_view import ANSWERS, FINAL_SECONDS, HURRY_SECONDS, WRONG_KEY, hook_of
from airflow_provider_flows.plugin.schemas import RunsShown, line, run_shown
from airflow_provider_flows.preflight import definition_of

A_PAGE = 25
LIST_SECONDS = 5.0  # between two lists of the same connection
MOST_FLOWS = 500  # to choose from

NO_LIST = (
    "This service keeps no list of flow runs: a run is over when its start is answered. Each task that ran a flow shows it, in "
    "its own tab Flow run."
)
NO_RUNS = "No flow runs yet. They appear here as soon as a task, or anybody with this key, starts one."
NO_FIT = "No flow run fits these filters."

KEYS: dict[str, Callable[[FlowRun], Any]] = {
    "created": lambda run: run.created_at,
    "started": lambda run: run.started_at,
    "finished": lambda run: run.finished_at,
    "duration": lambda run: run.duration,
    "progress": lambda run: run.progress,
    "state": lambda run: run.state.value,
    "flow": lambda run: run.flow,
}


@dataclass(frozen=True)
class Wanted:
    """Which part of the list is wanted: `sort` is one of `KEYS`, with a minus for the largest first."""

    state: str = ""
    flow: str = ""
    sort: str = "-created"
    page: int = 1

    def fits(self, run: FlowRun) -> bool:
        """Whether a run is among those that are wanted."""
        return self.state in {"", run.state.value} and self.flow in {"", run.flow}

    def sorted(self, runs: list[FlowRun]) -> list[FlowRun]:
        """Sort runs; those that have not what they are sorted by come last."""
        key = KEYS.get(self.sort.removeprefix("-"), KEYS["created"])
        having = [run for run in runs if key(run) is not None]
        rest = [run for run in runs if key(run) is None]
        return [*sorted(having, key=key, reverse=self.sort.startswith("-")), *rest]


@dataclass(frozen=True)
class _Listed:
    service: str
    runs: tuple[FlowRun, ...]
    lists: bool
    took: float


async def runs_shown(conn_id: str, wanted: Wanted) -> RunsShown:
    """Give one page of a connection's runs.

    :raises FlowInputError: there is no such connection, or it runs no flows.
    """
    told = await ANSWERS.get(
        ("runs", conn_id), lambda: _listed(conn_id), lambda listed: max(LIST_SECONDS, 2 * listed.took)
    )
    listed = told.value
    if isinstance(told.error, FlowInputError):
        raise told.error
    if listed is None:
        return RunsShown(
            flows_conn_id=conn_id, service="", note=_note(told.error), trouble=True, again=LIST_SECONDS
        )
    return await run_in_threadpool(_part, conn_id, wanted, listed, told.error)


def _part(conn_id: str, wanted: Wanted, listed: _Listed, error: FlowError | None) -> RunsShown:
    now = time.time()
    found = wanted.sorted([run for run in listed.runs if wanted.fits(run)])
    pages = max(1, math.ceil(len(found) / A_PAGE))
    page = min(max(1, wanted.page), pages)
    rows = [run_shown(run, now) for run in found[(page - 1) * A_PAGE : page * A_PAGE]]
    note = (
        _note(error)
        if error
        else None
        if found
        else NO_LIST
        if not listed.lists
        else NO_FIT
        if listed.runs
        else NO_RUNS
    )
    marks = (note, len(found), [(run.flow_run_id, run.state_word, run.started_at) for run in rows])
    return RunsShown(
        mark=sha256(repr(marks).encode()).hexdigest()[:16],
        flows_conn_id=conn_id,
        service=listed.service,
        runs=rows,
        total=len(found),
        page=page,
        pages=pages,
        flows=sorted({run.flow for run in listed.runs if run.flow})[:MOST_FLOWS],
        states={
            str(state): count
            for state, count in sorted(Counter(run.state for run in listed.runs).items(), key=_order)
        },
        note=note,
        trouble=error is not None,
        again=LIST_SECONDS if listed.lists else None,
    )


def _order(state_and_count: tuple[FlowState, int]) -> int:
    return list(FlowState).index(state_and_count[0])


def _note(error: FlowError | None) -> str:
    return (
        WRONG_KEY
        if isinstance(error, FlowAuthError)
        else f"The service could not be asked. {line(str(error))}"
    )


def _listed(conn_id: str) -> _Listed:
    hook = hook_of(conn_id)
    service, now, began = hook.service, time.time(), time.monotonic()
    if not service.offers("list_runs"):
        return _Listed(service.name, (), lists=False, took=FINAL_SECONDS)
    try:
        runs = hook.hurried(service.list_runs(), HURRY_SECONDS)
    finally:
        hook.close()
    # there may be many, and they are kept
    bare = (
        replace(run, raw={}, parameters=None, additional=None, flow=run.flow and line(run.flow))
        for run in runs
    )
    seen = tuple(run if run.final else replace(run, expected_at=expected_end(run, now)) for run in bare)
    return _Listed(service.name, seen, lists=True, took=time.monotonic() - began)


async def flow_ids(conn_id: str) -> Answer[list[str]]:
    """Give the ids of the flows whose exported graphs lie in the folder that the connection names, and of its test flow."""
    return await ANSWERS.get(("flows", conn_id), lambda: _flow_ids(conn_id), lambda _: FINAL_SECONDS)


def _flow_ids(conn_id: str) -> list[str]:
    extra = hook_of(conn_id).extra
    return sorted({*_exported(extra.get("graphs")), *filter(None, [extra.get("test_flow")])})[:MOST_FLOWS]


def _exported(folder: str | None) -> list[str]:
    if not folder:
        return []
    from airflow.sdk import ObjectStoragePath  # heavy, and needed only where the connection names a folder

    try:
        return [
            path.name.removesuffix(".json")
            for path in ObjectStoragePath(folder).iterdir()
            if path.name.endswith(".json")
        ]
    except Exception as error:
        message = f"The folder of flow graphs {folder!r} (field graphs of the connection) cannot be read ({type(error).__name__})"
        raise FlowInputError(message) from error


async def definition_at(conn_id: str, flow: str) -> tuple[FlowDefinition | None, FlowError | None]:
    """Give what a flow takes and gives, and what went wrong if something did."""
    told = await ANSWERS.get(
        ("definition", conn_id, flow), lambda: _definition(conn_id, flow), lambda _: FINAL_SECONDS
    )
    return told.value, told.error


def _definition(conn_id: str, flow: str) -> FlowDefinition:
    hook = hook_of(conn_id)
    try:
        return definition_of(hook, flow, lambda asked: hook.hurried(asked, HURRY_SECONDS))
    finally:
        hook.close()


async def graph_at(conn_id: str | None, flow: str | None) -> FlowGraph | None:
    """Give a flow's graph where an exported one is configured; one that cannot be read is none."""
    if conn_id is None or not flow:
        return None
    return (
        await ANSWERS.get(("graph", conn_id, flow), lambda: _graph(conn_id, flow), lambda _: FINAL_SECONDS)
    ).value


def _graph(conn_id: str, flow: str) -> FlowGraph | None:
    hook: FlowsHook = hook_of(conn_id)
    return hook.get_graph(flow)
