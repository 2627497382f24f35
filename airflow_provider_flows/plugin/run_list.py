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
from airflow_provider_flows.core.retry import NO_RETRY
from airflow_provider_flows.core.run import FlowRun, FlowState
from airflow_provider_flows.hooks import FlowsHook
from airflow_provider_flows.plugin.cache import CachedResponse
from airflow_provider_flows.plugin.run_view import (
    FINAL_TTL_SECONDS,
    INVALID_KEY_NOTE,
    PAGE_TIMEOUT_SECONDS,
    RESPONSE_CACHE,
    get_flows_hook,
)
from airflow_provider_flows.plugin.schemas import RunListSchema, to_run_schema, to_safe_line
from airflow_provider_flows.preflight import load_definition

RUNS_PER_PAGE = 25
RUN_LIST_TTL_SECONDS = 5.0  # between two lists of the same connection
MAX_FLOW_CHOICES = 500  # to choose from

NO_LIST_NOTE = (
    "This service keeps no list of flow runs: a run is over when its start is answered. Each task that ran a flow shows it, in "
    "its own tab Flow run."
)
NO_RUNS_NOTE = "No flow runs yet. They appear here as soon as a task, or anybody with this key, starts one."
NO_MATCH_NOTE = "No flow run fits these filters."

SORT_KEYS: dict[str, Callable[[FlowRun], Any]] = {
    "created": lambda run: run.created_at,
    "started": lambda run: run.started_at,
    "finished": lambda run: run.finished_at,
    "duration": lambda run: run.duration,
    "progress": lambda run: run.progress,
    "state": lambda run: run.state.value,
    "flow": lambda run: run.flow,
}


@dataclass(frozen=True)
class ListQuery:
    """Which part of the list is wanted: `sort` is one of `SORT_KEYS`, with a minus for the largest first."""

    state: str = ""
    flow: str = ""
    sort: str = "-created"
    page: int = 1

    def matches(self, run: FlowRun) -> bool:
        """Whether a run is among those that are wanted."""
        return self.state in {"", run.state.value} and self.flow in {"", run.flow}

    def sort_runs(self, runs: list[FlowRun]) -> list[FlowRun]:
        """Sort runs; those that have not what they are sorted by come last."""
        key = SORT_KEYS.get(self.sort.removeprefix("-"), SORT_KEYS["created"])
        sortable = [run for run in runs if key(run) is not None]
        unsortable = [run for run in runs if key(run) is None]
        return [*sorted(sortable, key=key, reverse=self.sort.startswith("-")), *unsortable]


@dataclass(frozen=True)
class _RunListing:
    service: str
    runs: tuple[FlowRun, ...]
    supports_list: bool
    load_seconds: float


async def get_run_list(conn_id: str, query: ListQuery) -> RunListSchema:
    """Give one page of a connection's runs.

    :raises FlowInputError: there is no such connection, or it runs no flows.
    """
    response = await RESPONSE_CACHE.get(
        ("runs", conn_id),
        lambda: _load_listing(conn_id),
        lambda listing: max(RUN_LIST_TTL_SECONDS, 2 * listing.load_seconds),
    )
    listing = response.value
    if isinstance(response.error, FlowInputError):
        raise response.error
    if listing is None:
        return RunListSchema(
            flows_conn_id=conn_id,
            service="",
            note=_to_error_note(response.error),
            is_error=True,
            refresh_after=RUN_LIST_TTL_SECONDS,
        )
    return await run_in_threadpool(_to_run_list, conn_id, query, listing, response.error)


