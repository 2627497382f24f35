"""The batch of a task instance: its counts and its progress, and its items, a page at a time.

The items are the lines of the batch's manifest, at the place below the task's `output_path` where the worker
writes it; no XCom selects another file. A line counts if its flow run is one of those that the batch has
recorded in Airflow's task state store, so that no other batch's manifest in this folder is shown. Without
records, the task must have returned the manifest's URI.

A large manifest is read once after each change, in a thread; only its index is cached, not its lines.
"""

from __future__ import annotations

import math
import time
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from fastapi.concurrency import run_in_threadpool

from airflow_provider_flows.batch.records import BatchHeader
from airflow_provider_flows.batch.results import SKIPPED
from airflow_provider_flows.core.batch import MANIFEST_NAME, TRANSITIONS, ItemState, find_key_problem
from airflow_provider_flows.core.exceptions import FlowError, FlowInputError
from airflow_provider_flows.core.flow_run import FlowRun, FlowState
from airflow_provider_flows.core.limits import MAX_MANIFEST_BYTES
from airflow_provider_flows.plugin.airflow_internals import load_batch_records
from airflow_provider_flows.plugin.cache import (
    FINAL_TTL_SECONDS,
    RESPONSE_CACHE,
    CachedResponse,
    get_storage_pool,
)
from airflow_provider_flows.plugin.present import BatchPage, sort_states, to_item_schema
from airflow_provider_flows.plugin.run_view import (
    PAGE_POLL_SECONDS,
    TASK_ACTIVE_STATES,
    TASK_WAITING_STATES,
    Ownership,
    RunView,
    get_service_run_view,
)
from airflow_provider_flows.plugin.task_data import (
    TaskInstanceData,
    TaskKey,
    get_nonempty_str,
    is_run_id,
    parse_output_options,
    parse_outputs,
)
from airflow_provider_flows.plugin.texts import to_safe_line
from airflow_provider_flows.storage.batch_manifest import MANIFEST_TOO_LARGE, ManifestIndex, hash_run
from airflow_provider_flows.storage.paths import to_uri

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

    from airflow_provider_flows.storage.output_options import OutputOptions

ITEMS_PER_PAGE = 50
MAX_NUMBER = 2**53
INDEX_TTL_SECONDS = 600.0  # of an unchanged manifest
RECORDS_LOAD_RATIO = 20.0  # loading the records of a large batch takes at most this part of the time
ENDED_STATES = frozenset({*(state.value for state in ItemState if not TRANSITIONS[state]), SKIPPED})

NO_ITEMS_YET_NOTE = "The items are listed here once the manifest is written, which is at least once a minute."
NO_ARGUMENTS_NOTE = (
    "The items cannot be listed, because Airflow has deleted the rendered arguments of this task instance. "
    "The manifest, a file in the task's output_path, has all of them."
)
NO_RECORD_NOTE = (
    "Airflow has no record of this batch: it has not started yet, or this Airflow has no task state store "
    "(3.3 and later). The items are listed here once the task has succeeded."
)
NO_MANIFEST_NOTE = "The manifest is not in the task's output_path, so the items cannot be listed."
OTHER_MANIFEST_NOTE = "The file that the task has returned is not the manifest in its output_path."
UNREADABLE_NOTE = (
    "The API server cannot read the manifest ({error}). It needs the same storage, connection "
    "(output_conn_id) and package as the workers."
)
NO_MATCH_NOTE = "No items match the filters."


@dataclass(frozen=True)
class BatchQuery:
    """Filters and page of a batch's items.

    :param key: a part of the items' keys, in any case.
    """

    state: str = ""
    key: str = ""
    page: int = 1


