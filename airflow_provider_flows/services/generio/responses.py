"""Generio Flows: how its answers are read, tolerant wherever its documentation is of two minds (vendor-api part 3, G rows).

It sends nothing; generio.py says what is asked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urljoin

from airflow_provider_flows.core.exceptions import FlowMalformed
from airflow_provider_flows.core.http import SHOWN, malformed
from airflow_provider_flows.core.payload import data_uri
from airflow_provider_flows.core.run import (
    ERROR,
    PENDING,
    READY,
    FlowOutput,
    FlowRun,
    FlowState,
    read_progress,
)
from airflow_provider_flows.core.timestamps import read_time
from airflow_provider_flows.services.generio.fields import first, identifier
from airflow_provider_flows.services.generio.templates import read_template

if TYPE_CHECKING:
    from airflow_provider_flows.core.definition import FlowDefinition
    from airflow_provider_flows.core.http import Request, Response

ASSET_IDS = ("asset_id", "id", "_id")  # G-01
RUN_IDS = ("flow_id", "id", "_id")
RUN_LISTS = ("flows", "items", "data", "results")
STATE_WORDS = ("state", "status")  # G-28
STATUSES = {  # G-03: whatever is not listed is pending
    **dict.fromkeys(("ready", "available", "completed", "done"), READY),
    **dict.fromkeys(("error", "failed"), ERROR),
}


def _refuse(request: Request, response: Response, why: str) -> NoReturn:
    raise FlowMalformed(malformed(request, response, why), status=response.status)


def asset_id(value: Any) -> str | None:
    """Find the asset id in the answer to an added input; it is not documented, so it may be absent."""
    return identifier(value, ASSET_IDS) if isinstance(value, Mapping) else None


def read_run(
    request: Request,
    response: Response,
    value: Any,
    *,
    known_id: str | None = None,
    known_flow: str | None = None,
    unsaid: FlowState = FlowState.CREATED,
) -> FlowRun:
    """Read one flow run; all it must have is an id, or a state where the id is known (G-16).

    :param unsaid: the state of a run that was just made, where the answer does not tell it.
    :raises FlowMalformed: it is no object, or has neither.
    """
    if isinstance(value, Mapping) and isinstance(value.get("flow"), Mapping):
        value = value["flow"]
    if not isinstance(value, Mapping):
        _refuse(request, response, "is not a JSON object")
    flow_run_id = identifier(value, RUN_IDS) or known_id
    word = first(value, STATE_WORDS)
    if flow_run_id is None:
        _refuse(request, response, "has no flow_id")
    if known_id is not None and word is None:
        _refuse(request, response, "has no state")
    return _run(value, known_id or flow_run_id, unsaid.value if word is None else str(word), known_flow)


def _run(value: Mapping[str, Any], flow_run_id: str, word: str, known_flow: str | None) -> FlowRun:
    state = FlowState.of(word)
    return FlowRun(
        flow_run_id=flow_run_id,
        service="generio",
        flow=_flow_name(value) or known_flow,
        state=state,
        state_word=state.value if state is not FlowState.UNKNOWN else word[:SHOWN],
        progress=1.0 if state is FlowState.COMPLETED else read_progress(value.get("progress")),
        created_at=read_time(value.get("created_at")),
        started_at=read_time(value.get("started_at")),
        finished_at=read_time(value.get("finished_at")),
        parameters=value.get("parameters"),
        additional=value.get("additional"),
        error=_error(value, state) if state.final else None,
        raw=value,
    )


def _flow_name(value: Mapping[str, Any]) -> str | None:
    told = first(value, ("template", "template_name", "template_id"))
    if isinstance(told, Mapping):
        told = first(told, ("name", "template_name", "template_id", "id"))
    return str(told) if isinstance(told, (str, int)) else None


def _error(value: Mapping[str, Any], state: FlowState) -> str | None:
    """Find a reason; no field for it is documented, and `message` may as well be the sibling API's friendly wrapper (1.8)."""
    keys = ("error", "error_message", "reason", "details", "detail")
    told = first(value, (*keys, "message") if state is FlowState.FAILED else keys)
    if told is None or told is False:
        return None
    return (told if isinstance(told, str) else json.dumps(told, default=str))[: 10 * SHOWN]


def _rows(value: Any, keys: Iterable[str]) -> list[Any] | None:
    """Find the list in an answer: the bare array, or under one of the keys."""
    if isinstance(value, Mapping):
        value = next((value[key] for key in keys if isinstance(value.get(key), list)), None)
    return value if isinstance(value, list) else None


def read_runs(request: Request, response: Response, value: Any) -> Iterator[FlowRun]:
    """Read a list of runs; rows without id are passed over, a row without state is of unknown state (G-06: maybe projected)."""
    for key, row in rows_by_id(request, response, value).items():
        yield _run(row, key, str(first(row, STATE_WORDS) or "unknown"), None)


