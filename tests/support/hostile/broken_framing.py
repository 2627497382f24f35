"""Chunked bodies whose framing breaks: in the segment of the headers, or in a later TCP segment.

Each kind is registered twice, as `KIND` and as `KIND, in a later segment`. The connection stays open, unless
the kind is about its end.
"""

from __future__ import annotations

import socket
import time

from tests.support.hostile.server import head, register

SEGMENT_DELAY_SECONDS = 0.05
FIRST_CHUNK = b"1\r\n{\r\n"
LAST_CHUNK = b"0\r\n\r\n"

# What follows the first chunk of the body, `{`.
KINDS = {
    "a chunk size that is no number": b"zz\r\n}\r\n" + LAST_CHUNK,
    "a chunk size of 20 digits": b"0" * 3 + b"f" * 20 + b"\r\n}\r\n" + LAST_CHUNK,
    "a line of a chunk size that does not end": b"1" * 100_000,
    "a negative chunk size": b"-1\r\n}\r\n" + LAST_CHUNK,
    "a huge chunk size": b"7fffffffffffffff\r\n}\r\n" + LAST_CHUNK,
    "an empty chunk size": b"\r\n}\r\n" + LAST_CHUNK,
    "a chunk size with a NUL": b"1\0\r\n}\r\n" + LAST_CHUNK,
    "a chunk size with a blank in it": b"0 1\r\n}\r\n" + LAST_CHUNK,
    "a chunk extension with a line break": b"1;a=\rb\r\n}\r\n" + LAST_CHUNK,
    "no line break after a chunk": b"1\r\n}" + LAST_CHUNK,
    "a chunk that is longer than its size": b"1\r\n}}}}\r\n" + LAST_CHUNK,
    "a chunk that is shorter than its size": b"9\r\n}\r\n" + LAST_CHUNK,
    "a trailer without a colon": b"1\r\n}\r\n0\r\nbroken\r\n\r\n",
    "a trailer that does not end": b"1\r\n}\r\n0\r\n" + b"X-A: b\r\n" * 20_000,
    "no last chunk": b"1\r\n}\r\n",
}
# After these, the connection is closed.
CLOSED_KINDS = {
    "an end within a chunk": b"9\r\n}",
    "an end before the last chunk": b"1\r\n}\r\n",
}


def _register(kind: str, rest: bytes, *, closes: bool, delay: float) -> None:
    @register(f"{kind}, in a later segment" if delay else kind)
    def act(connection: socket.socket) -> None:
        start = head(Content_Type="application/json", Transfer_Encoding="chunked") + FIRST_CHUNK
        if delay:
            connection.sendall(start)
            time.sleep(delay)
            connection.sendall(rest)
        else:
            connection.sendall(start + rest)
        if not closes:
            connection.recv(1)


for _kind, _rest in (KINDS | CLOSED_KINDS).items():
    for _delay in (0.0, SEGMENT_DELAY_SECONDS):
        _register(_kind, _rest, closes=_kind in CLOSED_KINDS, delay=_delay)

NAMES = [f"{kind}{suffix}" for kind in KINDS | CLOSED_KINDS for suffix in ("", ", in a later segment")]
HARMLESS = {"a chunk extension with a line break", "a trailer without a colon"}
"""Kinds after which a client may take the body for complete, as it is."""
