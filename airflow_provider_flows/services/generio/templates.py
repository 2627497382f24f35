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
from airflow_provider_flows.services.generio.fields import first, identifier, text

IDS = ("template_id", "id", "_id", "name", "template", "slug", "key")
NAMES = ("name", "template_name", "slug")
DESCRIPTIONS = ("description", "meaning", "help", "title")
LONGEST_NAME = 200  # signs; a longer one is not read, for half a name is another name
LONGEST_DESCRIPTION = 2000
INPUTS, OUTPUTS = ("input_types", "inputs", "input"), ("output_types", "outputs", "output")
# where an object tells media types, the most telling name first
KINDS = (
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
LEAST, MOST = ("min", "minimum", "min_items", "minItems"), ("max", "maximum", "max_items", "maxItems")
# how many inputs; a bare `min` of an input may as well be the length of a prompt, or the width of a picture
FEWEST, FULLEST = (
    ("min_inputs", "inputs_min", "min_items", "minItems"),
    ("max_inputs", "inputs_max", "max_items", "maxItems"),
)
PARAMETER_NAMES = ("name", "key", "parameter", "id")
VALUES = ("values", "enum", "options", "allowed_values", "choices", "allowed")
DEFAULTS = ("default", "default_value")
TYPES = {
    **dict.fromkeys(("string", "str", "text"), "string"),
    **dict.fromkeys(("integer", "int", "int32", "int64", "long"), "integer"),
    **dict.fromkeys(("number", "float", "double", "decimal"), "number"),
    **dict.fromkeys(("boolean", "bool"), "boolean"),
    **dict.fromkeys(("array", "list"), "array"),
    **dict.fromkeys(("object", "dict", "map"), "object"),
    **dict.fromkeys(("null", "none"), "null"),
}
WORDS = {
    **dict.fromkeys(("prompt", "text"), "text/plain"),
    **dict.fromkeys(("image", "sketch"), "image/*"),
}  # G-13, README
CLASSES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int, float),
    "number": (int, float),
    "boolean": (bool,),
}
MAIN = frozenset(
    {"*", "application", "audio", "font", "image", "message", "model", "multipart", "text", "video"}
)  # IANA's
DEEPEST = 4
PAIR = 2


def read_template(row: Any) -> FlowDefinition | None:
    """Read one template, an object or merely its name; None if it says of none what it is called."""
    row = {"name": row} if isinstance(row, str) else row
    flow = identifier(row, IDS) if isinstance(row, Mapping) else None
    if flow is None:
        return None
    inputs = first(row, INPUTS)
    counts = inputs if isinstance(inputs, Mapping) else {}
    parameters, whole = _parameters(row.get("parameters"))
    return FlowDefinition(
        flow=flow,
        service="generio",
        name=text(row, NAMES, LONGEST_NAME),
        description=text(row, DESCRIPTIONS, LONGEST_DESCRIPTION),
        inputs=_media_types(inputs),
        parameters=parameters,
        outputs=_media_types(first(row, OUTPUTS)),
        least_inputs=_count(first(row, FEWEST) or first(counts, FEWEST)),
        most_inputs=_count(first(row, FULLEST) or first(counts, FULLEST)),
        whole=whole,
        raw=row,
    )


def _count(told: Any) -> int | None:
    return told if isinstance(told, int) and not isinstance(told, bool) and told > 0 else None


def _media_types(told: Any) -> tuple[str, ...]:
    """Read media types, each once; none at all if one of them cannot be read, for then others may be right."""
    try:
        return tuple(dict.fromkeys(_each_media_type(told, DEEPEST)))
    except ValueError:
        return ()


def _each_media_type(told: Any, deep: int) -> Iterable[str]:
    """Give the media types in a text, a list, or an object that tells them or holds one input by name.

    :raises ValueError: something in it tells none.
    """
    if told is None:
        return []
    if isinstance(told, str):
        return [_media_type(word) for word in re.split(r"[,|\s]+", told.strip()) if word]
    if isinstance(told, Mapping):
        found = first(told, KINDS)
        bare = {key: value for key, value in told.items() if key not in {*LEAST, *MOST, *FEWEST, *FULLEST}}
        told = [found] if found is not None else list(bare.values())
    if not isinstance(told, list) or not deep:
        raise ValueError
    return [kind for item in told for kind in _each_media_type(item if item is not None else 0, deep - 1)]


