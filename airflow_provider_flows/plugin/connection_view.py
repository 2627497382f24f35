"""The flow runs and the flows of a connection.

The complete list of runs is fetched from the service and cached; filters and pages are applied to the cached
list. The ids, definitions and exported graphs of flows are cached too.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from fastapi.concurrency import run_in_threadpool

from airflow_provider_flows.core.definition import FlowDefinition
from airflow_provider_flows.core.exceptions import FlowAuthError, FlowError, FlowInputError
from airflow_provider_flows.core.flow_run import FlowRun, FlowState
from airflow_provider_flows.core.graph import FlowGraph
from airflow_provider_flows.core.limits import MAX_RUN_LIST_BYTES
from airflow_provider_flows.core.polling.schedule import expected_end
from airflow_provider_flows.plugin.cache import (
    FINAL_TTL_SECONDS,
    RESPONSE_CACHE,
    CachedResponse,
    estimate_size,
    get_storage_pool,
)
from airflow_provider_flows.plugin.present import RunListSchema, to_run_schema, to_small_run
from airflow_provider_flows.plugin.run_origins import Origin, load_origins, to_task_key
from airflow_provider_flows.plugin.run_view import (
    INVALID_KEY_NOTE,
    get_flows_hook,
    get_small_stamp,
    run_for_page,
)
from airflow_provider_flows.plugin.texts import to_safe_line
from airflow_provider_flows.storage.paths import to_object_path

RUNS_PER_PAGE = 25
RUN_LIST_TTL_SECONDS = 5.0  # minimum time between two list requests of a connection
MAX_FLOW_FILTERS = 500
MAX_FLOWS = 500

NO_LIST_NOTE = (
    "This service does not list flow runs: a run ends with the response to its start. "
    "The Flow run tab of a task instance shows its run."
)
NO_RUNS_NOTE = "No flow runs yet. All runs started with this connection's API key appear here."
NO_MATCH_NOTE = "No flow runs match the filters."
LIST_FAILED_NOTE = "The flow runs could not be fetched from the service."
TRUNCATED_NOTE = "This connection has {total} flow runs. This page has the {count} that were created last."

SORT_FUNCTIONS: dict[str, Callable[[FlowRun], Any]] = {
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
    """Filters, order and page of a list of runs.

    :param search: a part of the id, of the flow, or of the DAG or task that started the run, in any case.
    :param sort: a key of `SORT_FUNCTIONS`, with a leading minus for descending order.
    """

    state: str = ""
    flow: str = ""
    search: str = ""
    sort: str = "-created"
    page: int = 1

    def matches(self, run: FlowRun) -> bool:
        """Return whether a run passes the filters."""
        key = to_task_key(run) if self.search else None
        texts = [run.flow_run_id, run.flow or "", *((key.dag_id, key.task_id) if key else ())]
        is_found = any(self.search.lower() in text.lower() for text in texts)
        return is_found and self.state in {"", run.state.value} and self.flow in {"", run.flow}

    def sort_runs(self, runs: list[FlowRun]) -> list[FlowRun]:
        """Return the runs in order; those without the value to sort by are last."""
        key = SORT_FUNCTIONS.get(self.sort.removeprefix("-"), SORT_FUNCTIONS["created"])
        sortable = [run for run in runs if key(run) is not None]
        unsortable = [run for run in runs if key(run) is None]
        return [*sorted(sortable, key=key, reverse=self.sort.startswith("-")), *unsortable]


@dataclass(frozen=True)
class _RunListing:
    """The list of a connection's runs, and how long it took to load.

    :param runs: all runs, or those that were created last if all are too large for the cache.
    :param total: the number of all runs.
    """

    service: str
    runs: tuple[FlowRun, ...]
    supports_list: bool
    load_seconds: float
    total: int = 0


async def _get_listing(conn_id: str, team_name: str | None) -> CachedResponse[_RunListing]:
    return await RESPONSE_CACHE.get(
        ("runs", conn_id, team_name),
        lambda: _load_listing(conn_id, team_name),
        _get_listing_ttl,
        pool=conn_id,
    )


async def get_origins(
    conn_id: str, run_list: RunListSchema, user: Any, team_name: str | None = None
) -> dict[str, Origin]:
    """Return the tasks that started the runs on a page, by flow run id, if the user may read their DAGs."""
    response = await _get_listing(conn_id, team_name)
    shown = {run.flow_run_id for run in run_list.runs}
    listed = response.value.runs if response.value is not None else ()
    keys = {run.flow_run_id: key for run in listed if run.flow_run_id in shown and (key := to_task_key(run))}
    return await run_in_threadpool(load_origins, keys, user)


async def get_run_list(conn_id: str, query: ListQuery, team_name: str | None = None) -> RunListSchema:
    """Return one page of a connection's runs.

    :param team_name: the team on whose behalf the connection is looked up, here and below; None for none.
    :raises FlowInputError: the connection does not exist, or its type is not one of a flow service.
    """
    response = await _get_listing(conn_id, team_name)
    if isinstance(response.error, FlowInputError):
        raise FlowInputError(str(response.error))  # the cached one would hold this request
    if response.value is None:
        return RunListSchema(
            flows_conn_id=conn_id,
            service="",
            note=_get_error_note(response.error),
            is_error=True,
            refresh_after=RUN_LIST_TTL_SECONDS,
        )
    return await run_in_threadpool(_to_run_list, conn_id, query, response.value, response.error)


def _to_run_list(
    conn_id: str, query: ListQuery, listing: _RunListing, error: FlowError | None
) -> RunListSchema:
    now = time.time()
    matching_runs = query.sort_runs([run for run in listing.runs if query.matches(run)])
    pages = max(1, math.ceil(len(matching_runs) / RUNS_PER_PAGE))
    page = min(max(1, query.page), pages)
    first = (page - 1) * RUNS_PER_PAGE
    rows = [to_run_schema(run, now) for run in matching_runs[first : first + RUNS_PER_PAGE]]
    note = _get_note(listing, matching_runs, error)
    version_parts = (
        note,
        len(matching_runs),
        [(run.flow_run_id, run.raw_state, run.started_at) for run in rows],
    )
    return RunListSchema(
        version=sha256(repr(version_parts).encode()).hexdigest()[:16],
        flows_conn_id=conn_id,
        service=listing.service,
        runs=rows,
        total=len(matching_runs),
        page=page,
        pages=pages,
        flows=sorted({run.flow for run in listing.runs if run.flow})[:MAX_FLOW_FILTERS],
        states=_count_states(listing),
        note=note,
        is_error=error is not None,
        refresh_after=RUN_LIST_TTL_SECONDS if listing.supports_list else None,
    )


def _get_note(listing: _RunListing, matching_runs: list[FlowRun], error: FlowError | None) -> str | None:
    if error is not None:
        return _get_error_note(error)
    if matching_runs:
        count = len(listing.runs)
        return None if count == listing.total else TRUNCATED_NOTE.format(total=listing.total, count=count)
    if not listing.supports_list:
        return NO_LIST_NOTE
    return NO_MATCH_NOTE if listing.runs else NO_RUNS_NOTE


def _get_error_note(error: FlowError | None) -> str:
    if isinstance(error, FlowAuthError):
        return INVALID_KEY_NOTE
    return f"{LIST_FAILED_NOTE} {to_safe_line(str(error))}"


def _count_states(listing: _RunListing) -> dict[str, int]:
    """Return the number of runs in each state that occurs, in the order of `FlowState`."""
    counts = Counter(run.state for run in listing.runs)
    return {str(state): counts[state] for state in FlowState if state in counts}


def _load_listing(conn_id: str, team_name: str | None) -> _RunListing:
    with closing(get_flows_hook(conn_id, team_name)) as hook:
        service, now, load_start = hook.service, time.time(), time.monotonic()
        if not service.supports("list_runs"):
            return _RunListing(service.name, (), supports_list=False, load_seconds=FINAL_TTL_SECONDS)
        runs = run_for_page(hook, service.list_runs())
    runs_with_forecast = [
        small_run if run.is_final else replace(small_run, expected_end_epoch=expected_end(run, now))
        for run in runs
        for small_run in [replace(to_small_run(run), additional=get_small_stamp(run))]
    ]
    return _RunListing(
        service.name,
        _select_last_runs(runs_with_forecast),
        supports_list=True,
        load_seconds=time.monotonic() - load_start,
        total=len(runs),
    )


def _select_last_runs(runs: list[FlowRun]) -> tuple[FlowRun, ...]:
    """Return the runs that were created last and fit into `MAX_RUN_LIST_BYTES`."""
    ordered = ListQuery(sort="-created").sort_runs(runs)
    size = 0
    for number, run in enumerate(ordered):
        size += estimate_size(run)
        if size > MAX_RUN_LIST_BYTES:
            return tuple(ordered[:number])
    return tuple(ordered)


def _get_listing_ttl(listing: _RunListing) -> float:
    """Return the TTL of a list: at least twice the time that it took to load."""
    return max(RUN_LIST_TTL_SECONDS, 2 * listing.load_seconds)


# Flows


async def get_flow_ids(conn_id: str, team_name: str | None = None) -> CachedResponse[list[str]]:
    """Return the ids of the flows with an exported graph in the connection's folder, and of its test flow."""
    return await RESPONSE_CACHE.get(
        ("flows", conn_id, team_name),
        lambda: _load_flow_ids(conn_id, team_name),
        lambda _: FINAL_TTL_SECONDS,
        pool=get_storage_pool(conn_id),
    )


