"""Parser of Generio's templates, the items of GET /templates.

The documentation shows the envelope, but not the fields of an item. It states in prose that a template has a
description, input types, output types, and parameters with name, type, default, meaning and allowed values
(vendor_notes.md, 1.6). This module reads the shapes that follow from this, which are also those of the
emulator's switches `template_inputs` and `template_parameters`. Anything else is undocumented: it is left
empty in the definition, and requests are not validated against it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.core.definition import FlowDefinition, Parameter
from airflow_provider_flows.core.payload import data_uri
from airflow_provider_flows.services.generio.responses import (
    find_list,
    get_first,
    get_id,
    get_text,
    raise_malformed,
)

if TYPE_CHECKING:
    from airflow_provider_flows.core.http import Request, Response

ID_KEYS = ("template_id", "id", "_id", "name", "template_name")
NAME_KEYS = ("name", "template_name")
DESCRIPTION_KEYS = ("description", "title")
INPUT_KEYS, OUTPUT_KEYS = ("input_types", "inputs"), ("output_types", "outputs")
MAX_NAME_LENGTH = 200  # characters; a longer name is not read, because a cut name is another name
MAX_DESCRIPTION_LENGTH = 2000  # characters; the rest is cut
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
    flow = get_id(row, ID_KEYS) if isinstance(row, Mapping) else None
    if flow is None:
        return None
    parameters, is_complete = _parse_parameters(row.get("parameters"))
    return FlowDefinition(
        flow=flow,
        service="generio",
        name=get_text(row, NAME_KEYS, MAX_NAME_LENGTH),
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
        minimum=_parse_number(row.get("minimum")),
        maximum=_parse_number(row.get("maximum")),
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
    if len(raw) == 2 and all(_parse_number(value) is not None for value in raw):
        return ()
    allowed = tuple(one for kind in types for one in PYTHON_TYPES.get(kind, ()))
    is_consistent = not types or all(isinstance(value, allowed) for value in raw)
    return tuple(raw) if is_consistent else ()


def _parse_number(raw: Any) -> float | None:
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        return None
    return raw if isinstance(raw, int) or math.isfinite(raw) else None