@dataclass(frozen=True)
class Batch:
    """The batch of a task instance, as far as it is known.

    :param header: the record of the batch; None without one.
    :param result: the dict that the task has returned; empty if it is none of a batch.
    """

    ti_data: TaskInstanceData
    header: BatchHeader | None
    result: Mapping[str, Any]
    options: OutputOptions

    @property
    def conn_id(self) -> str | None:
        """The connection of the flow runs."""
        return get_nonempty_str(self.ti_data.fields, "flows_conn_id")

    @property
    def service(self) -> str:
        """The name of the service; empty before the task has returned it."""
        return to_safe_line(get_nonempty_str(self.result, "service") or "")

    @property
    def is_active(self) -> bool:
        """Whether the task has not ended."""
        return self.ti_data.state in TASK_ACTIVE_STATES | TASK_WAITING_STATES

    @property
    def recorded_total(self) -> int | None:
        """The number of items, None if it is not recorded."""
        return (self.header.total if self.header is not None else 0) or None

    @property
    def cache_key(self) -> tuple[Any, ...]:
        """What selects the manifest."""
        return self.options.output_path, self.options.output_conn_id, self.result.get("manifest")

    @property
    def folder(self) -> ObjectStoragePath:
        """The folder of the batch."""
        from airflow.sdk import ObjectStoragePath  # slow to import

        return ObjectStoragePath(str(self.options.output_path), conn_id=self.options.output_conn_id)

    def find_obstacle(self) -> str | None:
        """Return why the manifest must not or cannot be read, None if it can."""
        if self.header is None and not self.result:
            return NO_RECORD_NOTE
        return NO_ARGUMENTS_NOTE if self.options.output_path is None else None


def find_batch(ti_data: TaskInstanceData) -> Batch | None:
    """Return the batch of a task instance, None if its task is none of a batch."""
    try:
        header = BatchHeader.from_dict(ti_data.batch_header)
    except FlowError:  # there is none, or that of another version of this package
        header = None
    result = ti_data.result if isinstance(ti_data.result, Mapping) else {}
    if not isinstance(result.get("manifest"), str) or "flow_run_id" in result:
        result = {}
    has_arguments = all(ti_data.fields.get(name) is not None for name in ("flow", "items", "output_path"))
    if header is None and not result and not (has_arguments and ti_data.flow_run_id is None):
        return None
    return Batch(ti_data, header, result, parse_output_options(ti_data.fields))


# The records in the task state store


@dataclass(frozen=True)
class SavedItems:
    """What the task state store has of a batch's items.

    :param counts: of the items by state, without those that were never started.
    :param runs: the hashes of all keys, each with its flow run (`hash_run`).
    """

    counts: Mapping[str, int]
    runs: array[int]
    load_seconds: float

    def select_own(self, index: ManifestIndex) -> Sequence[int]:
        """Return the numbers of the lines of this batch; none if the manifest is that of another batch."""
        known = set(self.runs)
        own = [number for number, run in enumerate(index.runs) if not run or run in known]
        is_foreign = any(index.runs) and not any(index.runs[number] for number in own)
        return [] if is_foreign else own


async def _get_saved(batch: Batch) -> CachedResponse[SavedItems]:
    """Return what the task state store has; neither a value nor an error without records."""
    key, header = batch.ti_data.key, batch.header
    if header is None or key is None:
        return CachedResponse(None)
    # in an active task, what failed in an earlier try is run again
    try_number = batch.ti_data.try_number if batch.is_active else 0
    return await RESPONSE_CACHE.get(
        ("batch_records", key, header, try_number),
        lambda: _load_saved(key, try_number),
        lambda saved: max(PAGE_POLL_SECONDS, RECORDS_LOAD_RATIO * saved.load_seconds),
        get_storage_pool(batch.conn_id),
    )


def _load_saved(key: TaskKey, first_try: int) -> SavedItems:
    """Load the records.

    :param first_try: failures of earlier tries do not count.
    :raises FlowError: they cannot be read.
    """
    started_at = time.monotonic()
    counts: Counter[str] = Counter()
    runs = array("q")
    for item_key, record in load_batch_records(key) or ():
        runs.append(hash_run(item_key, record.flow_run_id))
        has_failed = record.state in {ItemState.FAILED, ItemState.ABORTED}
        is_waiting = record.state is ItemState.PENDING or (has_failed and record.try_number < first_try)
        if not is_waiting:
            counts[record.state.value] += 1
    return SavedItems(dict(counts), runs, time.monotonic() - started_at)


