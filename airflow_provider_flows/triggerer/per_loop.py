"""What the triggers on one event loop share: a value of any kind for each loop, and the hooks of connections.

Each connection is looked up once for all of them. A lookup takes tens of milliseconds in a triggerer, the
first one seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextvars import Context
from typing import TYPE_CHECKING, Generic, TypeVar
from weakref import WeakKeyDictionary

from airflow_provider_flows.core.single_flight import CacheEntry, SingleFlightCache

if TYPE_CHECKING:
    from airflow_provider_flows.hooks import FlowsHook

T = TypeVar("T")

HOOK_TTL_SECONDS = 60.0


class PerLoop(Generic[T]):
    """Creates a value when an event loop first needs it, and drops it with the loop.

    How long the content of the value lives depends on its type: a dict holds what is put in, a
    WeakValueDictionary drops what no task uses any more.
    """

    def __init__(self, create: Callable[[], T]) -> None:
        """Store how a value is created."""
        self._create = create
        self._values: WeakKeyDictionary[asyncio.AbstractEventLoop, T] = WeakKeyDictionary()

    def get(self) -> T:
        """Return the running loop's value."""
        loop = asyncio.get_running_loop()
        if (value := self._values.get(loop)) is None:
            value = self._values[loop] = self._create()
        return value


_HOOKS: PerLoop[SingleFlightCache[FlowsHook]] = PerLoop(
    lambda: SingleFlightCache(max_load_seconds=HOOK_TTL_SECONDS)
)
_TASKS: set[asyncio.Task[None]] = set()  # those in progress, because asyncio has only weak references to them


async def get_cached_hook(flows_conn_id: str, stale: FlowsHook | None = None) -> FlowsHook:
    """Return the hook of a connection.

    :param stale: a hook whose credentials were rejected. The hook returned has other settings, or comes from
        a lookup that began after this call, because an earlier one may have read the old settings. Callers
        that wait share the next lookup, so that at most one is in progress.
    :raises FlowInputError: the connection is not of a type that runs flows.
    """
    cache, called_at = _HOOKS.get(), time.monotonic()
    while True:
        entry, is_new = cache.get(
            flows_conn_id, lambda hook, started_at: started_at < called_at and _is_stale(hook, stale)
        )
        if is_new:
            # A task of its own: the first caller may be cancelled while others wait for the same result.
            task = asyncio.get_running_loop().create_task(
                _look_up(flows_conn_id, cache, entry), context=Context()
            )
            _TASKS.add(task)
            task.add_done_callback(_TASKS.discard)
        try:
            hook = entry.future.result() if entry.future.done() else await asyncio.wrap_future(entry.future)
        except Exception:
            if stale is None or entry.started_at >= called_at:
                raise
        else:
            if entry.started_at >= called_at or not _is_stale(hook, stale):
                return hook


def _is_stale(hook: FlowsHook, stale: FlowsHook | None) -> bool:
    return stale is not None and hook.settings == stale.settings


async def _look_up(
    flows_conn_id: str, cache: SingleFlightCache[FlowsHook], entry: CacheEntry[FlowsHook]
) -> None:
    with cache.share_errors(entry):
        hook_class = await asyncio.to_thread(_import_in_thread)
        entry.started_at = (
            time.monotonic()
        )  # callers before this share the lookup, even if a key was rejected
        cache.set_value(entry, await hook_class.aget_hook(flows_conn_id), HOOK_TTL_SECONDS)


def _import_in_thread() -> type[FlowsHook]:
    """Import what a trigger needs, which would block the loop for too long: aiohttp alone takes 0.25 s."""
    import airflow_provider_flows.transport.asynchronous  # noqa: F401  # for the caller
    from airflow_provider_flows.hooks import FlowsHook

    return FlowsHook
