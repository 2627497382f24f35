"""Streaming decoders for the payload of a data URI: base64 in both alphabets, and percent-encoding."""

from __future__ import annotations

import binascii
from collections.abc import Callable
from urllib.parse import unquote_to_bytes

from pybase64 import b64decode

Write = Callable[[bytes], object]

WHITESPACE = b" \t\n\r\v\f"
MAX_TRAILING_WHITESPACE_BYTES = 64 * 1024  # a longer run counts as content, so that memory is bounded
_URL_SAFE_TO_STANDARD = bytes.maketrans(b"-_", b"+/")


class Base64Stream:
    """A decoder of base64 with or without padding and white space, in the standard or the URL-safe alphabet.

    Every method raises ValueError if the input is not valid base64.
    """

    def __init__(self, write: Write) -> None:
        """Create a decoder.

        :param write: receives the decoded bytes.
        """
        self._write = write
        self._rest = b""  # at most three characters
        self._padding = 0

    def feed(self, chunk: bytes) -> None:
        """Decode all complete groups of four characters."""
        encoded = self._rest + chunk
        end = len(encoded) & ~3
        if self._padding or encoded[end - 1 : end] == b"=":  # padding may be followed by white space only
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
        standard = encoded.translate(_URL_SAFE_TO_STANDARD, WHITESPACE)
        unpadded = standard.rstrip(b"=")
        if b"=" in unpadded or (self._padding and unpadded != self._rest):
            raise ValueError("broken base64: padding is not at its end")
        self._padding += len(standard) - len(unpadded)
        end = len(unpadded) & ~3
        self._write(_decode_strict(unpadded[:end]))
        self._rest = unpadded[end:]

    def finish(self) -> None:
        """Decode the last characters. Their padding may be absent, but not wrong."""
        if not self._padding:
            self._feed_lenient(self._rest)
        needed = -len(self._rest) % 4
        if self._padding not in {0, needed}:
            raise ValueError("broken base64: wrong padding")
        self._write(_decode_strict(self._rest + b"=" * needed))


def decode_prefix(encoded: bytes) -> bytes:
    """Decode the first characters of a text; return no bytes if they are not base64."""
    standard = encoded.translate(_URL_SAFE_TO_STANDARD, WHITESPACE)
    try:
        return b64decode(standard[: len(standard) & ~3], validate=True)
    except binascii.Error:
        return b""


def _decode_strict(encoded: bytes) -> bytes:
    try:
        return b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise ValueError(f"broken base64: {error}") from error


class PercentStream:
    """A decoder of text in which `%41` is a byte. White space at the end is not part of the content."""

    def __init__(self, write: Write) -> None:
        """Create a decoder.

        :param write: receives the decoded bytes.
        """
        self._write = write
        self._rest = b""  # an escape that is cut in two, or white space that may be at the end

    def feed(self, chunk: bytes) -> None:
        """Decode the chunk, except for an incomplete escape and trailing white space."""
        text = self._rest + chunk
        ready = text[:-2] + text[-2:].partition(b"%")[0]
        stripped = ready.rstrip(WHITESPACE)
        ready = stripped if len(ready) - len(stripped) < MAX_TRAILING_WHITESPACE_BYTES else ready
        self._rest = text[len(ready) :]
        self._write(unquote_to_bytes(ready))

    def finish(self) -> None:
        """Decode the rest, without its trailing white space."""
        self._write(unquote_to_bytes(self._rest.rstrip(WHITESPACE)))