# The manifest


@dataclass(frozen=True)
class ItemList:
    """The items of a batch that its manifest lists.

    :param numbers: of their lines, from 0 on.
    :param state_names: as those of the index.
    """

    batch: Batch
    index: ManifestIndex
    version: str
    numbers: Sequence[int]
    state_names: tuple[str, ...]

    @classmethod
    def create(cls, batch: Batch, index: ManifestIndex, version: str, saved: SavedItems | None) -> ItemList:
        """Return the list, of all lines if there are no records."""
        numbers = range(len(index.states)) if saved is None else saved.select_own(index)
        # an earlier try has skipped the items that the current one starts
        waiting = ItemState.PENDING.value if batch.is_active else SKIPPED
        names = tuple(waiting if name == SKIPPED else name for name in index.state_names)
        return cls(batch, index, version, numbers, names)

    def get_state(self, number: int) -> str:
        """Return the state of an item."""
        return self.state_names[self.index.states[number]]

    def count_states(self) -> dict[str, int]:
        """Return the number of items by state."""
        states = Counter(self.index.states[number] for number in self.numbers)
        counts: Counter[str] = Counter()
        for state, count in states.items():
            counts[self.state_names[state]] += count
        return dict(counts)

    def select(self, query: BatchQuery) -> Sequence[int]:
        """Return the numbers of the items that match the filters."""
        numbers, states = self.numbers, self.index.states
        if query.state:
            wanted = {state for state, name in enumerate(self.state_names) if name == query.state}
            numbers = [number for number in numbers if states[number] in wanted]
        if query.key.strip():
            text = query.key.strip().lower().encode("utf-8", "replace")
            keys = self.index.keys.lower().split(b"\n")
            numbers = [number for number in numbers if text in keys[number]]
        return numbers

    def find(self, key: str) -> int | None:
        """Return the number of an item, None if it is not listed."""
        keys, encoded_key = self.index.get_keys(), key.encode()
        number = keys.index(encoded_key) if encoded_key in keys else None
        return number if number in self.numbers else None

    async def get_lines(self, numbers: Sequence[int]) -> Mapping[int, dict[str, Any]]:
        """Return lines of the manifest by their numbers, without those that were replaced meanwhile."""
        response: CachedResponse[dict[int, dict[str, Any]]] = await RESPONSE_CACHE.get(
            ("manifest_lines", *self.batch.cache_key, self.version, tuple(numbers)),
            lambda: _load_lines(self.batch, self.index, numbers),
            lambda _: FINAL_TTL_SECONDS,
            get_storage_pool(self.batch.conn_id),
        )
        return response.value or {}


async def _get_items(batch: Batch, saved: CachedResponse[SavedItems]) -> CachedResponse[ItemList]:
    """Return the listed items; neither a value nor an error without a manifest."""
    if saved.error is not None and saved.value is None:
        return CachedResponse(None, saved.error)
    if batch.find_obstacle() is not None:
        return CachedResponse(None)
    pool = get_storage_pool(batch.conn_id)
    version: CachedResponse[str | None] = await RESPONSE_CACHE.get(
        ("manifest_version", *batch.cache_key),
        lambda: _load_version(batch),
        lambda _: PAGE_POLL_SECONDS,
        pool,
    )
    if version.value is None:
        return CachedResponse(None, version.error)
    index = await RESPONSE_CACHE.get(
        ("manifest_index", *batch.cache_key, version.value),
        lambda: _load_index(batch),
        lambda _: INDEX_TTL_SECONDS,
        pool,
    )
    if index.value is None:
        return CachedResponse(None, index.error)
    items = await run_in_threadpool(ItemList.create, batch, index.value, version.value, saved.value)
    return CachedResponse(items, version.error or index.error)


