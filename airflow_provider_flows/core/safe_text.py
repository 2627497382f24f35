r"""Texts from a service or a gateway, made safe for every store of Airflow.

PostgreSQL stores no NUL (U+0000), and a lone surrogate, such as `"\ud83d"`, cannot be encoded.
One of them in a trigger's event would end the triggerer. Each is replaced by U+FFFD when a response is read,
and so is every byte that is not valid in the text's encoding. Files are stored as they are received.

Metadata of any form has two more: Airflow reserves some keys of dicts in XCom, and the messages between its
processes hold integers of 64 bits.
"""

from __future__ import annotations

import json
import re
from typing import Any

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# Airflow rejects an XCom with one of the first two. Reading one with the last two creates an object of the
# named class.
RESERVED_KEYS = frozenset({"__classname__", "__id__", "__type", "__var"})
_MIN_INTEGER, _MAX_INTEGER = -(2**63), 2**64 - 1
_SEARCH_STEP, _ESCAPE_LENGTH = 1024 * 1024, 6  # in characters
_SURROGATE = re.compile("[\ud800-\udfff]")
_UNSAFE_ESCAPE = re.compile(r"\\u(?:0000|[dD][89a-fA-F][0-9a-fA-F]{2})")
# The first alternative is a pair of surrogates, or an escape of one character, such as a backslash. Both are
# valid, and are matched so that no match begins inside them.
_PAIR_OR_UNSAFE_ESCAPE = re.compile(
    r"(\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\[^u])|" + _UNSAFE_ESCAPE.pattern,
    re.DOTALL,
)


def replace_surrogates(text: str) -> str:
    """Return a text that can be encoded: with U+FFFD in place of each lone surrogate."""
    return text if text.isascii() else _SURROGATE.sub(REPLACEMENT, text)


def to_safe_text(text: str) -> str:
    """Return a text that every store accepts: with U+FFFD in place of each NUL and each lone surrogate."""
    return replace_surrogates(text).replace("\0", REPLACEMENT)


def decode_text(body: bytes) -> str:
    """Return the text in a response's body, which may be of any content, as a text that every store accepts.

    The encoding is UTF-8, or the UTF-16 or UTF-32 that the first bytes indicate.
    """
    # no encoding decodes to a surrogate
    return body.decode(json.detect_encoding(body), "replace").replace("\0", REPLACEMENT)


def replace_unsafe_escapes(json_text: str) -> str:
    """Return a JSON text without escapes of NUL and of lone surrogates, in keys and in values.

    The text is changed before it is parsed, because searching it takes far less time than walking through the
    parsed value, and almost every text is unchanged.
    """
    if "\\" not in json_text or not _has_unsafe_escape(json_text):
        return json_text
    return _PAIR_OR_UNSAFE_ESCAPE.sub(lambda match: match[1] or REPLACEMENT, json_text)


def _has_unsafe_escape(json_text: str) -> bool:
    """Search in steps, because no other thread runs during a search."""
    starts = range(0, len(json_text), _SEARCH_STEP)
    return any(
        _UNSAFE_ESCAPE.search(json_text, start, start + _SEARCH_STEP + _ESCAPE_LENGTH) for start in starts
    )


def to_storable(value: Any) -> Any:
    """Return a JSON value that an XCom accepts and returns as it is.

    A reserved key gets one more underscore in front, and an integer beyond 64 bits becomes a text.
    """
    if isinstance(value, dict):
        return {
            f"_{key}" if key in RESERVED_KEYS else key: to_storable(inner) for key, inner in value.items()
        }
    if isinstance(value, list):
        return [to_storable(inner) for inner in value]
    is_too_large = isinstance(value, int) and not _MIN_INTEGER <= value <= _MAX_INTEGER
    return str(value) if is_too_large else value
