"""Reader of a response: it collects the body up to a limit, or feeds it to the request's sink."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from airflow_provider_flows.core.exceptions import FlowMalformed
from airflow_provider_flows.core.http import Request, Response
from airflow_provider_flows.core.payload.integrity import UnconfirmedFileError
from airflow_provider_flows.core.redaction import get_max_spelling_length, mask_values
from airflow_provider_flows.core.responses import MAX_EXCERPT_BYTES, malformed_message
from airflow_provider_flows.core.safe_text import to_safe_text
from airflow_provider_flows.transport.settings import Settings


class ResponseReader:
    """One response while it arrives.

    A sink receives the body of a success only. The body of an error is collected, because its text goes into
    a message.

    :param headers: the headers as the HTTP library returns them.
    """

    def __init__(
        self, settings: Settings, request: Request, status: int, headers: Iterable[tuple[str, str]]
    ) -> None:
        self._request = request
        self._max_bytes = settings.max_response_bytes
        self._status = status
        self._secrets = settings.secrets
        # aiohttp decodes a byte that is not UTF-8 to a lone surrogate
        self._headers = {
            to_safe_text(name.lower()): mask_values(to_safe_text(value), self._secrets)
            for name, value in headers
        }
        self._max_start_bytes = MAX_EXCERPT_BYTES + get_max_spelling_length(self._secrets)
        self._body = bytearray()
        self._bytes_received = 0
        self._sink = request.sink if Response(status).is_success else None
        if self._sink is not None:
            self._sink.on_response_start(status, self._headers)

    def feed(self, chunk: bytes) -> None:
        """Process the next chunk of the body.

        :raises FlowMalformed: the sink does not accept the body; or the body is larger than
            `max_response_bytes`, and no sink receives it.
        :raises WriteFailedError: what the sink writes to has failed.
        """
        self._bytes_received += len(chunk)
        if self._sink is not None:
            self._body += chunk[: max(0, self._max_start_bytes - len(self._body))]
            with self._malformed_if_rejected():
                self._sink.feed(chunk)
            return
        if self._bytes_received > self._max_bytes:
            message = (
                f"The response to {self._request} is larger than {self._max_bytes} bytes. "
                "If this is expected, increase max_response_mib in the connection's extra."
            )
            raise FlowMalformed(message)
        self._body += chunk

    def finish(self, url: str) -> Response:
        """Return the complete response.

        :param url: the URL that was requested.
        :raises FlowMalformed: the sink does not accept the body.
        :raises WriteFailedError: what the sink writes to has failed.
        """
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

    def _to_response(self, url: str = "") -> Response:
        """Return what was received so far as a response."""
        body, bytes_received = bytes(self._body), None
        if self._sink is not None:
            # masked before it is cut, because a part of a secret would not be recognized
            body = mask_values(body.decode("latin-1"), self._secrets, MAX_EXCERPT_BYTES).encode("latin-1")
            bytes_received = self._bytes_received
        return Response(self._status, self._headers, body, url, self._secrets, bytes_received)
