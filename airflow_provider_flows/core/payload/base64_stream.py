"""What stands in a data URI, decoded while it comes in: base64 in either alphabet, or percent signs, in pieces cut anywhere.

It knows neither where the pieces come from nor what they mean; data_uri.py reads what stands before the comma.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable
from urllib.parse import unquote_to_bytes

from pybase64 import b64decode

Write = Callable[[bytes], object]

BLANKS = b" \t\n\r\v\f"
_USUAL = bytes.maketrans(b"-_", b"+/")  # the URL-safe alphabet's two other signs


class Base64:
    """Base64: with white space, with or without padding, in either alphabet or in both.

    Every method raises ValueError for what is no base64.
    """

    def __init__(self, write: Write) -> None:
        """Take what the bytes are written to."""
        self._write = write
        self._rest = b""  # fewer than four signs
        self._padding = 0

    def feed(self, piece: bytes) -> None:
        """Decode what is whole so far."""
        signs = self._rest + piece
        whole = len(signs) & ~3
        if (
            self._padding or signs[whole - 1 : whole] == b"="
        ):  # the one place where valid signs can be followed by others
            self._feed_unusual(signs)
            return
        try:
            decoded = b64decode(signs[:whole], validate=True)
        except binascii.Error:
            self._feed_unusual(signs)
            return
        self._rest = signs[whole:]
        self._write(decoded)

    def _feed_unusual(self, signs: bytes) -> None:
        plain = signs.translate(_USUAL, BLANKS)
        bare = plain.rstrip(b"=")
        if b"=" in bare or (self._padding and bare != self._rest):
            message = "broken base64: padding is not at its end"
            raise ValueError(message)
        self._padding += len(plain) - len(bare)
        whole = len(bare) & ~3
        self._write(_strictly(bare[:whole]))
        self._rest = bare[whole:]

    def finish(self) -> None:
        """Decode the last signs, which may lack their padding, but not have another one."""
        if not self._padding:
            self._feed_unusual(self._rest)
        needed = -len(self._rest) % 4
        if self._padding not in {0, needed}:
            message = "broken base64: wrong padding"
            raise ValueError(message)
        self._write(_strictly(self._rest + b"=" * needed))


def beginning(signs: bytes) -> bytes:
    """Decode the first signs of what may be base64; nothing if it is none."""
    plain = signs.translate(_USUAL, BLANKS)
    try:
        return b64decode(plain[: len(plain) & ~3], validate=True)
    except binascii.Error:
        return b""


def _strictly(signs: bytes) -> bytes:
    try:
        return b64decode(signs, validate=True)
    except binascii.Error as error:
        message = f"broken base64: {error}"
        raise ValueError(message) from error


class Percent:
    """Plain text in which `%41` stands for a byte; white space at its end is none of it."""

    def __init__(self, write: Write) -> None:
        """Take what the bytes are written to."""
        self._write = write
        self._rest = b""  # a sign that is cut in two, or blanks that may be the end

    def feed(self, piece: bytes) -> None:
        """Write what is whole so far."""
        text = self._rest + piece
        sure = text[:-2] + text[-2:].partition(b"%")[0]
        kept = sure.rstrip(BLANKS)
        sure = kept if len(sure) - len(kept) < MOST_BLANKS else sure
        self._rest = text[len(sure) :]
        self._write(unquote_to_bytes(sure))

    def finish(self) -> None:
        """Write what was held back."""
        self._write(unquote_to_bytes(self._rest.rstrip(BLANKS)))


MOST_BLANKS = 64 * 1024  # more of them are content: memory is bounded
