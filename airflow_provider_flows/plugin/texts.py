"""Texts in the pages: safe lines, a flow run's inputs and parameters, and titles in place of ids.

The texts are untrusted: secrets are redacted, texts bounded and control characters replaced.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any
from urllib.parse import unquote

from airflow.providers.common.compat.sdk import redact
from pydantic import BaseModel

from airflow_provider_flows.core.limits import MAX_INPUTS
from airflow_provider_flows.core.redaction import redact_parameters

MAX_LINE_LENGTH = 2_000  # characters of a name, an error message or an input
MAX_TITLE_LENGTH = 120
FILE_URI = re.compile(r"[a-z][a-z0-9+.-]*://\S{1,8000}", re.IGNORECASE)
# ids of the services: MongoDB's, cuid, UUID
ID_PATTERN = re.compile(r"[0-9a-f]{24}|c[0-9a-z]{24}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class InputSchema(BaseModel):
    """One input; `name` is the name of a variable or the input's number, from 1.

    `file_name` is the name of its file, None if the input is a text.
    """

    name: str
    text: str
    file_name: str | None = None


def to_safe_line(text: str) -> str:
    """Return a text of bounded length, with unprintable and bidirectional control characters replaced."""
    safe = "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}"
        for character in text[:MAX_LINE_LENGTH]
    )
    return safe if len(text) <= MAX_LINE_LENGTH else f"{safe}…"


def to_optional_safe_line(text: Any) -> str | None:
    """Return a safe line, None if this is no text."""
    return to_safe_line(text) if isinstance(text, str) else None


def replace_surrogates(text: str) -> str:
    """Replace lone surrogates, which JSON may contain and UTF-8 cannot encode."""
    return text.encode("utf-8", "replace").decode()


def to_parameters(parameters: Any) -> dict[str, Any]:
    """Return parameters with their secrets redacted; a mapping rendered as JSON text is parsed first."""
    redacted = redact_parameters(
        _parse_json_text(parameters) if isinstance(parameters, str) else parameters, redact
    )
    cleaned: dict[str, Any] = json.loads(replace_surrogates(json.dumps(redacted, ensure_ascii=False)))
    return cleaned


def list_inputs(inputs: Any) -> list[tuple[str, Any]]:
    """Return names and values of inputs in any form that `RunFlowOperator` accepts, at most `MAX_INPUTS`.

    The result of another task is a list of its outputs.
    """
    if isinstance(inputs, str):
        inputs = _parse_json_text(inputs)
    if isinstance(inputs, Mapping) and not {"data", "uri", "outputs"} & inputs.keys():
        return [(str(name), value) for name, value in islice(inputs.items(), MAX_INPUTS)]
    rows = inputs if isinstance(inputs, list | tuple) else [] if inputs is None else [inputs]
    items: list[Any] = []
    for row in islice(rows, MAX_INPUTS):
        outputs = row.get("outputs") if isinstance(row, Mapping) else row
        items += outputs[:MAX_INPUTS] if isinstance(outputs, list | tuple) else [row]
    return [(str(number), item) for number, item in enumerate(items[:MAX_INPUTS], 1)]


def to_input_schemas(inputs: Any) -> list[InputSchema]:
    """Convert inputs; redact secrets, shorten data URIs."""
    redacted = redact_parameters(dict(list_inputs(inputs)), redact)
    return [
        InputSchema(
            name=to_safe_line(name),
            text=replace_surrogates(_to_input_text(value)),
            file_name=_get_file_name(value),
        )
        for name, value in redacted.items()
    ]


def to_title(inputs: Iterable[InputSchema]) -> str:
    """Return a title of what was asked for, empty if nothing is known of it."""
    return to_safe_line(to_request_title((one.name, one.text, one.file_name) for one in inputs))


def _get_file_name(value: Any) -> str | None:
    """Return the name of an input's file, empty if it has none; None for a text."""
    uri = get_input_uri(value)
    if uri is not None:
        return to_safe_line(unquote(uri.rstrip("/").rpartition("/")[2]))
    data = value.get("data") if isinstance(value, Mapping) else value
    is_file = isinstance(data, str) and data.startswith("data:") and "," in data
    return "" if is_file or isinstance(value, list | tuple) else None


def get_input_uri(value: Any) -> str | None:
    """Return the URI of an input's file; None for a text and for content without a URI."""
    uri = value.get("uri") if isinstance(value, Mapping) else value
    is_uri = isinstance(uri, str) and FILE_URI.fullmatch(uri) is not None
    return uri if is_uri else None


def _parse_json_text(text: str) -> Any:
    """Return the list or mapping that Airflow stored as JSON text, or else the text itself."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, list | dict) else text


def _to_input_text(value: Any) -> str:
    if isinstance(value, Mapping):
        value = next(
            (value[key] for key in ("data", "uri", "value", "name") if isinstance(value.get(key), str)), value
        )
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    if text.startswith("data:") and "," in text:
        prefix, _, data = text.partition(",")
        return f"{to_safe_line(prefix)},… ({len(data):,} characters)"
    return text if len(text) <= MAX_LINE_LENGTH else f"{text[:MAX_LINE_LENGTH]}…"


def to_request_title(inputs: Iterable[tuple[str, str, str | None]]) -> str:
    """Return a title of what was asked for: the prompts or variables, or else the names of the files.

    :param inputs: the name of each input, its text, and the name of its file, None if it is a text.
    :returns: at most `MAX_TITLE_LENGTH` characters in one line; empty if there is nothing to name.
    """
    rows = list(inputs)
    texts = [text if name.isdecimal() else f"{name}: {text}" for name, text, file in rows if file is None]
    files = [file for _, _, file in rows if file and not is_id(file.partition(".")[0])]
    return shorten(", ".join(texts or files))


def to_output_title(name: str, asset_id: str | None, request_title: str) -> str:
    """Return the title of an output: its name, or what was asked for if its name is an id."""
    return request_title if request_title and is_id(name, asset_id) else name


def is_id(name: str, asset_id: str | None = None) -> bool:
    """Return whether a name is an id, which means nothing to a reader."""
    return name == asset_id or ID_PATTERN.fullmatch(name) is not None


def shorten(text: str) -> str:
    """Return a text in one line of at most `MAX_TITLE_LENGTH` characters, with an ellipsis if it is cut."""
    line = " ".join(text[: 4 * MAX_TITLE_LENGTH].split())
    return line if len(line) <= MAX_TITLE_LENGTH else f"{line[: MAX_TITLE_LENGTH - 1].rstrip()}…"
