"""What stands in a data URI, decoded while it comes in: base64 in either alphabet, or percent signs, in pieces cut anywhere.

It knows neither where the pieces come from nor what they mean; data_uri.py reads what stands before the comma.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable
from urllib.parse import unquote_to_bytes

from pybase64 import b64decode

Write = Callable[[bytes], object]

WHITESPACE = b" \t\n\r\v\f"
_URL_SAFE_TO_STANDARD = bytes.maketrans(b"-_", b"+/")  # the URL-safe alphabet's two other signs


class Base64Stream:
    """Base64: with white space, with or without padding, in either alphabet or in both.

    Every method raises ValueError for what is no base64.
    """

    def __init__(self, write: Write) -> None:
        """Take what the bytes are written to."""
        self._write = write
        self._rest = b""  # fewer than four signs
        self._padding = 0

    def feed(self, chunk: bytes) -> None:
        """Decode what is whole so far."""
        encoded = self._rest + chunk
        end = len(encoded) & ~3
        if (
            self._padding or encoded[end - 1 : end] == b"="
        ):  # the one place where valid signs can be followed by others
            self._feed_lenient(encoded)
            return
        try:
            decoded = b64decode(encoded[:end], validate=True)
        except binascii.Error:
            self._feed_lenient(encoded)
            return
        self._rest = encoded[end:]
        self._write(decoded)

    def _feed_lenient(self, encoded: bytes) -> None:
        plain = encoded.translate(_URL_SAFE_TO_STANDARD, WHITESPACE)
        unpadded = plain.rstrip(b"=")
        if b"=" in unpadded or (self._padding and unpadded != self._rest):
            message = "broken base64: padding is not at its end"
            raise ValueError(message)
        self._padding += len(plain) - len(unpadded)
        end = len(unpadded) & ~3
        self._write(_decode_strict(unpadded[:end]))
        self._rest = unpadded[end:]

    def finish(self) -> None:
        """Decode the last signs, which may lack their padding, but not have another one."""
        if not self._padding:
            self._feed_lenient(self._rest)
        needed = -len(self._rest) % 4
        if self._padding not in {0, needed}:
            message = "broken base64: wrong padding"
            raise ValueError(message)
        self._write(_decode_strict(self._rest + b"=" * needed))


def decode_prefix(encoded: bytes) -> bytes:
    """Decode the first signs of what may be base64; nothing if it is none."""
    plain = encoded.translate(_URL_SAFE_TO_STANDARD, WHITESPACE)
    try:
        return b64decode(plain[: len(plain) & ~3], validate=True)
    except binascii.Error:
        return b""


def _decode_strict(encoded: bytes) -> bytes:
    try:
        return b64decode(encoded, validate=True)
    except binascii.Error as error:
        message = f"broken base64: {error}"
        raise ValueError(message) from error


class PercentStream:
    """Plain text in which `%41` stands for a byte; white space at its end is none of it."""

    def __init__(self, write: Write) -> None:
        """Take what the bytes are written to."""
        self._write = write
        self._rest = b""  # a sign that is cut in two, or blanks that may be the end

    def feed(self, chunk: bytes) -> None:
        """Write what is whole so far."""
        text = self._rest + chunk
        ready = text[:-2] + text[-2:].partition(b"%")[0]
        stripped = ready.rstrip(WHITESPACE)
        ready = stripped if len(ready) - len(stripped) < MAX_TRAILING_WHITESPACE_BYTES else ready
        self._rest = text[len(ready) :]
        self._write(unquote_to_bytes(ready))

    def finish(self) -> None:
        """Write what was held back."""
        self._write(unquote_to_bytes(self._rest.rstrip(WHITESPACE)))


MAX_TRAILING_WHITESPACE_BYTES = 64 * 1024  # more of them are content: memory is bounded
