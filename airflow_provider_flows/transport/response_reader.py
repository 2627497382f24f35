"""Reader of a response: it collects the body up to a limit, or feeds it to the request's sink.

The HTTP libraries hand over the body as it is on the wire, because some of their versions decompress a chunk
to any size. It is decompressed here, in parts of bounded size.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from airflow_provider_flows.core.exceptions import FlowMalformed
from airflow_provider_flows.core.http import Request, Response
from airflow_provider_flows.core.limits import (
    KIB,
    MAX_ERROR_BYTES,
    MAX_EXPANSION_RATIO,
    MAX_UNCHECKED_EXPANSION_BYTES,
    MIB,
)
from airflow_provider_flows.core.payload.integrity import MAX_SURPLUS_BYTES, UnconfirmedFileError
from airflow_provider_flows.core.payload.sink import SizedSink, TooLargeError
from airflow_provider_flows.core.redaction import get_max_spelling_length, mask_values
from airflow_provider_flows.core.responses import MAX_EXCERPT_BYTES, malformed_message
from airflow_provider_flows.core.safe_text import to_safe_text
from airflow_provider_flows.transport.settings import ACCEPTED_ENCODINGS, Settings

MAX_PART_BYTES = 256 * KIB  # of the decompressed body that is in memory at once
DECOMPRESSORS = frozenset({"gzip", "x-gzip", "deflate"})
GZIP_MAGIC = b"\x1f\x8b"
CONNECTION_HINT = "If this is expected, increase {field} in the connection's extra."
FIXED_HINT = "No field of the connection changes this bound."


class ContentEncodingError(ValueError):
    """The body is not in the compression that its header names, or it is truncated."""


class ResponseReader:
    """One response while it arrives.

    A sink receives the body of a success only. The body of an error is collected, because its text goes into
    a message.

    :param headers: the headers as the HTTP library returns them.
    :raises FlowMalformed: the body of a success is compressed in a way that was not requested, or the sink
        does not accept its headers.
    :raises WriteFailedError: what the sink writes to has failed.
    """

    def __init__(
        self, settings: Settings, request: Request, status: int, headers: Iterable[tuple[str, str]]
    ) -> None:
        self._request = request
        self._status = status
        self._secrets, self._error_texts = settings.secrets, settings.error_texts
        # aiohttp decodes a byte that is not UTF-8 to a lone surrogate
        self._headers = {
            to_safe_text(name.lower()): mask_values(to_safe_text(value), self._secrets)
            for name, value in headers
        }
        self._max_start_bytes = MAX_EXCERPT_BYTES + get_max_spelling_length(self._secrets)
        self._is_foreign = settings.is_foreign(request)
        self._body = bytearray()
        self._wire_bytes = 0
        self._bytes_received = 0
        is_success = Response(status).is_success
        self._sink = request.sink if is_success else None
        self._max_bytes, self._hint = _find_bound(settings, request, is_success=is_success)
        self._decompressor = self._create_decompressor(is_success=is_success)
        if self._sink is not None:
            with self._malformed_if_rejected():
                self._sink.on_response_start(status, self._headers)

    def _create_decompressor(self, *, is_success: bool) -> Decompressor | None:
        encoding = self._headers.get("content-encoding", "").strip().lower()
        if encoding in DECOMPRESSORS:
            return Decompressor()
        if encoding not in {"", "identity"} and is_success:  # else the status says enough
            self._raise_malformed(
                f"is compressed with {encoding[:MAX_EXCERPT_BYTES]!r}, which was not requested "
                f"(Accept-Encoding: {ACCEPTED_ENCODINGS})"
            )
        return None

    def feed(self, chunk: bytes) -> None:
        """Process the next chunk of the body, as it is on the wire.

        :raises FlowMalformed: the sink does not accept the body, or it is larger than a bound, or expands too
            much.
        :raises ContentEncodingError: the body is not in the compression that its header names.
        :raises WriteFailedError: what the sink writes to has failed.
        """
        self._wire_bytes += len(chunk)
        for part in [chunk] if self._decompressor is None else self._decompressor.feed(chunk):
            self._bytes_received += len(part)
            self._check_expansion()
            self._feed_part(part)

    def _feed_part(self, part: bytes) -> None:
        if self._sink is None:
            if self._bytes_received > self._max_bytes:
                self._raise_malformed(f"is larger than {_format_size(self._max_bytes)}. {self._hint}")
            self._body += part
            return
        self._body += part[: max(0, self._max_start_bytes - len(self._body))]
        with self._malformed_if_rejected():
            self._sink.feed(part)
            self._check_file_size(self._sink)

    def _check_file_size(self, sink: object) -> None:
        """Raise TooLargeError if the file, or what the service sends for it, is too large.

        A file in JSON is longer than the file itself: it is in base64, and may have white space and escapes.
        """
        is_sized = isinstance(sink, SizedSink)
        size = sink.size if isinstance(sink, SizedSink) else self._bytes_received
        max_received = 2 * self._max_bytes + MAX_SURPLUS_BYTES if is_sized else self._max_bytes
        if size > self._max_bytes or self._bytes_received > max_received:
            raise TooLargeError(f"it is larger than {_format_size(self._max_bytes)}. {self._hint}")

    def _check_expansion(self) -> None:
        is_checked = self._bytes_received > MAX_UNCHECKED_EXPANSION_BYTES
        if is_checked and self._bytes_received > MAX_EXPANSION_RATIO * self._wire_bytes:
            self._raise_malformed(f"expands to more than {MAX_EXPANSION_RATIO} times its compressed size")

    def finish(self, url: str) -> Response:
        """Return the complete response.

        :param url: the URL that was requested, with its query.
        :raises FlowMalformed: the sink does not accept the body.
        :raises ContentEncodingError: the compressed body is truncated.
        :raises WriteFailedError: what the sink writes to has failed.
        """
        if self._decompressor is not None:
            self._decompressor.finish()
        if self._sink is not None:
            with self._malformed_if_rejected():
                self._sink.finish()
        return self._to_response(url)

    @contextmanager
    def _malformed_if_rejected(self) -> Iterator[None]:
        """Raise FlowMalformed for a sink's ValueError."""
        try:
            yield
        except (ValueError, RecursionError) as error:
            response = self._to_response()
            if isinstance(error, UnconfirmedFileError):
                error.redact(response.redact)
            message = malformed_message(self._request, response, f"holds no complete file ({error})")
            raise FlowMalformed(message, status=self._status) from error

    def _raise_malformed(self, problem: str) -> NoReturn:
        raise FlowMalformed(f"The response to {self._request} {problem}", status=self._status)

    def _to_response(self, url: str = "") -> Response:
        """Return what was received so far as a response."""
        body, bytes_received = bytes(self._body), None
        if self._sink is not None:
            # masked before it is cut, because a part of a secret would not be recognized
            body = mask_values(body.decode("latin-1"), self._secrets, MAX_EXCERPT_BYTES).encode("latin-1")
            bytes_received = self._bytes_received
        return Response(
            self._status,
            self._headers,
            body,
            url,
            self._secrets,
            bytes_received,
            is_foreign=self._is_foreign,
            error_texts=self._error_texts,
        )