def _load_version(batch: Batch) -> str | None:
    """Return what changes whenever the manifest does: its size, time or tag; None without a manifest.

    :raises FlowInputError: it cannot be read, is too large, or is not the one to be shown.
    """
    try:
        folder = batch.folder
        folder.fs.invalidate_cache(folder.path)
        path = folder / MANIFEST_NAME
        info = path.fs.info(path.path)
    except FileNotFoundError:
        return None
    except Exception as error:  # noqa: BLE001  # storage libraries raise exceptions of any type
        raise _unreadable_error(error) from None
    named_uri = batch.result.get("manifest")
    if named_uri is not None and named_uri != to_uri(path):
        raise FlowInputError(OTHER_MANIFEST_NOTE)
    if (info.get("size") or 0) > MAX_MANIFEST_BYTES:
        raise FlowInputError(MANIFEST_TOO_LARGE)
    return str(sorted((name, str(value)) for name, value in info.items()))


def _load_index(batch: Batch) -> ManifestIndex:
    try:
        return ManifestIndex.load(batch.folder)
    except FlowInputError:
        raise
    except Exception as error:  # noqa: BLE001  # storage libraries raise exceptions of any type
        raise _unreadable_error(error) from None


def _load_lines(batch: Batch, index: ManifestIndex, numbers: Sequence[int]) -> dict[int, dict[str, Any]]:
    try:
        return index.load_lines(batch.folder, numbers)
    except Exception as error:  # noqa: BLE001  # as above
        raise _unreadable_error(error) from None


def _unreadable_error(error: Exception) -> FlowInputError:
    return FlowInputError(UNREADABLE_NOTE.format(error=type(error).__name__))


# The pages


async def get_batch_page(batch: Batch, query: BatchQuery) -> BatchPage:
    """Return one page of a batch's items."""
    saved = await _get_saved(batch)
    response = await _get_items(batch, saved)
    items = response.value
    page, numbers = await run_in_threadpool(_create_page, batch, query, saved.value, items)
    if items is not None:
        lines, keys = await items.get_lines(numbers), items.index.get_keys()
        for number in numbers:
            key, line = keys[number].decode(), lines.get(number, {})
            outputs, run_id = parse_outputs(line.get("outputs")), _get_run_id(key, line)
            page.items.append(to_item_schema(key, items.get_state(number), line, run_id, outputs))
    if error := response.error or saved.error:
        page.note, page.is_error = to_safe_line(str(error)), True
    elif not page.items:
        page.note = batch.find_obstacle() or _explain_empty(batch, items)
    page.version = sha256(page.model_dump_json(exclude={"expected_end"}).encode()).hexdigest()[:16]
    return page


def _explain_empty(batch: Batch, items: ItemList | None) -> str | None:
    """Return why no item is listed."""
    if items is not None and items.numbers:
        return NO_MATCH_NOTE
    if batch.is_active:
        return NO_ITEMS_YET_NOTE
    return NO_MANIFEST_NOTE if items is None or items.index.states else None


def _create_page(
    batch: Batch, query: BatchQuery, saved: SavedItems | None, items: ItemList | None
) -> tuple[BatchPage, Sequence[int]]:
    """Return the page without its items, and the numbers of these."""
    flow = get_nonempty_str(batch.ti_data.fields, "flow")
    listed = {} if items is None else items.count_states()
    matching = () if items is None else items.select(query)
    counts, total = _count(batch, saved, listed)
    ended = sum(count for name, count in counts.items() if name in ENDED_STATES)
    pages = max(1, math.ceil(len(matching) / ITEMS_PER_PAGE))
    number = min(query.page, pages)
    page = BatchPage(
        flow=flow and to_safe_line(flow),
        service=batch.service,
        state=_get_batch_state(batch),
        total=total,
        ended=ended,
        counts=sort_states(counts),
        duration=_get_number(batch.result, "duration"),
        manifest=None if items is None else to_safe_line(items.index.uri),
        states=sort_states(listed),
        matches=len(matching),
        page=number,
        pages=pages,
        task_state=batch.ti_data.state,
        try_number=batch.ti_data.try_number,
        refresh_after=PAGE_POLL_SECONDS if batch.is_active else None,
    )
    if items is not None and items.numbers and batch.is_active and (rate := items.index.rate):
        page.rate = 60 * rate
        if total is not None and total > ended:
            page.expected_end = datetime.fromtimestamp(time.time() + (total - ended) / rate, UTC)
    return page, matching[(number - 1) * ITEMS_PER_PAGE : number * ITEMS_PER_PAGE]


