"""Reader of a response: it collects the body up to a limit, or feeds it to the request's sink."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from airflow_provider_flows.core.exceptions import FlowMalformed
from airflow_provider_flows.core.http import Request, Response
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
        # aiohttp decodes a byte that is not UTF-8 to a lone surrogate
        self._headers = {to_safe_text(name.lower()): to_safe_text(value) for name, value in headers}
        self._secrets = settings.secrets
        self._is_foreign = settings.is_foreign(request)
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
            self._body += chunk[: MAX_EXCERPT_BYTES - len(self._body)]
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

        :param url: the URL that was requested, with its query.
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
            message = malformed_message(self._request, response, f"holds no complete file ({error})")
            raise FlowMalformed(message, status=self._status) from error

    def _to_response(self, url: str = "") -> Response:
        """Return what was received so far as a response."""
        bytes_received = None if self._sink is None else self._bytes_received
        return Response(
            self._status,
            self._headers,
            bytes(self._body),
            url,
            self._secrets,
            bytes_received,
            is_foreign=self._is_foreign,
        )
