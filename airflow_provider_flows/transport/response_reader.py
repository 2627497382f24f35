"""What becomes of an answer while it comes in: collected within the bound, or fed to the request's sink.

It reads no socket; both transports hand it what they read.
"""

from __future__ import annotations

from collections.abc import Iterable

from airflow_provider_flows.core.http import Request, Response
from airflow_provider_flows.core.responses import MAX_EXCERPT_BYTES
from airflow_provider_flows.transport.settings import Settings


class ResponseReader:
    """One answer that comes in."""

    def __init__(
        self, settings: Settings, request: Request, status: int, headers: Iterable[tuple[str, str]]
    ) -> None:
        """Take the answer's head; a sink gets successes only, what a refusal says is for an error's text."""
        self._settings = settings
        self._request = request
        self._head = settings.to_response_head(status, headers)
        self._sink = request.sink if self._head.is_success else None
        self._body = bytearray()
        self._bytes_received = 0
        if self._sink is not None:
            self._sink.on_response_start(status, self._head.headers)

    def feed(self, chunk: bytes) -> bool:
        """Take the next piece of the body; gives whether more is wanted.

        :raises FlowMalformed: the answer is beyond the bound, and no sink takes it.
        """
        self._bytes_received += len(chunk)
        if self._sink is not None:
            self._body += chunk[: MAX_EXCERPT_BYTES - len(self._body)]
            return self._sink.feed(chunk)
        self._settings.raise_if_too_large(self._request, self._bytes_received)
        self._body += chunk
        return True

    def response(self, url: str) -> Response:
        """Give the answer."""
        head, bytes_received = self._head, None if self._sink is None else self._bytes_received
        return Response(head.status, head.headers, bytes(self._body), url, head.secrets, bytes_received)
