"""Downloads: sinks that extract a file from a response and check it, and the conversations that use them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from airflow_provider_flows.core.exceptions import (
    FlowInputError,
    FlowMalformed,
    FlowNotFound,
    FlowServiceError,
)
from airflow_provider_flows.core.http import ForbiddenUrlError, Request, send
from airflow_provider_flows.core.payload.data_uri import SNIFFABLE_MEDIA_TYPES, normalize_media_type
from airflow_provider_flows.core.payload.decoders import (
    OCTET_STREAM,
    UNKNOWN_TYPE,
    Decoder,
    ExpectedFile,
    RawDecoder,
    TextDecoder,
    UnknownFileTypeError,
    create_decoder,
    is_text_media_type,
)
from airflow_provider_flows.core.payload.integrity import (
    MAX_SURPLUS_BYTES,
    IntegrityChecker,
    UnconfirmedFileError,
)
from airflow_provider_flows.core.payload.sink import TooLargeError, WriteFailedError
from airflow_provider_flows.core.responses import raise_for_status

if TYPE_CHECKING:
    from airflow_provider_flows.core.http import Conversation, Response
    from airflow_provider_flows.core.payload.sink import Sink, Target


class DownloadSink:
    """The sink of a download in any form that Generio may use (vendor_notes.md, 1.12.7 and G-02).

    Accepted are a raw file, a data URI, and JSON with a data URI, base64 or a text in it.
    `media_type` is that of the complete file, by its content, else as it is declared.
    """

    def __init__(
        self,
        target: Target,
        listed_media_type: str | None = None,
        *,
        allow_text: bool = False,
        max_bytes: int | None = None,
    ) -> None:
        """Create a sink.

        :param target: receives the file's bytes.
        :param listed_media_type: the media type from a list of outputs; `text/...` allows a plain text.
        :param allow_text: whether to accept a plain text in any case, which may be an error message.
        :param max_bytes: the maximum size of the file, None for any.
        """
        self._expected = ExpectedFile(normalize_media_type(listed_media_type), allow_text)
        self._file = IntegrityChecker(target, max_bytes)
        self._decoder = self._create_decoder({})
        self._has_known_length = False
        self.media_type: str | None = None

    @property
    def size(self) -> int:
        """The size of the file so far, in bytes."""
        return self._file.size

    def _create_decoder(self, headers: Mapping[str, str]) -> Decoder:
        return create_decoder(self._file, self._expected)

    def on_response_start(self, status: int, headers: Mapping[str, str]) -> None:
        """Discard everything received before, because a request may be sent again."""
        is_chunked = "chunked" in headers.get("transfer-encoding", "").lower()
        self._has_known_length = is_chunked or "content-length" in headers
        self._file.max_surplus_bytes = None if "content-length" in headers else MAX_SURPLUS_BYTES
        self._decoder = self._create_decoder(headers)
        self.media_type = None
        self._file.restart()

    def feed(self, chunk: bytes) -> None:
        """Decode the next chunk of the body.

        :raises ValueError: the response holds no file.
        :raises WriteFailedError: the target has failed.
        """
        self._decoder.feed(chunk)

    def finish(self) -> None:
        """Decode the rest, and check that the file is complete.

        :raises UnconfirmedFileError: the file contradicts its header or its declared type, is of an unknown
            type, or may be incomplete because the response has no length.
        :raises ValueError: the response holds no file, or an incomplete one.
        :raises WriteFailedError: the target has failed.
        """
        self._decoder.finish()
        file = self._file
        file.finish()
        contradicted = self._find_contradicted_types()
        problems = [f"it is declared as {declared} and does not start like one" for declared in contradicted]
        problems += file.problems
        if not (self._has_known_length or file.has_complete_end or self._decoder.is_self_delimiting):
            problems.append("it came without a length, and its end does not prove that it is complete")
        declared_types = (self._decoder.media_type, self._expected.media_type)
        uncontradicted = (declared for declared in declared_types if declared not in contradicted)
        media_type = file.sniffed_media_type or next(filter(None, uncontradicted), None)
        if media_type is None and not contradicted:
            problems.append("its type is unknown")
        media_type = media_type or OCTET_STREAM
        if problems:
            raise UnconfirmedFileError("; ".join(problems), media_type, file.size, file.sha256)
        self.media_type = media_type

    def _find_contradicted_types(self) -> list[str]:
        """Return the declared media types that the file's content contradicts.

        A picture may be declared as another kind of picture (vendor_notes.md, G-12).
        """
        sniffed = self._file.sniffed_media_type or ""
        declared_types = dict.fromkeys((self._decoder.media_type, self._expected.media_type))
        return [
            declared
            for declared in declared_types
            if declared in SNIFFABLE_MEDIA_TYPES
            and declared != sniffed
            and not (declared.startswith("image/") and sniffed.startswith("image/"))
        ]


class RawFileSink(DownloadSink):
    """The sink of a download from a service that sends files of any type as they are."""

    def _create_decoder(self, headers: Mapping[str, str]) -> Decoder:
        media_type = self._expected.media_type or _content_type(headers) or "application/octet-stream"
        if is_text_media_type(media_type):
            return TextDecoder(self._file.write_text, media_type)
        on_text = _reject_text if media_type in SNIFFABLE_MEDIA_TYPES else None
        return RawDecoder(self._file.write, declared_media_type=media_type, on_text=on_text)


def _reject_text() -> None:
    raise UnknownFileTypeError(UNKNOWN_TYPE)


class ImageSink(RawFileSink):
    """The sink of a link to an untrusted host, which accepts a raw picture of bounded size."""

    def __init__(self, target: Target, max_bytes: int) -> None:
        """Create a sink.

        :param target: receives the picture's bytes.
        :param max_bytes: the maximum size of the picture.
        """
        super().__init__(target, max_bytes=max_bytes)

    def _create_decoder(self, headers: Mapping[str, str]) -> Decoder:
        return RawDecoder(self._file.write, "image/", _content_type(headers))


def _content_type(headers: Mapping[str, str]) -> str | None:
    """Return the declared media type, None for one that only a file's first bytes can prove."""
    media_type = normalize_media_type(headers.get("content-type"))
    return None if media_type in SNIFFABLE_MEDIA_TYPES else media_type


