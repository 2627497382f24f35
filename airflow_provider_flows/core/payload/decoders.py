"""Streaming decoders for the forms in which a service may send a file, and the pipeline built of them.

A response's body goes through one or more decoders into an `IntegrityChecker`:

    raw file                        RawDecoder
    data:image/png;base64,...       DataUriDecoder
    {"data": "data:image/..."}      JsonDecoder, DataUriDecoder
    {"data": "iVBORw0KGgo..."}      JsonDecoder, Base64Decoder, RawDecoder
    {"data": "Once upon a time"}    JsonDecoder, TextDecoder
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from airflow_provider_flows.core.payload.data_uri import (
    SNIFFABLE_MEDIA_TYPES,
    Base64Stream,
    DataUriDecoder,
    decode_prefix,
    sniff,
)
from airflow_provider_flows.core.payload.integrity import MIN_SNIFF_BYTES
from airflow_provider_flows.core.payload.json_stream import JsonStringExtractor

if TYPE_CHECKING:
    from airflow_provider_flows.core.payload.data_uri import Write
    from airflow_provider_flows.core.payload.integrity import IntegrityChecker

DATA_URI_SCHEME = b"data:"
MIN_SNIFF_BASE64_CHARACTERS = 16  # the base64 of MIN_SNIFF_BYTES bytes
MAX_LEADING_WHITESPACE_BYTES = 64 * 1024
# an HTML page in place of a file is a message, most often of a gateway
HTML_STARTS = (b"<!doctype html", b"<html")
HTML = "text/html"
OCTET_STREAM = "application/octet-stream"
MAX_UNEXPECTED_TEXT_BYTES = 64 * 1024  # a longer text is rejected before its end


class Decoder(Protocol):
    """A step from a response's body to a file's bytes. Its methods raise ValueError for broken input."""

    @property
    def media_type(self) -> str | None:
        """The media type that the response declares for the file."""

    @property
    def is_self_delimiting(self) -> bool:
        """Whether `finish` proves that no part of the body is missing."""

    def feed(self, chunk: bytes) -> None:
        """Decode the next chunk."""

    def finish(self) -> None:
        """Decode the rest. Nothing follows."""


ChooseDecoder = Callable[[bytes], Decoder]


@dataclass(frozen=True, slots=True)
class ExpectedFile:
    """What is known of a file before it is downloaded.

    :param media_type: the normalized media type from the list of outputs; `text/...` is that of a plain text.
    :param allow_text: whether the file may be a plain text although the media type does not say so.
    """

    media_type: str | None = None
    allow_text: bool = False

    @property
    def is_text(self) -> bool:
        """Whether everything that is no data URI is a plain text."""
        return is_text_media_type(self.media_type)

    @property
    def needs_known_start(self) -> bool:
        """Whether the first bytes of the file must prove its type: a known one, a text, or none is declared.

        They cannot prove a type such as `application/zip`, which the provider does not recognize.
        """
        return (
            self.media_type is None
            or self.is_text
            or self.media_type in {*SNIFFABLE_MEDIA_TYPES, OCTET_STREAM}
        )

    @property
    def text_media_type(self) -> str | None:
        """The media type of a plain text, None if a plain text is not acceptable."""
        return self.media_type if self.is_text else "text/plain" if self.allow_text else None


def create_decoder(file: IntegrityChecker, expected: ExpectedFile) -> Decoder:
    """Create the pipeline that extracts a file from a response's body in any of the forms above."""

    def choose_for_body(start: bytes) -> Decoder:
        if start[:1] in {b"{", b'"'}:
            return JsonDecoder(choose_for_string, choose_for_later_string)
        if _is_data_uri(start):
            return DataUriDecoder(file.write)
        if expected.is_text and not (_is_html(start) and expected.media_type != HTML):
            return TextDecoder(file.write_text, expected.media_type)
        return _create_raw_decoder(file, expected)

    def choose_for_string(start: bytes) -> Decoder:
        if _is_data_uri(start):
            return DataUriDecoder(file.write)
        if not expected.is_text and _is_base64(start, expected):
            return Base64Decoder(_create_raw_decoder(file, expected))
        return TextDecoder(file.write_text, expected.text_media_type)

    def choose_for_later_string(start: bytes) -> Decoder | None:
        if not _is_data_uri(start):
            return None
        file.restart()
        return DataUriDecoder(file.write)

    return SniffingDecoder(choose_for_body, max(map(len, HTML_STARTS)))