def _count(
    batch: Batch, saved: SavedItems | None, listed: Mapping[str, int]
) -> tuple[dict[str, int], int | None]:
    """Return the items by state, and their number, None if unknown.

    The records are newer than the manifest, which has all items once the batch has ended.
    """
    total = batch.recorded_total
    is_complete = bool(listed) and not batch.is_active and sum(listed.values()) >= (total or 0)
    if saved is not None and not is_complete:
        counts = dict(saved.counts)
        if waiting := max(0, (total or 0) - sum(counts.values())):
            counts[ItemState.PENDING.value if batch.is_active else SKIPPED] = waiting
        return counts, total
    if listed:
        return dict(listed), sum(listed.values())
    states = (ItemState.COMPLETED, ItemState.FAILED, ItemState.ABORTED)
    returned = {state.value: int(_get_number(batch.result, state) or 0) for state in states}
    total = int(_get_number(batch.result, "total") or 0) or None
    return {name: count for name, count in returned.items() if count}, total


def _get_batch_state(batch: Batch) -> FlowState:
    """Return the state of a flow run that is shown like the batch."""
    if batch.ti_data.state in TASK_ACTIVE_STATES:
        return FlowState.RUNNING
    if batch.is_active:
        return FlowState.CREATED
    return FlowState.COMPLETED if batch.ti_data.state == "success" else FlowState.FAILED


def _get_run_id(key: str, line: Mapping[str, Any]) -> str | None:
    """Return the id of an item's flow run if the item can have a page."""
    flow_run_id = line.get("flow_run_id")
    has_page = isinstance(flow_run_id, str) and is_run_id(flow_run_id) and find_key_problem(key) is None
    return flow_run_id if has_page else None


def _get_number(values: Mapping[str, Any], name: str) -> float | None:
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if 0 <= value <= MAX_NUMBER else None


async def get_item_view(batch: Batch, key: str) -> RunView | None:
    """Return the flow run of an item, None if no item of this key is listed, or it has no flow run."""
    saved = await _get_saved(batch)
    items = (await _get_items(batch, saved)).value
    number = None if items is None else await run_in_threadpool(items.find, key)
    if items is None or number is None:
        return None
    line = (await items.get_lines([number])).get(number, {})
    flow_run_id = _get_run_id(key, line)
    if flow_run_id is None:
        return None
    view = RunView(
        flow_run_id,
        batch.conn_id,
        output_options=replace(batch.options, folder_name=key),
        task_key=batch.ti_data.key,
        ownership=Ownership.UNRECORDED if saved.value is None else Ownership.CONFIRMED,
        team_name=batch.ti_data.team_name,
    )
    state = FlowState.parse(items.get_state(number))
    if state.is_final:
        times = {name: line.get(name) for name in ("started_at", "finished_at")}
        flow = get_nonempty_str(batch.ti_data.fields, "flow")
        run = {"flow_run_id": flow_run_id, "service": batch.service, "flow": flow, "state": state}
        error = line["error"] if isinstance(line.get("error"), str) else None
        returned_run = FlowRun.from_event({**run, **times, "error": error})
        view = replace(view, run=returned_run, outputs=parse_outputs(line.get("outputs")))
    if state is FlowState.COMPLETED or batch.conn_id is None:
        return view
    return await get_service_run_view(batch.conn_id, flow_run_id, view)
