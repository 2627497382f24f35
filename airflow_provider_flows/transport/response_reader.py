"""What becomes of an answer while it comes in: collected within the bound, or fed to the request's sink.

It reads no socket; both transports hand it what they read.
"""

from __future__ import annotations

from collections.abc import Iterable

from airflow_provider_flows.core.http import START, Request, Response
from airflow_provider_flows.transport.settings import Settings


class Receiving:
    """One answer that comes in."""

    def __init__(
        self, settings: Settings, request: Request, status: int, headers: Iterable[tuple[str, str]]
    ) -> None:
        """Take the answer's head; a sink gets successes only, what a refusal says is for an error's text."""
        self._settings = settings
        self._request = request
        self._answer = settings.answer(status, headers)
        self._sink = request.into if self._answer.ok else None
        self._body = bytearray()
        self._taken = 0
        if self._sink is not None:
            self._sink.begin(status, self._answer.headers)

    def take(self, chunk: bytes) -> bool:
        """Take the next piece of the body; gives whether more is wanted.

        :raises FlowMalformed: the answer is beyond the bound, and no sink takes it.
        """
        self._taken += len(chunk)
        if self._sink is not None:
            self._body += chunk[: START - len(self._body)]
            return self._sink.feed(chunk)
        self._settings.bounded(self._request, self._taken)
        self._body += chunk
        return True

    def response(self, url: str) -> Response:
        """Give the answer."""
        head, taken = self._answer, None if self._sink is None else self._taken
        return Response(head.status, head.headers, bytes(self._body), url, head.hidden, taken)