def _create_raw_decoder(file: IntegrityChecker, expected: ExpectedFile) -> RawDecoder:
    def check_text() -> None:
        if expected.needs_known_start:
            raise UnknownFileTypeError(UNKNOWN_TYPE)
        file.add_problem(f"it is declared as {expected.media_type}, and may be the text of a message instead")

    declared = None if expected.needs_known_start else expected.media_type
    return RawDecoder(file.write, declared_media_type=declared, on_text=check_text)


def _is_base64(start: bytes, expected: ExpectedFile) -> bool:
    """Return whether a string is base64: of a file with known first bytes, or where any file is expected."""
    prefix = decode_prefix(start[:MIN_SNIFF_BASE64_CHARACTERS])
    is_possible = len(prefix) >= MIN_SNIFF_BYTES and b" " not in start
    return sniff(prefix) is not None or (is_possible and expected.media_type is not None)


def is_text_media_type(media_type: str | None) -> bool:
    """Return whether a media type is that of a text."""
    return media_type is not None and media_type.startswith("text/")


def _is_html(start: bytes) -> bool:
    return start.lstrip().lower().startswith(HTML_STARTS)


def _is_data_uri(start: bytes) -> bool:
    return start[: len(DATA_URI_SCHEME)].lower() == DATA_URI_SCHEME


class SniffingDecoder:
    """A decoder that chooses another one by the first bytes after leading white space."""

    def __init__(self, choose: ChooseDecoder, min_bytes: int = len(DATA_URI_SCHEME)) -> None:
        """Create a decoder.

        :param choose: returns the decoder for a text that starts with these bytes.
        :param min_bytes: the number of bytes that `choose` needs, if there are so many.
        """
        self._choose = choose
        self._min_bytes = min_bytes
        self._start = b""
        self._decoder: Decoder | None = None

    @property
    def media_type(self) -> str | None:
        """The media type that the response declares for the file."""
        return self._decoder.media_type if self._decoder else None

    @property
    def is_self_delimiting(self) -> bool:
        """Whether `finish` proves that no part of the body is missing."""
        return self.get_decoder().is_self_delimiting

    def feed(self, chunk: bytes) -> None:
        """Decode the next chunk."""
        if self._decoder is not None:
            self._decoder.feed(chunk)
            return
        self._start += chunk
        text = self._start.lstrip()
        if len(text) >= self._min_bytes or len(self._start) - len(text) > MAX_LEADING_WHITESPACE_BYTES:
            self.get_decoder()

    def finish(self) -> None:
        """Decode the rest."""
        self.get_decoder().finish()

    def get_decoder(self) -> Decoder:
        """Return the decoder. If there is none, choose it by the bytes received so far."""
        if self._decoder is None:
            start, self._start = self._start, b""
            text = start.lstrip()
            has_text = len(start) - len(text) <= MAX_LEADING_WHITESPACE_BYTES
            self._decoder = self._choose(text if has_text else b"")
            self._decoder.feed(start)
        return self._decoder


class JsonDecoder:
    """A decoder of JSON with the file in one of its strings: the first one, or a data URI after a text."""

    is_self_delimiting = True

    def __init__(self, choose: ChooseDecoder, choose_later: Callable[[bytes], Decoder | None]) -> None:
        """Create a decoder.

        :param choose: returns the decoder of the first string that may hold the file.
        :param choose_later: returns the decoder of a further string, None if that does not hold the file.
        """
        self._choose = choose
        self._choose_later = choose_later
        self._file_decoder: SniffingDecoder | None = None
        self._string_decoder: SniffingDecoder | None = None  # of the string that is being received
        self._extractor = JsonStringExtractor(self._start_string, self._feed_string)

    @property
    def media_type(self) -> str | None:
        """The media type that the string declares."""
        return self._file_decoder.media_type if self._file_decoder else None

    def feed(self, chunk: bytes) -> None:
        """Decode the next chunk."""
        self._extractor.feed(chunk)

    def finish(self) -> None:
        """Decode the rest, and check the JSON around the file."""
        self._extractor.finish()
        if self._file_decoder is not None:
            self._file_decoder.finish()

    def _start_string(self) -> None:
        if self._file_decoder is None:
            self._string_decoder = SniffingDecoder(self._choose, MIN_SNIFF_BASE64_CHARACTERS)
            self._file_decoder = self._string_decoder
        elif isinstance(self._file_decoder.get_decoder(), TextDecoder):
            self._string_decoder = SniffingDecoder(self._choose_for_later_string)
        else:
            self._string_decoder = None

    def _feed_string(self, content: bytes) -> None:
        if self._string_decoder is not None:
            self._string_decoder.feed(content)

    def _choose_for_later_string(self, start: bytes) -> Decoder:
        decoder = self._choose_later(start)
        if decoder is None:
            return NullDecoder()
        self._file_decoder = self._string_decoder
        return decoder