class UrlSink:
    """The sink of a file of any type as it is, which its reader checks.

    `media_type` is the one that the server declares.
    """

    def __init__(self, target: Target, max_bytes: int) -> None:
        """Create a sink.

        :param target: receives the file's bytes.
        :param max_bytes: the maximum size of the file.
        """
        self._target = target
        self._max_bytes = max_bytes
        self.size = 0
        self.media_type: str | None = None

    def on_response_start(self, status: int, headers: Mapping[str, str]) -> None:
        """Discard everything received before.

        :raises TooLargeError: the file is too large by its declared length.
        :raises WriteFailedError: the target has failed.
        """
        self.size = 0
        self.media_type = normalize_media_type(headers.get("content-type"))
        length = headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length[:20]) > self._max_bytes:
            raise self._too_large_error()
        self._call_target(self._target.restart)

    def feed(self, chunk: bytes) -> None:
        """Pass the next chunk on.

        :raises TooLargeError: the file is too large.
        :raises WriteFailedError: the target has failed.
        """
        self.size += len(chunk)
        if self.size > self._max_bytes:
            raise self._too_large_error()
        self._call_target(lambda: self._target.write(chunk))

    def finish(self) -> None:
        """Do nothing: the transport has checked the length."""

    def _too_large_error(self) -> TooLargeError:
        return TooLargeError(f"it is larger than {self._max_bytes} bytes")

    def _call_target(self, function: Callable[[], object]) -> None:
        try:
            function()
        except TooLargeError:
            raise
        except Exception as error:
            raise WriteFailedError(error) from error


def download_url(url: str, target: Target, max_bytes: int) -> Conversation[str | None]:
    """Download the file at a URL that an input names, and return the media type that its server declares.

    No host gets credentials. Where the request may be sent, `allow_urls` decides, also for each redirect.

    :raises FlowInputError: the file cannot be fetched. It is permanent unless another try may succeed.
    """
    sink = UrlSink(target, max_bytes)
    request = Request("GET", url, sink=sink, is_anonymous=True)
    try:
        response = yield from send(request)
    except FlowServiceError as error:
        is_permanent = isinstance(error.__cause__, TooLargeError) or not error.is_transient
        raise FlowInputError(_explain_url_error(error), is_permanent=is_permanent) from error
    if response.is_success:
        return sink.media_type
    hint = "Check the URL; a signed one may have expired" if response.status < 500 else "Try again later"
    raise FlowInputError(
        f"its server responded with HTTP {response.status}. {hint}",
        is_permanent=response.status < 500 and response.status not in {408, 425, 429},
    )


