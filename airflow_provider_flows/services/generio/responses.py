"""Parser of Generio's responses, tolerant wherever the documentation is ambiguous.

Ids such as G-01 refer to vendor_notes.md, part 3.
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

if TYPE_CHECKING:
    from airflow_provider_flows.core.http import Request, Response

ASSET_ID_KEYS = ("asset_id", "id", "_id")  # G-01
RUN_ID_KEYS = ("flow_id", "id", "_id")
RUN_LIST_KEYS = ("flows", "items", "data", "results")
STATE_KEYS = ("state", "status")  # G-28
OUTPUT_STATUSES = {  # G-03: any other status is pending
    **dict.fromkeys(("ready", "available", "completed", "done"), READY),
    **dict.fromkeys(("error", "failed"), ERROR),
}


def get_first(value: Mapping[str, Any], keys: Iterable[str]) -> Any:
    """Return the first of these fields that is neither null nor an empty string, or None."""
    for key in keys:
        found = value.get(key)
        if found is not None and found != "":
            return found
    return None


def get_id(value: Mapping[str, Any], keys: Iterable[str]) -> str | None:
    """Return the first of these fields as an id, or None if it is neither a string nor an integer."""
    found = get_first(value, keys)
    return str(found) if isinstance(found, (str, int)) and not isinstance(found, bool) else None


def get_text(value: Mapping[str, Any], keys: Iterable[str], max_length: int) -> str | None:
    """Return the first of these fields, cut to `max_length` characters, or None if it is not a string."""
    found = get_first(value, keys)
    return found[:max_length] if isinstance(found, str) else None


def find_list(value: Any, keys: Iterable[str]) -> list[Any] | None:
    """Return the value itself or the first of these fields that is a list, or None."""
    if isinstance(value, Mapping):
        value = next((value[key] for key in keys if isinstance(value.get(key), list)), None)
    return value if isinstance(value, list) else None


def raise_malformed(request: Request, response: Response, problem: str) -> NoReturn:
    """Raise FlowMalformed for a response.

    :param problem: the rest of the sentence "The response to ...".
    """
    raise FlowMalformed(malformed_message(request, response, problem), status=response.status)


def parse_asset_id(value: Any) -> str | None:
    """Return the asset id in the response to an added input, or None; the response is not documented."""
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
    """Parse one flow run; required are an id, or, if the id is known, a state (G-16).

    :param known_id: the id in the request's path.
    :param known_flow: the flow in the request's body.
    :param default_state: the state of a created run whose response has none.
    :raises FlowMalformed: the value is not an object, or lacks a required field.
    """
    if isinstance(value, Mapping) and isinstance(value.get("flow"), Mapping):
        value = value["flow"]
    if not isinstance(value, Mapping):
        raise_malformed(request, response, "is not a JSON object")
    flow_run_id = get_id(value, RUN_ID_KEYS) or known_id
    raw_state = get_first(value, STATE_KEYS)
    if flow_run_id is None:
        raise_malformed(request, response, "has no flow_id")
    if known_id is not None and raw_state is None:
        raise_malformed(request, response, "has no state")
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
    """Return the reason of a failure, or None; its field is not documented.

    `message` counts for failed runs only, because the sibling API uses it for confirmations (vendor_notes.md,
    1.8).
    """
    keys = ("error", "error_message", "reason", "details", "detail")
    detail = get_first(value, (*keys, "message") if state is FlowState.FAILED else keys)
    if detail is None or detail is False:
        return None
    return (detail if isinstance(detail, str) else json.dumps(detail, default=str))[: 10 * MAX_EXCERPT_CHARS]


def parse_runs(request: Request, response: Response, value: Any) -> Iterator[FlowRun]:
    """Parse a list of runs; rows without an id are skipped.

    A row without a state has state UNKNOWN, because the list may contain selected fields only (G-06).
    """
    for key, row in rows_by_id(request, response, value).items():
        yield _build_run(row, key, str(get_first(row, STATE_KEYS) or "unknown"), None)


def rows_by_id(request: Request, response: Response, value: Any) -> dict[str, Mapping[str, Any]]:
    """Return the rows of a list of runs by id, unparsed.

    :raises FlowMalformed: the response contains no list.
    """
    rows = find_list(value, RUN_LIST_KEYS)
    if rows is None:
        raise_malformed(request, response, "contains no list of flow runs")
    return {key: row for row in rows if isinstance(row, Mapping) and (key := get_id(row, RUN_ID_KEYS))}


def parse_running_row(key: str, row: Mapping[str, Any]) -> FlowRun | None:
    """Parse a row of a list of runs if its state is running, else return None.

    Only the fields that a wait needs are parsed, because a list may have thousands of rows.
    """
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
    """Return whether every row of a list of runs has an id and a state (G-06)."""
    rows = find_list(value, RUN_LIST_KEYS) or []
    return all(
        isinstance(row, Mapping) and get_id(row, RUN_ID_KEYS) and get_first(row, STATE_KEYS) for row in rows
    )


def next_page_request(request: Request, value: Any, row_count: int) -> Request | None:
    """Return the request for the next page, or None if the response does not refer to one.

    Paging is not documented (G-08): the reference may be a URL, a page number, a number of pages or a total.
    """
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
    """Return the request for a page at this URL, or None if the URL is invalid."""
    try:
        return replace(request, path=urljoin(request.path, url), query={} if "?" in url else request.query)
    except ValueError:
        return None


def parse_assets(
    request: Request, response: Response, value: Any, kind: str, *, include_data: bool
) -> list[FlowOutput]:
    """Parse a list of inputs or outputs.

    A row without an id becomes a failed output, so that the list does not look complete without it.

    :param kind: the envelope's key, `inputs` or `outputs`.
    :param include_data: whether the request asked for content; content that was not requested is dropped.
    :raises FlowMalformed: the response contains no list.
    """
    rows = find_list(value, (kind, "assets", "items", "data"))
    if rows is None:
        raise_malformed(request, response, f"contains no list of {kind}")
    assets: dict[str, FlowOutput] = {}
    for number, row in enumerate(rows):
        fields = {"asset_id": row} if isinstance(row, str) else row
        asset = _parse_asset(fields if isinstance(fields, Mapping) else {})
        key = f"id {asset.asset_id}" if asset.asset_id else f"row {number}"
        assets.setdefault(key, asset if include_data else replace(asset, value=None))
    return list(assets.values())


def _parse_asset(row: Mapping[str, Any]) -> FlowOutput:
    key = get_id(row, ASSET_ID_KEYS)
    data, raw_status = get_first(row, ("data", "file_data")), get_first(row, ("status", "state"))
    status = READY if data is not None else PENDING
    if raw_status is not None:
        status = OUTPUT_STATUSES.get(str(raw_status).strip().lower(), PENDING)
    error = get_first(row, ("error", "error_message", "details", "message"))
    kind = get_first(row, ("media_type", "mime_type", "content_type", "type"))
    has_media_type = isinstance(kind, str) and "/" in kind
    name = str(get_first(row, ("name", "file_name", "filename")) or key or "unnamed")[:MAX_EXCERPT_CHARS]
    if key is None:
        return FlowOutput(name, status=ERROR, error="the service's list has no id for it")
    return FlowOutput(
        name=name,
        asset_id=key,
        status=status,
        media_type=data_uri.normalize_media_type(kind) if has_media_type else _data_uri_media_type(data),
        additional=row.get("additional"),
        value=data if isinstance(data, str) else None,
        error=None if error is None else str(error)[:MAX_EXCERPT_CHARS],
    )


def _data_uri_media_type(data: Any) -> str | None:
    """Return the media type of a data URI without decoding it, or None."""
    if not isinstance(data, str) or not data.startswith("data:"):
        return None
    return data_uri.normalize_media_type(data[5:].partition(",")[0])
