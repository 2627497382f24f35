"""The shapes in which a service may send a file, each a stage that a body is fed through, cut anywhere.

Whether the file that comes out is whole and the right one is not known here (wholeness.py, incoming.py).
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from airflow_provider_flows.core.payload.base64_stream import Base64Stream, decode_prefix
from airflow_provider_flows.core.payload.data_uri import DataUriDecoder, sniff
from airflow_provider_flows.core.payload.integrity import MIN_SNIFF_BYTES
from airflow_provider_flows.core.payload.json_stream import JsonStringExtractor

if TYPE_CHECKING:
    from airflow_provider_flows.core.payload.integrity import IntegrityChecker

SCHEME = b"data:"
MIN_SNIFF_BASE64_CHARACTERS = 16  # the base64 of TELLING bytes
MAX_LEADING_WHITESPACE_BYTES = 64 * 1024
MAX_UNWANTED_TEXT_BYTES = 64 * 1024  # bytes of a text that nobody wants, until it is refused before its end


class Decoder(Protocol):
    """One step on the way from a body to the file's bytes; it raises ValueError for what it cannot read."""

    @property
    def media_type(self) -> str | None:
        """What the answer says that the file is."""

    def feed(self, chunk: bytes) -> None:
        """Take the next piece."""

    def finish(self) -> None:
        """Take the end."""


class UnknownFileTypeError(ValueError):
    """A raw body that is not of a kind that is wanted."""


class SniffingDecoder:
    """A stage that is chosen by the first bytes that are no white space."""

    def __init__(self, choose: Callable[[bytes], Decoder], min_bytes: int = len(SCHEME)) -> None:
        """Take who chooses, and how many bytes are needed for that."""
        self._choose = choose
        self._min_bytes = min_bytes
        self._start = b""
        self._decoder: Decoder | None = None

    @property
    def media_type(self) -> str | None:
        """What the answer says that the file is."""
        return self._decoder.media_type if self._decoder else None

    def feed(self, chunk: bytes) -> None:
        """Take the next piece."""
        if self._decoder is not None:
            self._decoder.feed(chunk)
            return
        self._start += chunk
        text = self._start.lstrip()
        if len(text) >= self._min_bytes or len(self._start) - len(text) > MAX_LEADING_WHITESPACE_BYTES:
            self.get_decoder()

    def finish(self) -> None:
        """Take the end."""
        self.get_decoder().finish()

    def get_decoder(self) -> Decoder:
        """Give the stage; it is chosen by what has come so far."""
        if self._decoder is None:
            start, self._start = self._start, b""
            text = start.lstrip()
            self._decoder = self._choose(
                text if len(start) - len(text) <= MAX_LEADING_WHITESPACE_BYTES else b""
            )
            self._decoder.feed(start)
        return self._decoder


def create_body_decoder(
    file: IntegrityChecker, text_media_type: str | None, *, must_be_text: bool
) -> SniffingDecoder:
    """Read a whole body.

    :param text_media_type: the media type of a text that the file may be, None if it may be none.
    :param must_be_text: whether it must be that text where it is no data URI.
    """

    def choose(start: bytes) -> Decoder:
        if start[:1] in {b"{", b'"'}:
            return JsonDecoder(file, text_media_type, must_be_text=must_be_text)
        return DataUriDecoder(file.write) if _is_data_uri(start) else RawDecoder(file)

    return SniffingDecoder(choose)


def _is_data_uri(start: bytes) -> bool:
    return start[: len(SCHEME)].lower() == SCHEME


