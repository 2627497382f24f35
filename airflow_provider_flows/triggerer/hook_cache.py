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

FRESH_SECONDS = 60.0  # for so long a look-up serves whoever comes
JUST_NOW = 5.0  # seconds; who doubts a connection that was looked up since is not served a second time

_LOOKUPS: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Lookup]] = WeakKeyDictionary()


class _Lookup:
    """One look-up, under way or done; when it is done it holds no task and no event, which would hold its event loop."""

    def __init__(self, flows_conn_id: str) -> None:
        self.began = time.monotonic()
        self.hook: FlowsHook | None = None
        self._trouble: BaseException | None = None
        self._done: asyncio.Event | None = asyncio.Event()
        # a task of its own: whoever asks first may be cancelled, the others wait for the same answer
        self._task: asyncio.Task[None] | None = asyncio.get_running_loop().create_task(
            self._look_up(flows_conn_id), context=Context()
        )

    @property
    def age(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.began

    @property
    def failed(self) -> bool:
        """Whether it brought nothing."""
        return self._done is None and self.hook is None

    async def result(self) -> FlowsHook:
        """Wait for it."""
        if self._done is not None:
            await self._done.wait()
        if self.hook is None:
            raise self._trouble or asyncio.CancelledError
        return self.hook

    async def _look_up(self, flows_conn_id: str) -> None:
        try:
            self.hook = await _looked_up(flows_conn_id)
        except BaseException as error:  # whatever it is, all who wait must be told
            self._trouble = error
            if not isinstance(error, Exception):
                raise
        finally:
            if self._done is not None:
                self._done.set()
            self._task = self._done = None


async def hook_of(flows_conn_id: str, instead_of: FlowsHook | None = None) -> FlowsHook:
    """Give the hook of a connection.

    :param instead_of: a hook that did not do: then the connection is read anew, unless it was just now.
    :raises FlowInputError: the connection is not of a type that runs flows.
    """
    lookups = _LOOKUPS.setdefault(asyncio.get_running_loop(), {})
    known = lookups.get(flows_conn_id)
    if known is None or known.failed or known.age > FRESH_SECONDS or _doubted(known, instead_of):
        known = lookups[flows_conn_id] = _Lookup(flows_conn_id)
    return await known.result()


def _doubted(known: _Lookup, instead_of: FlowsHook | None) -> bool:
    """Whether a look-up would give just what did not do, and was not made just now."""
    if instead_of is None or known.hook is None or known.age <= JUST_NOW:
        return False
    return known.hook.settings == instead_of.settings


async def _looked_up(flows_conn_id: str) -> FlowsHook:
    hooks = await asyncio.to_thread(import_module, "airflow_provider_flows.hooks")
    await asyncio.to_thread(
        import_module, "airflow_provider_flows.triggerer.shared_poller"
    )  # with aiohttp: a quarter of a second
    found: FlowsHook = await hooks.FlowsHook.aget_hook(flows_conn_id)
    return found
