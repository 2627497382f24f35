"""Values out of JSON objects whose field names are in doubt: the first of several names that says something.

It knows no service, and which names are tried is for the modules of the services to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def get_first(value: Mapping[str, Any], keys: Iterable[str]) -> Any:
    """Give the first of these fields that is neither null nor blank, None if there is none."""
    for key in keys:
        found = value.get(key)
        if found is not None and found != "":
            return found
    return None


def get_id(value: Mapping[str, Any], keys: Iterable[str]) -> str | None:
    """Give the first of these fields as an id, None if it is none."""
    found = get_first(value, keys)
    return str(found) if isinstance(found, (str, int)) and not isinstance(found, bool) else None


def get_text(value: Mapping[str, Any], keys: Iterable[str], max_length: int) -> str | None:
    """Give the first of these fields if it is a text, cut to so many signs."""
    found = get_first(value, keys)
    return found[:max_length] if isinstance(found, str) else None
