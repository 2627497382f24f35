"""What Airflow's stores accept: the check that a value can go into an event, an XCom, a record or a page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

import msgspec

from airflow_provider_flows.core.exceptions import FlowError
from airflow_provider_flows.core.flow_run import FlowRun

UNSAFE_TEXTS = {"NUL": "\0", "high surrogate": "\ud83d", "low surrogate": "\ude00"}
SAFE_PAIR = "\U0001f600"


def assert_storable(*values: Any) -> None:
    """Assert that every form in which a value is stored has texts that a database and an event can hold."""
    for value in values:
        for form in _stored_forms(value):
            for text in _texts(form):
                assert "\0" not in text, ascii(form)
                assert not any("\ud800" <= character <= "\udfff" for character in text), ascii(form)
            json.dumps(form, ensure_ascii=False, allow_nan=False, default=str).encode()
            msgspec.msgpack.encode(json.loads(json.dumps(form, default=str)))  # as triggerer and tasks do


def _stored_forms(value: Any) -> Iterator[Any]:
    if isinstance(value, FlowRun):
        yield from (value.to_dict(), value.to_event(), value.to_record(), value.raw, str(value))
        yield from (value.parameters, value.additional)
    elif isinstance(value, FlowError):
        yield from (value.to_dict(), str(value), repr(value))
    elif is_dataclass(value) and not isinstance(value, type):
        yield asdict(value)
    else:
        yield value


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts in a value, keys as well."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(key)
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)
