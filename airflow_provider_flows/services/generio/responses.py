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
from airflow_provider_flows.core.payload import data_uri
from airflow_provider_flows.core.responses import MAX_EXCERPT_CHARS, malformed_message
from airflow_provider_flows.core.run import (
    ERROR,
    PENDING,
    READY,
    FlowOutput,
    FlowRun,
    FlowState,
    parse_progress,
)
from airflow_provider_flows.core.timestamps import parse_timestamp
from airflow_provider_flows.services.generio.fields import get_first, get_id
from airflow_provider_flows.services.generio.templates import parse_template

if TYPE_CHECKING:
    from airflow_provider_flows.core.definition import FlowDefinition
    from airflow_provider_flows.core.http import Request, Response

ASSET_ID_KEYS = ("asset_id", "id", "_id")  # G-01
RUN_ID_KEYS = ("flow_id", "id", "_id")
RUN_LIST_KEYS = ("flows", "items", "data", "results")
STATE_KEYS = ("state", "status")  # G-28
OUTPUT_STATUSES = {  # G-03: whatever is not listed is pending
    **dict.fromkeys(("ready", "available", "completed", "done"), READY),
    **dict.fromkeys(("error", "failed"), ERROR),
}


def _raise_malformed(request: Request, response: Response, why: str) -> NoReturn:
    raise FlowMalformed(malformed_message(request, response, why), status=response.status)


def parse_asset_id(value: Any) -> str | None:
    """Find the asset id in the answer to an added input; it is not documented, so it may be absent."""
    return get_id(value, ASSET_ID_KEYS) if isinstance(value, Mapping) else None


def parse_run(
    request: Request,
    response: Response,
    value: Any,
    *,
    known_id: str | None = None,
    known_flow: str | None = None,
    default_state: FlowState = FlowState.CREATED,
) -> FlowRun:
    """Read one flow run; all it must have is an id, or a state where the id is known (G-16).

    :param unsaid: the state of a run that was just made, where the answer does not tell it.
    :raises FlowMalformed: it is no object, or has neither.
    """
    if isinstance(value, Mapping) and isinstance(value.get("flow"), Mapping):
        value = value["flow"]
    if not isinstance(value, Mapping):
        _raise_malformed(request, response, "is not a JSON object")
    flow_run_id = get_id(value, RUN_ID_KEYS) or known_id
    raw_state = get_first(value, STATE_KEYS)
    if flow_run_id is None:
        _raise_malformed(request, response, "has no flow_id")
    if known_id is not None and raw_state is None:
        _raise_malformed(request, response, "has no state")
    return _build_run(
        value,
        known_id or flow_run_id,
        default_state.value if raw_state is None else str(raw_state),
        known_flow,
    )


def _build_run(value: Mapping[str, Any], flow_run_id: str, raw_state: str, known_flow: str | None) -> FlowRun:
    state = FlowState.parse(raw_state)
    return FlowRun(
        flow_run_id=flow_run_id,
        service="generio",
        flow=_flow_name(value) or known_flow,
        state=state,
        raw_state=state.value if state is not FlowState.UNKNOWN else raw_state[:MAX_EXCERPT_CHARS],
        progress=1.0 if state is FlowState.COMPLETED else parse_progress(value.get("progress")),
        created_at=parse_timestamp(value.get("created_at")),
        started_at=parse_timestamp(value.get("started_at")),
        finished_at=parse_timestamp(value.get("finished_at")),
        parameters=value.get("parameters"),
        additional=value.get("additional"),
        error=_get_error(value, state) if state.is_final else None,
        raw=value,
    )


def _flow_name(value: Mapping[str, Any]) -> str | None:
    name = get_first(value, ("template", "template_name", "template_id"))
    if isinstance(name, Mapping):
        name = get_first(name, ("name", "template_name", "template_id", "id"))
    return str(name) if isinstance(name, (str, int)) else None


def _get_error(value: Mapping[str, Any], state: FlowState) -> str | None:
    """Find a reason; no field for it is documented, and `message` may as well be the sibling API's friendly wrapper (1.8)."""
    keys = ("error", "error_message", "reason", "details", "detail")
    detail = get_first(value, (*keys, "message") if state is FlowState.FAILED else keys)
    if detail is None or detail is False:
        return None
    return (detail if isinstance(detail, str) else json.dumps(detail, default=str))[: 10 * MAX_EXCERPT_CHARS]


def _find_list(value: Any, keys: Iterable[str]) -> list[Any] | None:
    """Find the list in an answer: the bare array, or under one of the keys."""
    if isinstance(value, Mapping):
        value = next((value[key] for key in keys if isinstance(value.get(key), list)), None)
    return value if isinstance(value, list) else None


def parse_runs(request: Request, response: Response, value: Any) -> Iterator[FlowRun]:
    """Read a list of runs; rows without id are passed over, a row without state is of unknown state (G-06: maybe projected)."""
    for key, row in rows_by_id(request, response, value).items():
        yield _build_run(row, key, str(get_first(row, STATE_KEYS) or "unknown"), None)


def rows_by_id(request: Request, response: Response, value: Any) -> dict[str, Mapping[str, Any]]:
    """Read a list of runs no further than to the ids of its rows."""
    rows = _find_list(value, RUN_LIST_KEYS)
    if rows is None:
        _raise_malformed(request, response, "holds no list of flow runs")
    return {key: row for row in rows if isinstance(row, Mapping) and (key := get_id(row, RUN_ID_KEYS))}