def _load_flow_ids(conn_id: str, team_name: str | None) -> list[str]:
    extra = get_flows_hook(conn_id, team_name).extra
    test_flow = extra.get("test_flow")
    flow_ids = {*_list_exported_flows(extra.get("graphs")), *([test_flow] if test_flow else [])}
    return sorted(flow_ids)[:MAX_FLOWS]


def _list_exported_flows(folder: str | None) -> list[str]:
    if not folder:
        return []
    try:
        names = [path.name for path in to_object_path(folder).iterdir()]
    except Exception as error:
        raise FlowInputError(
            f"The folder of flow graphs {folder!r} cannot be read: {type(error).__name__}. "
            "Check the connection's Flow graphs field."
        ) from error
    return [name.removesuffix(".json") for name in names if name.endswith(".json")]


async def get_definition(
    conn_id: str, flow: str, team_name: str | None = None
) -> tuple[FlowDefinition | None, FlowError | None]:
    """Return a flow's definition, None if there is none yet, and the error of the last attempt to load it."""
    response = await RESPONSE_CACHE.get(
        ("definition", conn_id, team_name, flow),
        lambda: _load_definition(conn_id, team_name, flow),
        lambda _: FINAL_TTL_SECONDS,
        pool=conn_id,
    )
    return response.value, response.error


def _load_definition(conn_id: str, team_name: str | None, flow: str) -> FlowDefinition:
    with closing(get_flows_hook(conn_id, team_name)) as hook:
        definition = hook.preflight.load_definition(
            flow, lambda conversation: run_for_page(hook, conversation)
        )
    return replace(definition, raw=None)


async def get_graph(conn_id: str | None, flow: str | None, team_name: str | None = None) -> FlowGraph | None:
    """Return a flow's exported graph, None if none is configured or it cannot be read."""
    if conn_id is None or not flow:
        return None
    response = await RESPONSE_CACHE.get(
        ("graph", conn_id, team_name, flow),
        lambda: _load_graph(conn_id, team_name, flow),
        lambda _: FINAL_TTL_SECONDS,
        pool=get_storage_pool(conn_id),
    )
    return response.value


def _load_graph(conn_id: str, team_name: str | None, flow: str) -> FlowGraph | None:
    return get_flows_hook(conn_id, team_name).get_graph(flow)
