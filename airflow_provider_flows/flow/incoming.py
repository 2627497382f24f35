"""A file out of an answer that comes in pieces, in any of the shapes that a service may choose, and whether it came whole.

It reads no socket and opens no file: a transport feeds it, a `Target` takes the file's bytes.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from airflow_provider_flows.flow.data_uri import GLB, KNOWN, Reading, normal_media_type, sniff
from airflow_provider_flows.flow.decoding import Write
from airflow_provider_flows.flow.enclosed import Enclosed
from airflow_provider_flows.flow.errors import FlowMalformed
from airflow_provider_flows.flow.exchange import malformed

if TYPE_CHECKING:
    from airflow_provider_flows.flow.exchange import Request, Response
    from airflow_provider_flows.flow.sink import Target

TELLING = 12  # so many of a file's first bytes tell what it is, and how long a GLB is
SCHEME = b"data:"
MOST_BLANKS = 64 * 1024


class Stage(Protocol):
    """One step on the way from a body to the file's bytes; it raises ValueError for what it cannot read."""

    @property
    def media_type(self) -> str | None:
        """What the answer says that the file is."""

    def feed(self, piece: bytes) -> None:
        """Take the next piece."""

    def finish(self) -> None:
        """Take the end."""


class _TargetFailed(Exception):
    """What a target raised, on its way past those who judge the answer."""


class _NotKnown(ValueError):
    """A raw body that is not of a kind that is wanted."""


class Incoming:
    """The sink of a download (G-02, vendor-api 1.12.7): a raw file, a data URI, or JSON with a data URI or a text in it.

    What goes wrong on the way, with the answer or with the target, is raised by `finish`, not in the transport.
    """

    def __init__(self, target: Target) -> None:
        """Take what the file is written to."""
        self._target = target
        self._forget()

    def _forget(self) -> None:
        self._wrong: Exception | None = None
        self._first = b""
        self._size = 0
        self._stage: Stage = _Choice(self._write, _of_body)

    def begin(self, status: int, headers: Mapping[str, str]) -> None:  # noqa: ARG002  # its content tells what a file is
        """Forget what came before: an answer may be asked for again."""
        self._forget()
        self._wrong = _raised(self._to_target, self._target.restart)

    def feed(self, chunk: bytes) -> bool:
        """Take a piece of the body; gives whether more is wanted."""
        self._wrong = self._wrong or _raised(self._stage.feed, chunk)
        return self._wrong is None

    def finish(self, request: Request, response: Response) -> str:
        """Give the media type of the file, which is whole: by its content, else as the answer told it.

        :raises FlowMalformed: the answer holds no file, or not all of it.
        """
        wrong = self._wrong or _raised(self._stage.finish)
        if isinstance(wrong, _TargetFailed):
            raise wrong.__cause__ or wrong
        told = self._stage.media_type
        kind = sniff(self._first) or told
        why = f"holds no whole file ({wrong})" if wrong else None if kind else "is no file that is known"
        if kind == GLB and not why and int.from_bytes(self._first[8:12].ljust(4, b"\xff"), "little") != self._size:
            why = "holds a GLB that is cut short or has a wrong length in its header"
        if why or kind is None:
            raise FlowMalformed(malformed(request, response, str(why)), status=response.status) from wrong
        return kind

    def _write(self, data: bytes) -> None:
        self._first += data[: TELLING - len(self._first)]
        self._size += len(data)
        self._to_target(self._target.write, data)

    def _to_target(self, do: Callable[..., object], *what: Any) -> None:
        try:
            do(*what)
        except Exception as error:
            raise _TargetFailed from error


