"""A cache of hooks for the triggers on one event loop: each connection is looked up once for all of them.

A lookup takes tens of milliseconds in a triggerer, the first one seconds.
"""

from __future__ import annotations

import asyncio
import time
from contextvars import Context
from importlib import import_module
from typing import TYPE_CHECKING

from airflow_provider_flows.triggerer.per_loop import PerLoop

if TYPE_CHECKING:
    from airflow_provider_flows.hooks import FlowsHook

HOOK_TTL_SECONDS = 60.0
MIN_RELOAD_SECONDS = 5.0  # a younger lookup is not repeated even if its hook is stale


class _Lookup:
    """One lookup. When it is done, it holds no task and no event, because these would hold the event loop."""

    def __init__(self, flows_conn_id: str) -> None:
        self.started_at = time.monotonic()
        self.hook: FlowsHook | None = None
        self._error: BaseException | None = None
        self._done: asyncio.Event | None = asyncio.Event()
        # A task of its own, because the first caller may be cancelled while others wait for the same result.
        self._task: asyncio.Task[None] | None = asyncio.get_running_loop().create_task(
            self._load(flows_conn_id), context=Context()
        )

    @property
    def age(self) -> float:
        """Seconds since its start."""
        return time.monotonic() - self.started_at

    @property
    def has_failed(self) -> bool:
        """Whether it ended without a hook."""
        return self._done is None and self.hook is None

    async def result(self) -> FlowsHook:
        """Wait for the lookup and return its hook, or raise its error."""
        if self._done is not None:
            await self._done.wait()
        if self.hook is None:
            raise self._error or asyncio.CancelledError
        return self.hook

    async def _load(self, flows_conn_id: str) -> None:
        try:
            self.hook = await _resolve_hook(flows_conn_id)
        except BaseException as error:  # any error, because all callers wait for it
            self._error = error
            if not isinstance(error, Exception):
                raise
        finally:
            if self._done is not None:
                self._done.set()
            self._task = self._done = None


_LOOKUPS: PerLoop[dict[str, _Lookup]] = PerLoop(dict)  # an entry is replaced, and never removed


async def get_hook_cached(flows_conn_id: str, stale: FlowsHook | None = None) -> FlowsHook:
    """Return the hook of a connection.

    :param stale: a hook whose credentials were rejected. The connection is looked up again, unless that has
        just been done.
    :raises FlowInputError: the connection is not of a type that runs flows.
    """
    lookups = _LOOKUPS.get()
    lookup = lookups.get(flows_conn_id)
    if lookup is None or lookup.has_failed or lookup.age > HOOK_TTL_SECONDS or _is_stale(lookup, stale):
        lookup = lookups[flows_conn_id] = _Lookup(flows_conn_id)
    return await lookup.result()


def _is_stale(lookup: _Lookup, stale: FlowsHook | None) -> bool:
    """Return whether a lookup holds the stale settings, and is old enough to be repeated."""
    if stale is None or lookup.hook is None or lookup.age <= MIN_RELOAD_SECONDS:
        return False
    return lookup.hook.settings == stale.settings


async def _resolve_hook(flows_conn_id: str) -> FlowsHook:
    hooks = await asyncio.to_thread(import_module, "airflow_provider_flows.hooks")
    # with aiohttp, which takes a quarter of a second to import
    await asyncio.to_thread(import_module, "airflow_provider_flows.triggerer.shared_poller")
    hook: FlowsHook = await hooks.FlowsHook.aget_hook(flows_conn_id)
    return hook
