"""A scripted partner for conversations: responses in, requests out, and a clock that only sleeps advance.

The package's own drivers run the conversations, with the `send` and `sleep` of this module.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

from airflow_provider_flows.core.exceptions import FlowServiceError, FlowUnreachable
from airflow_provider_flows.core.http import Conversation, Request, Response, T
from airflow_provider_flows.transport import asynchronous, blocking
from airflow_provider_flows.transport.response_reader import ResponseReader
from airflow_provider_flows.transport.settings import Settings

NOON = 1_765_800_000.0  # epoch seconds at which scripted clocks begin


def json_response(value: Any = None, status: int = 200, **headers: str) -> Response:
    """Create a response of bytes or of JSON; `retry_after=` is the header Retry-After."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Response(
        status,
        {name.replace("_", "-"): text for name, text in headers.items()},
        body,
        "https://service.test/",
    )


def no_response(*, may_have_arrived: bool = True) -> FlowUnreachable:
    """Create the error that a transport raises without a response."""
    return FlowUnreachable("GET / got no response", may_have_arrived=may_have_arrived)


class ScriptedTransport:
    """Responses in order; it records requests and sleeps, and its clock advances by the sleeps."""

    def __init__(self, *responses: Response | FlowServiceError, endless: bool = False) -> None:
        """Create a script; with `endless` the last response is repeated."""
        self._responses: list[Response | FlowServiceError] = list(responses)
        self._endless = endless
        self.requests: list[Request] = []
        self.sleeps: list[float] = []
        self.now = NOON

    def clock(self) -> float:
        """Return the time in epoch seconds."""
        return self.now

    def send(self, request: Request) -> Response:
        """Return or raise the next response, as a transport does."""
        self.requests.append(request)
        assert self._responses, f"the script has no response to {request}"
        last = self._endless and len(self._responses) == 1
        response = self._responses[0] if last else self._responses.pop(0)
        if isinstance(response, FlowServiceError):
            raise response
        if request.sink is None:
            return response
        reader = ResponseReader(
            Settings("https://service.test", {}), request, response.status, response.headers.items()
        )
        reader.feed(response.body)
        return reader.finish(response.url)

    def sleep(self, seconds: float) -> None:
        """Advance the clock."""
        self.sleeps.append(seconds)
        self.now += seconds

    def run(self, conversation: Conversation[T], kind: str = "blocking") -> T:
        """Run a conversation with one of the package's drivers, `blocking` or `asynchronous`."""
        if kind == "blocking":
            return blocking.run(conversation, self.send, self.sleep)

        async def send(request: Request) -> Response:
            return self.send(request)

        async def sleep(seconds: float) -> None:
            self.sleep(seconds)

        return asyncio.run(asynchronous.run(conversation, send, sleep))

    @property
    def request_lines(self) -> list[str]:
        """Method and path of every request, in order."""
        return [str(request) for request in self.requests]


def request_lines(requests: Iterable[Any]) -> list[str]:
    """Return method and path of requests that an emulator recorded."""
    return [f"{request.method} {request.path}" for request in requests]
