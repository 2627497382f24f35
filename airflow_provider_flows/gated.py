"""How a watch's requests go out: one after the other through the gate that all of them share.

When the gate is open is flow/gate.py's answer.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from airflow_provider_flows import metrics
from airflow_provider_flows.flow.gate import Gate

if TYPE_CHECKING:
    from airflow_provider_flows.flow.exchange import Request, Response
    from airflow_provider_flows.transport.asynchronous import AsyncTransport


class GatedTransport:
    """A transport behind a gate."""

    def __init__(self, transport: AsyncTransport, per_second: float | None = None) -> None:
        """Take the transport.

        :param per_second: the most requests in a second, None for no bound.
        """
        self._transport = transport
        self._gate = Gate(per_second)
        self._turn = asyncio.Lock()  # at the gate

    async def send(self, request: Request) -> Response:
        """Send a request when the gate lets it through."""
        await self.admitted()
        return await self.sent(request)

    async def admitted(self) -> None:
        """Wait at the gate; one after the other asks it."""
        async with self._turn:
            while delay := self._gate.delay(time.monotonic()):  # noqa: ASYNC110  # a moment is waited for, not an event
                await asyncio.sleep(delay)

    async def sent(self, request: Request) -> Response:
        """Send a request that was admitted, and tell the gate of the answer."""
        response = await self._transport.send(request)
        if self._gate.answered(response.status, response.retry_after(time.time()), time.monotonic()):
            metrics.braked()
        return response