class Picture(Incoming):
    """The sink of a link's answer, from a stranger: a raw picture, by its first bytes or its content type, of a bounded size."""

    def __init__(self, target: Target, most: int) -> None:
        """Take what the picture is written to, and how many bytes it may have."""
        self._most = most
        self._content_type: str | None = None
        super().__init__(target)

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Forget what came before, and take what the new answer says that it is."""
        told = normal_media_type(headers.get("content-type"))
        self._content_type = None if told in KNOWN else told  # what has first bytes of its own is known by them only
        super().begin(status, headers)

    def _forget(self) -> None:
        super()._forget()
        self._stage = _Raw(self._bounded, "image/", self._content_type)

    def _bounded(self, data: bytes) -> None:
        if self._size + len(data) > self._most:
            message = f"it is larger than {self._most} bytes; if that is right, raise max_answer_mib in the connection's extra"
            raise ValueError(message)
        self._write(data)

    def finish_if_one(self, request: Request, response: Response) -> str | None:
        """Give the media type of the picture, None if what came is something else.

        :raises FlowMalformed: it is larger than it may be.
        """
        self._wrong = self._wrong or _raised(self._stage.finish)
        return None if isinstance(self._wrong, _NotKnown) else self.finish(request, response)


def _raised(do: Callable[..., object], *what: Any) -> Exception | None:
    try:
        do(*what)
    except (ValueError, RecursionError, _TargetFailed) as error:
        return error
    return None


class _Choice:
    """A stage that is chosen by the first bytes that are no white space."""

    def __init__(self, write: Write, choose: Callable[[bytes], type[_Json | _Raw | _Text | Reading]]) -> None:
        self._write = write
        self._choose = choose
        self._start = b""
        self._chosen: Stage | None = None

    @property
    def media_type(self) -> str | None:
        return self._chosen.media_type if self._chosen else None

    def feed(self, piece: bytes) -> None:
        if self._chosen is not None:
            self._chosen.feed(piece)
            return
        self._start += piece
        text = self._start.lstrip()
        if len(text) >= len(SCHEME) or len(self._start) - len(text) > MOST_BLANKS:
            self._begin()

    def finish(self) -> None:
        (self._chosen or self._begin()).finish()

    def _begin(self) -> Stage:
        start, self._start = self._start, b""
        text = start.lstrip()
        self._chosen = self._choose(text if len(start) - len(text) <= MOST_BLANKS else b"")(self._write)
        self._chosen.feed(start)
        return self._chosen


def _of_body(start: bytes) -> type[_Json | _Raw | Reading]:
    """Choose how to read a whole body."""
    if start[:1] in {b"{", b'"'}:
        return _Json
    return Reading if start[: len(SCHEME)].lower() == SCHEME else _Raw


def _of_string(start: bytes) -> type[_Text | Reading]:
    """Choose how to read a string in JSON."""
    return Reading if start[: len(SCHEME)].lower() == SCHEME else _Text


class _Json:
    """JSON with the file as a string in it."""

    def __init__(self, write: Write) -> None:
        self._string = _Choice(write, _of_string)
        self._json = Enclosed(self._string.feed)

    @property
    def media_type(self) -> str | None:
        return self._string.media_type

    def feed(self, piece: bytes) -> None:
        self._json.feed(piece)

    def finish(self) -> None:
        self._json.finish()
        self._string.finish()


class _Text:
    """A plain text; it must be UTF-8."""

    media_type: str | None = "text/plain"

    def __init__(self, write: Write) -> None:
        self._write = write
        self._decoder = getincrementaldecoder("utf-8")()

    def feed(self, piece: bytes) -> None:
        self._decoder.decode(piece)
        self._write(piece)

    def finish(self) -> None:
        self._decoder.decode(b"", final=True)


class _Raw:
    """The file itself, which must be of a kind that is known by its first bytes, or else told by whoever sends it."""

    def __init__(self, write: Write, wanted: str = "", told: str | None = None) -> None:
        self.media_type: str | None = None
        self._told = told
        self._write = write
        self._wanted = wanted
        self._start = b""

    def feed(self, piece: bytes) -> None:
        self._start += piece
        if self.media_type is not None or len(self._start) >= TELLING:
            self.finish()

    def finish(self) -> None:
        start, self._start = self._start, b""
        self.media_type = self.media_type or sniff(start) or self._told
        if self.media_type is None or not self.media_type.startswith(self._wanted):
            message = "no file that is known begins so"
            raise _NotKnown(message)
        self._write(start)