def _to_run_list(
    conn_id: str, query: ListQuery, listing: _RunListing, error: FlowError | None
) -> RunListSchema:
    now = time.time()
    matching = query.sort_runs([run for run in listing.runs if query.matches(run)])
    pages = max(1, math.ceil(len(matching) / RUNS_PER_PAGE))
    page = min(max(1, query.page), pages)
    rows = [to_run_schema(run, now) for run in matching[(page - 1) * RUNS_PER_PAGE : page * RUNS_PER_PAGE]]
    note = (
        _to_error_note(error)
        if error
        else None
        if matching
        else NO_LIST_NOTE
        if not listing.supports_list
        else NO_MATCH_NOTE
        if listing.runs
        else NO_RUNS_NOTE
    )
    version_parts = (note, len(matching), [(run.flow_run_id, run.raw_state, run.started_at) for run in rows])
    return RunListSchema(
        version=sha256(repr(version_parts).encode()).hexdigest()[:16],
        flows_conn_id=conn_id,
        service=listing.service,
        runs=rows,
        total=len(matching),
        page=page,
        pages=pages,
        flows=sorted({run.flow for run in listing.runs if run.flow})[:MAX_FLOW_CHOICES],
        states={
            str(state): count
            for state, count in sorted(
                Counter(run.state for run in listing.runs).items(), key=_get_state_index
            )
        },
        note=note,
        is_error=error is not None,
        refresh_after=RUN_LIST_TTL_SECONDS if listing.supports_list else None,
    )


def _get_state_index(state_and_count: tuple[FlowState, int]) -> int:
    return list(FlowState).index(state_and_count[0])


def _to_error_note(error: FlowError | None) -> str:
    return (
        INVALID_KEY_NOTE
        if isinstance(error, FlowAuthError)
        else f"The service could not be asked. {to_safe_line(str(error))}"
    )


def _load_listing(conn_id: str) -> _RunListing:
    hook = get_flows_hook(conn_id)
    service, now, load_start = hook.service, time.time(), time.monotonic()
    if not service.supports("list_runs"):
        return _RunListing(service.name, (), supports_list=False, load_seconds=FINAL_TTL_SECONDS)
    try:
        runs = hook.run(service.list_runs(), retry=NO_RETRY, timeout=PAGE_TIMEOUT_SECONDS)
    finally:
        hook.close()
    # there may be many, and they are kept
    small_runs = (
        replace(run, raw={}, parameters=None, additional=None, flow=run.flow and to_safe_line(run.flow))
        for run in runs
    )
    runs_with_forecast = tuple(
        run if run.is_final else replace(run, expected_at=expected_end(run, now)) for run in small_runs
    )
    return _RunListing(
        service.name, runs_with_forecast, supports_list=True, load_seconds=time.monotonic() - load_start
    )


async def get_flow_ids(conn_id: str) -> CachedResponse[list[str]]:
    """Give the ids of the flows whose exported graphs lie in the folder that the connection names, and of its test flow."""
    return await RESPONSE_CACHE.get(
        ("flows", conn_id), lambda: _load_flow_ids(conn_id), lambda _: FINAL_TTL_SECONDS
    )


def _load_flow_ids(conn_id: str) -> list[str]:
    extra = get_flows_hook(conn_id).extra
    return sorted({*_list_exported_flows(extra.get("graphs")), *filter(None, [extra.get("test_flow")])})[
        :MAX_FLOW_CHOICES
    ]


def _list_exported_flows(folder: str | None) -> list[str]:
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


async def get_definition(conn_id: str, flow: str) -> tuple[FlowDefinition | None, FlowError | None]:
    """Give what a flow takes and gives, and what went wrong if something did."""
    response = await RESPONSE_CACHE.get(
        ("definition", conn_id, flow), lambda: _load_definition(conn_id, flow), lambda _: FINAL_TTL_SECONDS
    )
    return response.value, response.error


def _load_definition(conn_id: str, flow: str) -> FlowDefinition:
    hook = get_flows_hook(conn_id)
    try:
        return load_definition(
            hook,
            flow,
            lambda conversation: hook.run(conversation, retry=NO_RETRY, timeout=PAGE_TIMEOUT_SECONDS),
        )
    finally:
        hook.close()


async def get_graph(conn_id: str | None, flow: str | None) -> FlowGraph | None:
    """Give a flow's graph where an exported one is configured; one that cannot be read is none."""
    if conn_id is None or not flow:
        return None
    return (
        await RESPONSE_CACHE.get(
            ("graph", conn_id, flow), lambda: _load_graph(conn_id, flow), lambda _: FINAL_TTL_SECONDS
        )
    ).value


def _load_graph(conn_id: str, flow: str) -> FlowGraph | None:
    hook: FlowsHook = get_flows_hook(conn_id)
    return hook.get_graph(flow)
