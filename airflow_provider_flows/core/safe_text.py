r"""Texts from a service or a gateway, made safe for every store of Airflow.

PostgreSQL stores no NUL (U+0000), and a lone surrogate, such as `"\ud83d"`, cannot be encoded.
One of them in a trigger's event would end the triggerer. Each is replaced by U+FFFD when a response is read,
and so is every byte that is not valid in the text's encoding. Files are stored as they are received.

Ids, names, states and errors are lines: no character in them can begin another line of a log, move a
terminal's cursor or reverse the direction of the text around it.

Metadata of any form has two more: Airflow reserves some keys of dicts in XCom, and the messages between its
processes hold integers of 64 bits.
"""

from __future__ import annotations

import hashlib
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


_LINE_BREAKS = re.compile("[\t\n\v\f\r\x85\u2028\u2029]+")
# Control characters, and those that change the direction of a text or are invisible. The joiners of scripts
# and emoji, and the no-break spaces, are ordinary text.
_NOT_IN_A_LINE = re.compile(
    "[\0-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f\ud800-\udfff]"
)
RESERVED_FILE_NAMES = frozenset(
    {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
)
_DIGEST_LENGTH = 12  # hexadecimal digits
_DIGEST_SUFFIX = re.compile(rf"--[0-9a-f]{{{_DIGEST_LENGTH}}}", re.IGNORECASE)


def to_line(text: str) -> str:
    """Return a text on one line: a blank for line breaks, and other control characters escaped."""
    if text.isprintable():
        return text
    return _NOT_IN_A_LINE.sub(
        lambda found: found[0].encode("unicode_escape").decode(), _LINE_BREAKS.sub(" ", text)
    )


def set_lines(instance: object, *names: str) -> None:
    """Make texts of a frozen dataclass lines (`to_line`), when it is created; other values are unchanged."""
    for name in names:
        value = getattr(instance, name)
        if isinstance(value, str) and not value.isprintable():
            object.__setattr__(instance, name, to_line(value))


def has_control_characters(text: str) -> bool:
    """Return whether `to_line` would change a text."""
    return not text.isprintable() and _NOT_IN_A_LINE.search(text) is not None


def to_safe_name(text: str, max_length: int, *, ignore_case: bool = False) -> str:
    """Return a name of letters, digits, dots, dashes and underscores, different for each text.

    A text that is such a name is returned as it is. Any other name ends with two dashes and the start of its
    text's SHA-256.

    :param max_length: of the name, in characters.
    :param ignore_case: whether the names also differ where upper and lower case are the same.
    """
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-")
    is_reserved = safe.lower().partition(".")[0] in RESERVED_FILE_NAMES
    has_suffix = _DIGEST_SUFFIX.fullmatch(text[-_DIGEST_LENGTH - 2 :]) is not None
    is_other_case = ignore_case and text != text.lower()
    is_same = safe == text and 0 < len(safe) <= max_length
    if is_same and not (is_reserved or has_suffix or is_other_case):
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST_LENGTH]
    start = f"{'_' if is_reserved else ''}{safe}"[: max_length - _DIGEST_LENGTH - 2].rstrip("._-")
    return f"{start or '_'}--{digest}"


def to_plain_name(text: str, max_length: int) -> str:
    """Return the letters, digits, dots, dashes and underscores of a text, `_` in place of anything else.

    Several texts may have the same name, and it is empty if nothing of the text is left.
    """
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-")
    is_reserved = safe.lower().partition(".")[0] in RESERVED_FILE_NAMES
    return f"{'_' if is_reserved else ''}{safe}"[:max_length].rstrip("._-")


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