def _explain_url_error(error: FlowServiceError) -> str:
    """Return why a URL could not be fetched, without advice about the connection's own host."""
    cause = error.__cause__
    if isinstance(cause, ForbiddenUrlError):
        return (
            f"the request would go to {cause}, and nothing was sent there. Files of inputs are fetched by "
            "https from public hosts. If you trust another host, add it to input_hosts in the connection's "
            "extra"
        )
    if isinstance(cause, TooLargeError):
        return str(cause)
    return str(error).partition(" Check the connection")[0].partition("; check the host")[0].rstrip(".")


def download_file(path: str, sink: DownloadSink, argument: str = "") -> Conversation[str]:
    """Download a file into the target of a sink, and return its media type.

    :param argument: the argument that the path has the value of, for messages.
    :raises FlowServiceError: the response is not a success, or does not hold a complete file.
    """
    request = Request("GET", path, sink=sink, argument=argument)
    response = yield from send(request)
    raise_for_status(request, response)
    return response.redact(_get_media_type(sink))


class RepeatedFileFilter:
    """Accepts a file that contradicts its header or its type once it has arrived twice.

    Use one filter for all attempts of one download.

    :param on_accepted: called with what is wrong with a file that is accepted.
    """

    def __init__(self, on_accepted: Callable[[str], object]) -> None:
        self._on_accepted = on_accepted
        self._arrived: set[tuple[int, str]] = set()  # size and digest

    def filter(self, download: Conversation[str | None]) -> Conversation[str | None]:
        """Run one attempt of a download, and return the file's media type.

        :raises FlowMalformed: the response does not hold a complete file, or an unconfirmed one arrived for
            the first time.
        """
        try:
            return (yield from download)
        except FlowMalformed as error:
            file = error.__cause__
            if not isinstance(file, UnconfirmedFileError):
                raise
            if (file.size, file.sha256) not in self._arrived:
                self._arrived.add((file.size, file.sha256))
                raise
        self._on_accepted(str(file))
        return file.media_type


def _get_media_type(sink: Sink | None) -> str:
    """Return the media type of a file that was received completely."""
    if not isinstance(sink, DownloadSink) or sink.media_type is None:
        raise TypeError("The transport did not pass the response to the request's sink")
    return sink.media_type


def download_image(url: str, target: Target, max_bytes: int) -> Conversation[str | None]:
    """Download the picture at an absolute URL, and return its media type.

    Return None if there is something else at the URL.

    :raises FlowNotFound: the link has expired, or was never valid.
    :raises FlowServiceError: the response is any other error, or does not hold a complete picture; or the
        link, or a redirect, leads where the request must not be sent.
    """
    request = Request("GET", url, sink=ImageSink(target, max_bytes))
    try:
        response = yield from send(request)
    except FlowMalformed as error:
        if isinstance(error.__cause__, UnknownFileTypeError):
            return None
        raise
    if 300 <= response.status < 400:
        return None
    return _get_linked_type(request, response)


def download_linked_file(url: str, target: Target, media_type: str | None) -> Conversation[str | None]:
    """Download the file of any type at an absolute URL, and return its media type.

    :param media_type: the media type that the service has declared; `application/octet-stream` or None for
        the one in the response.
    :raises FlowServiceError: as for `download_image`.
    """
    known_type = None if media_type == OCTET_STREAM else media_type
    request = Request("GET", url, sink=RawFileSink(target, known_type))
    response = yield from send(request)
    return _get_linked_type(request, response)


def _get_linked_type(request: Request, response: Response) -> str:
    """Return the media type of a file that was received from a link.

    :raises FlowNotFound: the link has expired, or was never valid.
    :raises FlowServiceError: the response is any other error.
    """
    # S3 and Google Cloud Storage respond to an expired signature with 400
    has_expired = response.status == 400 and b"expired" in response.body.lower()
    if has_expired or response.status in {401, 403, 404, 410}:
        link = request.path.partition("?")[0]
        raise FlowNotFound(
            f"The link {link} is not valid any more (HTTP {response.status}). Run the flow again.",
            status=response.status,
        )
    raise_for_status(request, response)
    return response.redact(_get_media_type(request.sink))
