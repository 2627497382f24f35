"""A file out of an answer that comes in pieces, in any of the shapes that a service may choose, and whether it is the right one.

It reads no socket and opens no file: a transport feeds it, a `Target` takes the file's bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.core.exceptions import FlowMalformed, FlowNotFound
from airflow_provider_flows.core.http import Request, ask, check, malformed
from airflow_provider_flows.core.payload.data_uri import KNOWN, normal_media_type
from airflow_provider_flows.core.payload.decoders import Choice, Json, NotKnown, Raw, Stage, Text, of_body
from airflow_provider_flows.core.payload.integrity import Passing, TargetFailed

if TYPE_CHECKING:
    from airflow_provider_flows.core.http import Conversation, Response
    from airflow_provider_flows.core.payload.sink import Target


class Incoming:
    """The sink of a download (G-02, vendor-api 1.12.7): a raw file, a data URI, or JSON with a data URI, base64 or a text in it.

    What goes wrong on the way, with the answer or with the target, is raised by `finish`, not in the transport.
    """

    def __init__(
        self, target: Target, listed: str | None = None, *, texts: bool = False, most: int | None = None
    ) -> None:
        """Take what the file is written to.

        :param listed: the media type that a list of outputs told of it; `text/...` allows for a plain text.
        :param texts: whether it may be a plain text also where none was told of: an error's words look the same.
        :param most: bytes that it may have.
        """
        self._listed = listed = normal_media_type(listed)
        self._text = listed if _is_text(listed) else "text/plain" if texts else None
        self._file = Passing(target, most)
        self._wrong: Exception | None = None
        self._framed = False
        self._stage = self._first_stage()

    def _first_stage(self) -> Stage:
        return of_body(self._file, self._text, sure=_is_text(self._listed))

    def begin(self, status: int, headers: Mapping[str, str]) -> None:  # noqa: ARG002  # the signature of a sink
        """Forget what came before: an answer may be asked for again."""
        self._framed = (
            "content-length" in headers or "chunked" in headers.get("transfer-encoding", "").lower()
        )
        self._stage = self._first_stage()
        self._wrong = _raised(self._file.restart)

    def feed(self, chunk: bytes) -> bool:
        """Take a piece of the body; gives whether more is wanted."""
        self._wrong = self._wrong or _raised(self._stage.feed, chunk)
        return self._wrong is None

    def finish(self, request: Request, response: Response) -> str:
        """Give the media type of the file, which is whole: by its content, else as the answer or the list told it.

        :raises FlowMalformed: the answer holds no file, or not all of it, or another one than was told.
        """
        wrong = (
            self._wrong or _raised(self._stage.finish) or _raised(self._file.finish) or _raised(self._fits)
        )
        if isinstance(wrong, TargetFailed):
            raise wrong.__cause__ or wrong
        kind = self._kind
        if wrong or kind is None:
            why = f"holds no whole file ({wrong})" if wrong else "is no file that is known"
            raise FlowMalformed(malformed(request, response, why), status=response.status) from wrong
        return kind

    @property
    def _kind(self) -> str | None:
        return self._file.kind or self._stage.media_type or self._listed

    def _fits(self) -> None:
        """Compare the file with what was told of it, and ask for proof that it is whole.

        Which picture it is may have been told wrongly (vendor-api G-12), but a page is no picture, and a picture no model.
        """
        found = self._file.kind or ""
        for told in (self._stage.media_type, self._listed):
            if (
                told in KNOWN
                and told != found
                and not (told.startswith("image/") and found.startswith("image/"))
            ):
                message = f"it is called {told} and does not begin like one"
                raise ValueError(message)
        stage = self._stage.chosen() if isinstance(self._stage, Choice) else self._stage
        if not (self._framed or self._file.shows_its_end or isinstance(stage, Json)):
            message = "it came without a length, and its end does not show that it is whole"
            raise ValueError(message)


def _is_text(media_type: str | None) -> bool:
    return bool(media_type) and str(media_type).startswith("text/")


class RawFile(Incoming):
    """The sink of a download from a service that sends every file as it is, of whatever kind; a text must be UTF-8."""

    _content_type: str | None = None

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Forget what came before, and take what the new answer says that it is."""
        told = normal_media_type(headers.get("content-type"))
        self._content_type = (
            None if told in KNOWN else told
        )  # what has first bytes of its own is known by them only
        super().begin(status, headers)

    def _first_stage(self) -> Stage:
        told = self._listed or self._content_type or "application/octet-stream"
        return Text(self._file, told) if _is_text(told) else Raw(self._file, told=told)


class Picture(RawFile):
    """The sink of a link's answer, from a stranger: a raw picture, by its first bytes or its content type, of a bounded size."""

    def __init__(self, target: Target, most: int) -> None:
        """Take what the picture is written to, and how many bytes it may have."""
        super().__init__(target, most=most)

    def _first_stage(self) -> Stage:
        return Raw(self._file, "image/", self._content_type)

    def finish_if_one(self, request: Request, response: Response) -> str | None:
        """Give the media type of the picture, None if what came is something else.

        :raises FlowMalformed: it is larger than it may be, or not whole.
        """
        self._wrong = self._wrong or _raised(self._stage.finish)
        return None if isinstance(self._wrong, NotKnown) else self.finish(request, response)


def saved(path: str, incoming: Incoming) -> Conversation[str]:
    """GET a file into the target of its sink; gives its media type.

    :raises FlowServiceError: any answer that is not a success, or not the whole file (`Incoming.finish`).
    """
    request = Request("GET", path, into=incoming)
    response = yield from ask(request)
    check(request, response)
    return incoming.finish(request, response)


def linked_picture(url: str, target: Target, most: int) -> Conversation[str | None]:
    """Download a picture that lies at an absolute URL, None if it is none, or lies where nobody may be sent."""
    picture = Picture(target, most)
    request = Request("GET", url, into=picture)
    response = yield from ask(request)
    if 300 <= response.status < 400:  # it was not followed
        return None
    expired = (
        response.status == 400 and b"expired" in response.body.lower()
    )  # as S3 and Google's store say it
    if expired or response.status in {401, 403, 404, 410}:
        message = f"The link {url.partition('?')[0]} is not valid any more (HTTP {response.status}). Run the flow again."
        raise FlowNotFound(message, status=response.status)
    check(request, response)
    return picture.finish_if_one(request, response)


def _raised(do: Callable[..., object], *what: Any) -> Exception | None:
    try:
        do(*what)
    except (ValueError, RecursionError, TargetFailed) as error:
        return error
    return None
