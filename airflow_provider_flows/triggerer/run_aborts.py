"""Aborts of flow runs by triggers; those at the same time share one session and the rate limiter."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from airflow_provider_flows.core.retry import with_retries
from airflow_provider_flows.core.service import abort_run
from airflow_provider_flows.transport.asynchronous import run
from airflow_provider_flows.triggerer.per_loop import PerLoop
from airflow_provider_flows.triggerer.shared_poller import RateLimitedTransport

if TYPE_CHECKING:
    from airflow_provider_flows.base_hook import BaseFlowsHook

log = logging.getLogger(__name__)

MAX_CONCURRENT_ABORTS = 50
MAX_LOGGED_ERRORS = 5  # of one call


class _AbortSession:
    """One session for the aborts of one connection."""

    def __init__(self, hook: BaseFlowsHook) -> None:
        self.user_count = 0
        self._hook = hook
        self._identity = (type(hook), hook.settings, hook.extra)
        self._slots = asyncio.Semaphore(MAX_CONCURRENT_ABORTS)
        self._open_lock = asyncio.Lock()
        self._transport: RateLimitedTransport | None = None
        self._exits = AsyncExitStack()

    def serves(self, hook: BaseFlowsHook) -> bool:
        """Return whether a hook has the same type, settings and credentials."""
        return self._hook is hook or self._identity == (type(hook), hook.settings, hook.extra)

    async def abort(self, flow_run_id: str) -> bool:
        """Abort a run as soon as a slot is free."""
        async with self._slots:
            async with self._open_lock:
                if self._transport is None:
                    opened = await self._exits.enter_async_context(self._hook.async_transport())
                    self._transport = RateLimitedTransport(opened, self._hook)
            with self._hook.add_connection_to_errors():
                conversation = abort_run(self._hook.service, flow_run_id)
                return await run(with_retries(conversation, self._hook.abort_retry), self._transport.send)

    async def close(self) -> None:
        """Close the session."""
        await self._exits.aclose()


_SESSIONS: PerLoop[list[_AbortSession]] = PerLoop(list)


async def abort_killed_run(hook: BaseFlowsHook, flow_run_id: str) -> bool:
    """Delete a run that never started, abort an active one, and leave a final one unchanged.

    :returns: whether the run was deleted or its abort was requested.
    :raises FlowServiceError: the service could not be reached, or rejected the request.
    """
    sessions = _SESSIONS.get()
    session = next((one for one in sessions if one.serves(hook)), None)
    if session is None:
        sessions.append(session := _AbortSession(hook))
    session.user_count += 1
    try:
        return await session.abort(flow_run_id)
    finally:
        session.user_count -= 1
        if not session.user_count:
            sessions.remove(session)
            await session.close()


async def abort_killed_runs(hook: BaseFlowsHook, flow_run_ids: Collection[str]) -> int:
    """Abort several runs as `abort_killed_run` does, and log those that could not be aborted.

    :returns: how many were deleted, or their abort was requested.
    """
    aborts = (abort_killed_run(hook, flow_run_id) for flow_run_id in flow_run_ids)
    results = await asyncio.gather(*aborts, return_exceptions=True)
    errors = [
        (flow_run_id, result)
        for flow_run_id, result in zip(flow_run_ids, results, strict=True)
        if isinstance(result, BaseException)
    ]
    for flow_run_id, error in errors[:MAX_LOGGED_ERRORS]:
        log.warning("Flow run %s could not be aborted. Check it at the service: %s", flow_run_id, error)
    if len(errors) > MAX_LOGGED_ERRORS:
        more = len(errors) - MAX_LOGGED_ERRORS
        log.warning("%d other flow runs could not be aborted either. Check them at the service", more)
    return sum(result is True for result in results)
