"""Compressed responses that expand to far more than they have on the wire, about 1 MiB to 1 GiB."""

from __future__ import annotations

import gzip
import socket
import zlib
from collections.abc import Callable
from contextlib import suppress

from tests.support.hostile.server import head, register

EXPANDED_BYTES = 1024 * 1024 * 1024
_BLOCK = 1024 * 1024
_GZIP_HEAD = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
_STARTS = {
    "JSON": b'{"flows": [',
    "a PNG": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
    "a data URI": b'{"data": "data:,',
}
_FILLERS = {"JSON": b" ", "a PNG": b"\0", "a data URI": b"a"}


def compress_bomb(start: bytes, filler: bytes) -> bytes:
    """Return raw deflate that expands to `EXPANDED_BYTES`; one block is compressed once, and repeated."""
    first = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    repeated = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    head_block = first.compress(start) + first.flush(zlib.Z_FULL_FLUSH)
    block = repeated.compress(filler * _BLOCK) + repeated.flush(zlib.Z_FULL_FLUSH)
    return head_block + block * (EXPANDED_BYTES // _BLOCK)


def _send(
    encoding: str, create_body: Callable[[], bytes], status: str = "200 OK"
) -> Callable[[socket.socket], None]:
    def act(connection: socket.socket) -> None:
        body = create_body()
        headers = head(
            status=status,
            Content_Type="application/json",
            Content_Encoding=encoding,
            Content_Length=str(len(body)),
        )
        with suppress(OSError):
            connection.sendall(headers + body)

    return act


BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    f"{kind} in {encoding} that expands to 1 GiB": (
        encoding,
        lambda kind=kind, prefix=prefix: prefix + compress_bomb(_STARTS[kind], _FILLERS[kind]),  # type: ignore[misc]  # bound here
    )
    for kind in _STARTS
    for encoding, prefix in (("gzip", _GZIP_HEAD), ("deflate", b"\x78\xda"), ("DEFLATE", b""))
} | {
    "many members of gzip that expand to 1 GiB": (
        "gzip",
        lambda: gzip.compress(b" " * _BLOCK) * (EXPANDED_BYTES // _BLOCK),
    )
}
"""Content-Encoding and body."""
FOREIGN = {
    f"a body in {encoding}": (encoding, body)
    for encoding, body in {
        "br": b"\x0b\x02\x80{}\x03",
        "zstd": b"\x28\xb5\x2f\xfd\x20\x02\x11\x00\x00{}",
        "compress": b"\x1f\x9d\x90",
        "gzip, gzip": gzip.compress(gzip.compress(b"{}")),
    }.items()
}
"""Content-Encoding and body in a compression that nobody requested."""

for _name, (_encoding, _create_body) in BOMBS.items():
    register(_name)(_send(_encoding, _create_body))
for _name, (_encoding, _body) in FOREIGN.items():
    register(_name)(_send(_encoding, lambda body=_body: body))  # type: ignore[misc]  # bound here
