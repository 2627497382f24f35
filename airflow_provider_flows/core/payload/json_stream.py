"""Streaming extraction of a file's string from JSON of any size.

Only the JSON around the file is stored in memory. The standard library validates it at the end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from airflow_provider_flows.core.limits import MAX_JSON_DEPTH, MAX_OTHER_JSON_BYTES
from airflow_provider_flows.core.payload.data_uri import Write
from airflow_provider_flows.core.responses import parse_bounded_json
from airflow_provider_flows.core.safe_text import replace_surrogates

FILE_KEYS = frozenset({"data", "file_data"})  # vendor_notes.md, G-02 and G-09
_STRUCTURAL_CHARACTER = re.compile(rb'["{}\[\],]')
# The first alternative is a high surrogate and, if it follows, the low one of the pair, of which a chunk may
# end with a part.
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB].{2}(?:\\(?:\Z|u(?:\Z|[dD](?:\Z|[c-fC-F].{0,2}))))?|u.{0,4}|.)?", re.DOTALL
)
_BACKSLASH = 0x5C


class JsonStringExtractor:
    """An extractor of strings that may be the file: the JSON itself, or a value below one or two `FILE_KEYS`.

    Every method raises ValueError if the input is not valid JSON, or has no such string.
    """

    def __init__(self, on_string_start: Callable[[], object], write: Write) -> None:
        """Create an extractor.

        :param on_string_start: is called at the start of each such string.
        :param write: receives the string's content without escapes, in UTF-8 if the JSON is, with U+FFFD for
            the escape of a lone surrogate.
        """
        self._on_string_start = on_string_start
        self._write = write
        self._other_json = bytearray()  # the JSON, with "" in place of the file
        # the key of each open object ("" if the key comes next), and None for each open array
        self._path: list[str | None] = []
        self._key_start = 0
        self._has_file = False
        self._rest = b""
        self._state = self._scan_structure

    def feed(self, chunk: bytes) -> None:
        """Scan the next chunk."""
        data, at = self._rest + chunk, 0
        self._rest = b""
        while at < len(data):
            at = self._state(data, at)

    def finish(self) -> None:
        """Check that the JSON is complete, is no error response, and has a string that may be the file."""
        if self._state != self._scan_structure or self._rest:
            raise ValueError("it ends inside a string")
        other_json = parse_bounded_json(bytes(self._other_json))
        if isinstance(other_json, dict) and other_json.get("success") is False:
            raise ValueError("the JSON says success: false")
        if not self._has_file:
            raise ValueError("JSON without a data URI")

    def _scan_structure(self, data: bytes, at: int) -> int:
        """Scan up to the next character that opens, closes or separates something."""
        match = _STRUCTURAL_CHARACTER.search(data, at)
        end = match.end() if match else len(data)
        self._append_other(data[at:end])
        if match is None:
            return end
        character = match[0]
        if character == b'"':
            self._key_start = len(self._other_json)
            self._state = self._scan_other_string
            if self._is_file_path():
                self._state = self._scan_file_string
                self._on_string_start()
        elif character == b",":
            self._path[-1:] = [None if key is None else "" for key in self._path[-1:]]
        elif character in b"{[":
            self._path.append("" if character == b"{" else None)
        else:
            self._path[-1:] = []
        if len(self._path) > MAX_JSON_DEPTH:
            raise ValueError(f"nested more than {MAX_JSON_DEPTH} levels deep")
        return end

    def _is_file_path(self) -> bool:
        return len(self._path) <= 2 and all(key in FILE_KEYS for key in self._path)

    def _append_other(self, chunk: bytes) -> None:
        self._other_json += chunk
        if len(self._other_json) > MAX_OTHER_JSON_BYTES:
            raise ValueError(f"more than {MAX_OTHER_JSON_BYTES} bytes around the file")

    def _scan_other_string(self, data: bytes, at: int) -> int:
        """Scan a string that is not the file."""
        end = _find_closing_quote(data, at)
        if end < 0:
            cut = len(data) - _count_backslashes(data, at, len(data)) % 2
            self._rest = data[cut:]
            self._append_other(data[at:cut])
            return len(data)
        self._append_other(data[at : end + 1])
        if self._path[-1:] == [""]:
            key = self._other_json[self._key_start :].decode("utf-8", "replace")
            self._path[-1] = json.loads('"' + key, strict=False) or "(empty)"
        self._state = self._scan_structure
        return end + 1

    def _scan_file_string(self, data: bytes, at: int) -> int:
        """Write the content of a string that may be the file."""
        end = _find_closing_quote(data, at)
        self._write(self._resolve_escapes(data[at:end] if end >= 0 else data[at:], is_end=end >= 0))
        if end < 0:
            return len(data)
        if self._rest:
            raise ValueError("it holds a broken escape")
        self._append_other(b'"')
        self._has_file = True
        self._state = self._scan_structure
        return end + 1

    def _resolve_escapes(self, text: bytes, *, is_end: bool) -> bytes:
        """Resolve escapes. An incomplete one at the end of the text is saved for the next chunk.

        :param is_end: whether the string ends with this text.
        """
        if b"\\" not in text:
            return text
        if b"\\\\" not in text:  # a fast path, because a file may have millions of these escapes
            text = text.replace(b"\\/", b"/").replace(b"\\n", b"\n").replace(b"\\r", b"\r")

        def resolve_match(match: re.Match[bytes]) -> bytes:
            escape = match[0]
            if match.end() == len(text) and _is_incomplete_escape(escape, is_end=is_end):
                self._rest = escape
                return b""
            return replace_surrogates(json.loads(b'"' + escape + b'"')).encode()

        return _ESCAPE.sub(resolve_match, text)


def _is_incomplete_escape(escape: bytes, *, is_end: bool) -> bool:
    if escape[1:2] != b"u":
        return len(escape) < 2
    is_high_surrogate = escape[2:3] in b"dD" and escape[3:4] in b"89abAB"
    if len(escape) == 6 and is_high_surrogate:
        return not is_end  # the low surrogate may follow
    return len(escape) < (12 if is_high_surrogate else 6)


def _find_closing_quote(data: bytes, at: int) -> int:
    """Return the position of the quote that ends a string, -1 if the data has none."""
    end = data.find(b'"', at)
    while end >= 0 and _count_backslashes(data, at, end) % 2:
        end = data.find(b'"', end + 1)
    return end


def _count_backslashes(data: bytes, start: int, end: int) -> int:
    """Return the number of backslashes directly before `end`."""
    at = end
    while at > start and data[at - 1] == _BACKSLASH:
        at -= 1
    return end - at
