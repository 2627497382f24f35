"""Generio's templates: how an item of GET /templates is read, whose fields the documentation does not name (vendor-api 1.6).

Many names and shapes are tried; what cannot be read counts as not told, and nothing here raises. What the whole answer looks
like stands in generio_answers.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from airflow_provider_flows.core.definition import FlowDefinition, Parameter
from airflow_provider_flows.core.payload import data_uri
from airflow_provider_flows.services.generio.fields import get_first, get_id, get_text

ID_KEYS = ("template_id", "id", "_id", "name", "template", "slug", "key")
NAME_KEYS = ("name", "template_name", "slug")
DESCRIPTION_KEYS = ("description", "meaning", "help", "title")
MAX_TEMPLATE_NAME_LENGTH = 200  # signs; a longer one is not read, for half a name is another name
MAX_DESCRIPTION_LENGTH = 2000
INPUT_KEYS, OUTPUT_KEYS = ("input_types", "inputs", "input"), ("output_types", "outputs", "output")
# where an object tells media types, the most telling name first
MEDIA_TYPE_KEYS = (
    "media_types",
    "mime_types",
    "types",
    "formats",
    "accept",
    "media_type",
    "mime_type",
    "content_type",
    "type",
    "name",
)
MINIMUM_KEYS, MAXIMUM_KEYS = (
    ("min", "minimum", "min_items", "minItems"),
    ("max", "maximum", "max_items", "maxItems"),
)
# how many inputs; a bare `min` of an input may as well be the length of a prompt, or the width of a picture
MIN_INPUTS_KEYS, MAX_INPUTS_KEYS = (
    ("min_inputs", "inputs_min", "min_items", "minItems"),
    ("max_inputs", "inputs_max", "max_items", "maxItems"),
)
PARAMETER_NAME_KEYS = ("name", "key", "parameter", "id")
ALLOWED_VALUES_KEYS = ("values", "enum", "options", "allowed_values", "choices", "allowed")
DEFAULT_KEYS = ("default", "default_value")
JSON_TYPE_ALIASES = {
    **dict.fromkeys(("string", "str", "text"), "string"),
    **dict.fromkeys(("integer", "int", "int32", "int64", "long"), "integer"),
    **dict.fromkeys(("number", "float", "double", "decimal"), "number"),
    **dict.fromkeys(("boolean", "bool"), "boolean"),
    **dict.fromkeys(("array", "list"), "array"),
    **dict.fromkeys(("object", "dict", "map"), "object"),
    **dict.fromkeys(("null", "none"), "null"),
}
MEDIA_TYPE_ALIASES = {
    **dict.fromkeys(("prompt", "text"), "text/plain"),
    **dict.fromkeys(("image", "sketch"), "image/*"),
}  # G-13, README
PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int, float),
    "number": (int, float),
    "boolean": (bool,),
}
TOP_LEVEL_MEDIA_TYPES = frozenset(
    {"*", "application", "audio", "font", "image", "message", "model", "multipart", "text", "video"}
)  # IANA's
MAX_MEDIA_TYPE_DEPTH = 4
RANGE_LENGTH = 2


def parse_template(row: Any) -> FlowDefinition | None:
    """Read one template, an object or merely its name; None if it says of none what it is called."""
    row = {"name": row} if isinstance(row, str) else row
    flow = get_id(row, ID_KEYS) if isinstance(row, Mapping) else None
    if flow is None:
        return None
    inputs = get_first(row, INPUT_KEYS)
    counts = inputs if isinstance(inputs, Mapping) else {}
    parameters, is_complete = _parse_parameters(row.get("parameters"))
    return FlowDefinition(
        flow=flow,
        service="generio",
        name=get_text(row, NAME_KEYS, MAX_TEMPLATE_NAME_LENGTH),
        description=get_text(row, DESCRIPTION_KEYS, MAX_DESCRIPTION_LENGTH),
        inputs=_parse_media_types(inputs),
        parameters=parameters,
        outputs=_parse_media_types(get_first(row, OUTPUT_KEYS)),
        min_inputs=_to_count(get_first(row, MIN_INPUTS_KEYS) or get_first(counts, MIN_INPUTS_KEYS)),
        max_inputs=_to_count(get_first(row, MAX_INPUTS_KEYS) or get_first(counts, MAX_INPUTS_KEYS)),
        is_complete=is_complete,
        raw=row,
    )


def _to_count(raw: Any) -> int | None:
    return raw if isinstance(raw, int) and not isinstance(raw, bool) and raw > 0 else None


def _parse_media_types(raw: Any) -> tuple[str, ...]:
    """Read media types, each once; none at all if one of them cannot be read, for then others may be right."""
    try:
        return tuple(dict.fromkeys(_expand_media_types(raw, MAX_MEDIA_TYPE_DEPTH)))
    except ValueError:
        return ()


def _expand_media_types(raw: Any, depth: int) -> Iterable[str]:
    """Give the media types in a text, a list, or an object that tells them or holds one input by name.

    :raises ValueError: something in it tells none.
    """
    if raw is None:
        return []
    if isinstance(raw, str):
        return [_parse_media_type(name) for name in re.split(r"[,|\s]+", raw.strip()) if name]
    if isinstance(raw, Mapping):
        found = get_first(raw, MEDIA_TYPE_KEYS)
        nested = {
            key: value
            for key, value in raw.items()
            if key not in {*MINIMUM_KEYS, *MAXIMUM_KEYS, *MIN_INPUTS_KEYS, *MAX_INPUTS_KEYS}
        }
        raw = [found] if found is not None else list(nested.values())
    if not isinstance(raw, list) or not depth:
        raise ValueError
    return [kind for item in raw for kind in _expand_media_types(item if item is not None else 0, depth - 1)]


def _parse_media_type(name: str) -> str:
    """Give the media type that a word stands for, or the word.

    :raises ValueError: it looks like one and is none, such as `png/jpg`.
    """
    plain = name.lower().lstrip(".")
    if "/" in plain:
        if plain.partition("/")[0] not in TOP_LEVEL_MEDIA_TYPES:
            raise ValueError
        return data_uri.normalize_media_type(plain) or plain
    return (
        MEDIA_TYPE_ALIASES.get(plain)
        or data_uri.sniff(b"", f"file.{plain}")
        or name[:MAX_TEMPLATE_NAME_LENGTH]
    )


def _parse_parameters(raw: Any) -> tuple[dict[str, Parameter], bool]:
    """Read parameters from a list, a mapping by name, or a JSON schema; also whether these are all that there are."""
    required: Any = ()
    if isinstance(raw, Mapping) and isinstance(raw.get("properties"), Mapping):
        is_complete = not raw.get("additionalProperties")
        raw, required = raw["properties"], raw.get("required")
    else:
        is_complete = isinstance(raw, list | Mapping)
    if isinstance(raw, Mapping):
        items = [(name, _to_parameter_row(item)) for name, item in raw.items()]
    elif isinstance(raw, list):
        rows = [{"name": row} if isinstance(row, str) else row for row in raw]
        items = [(_get_parameter_name(row), row) if isinstance(row, Mapping) else (None, {}) for row in rows]
    else:
        return {}, False
    rows_by_name = {
        name: row
        for name, row in items
        if isinstance(name, str) and 0 < len(name) <= MAX_TEMPLATE_NAME_LENGTH
    }
    required_names = (
        {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
    )
    parameters = {
        name: _parse_parameter(name, row, is_required=name in required_names)
        for name, row in rows_by_name.items()
    }
    return parameters, is_complete and len(rows_by_name) == len(items)


def _get_parameter_name(row: Mapping[str, Any]) -> str | None:
    """Give a parameter's name; one with blanks is rather a label, if there is another."""
    names = [name for key in PARAMETER_NAME_KEYS if (name := get_id(row, (key,)))]
    return next((name for name in names if not re.search(r"\s", name)), names[0] if names else None)