class TextDecoder:
    """A decoder of plain text in any encoding; its bytes are passed on unchanged."""

    is_self_delimiting = False

    def __init__(self, write: Write, media_type: str | None) -> None:
        """Create a decoder.

        :param write: receives the text.
        :param media_type: None if a text is not acceptable. `finish` rejects it: a data URI may follow.
        """
        self.media_type = media_type
        self._write = write
        self._unexpected_bytes = 0

    def feed(self, chunk: bytes) -> None:
        """Decode the next chunk."""
        if self.media_type is not None:
            self._write(chunk)
            return
        self._unexpected_bytes += len(chunk)
        if self._unexpected_bytes > MAX_UNEXPECTED_TEXT_BYTES:
            self.finish()

    def finish(self) -> None:
        """Check that the text is acceptable."""
        if self.media_type is None:
            raise ValueError(
                "it is a text, and no text is expected" if self._unexpected_bytes else "it is empty"
            )


class NullDecoder:
    """A decoder that discards its input."""

    media_type: str | None = None
    is_self_delimiting = False

    def feed(self, chunk: bytes) -> None:
        """Discard the chunk."""

    def finish(self) -> None:
        """Do nothing."""


class UnknownFileTypeError(ValueError):
    """The body is no file of an acceptable type."""


UNKNOWN_TYPE = "it does not start like a file of a known type"


class RawDecoder:
    """A decoder of a raw file, whose type its first bytes indicate, or else its sender."""

    is_self_delimiting = False

    def __init__(
        self,
        write: Write,
        media_type_prefix: str = "",
        declared_media_type: str | None = None,
        *,
        on_text: Callable[[], object] | None = None,
    ) -> None:
        """Create a decoder.

        :param write: receives the file's bytes.
        :param media_type_prefix: the start of each acceptable media type.
        :param declared_media_type: the media type of a file whose first bytes do not indicate one.
        :param on_text: called at the end of a file whose first bytes do not indicate a type and that has no
            NUL byte, because it may be a message; it may raise UnknownFileTypeError. None accepts any file.
        """
        self.media_type: str | None = None
        self._declared_media_type = declared_media_type
        self._write = write
        self._media_type_prefix = media_type_prefix
        self._on_text = on_text
        self._start = b""
        self._is_started = False
        self._may_be_text = False

    def feed(self, chunk: bytes) -> None:
        """Pass on the next chunk, as soon as the type is known.

        :raises UnknownFileTypeError: the type is unknown, or not acceptable.
        """
        if self._is_started:
            self._may_be_text = self._may_be_text and b"\0" not in chunk
            self._write(chunk)
            return
        self._start += chunk
        if len(self._start) >= MIN_SNIFF_BYTES:
            self._write_start()

    def finish(self) -> None:
        """Pass on a file that is shorter than `MIN_SNIFF_BYTES`.

        :raises UnknownFileTypeError: the type is unknown, or not acceptable.
        """
        if not self._is_started:
            self._write_start()
        if self._may_be_text and self._on_text is not None:
            self._on_text()

    def _write_start(self) -> None:
        sniffed = sniff(self._start)
        media_type = sniffed or self._declared_media_type
        is_message = self._on_text is not None and (not self._start or _is_html(self._start))
        if is_message or not (media_type or "").startswith(self._media_type_prefix):
            raise UnknownFileTypeError(UNKNOWN_TYPE)
        self.media_type = media_type
        self._is_started = True
        self._may_be_text = sniffed is None and b"\0" not in self._start
        self._write(self._start)


class Base64Decoder:
    """A decoder of a raw file in base64 without the head of a data URI (vendor_notes.md, G-14)."""

    is_self_delimiting = False

    def __init__(self, file_decoder: RawDecoder) -> None:
        """Create a decoder.

        :param file_decoder: receives the decoded bytes.
        """
        self._base64 = Base64Stream(file_decoder.feed)
        self._file_decoder = file_decoder

    @property
    def media_type(self) -> str | None:
        """The media type that the file's first bytes indicate, or the declared one."""
        return self._file_decoder.media_type

    def feed(self, chunk: bytes) -> None:
        """Decode the next chunk."""
        self._base64.feed(chunk)

    def finish(self) -> None:
        """Decode the rest."""
        self._base64.finish()
        self._file_decoder.finish()
