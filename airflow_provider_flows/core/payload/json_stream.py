"""JSON that comes in pieces, cut anywhere, with a file as one of its strings: hands that string on, and reads all the rest.

What the string holds it does not know; that the JSON is whole and right is for the standard library to say, at the end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from airflow_provider_flows.core.payload.base64_stream import Write
from airflow_provider_flows.core.responses import MAX_JSON_DEPTH, parse_bounded_json

FILE_KEYS = frozenset(
    {"data", "file_data"}
)  # the file's own, or one of them inside the other (vendor-api G-02, G-09)
MAX_OTHER_JSON_BYTES = 8 * 1024 * 1024  # bytes of JSON beside the file; they are kept in memory
_STRUCTURAL_CHARACTER = re.compile(rb'["{}\[\],]')
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB].{2}(?:\\(?:u.{0,4})?)?|u.{0,4}|.)?", re.DOTALL
)  # the first: a pair of surrogates
_BACKSLASH = 0x5C


class JsonStringExtractor:
    """Finds the strings that may be the file by their place: the whole answer, under one of `FILE_KEYS`, or under two of them.

    Every method raises ValueError for what is no such JSON.
    """

    def __init__(self, on_string_start: Callable[[], object], write: Write) -> None:
        """Take what is told that such a string begins, and what its content is written to, as UTF-8, its escapes resolved."""
        self._on_string_start = on_string_start
        self._write = write
        self._other_json = bytearray()  # the JSON, with "" in the place of the file
        self._path: list[
            str | None
        ] = []  # of every open object the key ("": it comes next), None of an array
        self._key_at = 0
        self._has_file = False
        self._rest = b""
        self._state = self._scan_structure

    def feed(self, chunk: bytes) -> None:
        """Go on through the JSON."""
        data, at = self._rest + chunk, 0
        self._rest = b""
        while at < len(data):
            at = self._state(data, at)

    def finish(self) -> None:
        """Say whether that was the whole of it."""
        if self._state != self._scan_structure or self._rest:
            message = "it ends inside a string"
            raise ValueError(message)
        other_json = parse_bounded_json(bytes(self._other_json))
        if isinstance(other_json, dict) and other_json.get("success") is False:
            message = "success: false stands beside it"
            raise ValueError(message)
        if not self._has_file:
            message = "JSON without a data URI"
            raise ValueError(message)

    def _scan_structure(self, data: bytes, at: int) -> int:
        """Go to the next sign that opens, closes or parts something."""
        found = _STRUCTURAL_CHARACTER.search(data, at)
        end = found.end() if found else len(data)
        self._append_other(data[at:end])
        if found is None:
            return end
        character = found[0]
        if character == b'"':
            self._key_at = len(self._other_json)
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
            message = f"nested more than {MAX_JSON_DEPTH} levels deep"
            raise ValueError(message)
        return end

    def _is_file_path(self) -> bool:
        return len(self._path) <= 2 and all(key in FILE_KEYS for key in self._path)

    def _append_other(self, part: bytes) -> None:
        self._other_json += part
        if len(self._other_json) > MAX_OTHER_JSON_BYTES:
            message = f"more than {MAX_OTHER_JSON_BYTES} bytes beside the file"
            raise ValueError(message)

    def _scan_other_string(self, data: bytes, at: int) -> int:
        """Go through a string that is not the file's."""
        end = _find_closing_quote(data, at)
        if end < 0:
            cut = len(data) - _count_backslashes(data, at, len(data)) % 2
            self._rest = data[cut:]
            self._append_other(data[at:cut])
            return len(data)
        self._append_other(data[at : end + 1])
        if self._path[-1:] == [""]:
            self._path[-1] = json.loads(b'"' + self._other_json[self._key_at :], strict=False) or "(empty)"
        self._state = self._scan_structure
        return end + 1

    def _scan_file_string(self, data: bytes, at: int) -> int:
        """Hand on the content of a string in the file's place; there may be several, and who takes them has to choose."""
        end = _find_closing_quote(data, at)
        self._write(self._resolve_escapes(data[at:end] if end >= 0 else data[at:]))
        if end < 0:
            return len(data)
        if self._rest:
            message = "it holds a broken escape"
            raise ValueError(message)
        self._append_other(b'"')
        self._has_file = True
        self._state = self._scan_structure
        return end + 1

    def _resolve_escapes(self, text: bytes) -> bytes:
        """Resolve escapes; one that is cut at the end of the text is left for the next piece."""
        if b"\\" not in text:
            return text
        if b"\\\\" not in text:  # the escapes that come by the million are worth a short way
            text = text.replace(b"\\/", b"/").replace(b"\\n", b"\n").replace(b"\\r", b"\r")

        def resolve_match(found: re.Match[bytes]) -> bytes:
            escape = found[0]
            if found.end() == len(text) and _is_incomplete_escape(escape):
                self._rest = escape
                return b""
            resolved: str = json.loads(b'"' + escape + b'"')
            return resolved.encode()

        return _ESCAPE.sub(resolve_match, text)


def _is_incomplete_escape(escape: bytes) -> bool:
    if escape[1:2] != b"u":
        return len(escape) < 2
    return len(escape) < (12 if escape[2:3] in b"dD" and escape[3:4] in b"89abAB" else 6)


def _find_closing_quote(data: bytes, at: int) -> int:
    """Find the quote that ends a string, -1 if it is not there yet."""
    end = data.find(b'"', at)
    while end >= 0 and _count_backslashes(data, at, end) % 2:
        end = data.find(b'"', end + 1)
    return end


def _count_backslashes(data: bytes, start: int, end: int) -> int:
    """Count the backslashes that stand right before `end`."""
    at = end
    while at > start and data[at - 1] == _BACKSLASH:
        at -= 1
    return end - at