def _media_type(word: str) -> str:
    """Give the media type that a word stands for, or the word.

    :raises ValueError: it looks like one and is none, such as `png/jpg`.
    """
    plain = word.lower().lstrip(".")
    if "/" in plain:
        if plain.partition("/")[0] not in MAIN:
            raise ValueError
        return data_uri.normal_media_type(plain) or plain
    return WORDS.get(plain) or data_uri.sniff(b"", f"file.{plain}") or word[:LONGEST_NAME]


def _parameters(told: Any) -> tuple[dict[str, Parameter], bool]:
    """Read parameters from a list, a mapping by name, or a JSON schema; also whether these are all that there are."""
    required: Any = ()
    if isinstance(told, Mapping) and isinstance(told.get("properties"), Mapping):
        whole = not told.get("additionalProperties")
        told, required = told["properties"], told.get("required")
    else:
        whole = isinstance(told, list | Mapping)
    if isinstance(told, Mapping):
        items = [(name, _as_told(item)) for name, item in told.items()]
    elif isinstance(told, list):
        rows = [{"name": row} if isinstance(row, str) else row for row in told]
        items = [(_named(row), row) if isinstance(row, Mapping) else (None, {}) for row in rows]
    else:
        return {}, False
    named = {name: row for name, row in items if isinstance(name, str) and 0 < len(name) <= LONGEST_NAME}
    needed = {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
    read = {name: _parameter(name, row, needed=name in needed) for name, row in named.items()}
    return read, whole and len(named) == len(items)


def _named(row: Mapping[str, Any]) -> str | None:
    """Give a parameter's name; one with blanks is rather a label, if there is another."""
    names = [name for key in PARAMETER_NAMES if (name := identifier(row, (key,)))]
    return next((name for name in names if not re.search(r"\s", name)), names[0] if names else None)


def _as_told(item: Any) -> Mapping[str, Any]:
    """Give what a mapping tells of one parameter: an object, a word for its type, or its default."""
    if isinstance(item, Mapping):
        return item
    return {"type": item} if isinstance(item, str) and item.lower() in TYPES else {"default": item}


def _parameter(name: str, row: Mapping[str, Any], *, needed: bool) -> Parameter:
    schema = row.get("schema")
    row = {**schema, **row} if isinstance(schema, Mapping) else row
    types = _types(row.get("type"))
    if types and any(key in row and row[key] is None for key in DEFAULTS):
        types = (*types, "null")
    default = first(row, DEFAULTS)
    values, least, most = _values(first(row, VALUES), types)
    return Parameter(
        name=name,
        types=types,
        default=default if isinstance(default, str | int | float) else None,
        description=text(row, DESCRIPTIONS, LONGEST_DESCRIPTION),
        values=values,
        minimum=_number(first(row, (*LEAST, "ge"))) if least is None else least,
        maximum=_number(first(row, (*MOST, "le"))) if most is None else most,
        required=default is None and (needed or row.get("required") is True),
    )


def _types(told: Any) -> tuple[str, ...]:
    """Read one word or several for a type; none if one of them is no word that is known."""
    words = told if isinstance(told, list) else [told]
    types = [TYPES.get(word.strip().lower()) if isinstance(word, str) else None for word in words]
    return tuple(dict.fromkeys(kind for kind in types if kind)) if all(types) else ()


def _values(told: Any, types: tuple[str, ...]) -> tuple[tuple[Any, ...], float | None, float | None]:
    """Read allowed values, bare or as objects with a label; two numbers may as well be the least and the most."""
    if not isinstance(told, list):
        return (), None, None
    values = [first(item, ("value", "name", "id")) if isinstance(item, Mapping) else item for item in told]
    if not all(isinstance(value, str | int | float) for value in values):
        return (), None, None
    numbers = [number for value in values if (number := _number(value)) is not None]
    if len(numbers) == len(values) == PAIR:
        return (), min(numbers), max(numbers)
    classes = tuple(one for kind in types for one in CLASSES.get(kind, ()))
    sound = not types or all(isinstance(value, classes) for value in values)
    return (tuple(values) if sound else ()), None, None  # else they are labels, or what a list may hold


def _number(told: Any) -> float | None:
    if isinstance(told, bool) or not isinstance(told, int | float):
        return None
    return told if isinstance(told, int) or math.isfinite(told) else None
