"""Chunked bodies whose framing breaks in a later TCP segment."""

from __future__ import annotations

import socket
import time

from tests.support.hostile.server import head, register


@register("a chunk size that is no number")
def _send_bad_chunk_size(connection: socket.socket) -> None:
    connection.sendall(head(Content_Type="application/json", Transfer_Encoding="chunked") + b"1\r\n{\r\n")
    time.sleep(0.05)
    connection.sendall(b"zz\r\n}\r\n0\r\n\r\n")
    connection.recv(1)