def _find_bound(settings: Settings, request: Request, *, is_success: bool) -> tuple[int, str]:
    """Return the maximum size of a response or of its file in bytes, and a sentence on how to change it."""
    if request.sink is not None and is_success:
        maximum, field = settings.max_output_bytes, "max_output_mib"
    else:
        maximum, field = settings.max_response_bytes, "max_response_mib"
    own_maximum = request.max_bytes if is_success else MAX_ERROR_BYTES
    if own_maximum is None or maximum <= own_maximum:
        return maximum, CONNECTION_HINT.format(field=field)
    return own_maximum, FIXED_HINT


def _format_size(size: int) -> str:
    return f"{size // MIB:,} MiB" if size and not size % MIB else f"{size:,} bytes"


class Decompressor:
    """A streaming decompressor of gzip and deflate, which returns the body in parts of bounded size.

    What follows the compressed body, and is not another one, is ignored: some servers fill a block.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._zlib: zlib._Decompress | None = None
        self._is_complete = False

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield what a chunk expands to, in parts of at most `MAX_PART_BYTES`.

        :raises ContentEncodingError: the chunk is not compressed so.
        """
        self._rest += chunk
        try:
            while (member := self._zlib or self._start_member()) is not None:
                yield (part := member.decompress(self._rest, MAX_PART_BYTES))
                self._rest = member.unconsumed_tail
                if member.eof:
                    self._rest, self._zlib, self._is_complete = member.unused_data, None, True
                elif not self._rest and len(part) < MAX_PART_BYTES:
                    return
        except zlib.error as error:
            raise ContentEncodingError(str(error)) from error

    def _start_member(self) -> zlib._Decompress | None:
        """Start with a body, or with another member of gzip, if enough bytes are there to tell the format."""
        if self._is_complete:
            self._rest = self._rest if GZIP_MAGIC.startswith(self._rest[:2]) else b""
        if len(self._rest) < len(GZIP_MAGIC):
            return None
        self._zlib, self._is_complete = _create_zlib(self._rest), False
        return self._zlib

    def finish(self) -> None:
        """Check that the body is complete; no body at all is complete as well.

        :raises ContentEncodingError: it is truncated.
        """
        if self._zlib is not None or (self._rest and not self._is_complete):
            raise ContentEncodingError("the compressed body is truncated")


def _create_zlib(start: bytes) -> zlib._Decompress:
    """Return the decompressor for gzip, for zlib, or for what many servers send instead as deflate."""
    if start.startswith(GZIP_MAGIC):
        return zlib.decompressobj(16 + zlib.MAX_WBITS)
    has_zlib_header = start[0] & 0x0F == zlib.DEFLATED and int.from_bytes(start[:2], "big") % 31 == 0
    return zlib.decompressobj(zlib.MAX_WBITS if has_zlib_header else -zlib.MAX_WBITS)
