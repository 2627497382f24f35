"""The shapes in which a service may send a file, each a stage that a body is fed through, cut anywhere.

Whether the file that comes out is whole and the right one is not known here (wholeness.py, incoming.py).
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from airflow_provider_flows.core.payload.base64_stream import Base64, beginning
from airflow_provider_flows.core.payload.data_uri import Reading, sniff
from airflow_provider_flows.core.payload.integrity import TELLING
from airflow_provider_flows.core.payload.json_stream import Enclosed

if TYPE_CHECKING:
    from airflow_provider_flows.core.payload.integrity import Passing

SCHEME = b"data:"
TELLING_SIGNS = 16  # the base64 of TELLING bytes
MOST_BLANKS = 64 * 1024
MOST_REFUSED = 64 * 1024  # bytes of a text that nobody wants, until it is refused before its end


class Stage(Protocol):
    """One step on the way from a body to the file's bytes; it raises ValueError for what it cannot read."""

    @property
    def media_type(self) -> str | None:
        """What the answer says that the file is."""

    def feed(self, piece: bytes) -> None:
        """Take the next piece."""

    def finish(self) -> None:
        """Take the end."""


class NotKnown(ValueError):
    """A raw body that is not of a kind that is wanted."""


class Choice:
    """A stage that is chosen by the first bytes that are no white space."""

    def __init__(self, choose: Callable[[bytes], Stage], needed: int = len(SCHEME)) -> None:
        """Take who chooses, and how many bytes are needed for that."""
        self._choose = choose
        self._needed = needed
        self._start = b""
        self._chosen: Stage | None = None

    @property
    def media_type(self) -> str | None:
        """What the answer says that the file is."""
        return self._chosen.media_type if self._chosen else None

    def feed(self, piece: bytes) -> None:
        """Take the next piece."""
        if self._chosen is not None:
            self._chosen.feed(piece)
            return
        self._start += piece
        text = self._start.lstrip()
        if len(text) >= self._needed or len(self._start) - len(text) > MOST_BLANKS:
            self.chosen()

    def finish(self) -> None:
        """Take the end."""
        self.chosen().finish()

    def chosen(self) -> Stage:
        """Give the stage; it is chosen by what has come so far."""
        if self._chosen is None:
            start, self._start = self._start, b""
            text = start.lstrip()
            self._chosen = self._choose(text if len(start) - len(text) <= MOST_BLANKS else b"")
            self._chosen.feed(start)
        return self._chosen


def of_body(file: Passing, text: str | None, *, sure: bool) -> Choice:
    """Read a whole body.

    :param text: the media type of a text that the file may be, None if it may be none.
    :param sure: whether it must be that text where it is no data URI.
    """

    def choose(start: bytes) -> Stage:
        if start[:1] in {b"{", b'"'}:
            return Json(file, text, sure=sure)
        return Reading(file.write) if _is_uri(start) else Raw(file)

    return Choice(choose)


def _is_uri(start: bytes) -> bool:
    return start[: len(SCHEME)].lower() == SCHEME


class Json:
    """JSON with the file as a string in it."""

    def __init__(self, file: Passing, text: str | None, *, sure: bool) -> None:
        """Take what `of_body` takes."""
        self._file = file
        self._text = text
        self._sure = sure
        self._string: Choice | None = None  # the one that holds the file
        self._under_way: Choice | None = None
        self._json = Enclosed(self._begin, self._feed)

    @property
    def media_type(self) -> str | None:
        """What the string says that the file is."""
        return self._string.media_type if self._string else None

    def feed(self, piece: bytes) -> None:
        """Take the next piece."""
        self._json.feed(piece)

    def finish(self) -> None:
        """Take the end."""
        self._json.finish()
        if self._string is not None:
            self._string.finish()

    def _begin(self) -> None:
        """Begin a string that may be the file's: the first one, or a data URI after what is none."""
        if self._string is None:
            self._string = self._under_way = Choice(self._of_string, TELLING_SIGNS)
            return
        plain = isinstance(self._string.chosen(), Text)
        self._under_way = Choice(self._of_another) if plain else None

    def _feed(self, content: bytes) -> None:
        if self._under_way is not None:
            self._under_way.feed(content)

    def _of_string(self, start: bytes) -> Stage:
        if _is_uri(start):
            return Reading(self._file.write)
        known = not self._sure and sniff(beginning(start[:TELLING_SIGNS])) is not None
        return Bare(self._file) if known else Text(self._file, self._text)

    def _of_another(self, start: bytes) -> Stage:
        if not _is_uri(start):
            return Nothing()
        self._file.restart()
        self._string = self._under_way
        return Reading(self._file.write)


class Text:
    """A plain text; it must be UTF-8, and wanted."""

    def __init__(self, file: Passing, media_type: str | None) -> None:
        """Take where it goes and what it is; None if no text is wanted, which shows at the end: a data URI may come yet."""
        self.media_type = media_type
        self._file = file
        self._decoder = getincrementaldecoder("utf-8")()
        self._refused = 0

    def feed(self, piece: bytes) -> None:
        """Take the next piece."""
        self._decoder.decode(piece)
        if self.media_type is not None:
            self._file.write_text(piece)
            return
        self._refused += len(piece)
        if self._refused > MOST_REFUSED:
            self.finish()

    def finish(self) -> None:
        """Take the end."""
        self._decoder.decode(b"", final=True)
        if self.media_type is None:
            message = "a text, and nothing told of one" if self._refused else "it is empty"
            raise ValueError(message)


class Nothing:
    """What is passed over."""

    media_type: str | None = None

    def feed(self, piece: bytes) -> None:
        """Take the next piece."""

    def finish(self) -> None:
        """Take the end."""


class Bare:
    """Base64 without what should stand before it (vendor-api G-14); its first bytes are a known file's."""

    media_type: str | None = None

    def __init__(self, file: Passing) -> None:
        """Take where it goes."""
        signs = Base64(file.write)
        self.feed, self.finish = signs.feed, signs.finish


class Raw:
    """The file itself, which must be of a kind that is known by its first bytes, or else told by whoever sends it."""

    def __init__(self, file: Passing, wanted: str = "", told: str | None = None) -> None:
        """Take where it goes, how its media type must begin, and what the sender says that it is."""
        self.media_type: str | None = None
        self._told = told
        self._file = file
        self._wanted = wanted
        self._start = b""

    def feed(self, piece: bytes) -> None:
        """Take the next piece."""
        self._start += piece
        if self.media_type is not None or len(self._start) >= TELLING:
            self.finish()

    def finish(self) -> None:
        """Take the end, or what came so far."""
        start, self._start = self._start, b""
        self.media_type = self.media_type or sniff(start) or self._told
        if self.media_type is None or not self.media_type.startswith(self._wanted):
            message = "no file that is known begins so"
            raise NotKnown(message)
        self._file.write(start)
