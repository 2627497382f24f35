"""Where a watcher's memory is kept: in Airflow's asset state store (3.3 and later), else nowhere.

What is remembered it does not know; flow/told.py does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from airflow_provider_flows.core.polling.event_cursor import is_cursor_state

log = logging.getLogger(__name__)

SLACK_SECONDS = 0.05  # seconds; a sleep may end a little early


class WatcherState:
    """One key in the store of every asset that a trigger watches; a trigger that several assets share has it in each.

    :param store: what Airflow gives an event trigger (`asset_state_store`); None where there is none.
    :param key: the key.
    """

    def __init__(self, store: Any, key: str) -> None:
        """Keep the store; nothing is asked yet."""
        self._stores = [] if store is None else _asset_stores(store)
        self._key = key
        self._is_failing = False
        self._pending: list[tuple[float, Any]] = []
        if not self._stores:
            log.warning(
                "This Airflow keeps no memory for asset watchers (3.3 and later does): flow runs that end while the triggerer is "
                "away are not told"
            )

    async def load(self, retry_delay: float) -> Any:
        """Give what was kept, None if there is nothing; while the store cannot be asked, wait: a new beginning loses runs.

        :param pause: seconds between two attempts.
        """
        while True:
            try:
                values = [await _get(store, self._key) for store in self._stores]
            except Exception as error:  # noqa: BLE001  # whatever Airflow raises; it may pass
                self._log_failure("read", error)
                await asyncio.sleep(retry_delay)
            else:
                self._is_failing = False
                return max(filter(is_cursor_state, values), key=lambda one: one["since"], default=None)

    def save_after(self, value: Any, delay: float) -> None:
        """Take a plain JSON value that is to be kept so many seconds from now, and not before what was taken earlier."""
        earlier = self._pending[-1][0] if self._pending else 0.0
        self._pending.append((max(earlier, time.monotonic() + delay), value))

    async def flush(self) -> None:
        """Keep what is due, the latest of it; what cannot be written is tried again the next time."""
        due = sum(at <= time.monotonic() + SLACK_SECONDS for at, _ in self._pending)
        if due:
            self._pending = self._pending[due - 1 :]
            is_written = await self._write(self._pending[0][1])
            self._pending = self._pending[is_written:]

    async def _write(self, value: Any) -> bool:
        """Write; gives whether that went well."""
        try:
            for store in self._stores:
                await _set(store, self._key, value)
        except Exception as error:  # noqa: BLE001  # whatever Airflow raises; it may pass
            self._log_failure("written", error)
            return False
        self._is_failing = False
        return True

    def _log_failure(self, action: str, error: Exception) -> None:
        if not self._is_failing:
            log.warning(
                "The memory of an asset watcher could not be %s, which is tried again: %r", action, error
            )
        self._is_failing = True


def _asset_stores(store: Any) -> list[Any]:
    """Give the store of each asset.

    A store of several assets is asked by asset, and nothing public tells a trigger which they are: hence the private attribute,
    whose absence only means one asset; tests/triggerer/test_finished_runs.py notices when it changes.
    """
    stores = [*getattr(store, "_by_name", {}).values()]
    return stores if len(stores) > 1 else [store]


async def _get(store: Any, key: str) -> Any:
    if hasattr(store, "aget"):
        return await store.aget(key)
    return await asyncio.to_thread(store.get, key)  # Airflow 3.3.0 and 3.3.1


async def _set(store: Any, key: str, value: Any) -> None:
    if hasattr(store, "aset"):
        await store.aset(key, value)
    else:
        await asyncio.to_thread(store.set, key, value)
