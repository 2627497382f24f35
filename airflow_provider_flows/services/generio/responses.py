"""Parser of Generio's responses, tolerant wherever the documentation is ambiguous.

Ids such as G-01 refer to vendor_notes.md, part 3.

For templates, the documentation shows the envelope, but not the fields of an item. It states in prose that a
template has a description, input types, output types, and parameters with name, type, default, meaning and
allowed values (vendor_notes.md, 1.6). The parser reads the shapes that follow from this, which are also those
of the emulator's switches `template_inputs` and `template_parameters`. Anything else is undocumented: it is
left empty in the definition, and requests are not validated against it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urljoin

from airflow_provider_flows.core.definition import FlowDefinition, Parameter
from airflow_provider_flows.core.exceptions import FlowMalformed
from airflow_provider_flows.core.flow_run import (
    ERROR,
    PENDING,
    READY,
    FlowOutput,
    FlowRun,
    FlowState,
    OwnReason,
    bound_outputs,
    parse_progress,
)
from airflow_provider_flows.core.limits import (
    MAX_DESCRIPTION_LENGTH,
    MAX_ERROR_LENGTH,
    MAX_ID_LENGTH,
    MAX_NAME_LENGTH,
)
from airflow_provider_flows.core.payload import data_uri
from airflow_provider_flows.core.responses import malformed_message, parse_json
from airflow_provider_flows.core.safe_text import has_control_characters
from airflow_provider_flows.core.timestamps import parse_timestamp

if TYPE_CHECKING:
    from airflow_provider_flows.core.http import Request, Response

ASSET_ID_KEYS = ("asset_id", "id", "_id")  # G-01
RUN_ID_KEYS = ("flow_id", "id", "_id")
RUN_LIST_KEYS = ("flows", "items", "data", "results")
NEXT_PAGE_KEYS = ("next", "next_page", "next_url")
PAGING_KEYS = (*NEXT_PAGE_KEYS, "total", "page", "pages")
STATE_KEYS = ("state", "status")  # G-28
NO_ASSET_ID = OwnReason("the service's list has no id for it")
OUTPUT_STATUSES = {  # G-03: any other status is pending
    **dict.fromkeys(("ready", "available", "completed", "done"), READY),
    **dict.fromkeys(("error", "failed"), ERROR),
}
TEMPLATE_ID_KEYS = ("template_id", "id", "_id", "name", "template_name")
TEMPLATE_NAME_KEYS = ("name", "template_name")
DESCRIPTION_KEYS = ("description", "title")
INPUT_KEYS, OUTPUT_KEYS = ("input_types", "inputs"), ("output_types", "outputs")
JSON_TYPES = frozenset({"string", "integer", "number", "boolean", "array", "object", "null"})
MEDIA_TYPE_ALIASES = {
    **dict.fromkeys(("prompt", "text"), "text/plain"),
    **dict.fromkeys(("image", "sketch"), "image/*"),
}  # the vendor's README; vendor_notes.md, G-13
PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int, float),
    "number": (int, float),
    "boolean": (bool,),
}
TOP_LEVEL_MEDIA_TYPES = frozenset(
    {"*", "application", "audio", "font", "image", "message", "model", "multipart", "text", "video"}
)  # registered with IANA


def get_first(value: Mapping[str, Any], keys: Iterable[str]) -> Any:
    """Return the first of these fields that is neither null nor an empty string, or None."""
    for key in keys:
        found = value.get(key)
        if found is not None and found != "":
            return found
    return None


def get_id(value: Mapping[str, Any], keys: Iterable[str]) -> str | None:
    """Return the first of these fields as an id, or None if it is neither a string nor an integer.

    One that is longer than `MAX_ID_LENGTH` is no id, because a cut id would be that of something else. A
    string with control characters is no id either: it would not be the same in a log, a path and a list.
    """
    found = get_first(value, keys)
    if isinstance(found, bool) or not isinstance(found, (str, int)):
        return None
    text = str(found)
    return text if len(text) <= MAX_ID_LENGTH and not has_control_characters(text) else None


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
        raise_malformed(request, response, f"has no flow_id of at most {MAX_ID_LENGTH} characters")
    if known_id is not None and raw_state is None:
        raise_malformed(request, response, "has no state")
    return _build_run(
        value,
        known_id or flow_run_id,
        default_state.value if raw_state is None else _to_state_name(raw_state),
        known_flow,
    )


def _build_run(value: Mapping[str, Any], flow_run_id: str, raw_state: str, known_flow: str | None) -> FlowRun:
    state = FlowState.parse(raw_state)
    return FlowRun(
        flow_run_id=flow_run_id,
        service="generio",
        flow=_flow_name(value) or known_flow,
        state=state,
        raw_state=state.value if state is not FlowState.UNKNOWN else raw_state,
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
    return str(name) if isinstance(name, (str, int)) else None  # `FlowRun` bounds it


def _get_error(value: Mapping[str, Any], state: FlowState) -> str | None:
    """Return the reason of a failure, or None; its field is not documented.

    `message` counts for failed runs only, because the sibling API uses it for confirmations (vendor_notes.md,
    1.8).
    """
    keys = ("error", "error_message", "reason", "details", "detail")
    detail = get_first(value, (*keys, "message") if state is FlowState.FAILED else keys)
    if detail is None or detail is False:
        return None
    return (detail if isinstance(detail, str) else json.dumps(detail, default=str))[:MAX_ERROR_LENGTH]


def _to_state_name(value: Any) -> str:
    """Return the name of a state, which may be of any type and size."""
    return str(value)[:MAX_NAME_LENGTH]


def parse_row(key: str, row: Mapping[str, Any]) -> FlowRun:
    """Parse a row of a list of runs.

    A row without a state has state UNKNOWN, because the list may contain selected fields only (G-06).
    """
    return _build_run(row, key, _to_state_name(get_first(row, STATE_KEYS) or "unknown"), None)


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
    raw_state = _to_state_name(get_first(row, STATE_KEYS))
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


def get_paging(value: Any) -> dict[str, Any]:
    """Return the fields of a list that may refer to its next page."""
    return {key: value.get(key) for key in PAGING_KEYS} if isinstance(value, Mapping) else {}


def next_page_request(request: Request, value: Mapping[str, Any], row_count: int) -> Request | None:
    """Return the request for the next page, or None if the response does not refer to one.

    Paging is not documented (G-08): the reference may be a URL, a page number, a number of pages or a total.

    :param value: what `get_paging` returned.
    """
    hint = get_first(value, NEXT_PAGE_KEYS)
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
        return request.follow(urljoin(request.path, url), query={} if "?" in url else request.query)
    except ValueError:
        return None


def parse_asset_page(
    request: Request, response: Response, kind: str, *, include_data: bool
) -> list[FlowOutput]:
    """Parse a list of inputs or outputs.

    A row without an id becomes a failed output, so that the list does not look complete without it.

    :param kind: the envelope's key, `inputs` or `outputs`.
    :param include_data: whether the request asked for content; content that was not requested is dropped.
    :raises FlowServiceError: the response is not a success, or contains no list.
    """
    value = parse_json(request, response)
    rows = find_list(value, (kind, "assets", "items", "data"))
    if rows is None:
        raise_malformed(request, response, f"contains no list of {kind}")
    assets: dict[str, FlowOutput] = {}
    for number, row in enumerate(rows):
        fields = {"asset_id": row} if isinstance(row, str) else row
        asset = _parse_asset(fields if isinstance(fields, Mapping) else {})
        key = f"id {asset.asset_id}" if asset.asset_id else f"row {number}"
        assets.setdefault(key, asset if include_data else replace(asset, value=None))
    return bound_outputs(list(assets.values()), "They remain at the service.")


def _parse_asset(row: Mapping[str, Any]) -> FlowOutput:
    key = get_id(row, ASSET_ID_KEYS)
    data, raw_status = get_first(row, ("data", "file_data")), get_first(row, ("status", "state"))
    status = READY if data is not None else PENDING
    if raw_status is not None:
        status = OUTPUT_STATUSES.get(str(raw_status).strip().lower(), PENDING)
    error = get_first(row, ("error", "error_message", "details", "message"))
    kind = get_first(row, ("media_type", "mime_type", "content_type", "type"))
    has_media_type = isinstance(kind, str) and "/" in kind
    name = str(get_first(row, ("name", "file_name", "filename")) or key or "unnamed")[:MAX_NAME_LENGTH]
    if key is None:
        is_too_long = isinstance(get_first(row, ASSET_ID_KEYS), str)
        problem = f"its id has more than {MAX_ID_LENGTH} characters" if is_too_long else NO_ASSET_ID
        return FlowOutput(name, status=ERROR, error=OwnReason(problem))
    return FlowOutput(
        name=name,
        asset_id=key,
        status=status,
        media_type=data_uri.normalize_media_type(kind) if has_media_type else _data_uri_media_type(data),
        additional=row.get("additional"),
        value=data if isinstance(data, str) else None,
        error=None if error is None else str(error)[:MAX_ERROR_LENGTH],
    )


def _data_uri_media_type(data: Any) -> str | None:
    """Return the media type of a data URI without decoding it, or None."""
    if not isinstance(data, str) or not data.startswith("data:"):
        return None
    return data_uri.normalize_media_type(data[5:].partition(",")[0])


def parse_definitions(request: Request, response: Response, value: Any) -> list[FlowDefinition]:
    """Parse a page of templates: `{"templates": [...]}`, or the array alone.

    :raises FlowMalformed: the response contains no list of templates.
    """
    rows = find_list(value, ("templates",))
    if rows is None:
        raise_malformed(request, response, "contains no list of templates")
    return [definition for row in rows if (definition := parse_template(row)) is not None]


def parse_template(row: Any) -> FlowDefinition | None:
    """Parse one template; return None if it has neither id nor name."""
    flow = get_id(row, TEMPLATE_ID_KEYS) if isinstance(row, Mapping) else None
    if flow is None:
        return None
    parameters, is_complete = _parse_parameters(row.get("parameters"))
    return FlowDefinition(
        flow=flow,
        service="generio",
        name=get_text(row, TEMPLATE_NAME_KEYS, MAX_NAME_LENGTH),
        description=get_text(row, DESCRIPTION_KEYS, MAX_DESCRIPTION_LENGTH),
        inputs=_parse_media_types(get_first(row, INPUT_KEYS)),
        parameters=parameters,
        outputs=_parse_media_types(get_first(row, OUTPUT_KEYS)),
        is_complete=is_complete,
        raw=row,
    )


def _parse_media_types(raw: Any) -> tuple[str, ...]:
    """Parse a list of media types, or of objects whose `type` is one.

    The result is empty if one item cannot be parsed, because an input of that type would be rejected
    otherwise.
    """
    if not isinstance(raw, list):
        return ()
    kinds = [_parse_media_type(item.get("type") if isinstance(item, Mapping) else item) for item in raw]
    return tuple(dict.fromkeys(kind for kind in kinds if kind)) if all(kinds) else ()


def _parse_media_type(name: Any) -> str | None:
    """Return the media type of a name such as `image/jpg`, `png` or `prompt`; None if it cannot be one.

    A name without a slash that has no known media type is returned as it is.
    """
    if not isinstance(name, str):
        return None
    plain = name.strip().lower()
    if "/" not in plain:
        media_type = MEDIA_TYPE_ALIASES.get(plain) or data_uri.sniff(b"", f"file.{plain}")
        return media_type or name[:MAX_NAME_LENGTH]
    if plain.partition("/")[0] not in TOP_LEVEL_MEDIA_TYPES:
        return None
    return data_uri.normalize_media_type(plain) or plain


def _parse_parameters(raw: Any) -> tuple[dict[str, Parameter], bool]:
    """Parse a list of objects or names, a mapping by name, or a JSON Schema.

    :returns: the parameters by name, and whether these are all parameters of the flow.
    """
    required: Any = ()
    is_complete = isinstance(raw, list | Mapping)
    if isinstance(raw, Mapping) and isinstance(raw.get("properties"), Mapping):
        is_complete = not raw.get("additionalProperties")
        raw, required = raw["properties"], raw.get("required")
    if not isinstance(raw, list | Mapping):
        return {}, False
    items = list(raw.items() if isinstance(raw, Mapping) else map(_to_named_item, raw))
    rows_by_name = {name: row for name, row in items if _is_name(name)}
    required_names = [name for name in required if _is_name(name)] if isinstance(required, list) else []
    parameters = {
        name: _parse_parameter(
            name, row if isinstance(row, Mapping) else {}, is_required=name in required_names
        )
        for name, row in rows_by_name.items()
    }
    return parameters, is_complete and len(rows_by_name) == len(items)


def _to_named_item(item: Any) -> tuple[Any, Any]:
    return (item.get("name"), item) if isinstance(item, Mapping) else (item, {})


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME_LENGTH


def _parse_parameter(name: str, row: Mapping[str, Any], *, is_required: bool) -> Parameter:
    types = _parse_types(row.get("type"))
    if types and "default" in row and row["default"] is None:
        types = (*types, "null")
    default = get_first(row, ("default",))
    return Parameter(
        name=name,
        types=types,
        default=default if isinstance(default, str | int | float) else None,
        description=get_text(row, DESCRIPTION_KEYS, MAX_DESCRIPTION_LENGTH),
        values=_parse_allowed_values(get_first(row, ("values", "enum")), types),
        minimum=_parse_bound(row.get("minimum")),
        maximum=_parse_bound(row.get("maximum")),
        required=default is None and is_required,
    )


def _parse_types(raw: Any) -> tuple[str, ...]:
    """Parse one JSON Schema type or a list of them; the result is empty if one is unknown."""
    names = raw if isinstance(raw, list) else [raw]
    types = [name.strip().lower() if isinstance(name, str) else "" for name in names]
    return tuple(dict.fromkeys(types)) if JSON_TYPES.issuperset(types) else ()


def _parse_allowed_values(raw: Any, types: Iterable[str]) -> tuple[Any, ...]:
    """Parse a list of allowed values; the result is empty if their meaning is in doubt.

    Values that contradict the type may be labels or the items of an array. Two numbers may be the bounds of a
    range.
    """
    if not isinstance(raw, list) or not all(isinstance(value, str | int | float) for value in raw):
        return ()
    if len(raw) == 2 and all(_parse_bound(value) is not None for value in raw):
        return ()
    allowed = tuple(one for kind in types for one in PYTHON_TYPES.get(kind, ()))
    is_consistent = not types or all(isinstance(value, allowed) for value in raw)
    return tuple(raw) if is_consistent else ()


def _parse_bound(raw: Any) -> float | None:
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        return None
    return raw if isinstance(raw, int) or math.isfinite(raw) else None
