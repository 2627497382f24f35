"""Servers of files that inputs name by a URL: they lie about sizes, never end, or redirect."""

from __future__ import annotations

import socket
from contextlib import suppress

from tests.support.hostile.links import target_url
from tests.support.hostile.server import head, register

PNG_START = b"\x89PNG\r\n\x1a\n"


@register("a picture that claims to be larger than any input")
def _claim_a_large_size(connection: socket.socket) -> None:
    connection.sendall(head(Content_Type="image/png", Content_Length=str(2**42)) + PNG_START)


@register("a picture without an end")
def _send_an_endless_picture(connection: socket.socket) -> None:
    connection.sendall(head(Content_Type="image/png", Connection="close") + PNG_START)
    with suppress(OSError):
        while True:
            connection.sendall(bytes(1 << 16))


@register("a picture that ends before its length")
def _cut_a_picture(connection: socket.socket) -> None:
    connection.sendall(head(Content_Type="image/png", Content_Length="1000") + PNG_START)


@register("a picture behind a circle of redirects")
def _redirect_for_ever(connection: socket.socket) -> None:
    location = target_url("http://127.0.0.1:{port}/again.png", connection)
    connection.sendall(head(status="302 Found", Location=location, Content_Length="0", Connection="close"))


@register("a picture of a server that is busy")
def _be_busy(connection: socket.socket) -> None:
    connection.sendall(head(status="503 Busy", Content_Length="0", Connection="close"))