class JsonDecoder:
    """JSON with the file as a string in it."""

    def __init__(self, file: IntegrityChecker, text_media_type: str | None, *, must_be_text: bool) -> None:
        """Take what `create_body_decoder` takes."""
        self._file = file
        self._text_media_type = text_media_type
        self._must_be_text = must_be_text
        self._file_decoder: SniffingDecoder | None = None  # the one that holds the file
        self._current_decoder: SniffingDecoder | None = None
        self._extractor = JsonStringExtractor(self._start_string, self._feed_string)

    @property
    def media_type(self) -> str | None:
        """What the string says that the file is."""
        return self._file_decoder.media_type if self._file_decoder else None

    def feed(self, chunk: bytes) -> None:
        """Take the next piece."""
        self._extractor.feed(chunk)

    def finish(self) -> None:
        """Take the end."""
        self._extractor.finish()
        if self._file_decoder is not None:
            self._file_decoder.finish()

    def _start_string(self) -> None:
        """Begin a string that may be the file's: the first one, or a data URI after what is none."""
        if self._file_decoder is None:
            self._file_decoder = self._current_decoder = SniffingDecoder(
                self._choose_first_decoder, MIN_SNIFF_BASE64_CHARACTERS
            )
            return
        plain = isinstance(self._file_decoder.get_decoder(), TextDecoder)
        self._current_decoder = SniffingDecoder(self._choose_later_decoder) if plain else None

    def _feed_string(self, content: bytes) -> None:
        if self._current_decoder is not None:
            self._current_decoder.feed(content)

    def _choose_first_decoder(self, start: bytes) -> Decoder:
        if _is_data_uri(start):
            return DataUriDecoder(self._file.write)
        known = (
            not self._must_be_text and sniff(decode_prefix(start[:MIN_SNIFF_BASE64_CHARACTERS])) is not None
        )
        return Base64Decoder(self._file) if known else TextDecoder(self._file, self._text_media_type)

    def _choose_later_decoder(self, start: bytes) -> Decoder:
        if not _is_data_uri(start):
            return NullDecoder()
        self._file.restart()
        self._file_decoder = self._current_decoder
        return DataUriDecoder(self._file.write)


class TextDecoder:
    """A plain text; it must be UTF-8, and wanted."""

    def __init__(self, file: IntegrityChecker, media_type: str | None) -> None:
        """Take where it goes and what it is; None if no text is wanted, which shows at the end: a data URI may come yet."""
        self.media_type = media_type
        self._file = file
        self._utf8_decoder = getincrementaldecoder("utf-8")()
        self._unwanted_bytes = 0

    def feed(self, chunk: bytes) -> None:
        """Take the next piece."""
        self._utf8_decoder.decode(chunk)
        if self.media_type is not None:
            self._file.write_text(chunk)
            return
        self._unwanted_bytes += len(chunk)
        if self._unwanted_bytes > MAX_UNWANTED_TEXT_BYTES:
            self.finish()

    def finish(self) -> None:
        """Take the end."""
        self._utf8_decoder.decode(b"", final=True)
        if self.media_type is None:
            message = "a text, and nothing told of one" if self._unwanted_bytes else "it is empty"
            raise ValueError(message)


class NullDecoder:
    """What is passed over."""

    media_type: str | None = None

    def feed(self, chunk: bytes) -> None:
        """Take the next piece."""

    def finish(self) -> None:
        """Take the end."""


class Base64Decoder:
    """Base64 without what should stand before it (vendor-api G-14); its first bytes are a known file's."""

    media_type: str | None = None

    def __init__(self, file: IntegrityChecker) -> None:
        """Take where it goes."""
        stream = Base64Stream(file.write)
        self.feed, self.finish = stream.feed, stream.finish


class RawDecoder:
    """The file itself, which must be of a kind that is known by its first bytes, or else told by whoever sends it."""

    def __init__(
        self, file: IntegrityChecker, media_type_prefix: str = "", declared_media_type: str | None = None
    ) -> None:
        """Take where it goes, how its media type must begin, and what the sender says that it is."""
        self.media_type: str | None = None
        self._declared_media_type = declared_media_type
        self._file = file
        self._media_type_prefix = media_type_prefix
        self._start = b""

    def feed(self, chunk: bytes) -> None:
        """Take the next piece."""
        self._start += chunk
        if self.media_type is not None or len(self._start) >= MIN_SNIFF_BYTES:
            self.finish()

    def finish(self) -> None:
        """Take the end, or what came so far."""
        start, self._start = self._start, b""
        self.media_type = self.media_type or sniff(start) or self._declared_media_type
        if self.media_type is None or not self.media_type.startswith(self._media_type_prefix):
            message = "no file that is known begins so"
            raise UnknownFileTypeError(message)
        self._file.write(start)
