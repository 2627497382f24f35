"""A cache of hooks for the triggers on one event loop: each connection is looked up once for all of them.

A lookup takes tens of milliseconds in a triggerer, the first one seconds.
"""

from __future__ import annotations

import asyncio
from contextvars import Context
from typing import TYPE_CHECKING

from airflow_provider_flows.core.single_flight import CacheEntry, SingleFlightCache
from airflow_provider_flows.triggerer.per_loop import PerLoop

if TYPE_CHECKING:
    from airflow_provider_flows.hooks import FlowsHook

HOOK_TTL_SECONDS = 60.0
MIN_RELOAD_SECONDS = 5.0  # a younger lookup is not repeated even if its hook is stale

_HOOKS: PerLoop[SingleFlightCache[FlowsHook]] = PerLoop(
    lambda: SingleFlightCache(max_load_seconds=HOOK_TTL_SECONDS)
)
_TASKS: set[asyncio.Task[None]] = set()  # those in progress, because asyncio has only weak references to them


async def get_hook_cached(flows_conn_id: str, stale: FlowsHook | None = None) -> FlowsHook:
    """Return the hook of a connection.

    :param stale: a hook whose credentials were rejected. The connection is looked up again, unless that has
        just been done.
    :raises FlowInputError: the connection is not of a type that runs flows.
    """
    cache = _HOOKS.get()
    entry, is_new = cache.get(flows_conn_id, lambda hook, age: _is_stale(hook, age, stale))
    if is_new:
        # A task of its own, because the first caller may be cancelled while others wait for the same result.
        task = asyncio.get_running_loop().create_task(
            _look_up(flows_conn_id, cache, entry), context=Context()
        )
        _TASKS.add(task)
        task.add_done_callback(_TASKS.discard)
    return entry.future.result() if entry.future.done() else await asyncio.wrap_future(entry.future)


def _is_stale(hook: FlowsHook, age: float, stale: FlowsHook | None) -> bool:
    """Return whether a hook has the stale settings, and was looked up long enough ago to do it again."""
    return stale is not None and age > MIN_RELOAD_SECONDS and hook.settings == stale.settings


async def _look_up(
    flows_conn_id: str, cache: SingleFlightCache[FlowsHook], entry: CacheEntry[FlowsHook]
) -> None:
    with cache.share_errors(entry):
        hook_class = await asyncio.to_thread(_import_in_thread)
        cache.set_value(entry, await hook_class.aget_hook(flows_conn_id), HOOK_TTL_SECONDS)


def _import_in_thread() -> type[FlowsHook]:
    """Import what a trigger needs, which would block the loop for too long: aiohttp alone takes 0.25 s."""
    import airflow_provider_flows.triggerer.shared_poller  # noqa: F401  # with aiohttp, for the caller
    from airflow_provider_flows.hooks import FlowsHook

    return FlowsHook
