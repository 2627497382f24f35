"""Which hook stands for a connection in one event loop: looked up once for all who wait, and again when that is called for.

A look-up costs a triggerer tens of milliseconds, the first one seconds. What is asked of the service is none of its business.
"""

from __future__ import annotations

import asyncio
import time
from contextvars import Context
from importlib import import_module
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from airflow_provider_flows.hooks import FlowsHook

HOOK_TTL_SECONDS = 60.0  # for so long a look-up serves whoever comes
MIN_RELOAD_SECONDS = (
    5.0  # seconds; who doubts a connection that was looked up since is not served a second time
)

_LOOKUPS: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Lookup]] = WeakKeyDictionary()


class _Lookup:
    """One look-up, under way or done; when it is done it holds no task and no event, which would hold its event loop."""

    def __init__(self, flows_conn_id: str) -> None:
        self.started_at = time.monotonic()
        self.hook: FlowsHook | None = None
        self._error: BaseException | None = None
        self._done: asyncio.Event | None = asyncio.Event()
        # a task of its own: whoever asks first may be cancelled, the others wait for the same answer
        self._task: asyncio.Task[None] | None = asyncio.get_running_loop().create_task(
            self._load(flows_conn_id), context=Context()
        )

    @property
    def age(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.started_at

    @property
    def has_failed(self) -> bool:
        """Whether it brought nothing."""
        return self._done is None and self.hook is None

    async def result(self) -> FlowsHook:
        """Wait for it."""
        if self._done is not None:
            await self._done.wait()
        if self.hook is None:
            raise self._error or asyncio.CancelledError
        return self.hook

    async def _load(self, flows_conn_id: str) -> None:
        try:
            self.hook = await _resolve_hook(flows_conn_id)
        except BaseException as error:  # whatever it is, all who wait must be told
            self._error = error
            if not isinstance(error, Exception):
                raise
        finally:
            if self._done is not None:
                self._done.set()
            self._task = self._done = None


async def get_hook_cached(flows_conn_id: str, stale: FlowsHook | None = None) -> FlowsHook:
    """Give the hook of a connection.

    :param instead_of: a hook that did not do: then the connection is read anew, unless it was just now.
    :raises FlowInputError: the connection is not of a type that runs flows.
    """
    lookups = _LOOKUPS.setdefault(asyncio.get_running_loop(), {})
    lookup = lookups.get(flows_conn_id)
    if lookup is None or lookup.has_failed or lookup.age > HOOK_TTL_SECONDS or _is_stale(lookup, stale):
        lookup = lookups[flows_conn_id] = _Lookup(flows_conn_id)
    return await lookup.result()


def _is_stale(lookup: _Lookup, stale: FlowsHook | None) -> bool:
    """Whether a look-up would give just what did not do, and was not made just now."""
    if stale is None or lookup.hook is None or lookup.age <= MIN_RELOAD_SECONDS:
        return False
    return lookup.hook.settings == stale.settings


async def _resolve_hook(flows_conn_id: str) -> FlowsHook:
    hooks = await asyncio.to_thread(import_module, "airflow_provider_flows.hooks")
    await asyncio.to_thread(
        import_module, "airflow_provider_flows.triggerer.shared_poller"
    )  # with aiohttp: a quarter of a second
    hook: FlowsHook = await hooks.FlowsHook.aget_hook(flows_conn_id)
    return hook
