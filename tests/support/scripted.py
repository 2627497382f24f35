"""A scripted partner for conversations: answers in, requests out, and a clock that moves only when somebody sleeps.

It patches nothing: the package's own drivers hold the conversations, with this module's `send` and `sleep`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

from airflow_provider_flows.core.exceptions import FlowServiceError, FlowUnreachable
from airflow_provider_flows.core.http import Conversation, Request, Response, T
from airflow_provider_flows.transport import asynchronous, blocking
from airflow_provider_flows.transport.response_reader import Receiving
from airflow_provider_flows.transport.settings import Settings

NOON = 1_765_800_000.0  # epoch seconds at which scripted clocks begin


def answer(value: Any = None, status: int = 200, **headers: str) -> Response:
    """Make a response: bytes are the body as it is, anything else its JSON; `retry_after=` is the header Retry-After."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Response(
        status,
        {name.replace("_", "-"): told for name, told in headers.items()},
        body,
        "https://service.test/",
    )


def silence(*, may_have_arrived: bool = True) -> FlowUnreachable:
    """Make what a transport raises when no answer came."""
    return FlowUnreachable("GET / got no answer", may_have_arrived=may_have_arrived)


class Script:
    """Answers in a row; it keeps what was asked and how long was slept, and its clock goes by the sleeps."""

    def __init__(self, *answers: Response | FlowServiceError, endless: bool = False) -> None:
        """Take the answers in their order; with `endless` the last one is given for ever."""
        self._answers: list[Response | FlowServiceError] = list(answers)
        self._endless = endless
        self.requests: list[Request] = []
        self.pauses: list[float] = []
        self.now = NOON

    def clock(self) -> float:
        """Give epoch seconds."""
        return self.now

    def send(self, request: Request) -> Response:
        """Give the next answer, as a transport would."""
        self.requests.append(request)
        assert self._answers, f"{request} was asked, and no answer to it is in the script"
        last = self._endless and len(self._answers) == 1
        given = self._answers[0] if last else self._answers.pop(0)
        if isinstance(given, FlowServiceError):
            raise given
        if request.into is None:
            return given
        coming = Receiving(Settings("https://service.test", {}), request, given.status, given.headers.items())
        coming.take(given.body)
        return coming.response(given.url)

    def sleep(self, seconds: float) -> None:
        """Let the clock go on."""
        self.pauses.append(seconds)
        self.now += seconds

    def hold(self, conversation: Conversation[T], kind: str = "blocking") -> T:
        """Hold a conversation with one of the package's drivers, `blocking` or `asynchronous`."""
        if kind == "blocking":
            return blocking.hold(conversation, self.send, self.sleep)

        async def send(request: Request) -> Response:
            return self.send(request)

        async def sleep(seconds: float) -> None:
            self.sleep(seconds)

        return asyncio.run(asynchronous.hold(conversation, send, sleep))

    @property
    def asked(self) -> list[str]:
        """Method and path of every request, in order."""
        return [str(request) for request in self.requests]


def methods(requests: Iterable[Any]) -> list[str]:
    """Give method and path of what an emulator recorded."""
    return [f"{request.method} {request.path}" for request in requests]