def parse_running_row(key: str, row: Mapping[str, Any]) -> FlowRun | None:
    """Read a row of a list of runs, if it says that the run is running, as far as a wait needs it; there may be thousands."""
    raw_state = str(get_first(row, STATE_KEYS))
    if FlowState.parse(raw_state) is not FlowState.RUNNING:
        return None
    started = parse_timestamp(row.get("started_at"))
    return FlowRun(
        flow_run_id=key,
        service="generio",
        flow=_flow_name(row),
        state=FlowState.RUNNING,
        raw_state=FlowState.RUNNING.value,
        progress=parse_progress(row.get("progress")),
        created_at=None if started else parse_timestamp(row.get("created_at")),
        started_at=started,
    )


def has_states(value: Any) -> bool:
    """Whether every row of a list of flow runs has an id and a state; not so where `filter_by` selects fields (G-06)."""
    rows = _find_list(value, RUN_LIST_KEYS) or []
    return all(
        isinstance(row, Mapping) and get_id(row, RUN_ID_KEYS) and get_first(row, STATE_KEYS) for row in rows
    )


def next_page_request(request: Request, value: Any, row_count: int) -> Request | None:
    """Make the request for the next page from whatever hint the answer holds (G-08), None without one."""
    if not isinstance(value, Mapping):
        return None
    hint = get_first(value, ("next", "next_page", "next_url"))
    if isinstance(hint, str) and ("/" in hint or hint.startswith("?")):
        return _with_page_url(request, hint)
    total, page, pages = (value.get(key) for key in ("total", "page", "pages"))
    if isinstance(page, int) and isinstance(pages, int) and page < pages:
        hint = page + 1
    if isinstance(hint, int) and not isinstance(hint, bool):
        return replace(request, query={**request.query, "page": str(hint)})
    if isinstance(total, int) and row_count < total:
        return replace(request, query={**request.query, "offset": str(row_count)})
    return None


def _with_page_url(request: Request, url: str) -> Request | None:
    """Make the request for the next page's address, None if it is none."""
    try:
        return replace(request, path=urljoin(request.path, url), query={} if "?" in url else request.query)
    except ValueError:
        return None


def parse_assets(
    request: Request, response: Response, value: Any, kind: str, *, include_data: bool
) -> list[FlowOutput]:
    """Read a list of inputs or outputs; a row without an id is one that failed, for a list that leaves it out looks complete.

    :param kind: the envelope's key, `inputs` or `outputs`.
    :param include_data: whether content was asked for; what comes unasked is not kept, it may be large.
    """
    rows = _find_list(value, (kind, "assets", "items", "data"))
    if rows is None:
        _raise_malformed(request, response, f"holds no list of {kind}")
    assets: dict[str, FlowOutput] = {}
    for number, row in enumerate(rows):
        asset = _parse_asset(
            {"asset_id": row} if isinstance(row, str) else row if isinstance(row, Mapping) else {}
        )
        key = f"id {asset.asset_id}" if asset.asset_id else f"row {number}"
        assets.setdefault(key, asset if include_data else replace(asset, value=None))
    return list(assets.values())


def _parse_asset(row: Mapping[str, Any]) -> FlowOutput:
    key = get_id(row, ASSET_ID_KEYS)
    data, raw_status = get_first(row, ("data", "file_data")), get_first(row, ("status", "state"))
    error = get_first(row, ("error", "error_message", "details", "message"))
    default_status = READY if data is not None else PENDING
    kind = get_first(row, ("media_type", "mime_type", "content_type", "type"))
    name = str(get_first(row, ("name", "file_name", "filename")) or key or "unnamed")[:MAX_EXCERPT_CHARS]
    if key is None:
        return FlowOutput(name, status=ERROR, error="the service's list tells no id of it")
    return FlowOutput(
        name=name,
        asset_id=key,
        status=default_status
        if raw_status is None
        else OUTPUT_STATUSES.get(str(raw_status).strip().lower(), PENDING),
        media_type=data_uri.normalize_media_type(kind)
        if isinstance(kind, str) and "/" in kind
        else _data_uri_media_type(data),
        additional=row.get("additional"),
        value=data if isinstance(data, str) else None,
        error=None if error is None else str(error)[:MAX_EXCERPT_CHARS],
    )


def _data_uri_media_type(data: Any) -> str | None:
    """Tell the media type of a data URI without decoding it."""
    if not isinstance(data, str) or not data.startswith("data:"):
        return None
    return data_uri.normalize_media_type(data[5:].partition(",")[0])


def parse_definitions(request: Request, response: Response, value: Any) -> list[FlowDefinition]:
    """Read a page of templates, a list or a mapping by name (vendor-api 1.6)."""
    by_name = value.get("templates") if isinstance(value, Mapping) else None
    if isinstance(by_name, Mapping):
        value = [{"name": name, **(row if isinstance(row, Mapping) else {})} for name, row in by_name.items()]
    rows = _find_list(value, ("templates", "items", "data"))
    if rows is None:
        _raise_malformed(request, response, "holds no list of templates")
    return [definition for row in rows if (definition := parse_template(row)) is not None]
