"""JSON that comes in pieces, cut anywhere, with a file as one of its strings: hands that string on, and reads all the rest.

What the string holds it does not know; that the JSON is whole and right is for the standard library to say, at the end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from airflow_provider_flows.core.bounded_json import DEEPEST, parse
from airflow_provider_flows.core.payload.base64_stream import Write

KEYS = frozenset(
    {"data", "file_data"}
)  # the file's own, or one of them inside the other (vendor-api G-02, G-09)
MOST_BESIDE = 8 * 1024 * 1024  # bytes of JSON beside the file; they are kept in memory
_SIGN = re.compile(rb'["{}\[\],]')
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB].{2}(?:\\(?:u.{0,4})?)?|u.{0,4}|.)?", re.DOTALL
)  # the first: a pair of surrogates
_BACKSLASH = 0x5C


class Enclosed:
    """Finds the strings that may be the file by their place: the whole answer, under one of `KEYS`, or under two of them.

    Every method raises ValueError for what is no such JSON.
    """

    def __init__(self, begin: Callable[[], object], write: Write) -> None:
        """Take what is told that such a string begins, and what its content is written to, as UTF-8, its escapes resolved."""
        self._begin = begin
        self._write = write
        self._beside = bytearray()  # the JSON, with "" in the place of the file
        self._path: list[
            str | None
        ] = []  # of every open object the key ("": it comes next), None of an array
        self._key_at = 0
        self._found = False
        self._rest = b""
        self._state = self._between

    def feed(self, piece: bytes) -> None:
        """Go on through the JSON."""
        data, at = self._rest + piece, 0
        self._rest = b""
        while at < len(data):
            at = self._state(data, at)

    def finish(self) -> None:
        """Say whether that was the whole of it."""
        if self._state != self._between or self._rest:
            message = "it ends inside a string"
            raise ValueError(message)
        beside = parse(bytes(self._beside))
        if isinstance(beside, dict) and beside.get("success") is False:
            message = "success: false stands beside it"
            raise ValueError(message)
        if not self._found:
            message = "JSON without a data URI"
            raise ValueError(message)

    def _between(self, data: bytes, at: int) -> int:
        """Go to the next sign that opens, closes or parts something."""
        found = _SIGN.search(data, at)
        end = found.end() if found else len(data)
        self._keep(data[at:end])
        if found is None:
            return end
        sign = found[0]
        if sign == b'"':
            self._key_at = len(self._beside)
            self._state = self._other
            if self._path_is_the_files():
                self._state = self._file
                self._begin()
        elif sign == b",":
            self._path[-1:] = [None if key is None else "" for key in self._path[-1:]]
        elif sign in b"{[":
            self._path.append("" if sign == b"{" else None)
        else:
            self._path[-1:] = []
        if len(self._path) > DEEPEST:
            message = f"nested more than {DEEPEST} levels deep"
            raise ValueError(message)
        return end

    def _path_is_the_files(self) -> bool:
        return len(self._path) <= 2 and all(key in KEYS for key in self._path)

    def _keep(self, part: bytes) -> None:
        self._beside += part
        if len(self._beside) > MOST_BESIDE:
            message = f"more than {MOST_BESIDE} bytes beside the file"
            raise ValueError(message)

    def _other(self, data: bytes, at: int) -> int:
        """Go through a string that is not the file's."""
        end = _closing(data, at)
        if end < 0:
            cut = len(data) - _backslashes(data, at, len(data)) % 2
            self._rest = data[cut:]
            self._keep(data[at:cut])
            return len(data)
        self._keep(data[at : end + 1])
        if self._path[-1:] == [""]:
            self._path[-1] = json.loads(b'"' + self._beside[self._key_at :], strict=False) or "(empty)"
        self._state = self._between
        return end + 1

    def _file(self, data: bytes, at: int) -> int:
        """Hand on the content of a string in the file's place; there may be several, and who takes them has to choose."""
        end = _closing(data, at)
        self._write(self._resolved(data[at:end] if end >= 0 else data[at:]))
        if end < 0:
            return len(data)
        if self._rest:
            message = "it holds a broken escape"
            raise ValueError(message)
        self._keep(b'"')
        self._found = True
        self._state = self._between
        return end + 1

    def _resolved(self, text: bytes) -> bytes:
        """Resolve escapes; one that is cut at the end of the text is left for the next piece."""
        if b"\\" not in text:
            return text
        if b"\\\\" not in text:  # the escapes that come by the million are worth a short way
            text = text.replace(b"\\/", b"/").replace(b"\\n", b"\n").replace(b"\\r", b"\r")

        def plain(found: re.Match[bytes]) -> bytes:
            escape = found[0]
            if found.end() == len(text) and _is_cut(escape):
                self._rest = escape
                return b""
            resolved: str = json.loads(b'"' + escape + b'"')
            return resolved.encode()

        return _ESCAPE.sub(plain, text)


def _is_cut(escape: bytes) -> bool:
    if escape[1:2] != b"u":
        return len(escape) < 2
    return len(escape) < (12 if escape[2:3] in b"dD" and escape[3:4] in b"89abAB" else 6)


def _closing(data: bytes, at: int) -> int:
    """Find the quote that ends a string, -1 if it is not there yet."""
    end = data.find(b'"', at)
    while end >= 0 and _backslashes(data, at, end) % 2:
        end = data.find(b'"', end + 1)
    return end


def _backslashes(data: bytes, start: int, end: int) -> int:
    """Count the backslashes that stand right before `end`."""
    at = end
    while at > start and data[at - 1] == _BACKSLASH:
        at -= 1
    return end - at