def _to_parameter_row(item: Any) -> Mapping[str, Any]:
    """Give what a mapping tells of one parameter: an object, a word for its type, or its default."""
    if isinstance(item, Mapping):
        return item
    return (
        {"type": item} if isinstance(item, str) and item.lower() in JSON_TYPE_ALIASES else {"default": item}
    )


def _parse_parameter(name: str, row: Mapping[str, Any], *, is_required: bool) -> Parameter:
    schema = row.get("schema")
    row = {**schema, **row} if isinstance(schema, Mapping) else row
    types = _parse_types(row.get("type"))
    if types and any(key in row and row[key] is None for key in DEFAULT_KEYS):
        types = (*types, "null")
    default = get_first(row, DEFAULT_KEYS)
    values, minimum, maximum = _parse_allowed_values(get_first(row, ALLOWED_VALUES_KEYS), types)
    return Parameter(
        name=name,
        types=types,
        default=default if isinstance(default, str | int | float) else None,
        description=get_text(row, DESCRIPTION_KEYS, MAX_DESCRIPTION_LENGTH),
        values=values,
        minimum=_to_number(get_first(row, (*MINIMUM_KEYS, "ge"))) if minimum is None else minimum,
        maximum=_to_number(get_first(row, (*MAXIMUM_KEYS, "le"))) if maximum is None else maximum,
        required=default is None and (is_required or row.get("required") is True),
    )


def _parse_types(raw: Any) -> tuple[str, ...]:
    """Read one word or several for a type; none if one of them is no word that is known."""
    names = raw if isinstance(raw, list) else [raw]
    types = [JSON_TYPE_ALIASES.get(name.strip().lower()) if isinstance(name, str) else None for name in names]
    return tuple(dict.fromkeys(kind for kind in types if kind)) if all(types) else ()


def _parse_allowed_values(
    raw: Any, types: tuple[str, ...]
) -> tuple[tuple[Any, ...], float | None, float | None]:
    """Read allowed values, bare or as objects with a label; two numbers may as well be the least and the most."""
    if not isinstance(raw, list):
        return (), None, None
    values = [get_first(item, ("value", "name", "id")) if isinstance(item, Mapping) else item for item in raw]
    if not all(isinstance(value, str | int | float) for value in values):
        return (), None, None
    numbers = [number for value in values if (number := _to_number(value)) is not None]
    if len(numbers) == len(values) == RANGE_LENGTH:
        return (), min(numbers), max(numbers)
    classes = tuple(one for kind in types for one in PYTHON_TYPES.get(kind, ()))
    is_consistent = not types or all(isinstance(value, classes) for value in values)
    return (
        (tuple(values) if is_consistent else ()),
        None,
        None,
    )  # else they are labels, or what a list may hold


def _to_number(raw: Any) -> float | None:
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        return None
    return raw if isinstance(raw, int) or math.isfinite(raw) else None
