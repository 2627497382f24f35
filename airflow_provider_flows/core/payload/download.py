"""A file out of an answer that comes in pieces, in any of the shapes that a service may choose, and whether it is the right one.

It reads no socket and opens no file: a transport feeds it, a `Target` takes the file's bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.core.exceptions import FlowMalformed, FlowNotFound
from airflow_provider_flows.core.http import Request, send
from airflow_provider_flows.core.payload.data_uri import SNIFFABLE_MEDIA_TYPES, normalize_media_type
from airflow_provider_flows.core.payload.decoders import (
    Decoder,
    JsonDecoder,
    RawDecoder,
    SniffingDecoder,
    TextDecoder,
    UnknownFileTypeError,
    create_body_decoder,
)
from airflow_provider_flows.core.payload.integrity import IntegrityChecker, WriteFailedError
from airflow_provider_flows.core.responses import malformed_message, raise_for_status

if TYPE_CHECKING:
    from airflow_provider_flows.core.http import Conversation, Response
    from airflow_provider_flows.core.payload.sink import Target


class DownloadSink:
    """The sink of a download (G-02, vendor-api 1.12.7): a raw file, a data URI, or JSON with a data URI, base64 or a text in it.

    What goes wrong on the way, with the answer or with the target, is raised by `finish`, not in the transport.
    """

    def __init__(
        self,
        target: Target,
        listed_media_type: str | None = None,
        *,
        allow_text: bool = False,
        max_bytes: int | None = None,
    ) -> None:
        """Take what the file is written to.

        :param listed_media_type: the media type that a list of outputs told of it; `text/...` allows for a plain text.
        :param allow_text: whether it may be a plain text also where none was told of: an error's words look the same.
        :param max_bytes: bytes that it may have.
        """
        self._listed_media_type = listed_media_type = normalize_media_type(listed_media_type)
        self._text_media_type = (
            listed_media_type if _is_text(listed_media_type) else "text/plain" if allow_text else None
        )
        self._file = IntegrityChecker(target, max_bytes)
        self._error: Exception | None = None
        self._has_known_length = False
        self._decoder = self._create_decoder()

    def _create_decoder(self) -> Decoder:
        return create_body_decoder(
            self._file, self._text_media_type, must_be_text=_is_text(self._listed_media_type)
        )

    def on_response_start(self, status: int, headers: Mapping[str, str]) -> None:  # noqa: ARG002  # the signature of a sink
        """Forget what came before: an answer may be asked for again."""
        self._has_known_length = (
            "content-length" in headers or "chunked" in headers.get("transfer-encoding", "").lower()
        )
        self._decoder = self._create_decoder()
        self._error = _catch_error(self._file.restart)

    def feed(self, chunk: bytes) -> bool:
        """Take a piece of the body; gives whether more is wanted."""
        self._error = self._error or _catch_error(self._decoder.feed, chunk)
        return self._error is None

    def finish(self, request: Request, response: Response) -> str:
        """Give the media type of the file, which is whole: by its content, else as the answer or the list told it.

        :raises FlowMalformed: the answer holds no file, or not all of it, or another one than was told.
        """
        error = (
            self._error
            or _catch_error(self._decoder.finish)
            or _catch_error(self._file.finish)
            or _catch_error(self._verify)
        )
        if isinstance(error, WriteFailedError):
            raise error.__cause__ or error
        media_type = self._media_type
        if error or media_type is None:
            why = f"holds no whole file ({error})" if error else "is no file that is known"
            raise FlowMalformed(malformed_message(request, response, why), status=response.status) from error
        return media_type

    @property
    def _media_type(self) -> str | None:
        return self._file.sniffed_media_type or self._decoder.media_type or self._listed_media_type

    def _verify(self) -> None:
        """Compare the file with what was told of it, and ask for proof that it is whole.

        Which picture it is may have been told wrongly (vendor-api G-12), but a page is no picture, and a picture no model.
        """
        sniffed = self._file.sniffed_media_type or ""
        for declared in (self._decoder.media_type, self._listed_media_type):
            if (
                declared in SNIFFABLE_MEDIA_TYPES
                and declared != sniffed
                and not (declared.startswith("image/") and sniffed.startswith("image/"))
            ):
                message = f"it is called {declared} and does not begin like one"
                raise ValueError(message)
        decoder = self._decoder.get_decoder() if isinstance(self._decoder, SniffingDecoder) else self._decoder
        if not (self._has_known_length or self._file.has_complete_end or isinstance(decoder, JsonDecoder)):
            message = "it came without a length, and its end does not show that it is whole"
            raise ValueError(message)


def _is_text(media_type: str | None) -> bool:
    return bool(media_type) and str(media_type).startswith("text/")


class RawFileSink(DownloadSink):
    """The sink of a download from a service that sends every file as it is, of whatever kind; a text must be UTF-8."""

    _content_type: str | None = None

    def on_response_start(self, status: int, headers: Mapping[str, str]) -> None:
        """Forget what came before, and take what the new answer says that it is."""
        declared = normalize_media_type(headers.get("content-type"))
        self._content_type = (
            None if declared in SNIFFABLE_MEDIA_TYPES else declared
        )  # what has first bytes of its own is known by them only
        super().on_response_start(status, headers)

    def _create_decoder(self) -> Decoder:
        declared = self._listed_media_type or self._content_type or "application/octet-stream"
        return (
            TextDecoder(self._file, declared)
            if _is_text(declared)
            else RawDecoder(self._file, declared_media_type=declared)
        )


class ImageSink(RawFileSink):
    """The sink of a link's answer, from a stranger: a raw picture, by its first bytes or its content type, of a bounded size."""

    def __init__(self, target: Target, max_bytes: int) -> None:
        """Take what the picture is written to, and how many bytes it may have."""
        super().__init__(target, max_bytes=max_bytes)

    def _create_decoder(self) -> Decoder:
        return RawDecoder(self._file, "image/", self._content_type)

    def finish_if_image(self, request: Request, response: Response) -> str | None:
        """Give the media type of the picture, None if what came is something else.

        :raises FlowMalformed: it is larger than it may be, or not whole.
        """
        self._error = self._error or _catch_error(self._decoder.finish)
        return None if isinstance(self._error, UnknownFileTypeError) else self.finish(request, response)


def download(path: str, sink: DownloadSink) -> Conversation[str]:
    """GET a file into the target of its sink; gives its media type.

    :raises FlowServiceError: any answer that is not a success, or not the whole file (`DownloadSink.finish`).
    """
    request = Request("GET", path, sink=sink)
    response = yield from send(request)
    raise_for_status(request, response)
    return sink.finish(request, response)


def download_image(url: str, target: Target, max_bytes: int) -> Conversation[str | None]:
    """Download a picture that lies at an absolute URL, None if it is none, or lies where nobody may be sent."""
    sink = ImageSink(target, max_bytes)
    request = Request("GET", url, sink=sink)
    response = yield from send(request)
    if 300 <= response.status < 400:  # it was not followed
        return None
    expired = (
        response.status == 400 and b"expired" in response.body.lower()
    )  # as S3 and Google's store say it
    if expired or response.status in {401, 403, 404, 410}:
        message = f"The link {url.partition('?')[0]} is not valid any more (HTTP {response.status}). Run the flow again."
        raise FlowNotFound(message, status=response.status)
    raise_for_status(request, response)
    return sink.finish_if_image(request, response)


def _catch_error(call: Callable[..., object], *args: Any) -> Exception | None:
    try:
        call(*args)
    except (ValueError, RecursionError, WriteFailedError) as error:
        return error
    return None
