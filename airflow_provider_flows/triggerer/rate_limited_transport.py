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
from airflow_provider_flows.core.rate_limiter import RateLimiter

if TYPE_CHECKING:
    from airflow_provider_flows.base_hook import BaseFlowsHook
    from airflow_provider_flows.core.http import Request, Response
    from airflow_provider_flows.transport.asynchronous import AsyncTransport


class _SharedLimiter:
    """A gate, and whose turn it is there."""

    def __init__(self, per_second: float | None) -> None:
        self.limiter = RateLimiter(per_second)
        self.lock = asyncio.Lock()


_LIMITERS: WeakKeyDictionary[asyncio.AbstractEventLoop, WeakValueDictionary[Hashable, _SharedLimiter]] = (
    WeakKeyDictionary()
)


def _get_limiter(hook: BaseFlowsHook) -> _SharedLimiter:
    """Give the running loop's gateway to one service with one key; it lasts as long as somebody has it."""
    settings, per_second = hook.settings, hook.extra.get("max_requests_per_second")
    key = (settings.base_url, tuple(sorted(settings.credentials.items())), per_second)
    return _LIMITERS.setdefault(asyncio.get_running_loop(), WeakValueDictionary()).setdefault(
        key, _SharedLimiter(per_second)
    )


class RateLimitedTransport:
    """A transport behind the gate of its connection (`max_requests_per_second` in the extra)."""

    def __init__(self, transport: AsyncTransport, hook: BaseFlowsHook) -> None:
        """Take the transport, and the hook that opened it."""
        self._transport = transport
        self._shared_limiter = _get_limiter(hook)

    async def send(self, request: Request) -> Response:
        """Send a request when the gate lets it through."""
        await self.acquire()
        return await self.send_acquired(request)

    async def acquire(self) -> None:
        """Wait at the gate; one after the other asks it."""
        async with self._shared_limiter.lock:
            while delay := self._shared_limiter.limiter.try_acquire(time.monotonic()):  # noqa: ASYNC110  # a moment is waited for, not an event
                await asyncio.sleep(delay)

    async def send_acquired(self, request: Request) -> Response:
        """Send a request that was admitted, and tell the gate of the answer."""
        response = await self._transport.send(request)
        if self._shared_limiter.limiter.record_response(
            response.status, response.retry_after(time.time()), time.monotonic()
        ):
            metrics.count_rate_limit_pause()
        return response