def rows_by_id(request: Request, response: Response, value: Any) -> dict[str, Mapping[str, Any]]:
    """Read a list of runs no further than to the ids of its rows."""
    rows = _rows(value, RUN_LISTS)
    if rows is None:
        _refuse(request, response, "holds no list of flow runs")
    return {key: row for row in rows if isinstance(row, Mapping) and (key := identifier(row, RUN_IDS))}


def running(key: str, row: Mapping[str, Any]) -> FlowRun | None:
    """Read a row of a list of runs, if it says that the run is running, as far as a wait needs it; there may be thousands."""
    word = str(first(row, STATE_WORDS))
    if FlowState.of(word) is not FlowState.RUNNING:
        return None
    started = read_time(row.get("started_at"))
    return FlowRun(
        flow_run_id=key,
        service="generio",
        flow=_flow_name(row),
        state=FlowState.RUNNING,
        state_word=FlowState.RUNNING.value,
        progress=read_progress(row.get("progress")),
        created_at=None if started else read_time(row.get("created_at")),
        started_at=started,
    )


def tells_states(value: Any) -> bool:
    """Whether every row of a list of flow runs has an id and a state; not so where `filter_by` selects fields (G-06)."""
    rows = _rows(value, RUN_LISTS) or []
    return all(
        isinstance(row, Mapping) and identifier(row, RUN_IDS) and first(row, STATE_WORDS) for row in rows
    )


def next_page(request: Request, value: Any, seen: int) -> Request | None:
    """Make the request for the next page from whatever hint the answer holds (G-08), None without one."""
    if not isinstance(value, Mapping):
        return None
    following = first(value, ("next", "next_page", "next_url"))
    if isinstance(following, str) and ("/" in following or following.startswith("?")):
        return _at(request, following)
    total, page, pages = (value.get(key) for key in ("total", "page", "pages"))
    if isinstance(page, int) and isinstance(pages, int) and page < pages:
        following = page + 1
    if isinstance(following, int) and not isinstance(following, bool):
        return replace(request, query={**request.query, "page": str(following)})
    if isinstance(total, int) and seen < total:
        return replace(request, query={**request.query, "offset": str(seen)})
    return None


def _at(request: Request, address: str) -> Request | None:
    """Make the request for the next page's address, None if it is none."""
    try:
        return replace(
            request, path=urljoin(request.path, address), query={} if "?" in address else request.query
        )
    except ValueError:
        return None


def read_assets(
    request: Request, response: Response, value: Any, kind: str, *, include_data: bool
) -> list[FlowOutput]:
    """Read a list of inputs or outputs; a row without an id is one that failed, for a list that leaves it out looks complete.

    :param kind: the envelope's key, `inputs` or `outputs`.
    :param include_data: whether content was asked for; what comes unasked is not kept, it may be large.
    """
    rows = _rows(value, (kind, "assets", "items", "data"))
    if rows is None:
        _refuse(request, response, f"holds no list of {kind}")
    seen: dict[str, FlowOutput] = {}
    for number, row in enumerate(rows):
        asset = _asset({"asset_id": row} if isinstance(row, str) else row if isinstance(row, Mapping) else {})
        key = f"id {asset.asset_id}" if asset.asset_id else f"row {number}"
        seen.setdefault(key, asset if include_data else replace(asset, value=None))
    return list(seen.values())


def _asset(row: Mapping[str, Any]) -> FlowOutput:
    key = identifier(row, ASSET_IDS)
    data, word = first(row, ("data", "file_data")), first(row, ("status", "state"))
    error = first(row, ("error", "error_message", "details", "message"))
    absent = READY if data is not None else PENDING
    kind = first(row, ("media_type", "mime_type", "content_type", "type"))
    name = str(first(row, ("name", "file_name", "filename")) or key or "unnamed")[:SHOWN]
    if key is None:
        return FlowOutput(name, status=ERROR, error="the service's list tells no id of it")
    return FlowOutput(
        name=name,
        asset_id=key,
        status=absent if word is None else STATUSES.get(str(word).strip().lower(), PENDING),
        media_type=data_uri.normal_media_type(kind)
        if isinstance(kind, str) and "/" in kind
        else _media_type(data),
        additional=row.get("additional"),
        value=data if isinstance(data, str) else None,
        error=None if error is None else str(error)[:SHOWN],
    )


def _media_type(data: Any) -> str | None:
    """Tell the media type of a data URI without decoding it."""
    if not isinstance(data, str) or not data.startswith("data:"):
        return None
    return data_uri.normal_media_type(data[5:].partition(",")[0])


def read_definitions(request: Request, response: Response, value: Any) -> list[FlowDefinition]:
    """Read a page of templates, a list or a mapping by name (vendor-api 1.6)."""
    told = value.get("templates") if isinstance(value, Mapping) else None
    if isinstance(told, Mapping):
        value = [{"name": name, **(row if isinstance(row, Mapping) else {})} for name, row in told.items()]
    rows = _rows(value, ("templates", "items", "data"))
    if rows is None:
        _refuse(request, response, "holds no list of templates")
    return [made for row in rows if (made := read_template(row)) is not None]
