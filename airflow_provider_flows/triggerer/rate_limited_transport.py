"""How requests go out in a triggerer: one after the other through the gate that all who ask a connection share.

When the gate is open is flow/gate.py's answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, WeakValueDictionary

from airflow_provider_flows import metrics
from airflow_provider_flows.core.rate_limiter import Gate

if TYPE_CHECKING:
    from airflow_provider_flows.base_hook import ConnectedHook
    from airflow_provider_flows.core.http import Request, Response
    from airflow_provider_flows.transport.asynchronous import AsyncTransport


class _Gateway:
    """A gate, and whose turn it is there."""

    def __init__(self, per_second: float | None) -> None:
        self.gate = Gate(per_second)
        self.turn = asyncio.Lock()


_GATEWAYS: WeakKeyDictionary[asyncio.AbstractEventLoop, WeakValueDictionary[Hashable, _Gateway]] = (
    WeakKeyDictionary()
)


def _gateway_of(hook: ConnectedHook) -> _Gateway:
    """Give the running loop's gateway to one service with one key; it lasts as long as somebody has it."""
    settings, per_second = hook.settings, hook.extra.get("max_requests_per_second")
    kind = (settings.base_url, tuple(sorted(settings.credentials.items())), per_second)
    return _GATEWAYS.setdefault(asyncio.get_running_loop(), WeakValueDictionary()).setdefault(
        kind, _Gateway(per_second)
    )


class GatedTransport:
    """A transport behind the gate of its connection (`max_requests_per_second` in the extra)."""

    def __init__(self, transport: AsyncTransport, hook: ConnectedHook) -> None:
        """Take the transport, and the hook that opened it."""
        self._transport = transport
        self._gateway = _gateway_of(hook)

    async def send(self, request: Request) -> Response:
        """Send a request when the gate lets it through."""
        await self.admitted()
        return await self.sent(request)

    async def admitted(self) -> None:
        """Wait at the gate; one after the other asks it."""
        async with self._gateway.turn:
            while delay := self._gateway.gate.delay(time.monotonic()):  # noqa: ASYNC110  # a moment is waited for, not an event
                await asyncio.sleep(delay)

    async def sent(self, request: Request) -> Response:
        """Send a request that was admitted, and tell the gate of the answer."""
        response = await self._transport.send(request)
        if self._gateway.gate.answered(response.status, response.retry_after(time.time()), time.monotonic()):
            metrics.braked()
        return response
