"""Where a watcher's memory is kept: in Airflow's asset state store (3.3 and later), else nowhere.

What is remembered it does not know; flow/told.py does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from airflow_provider_flows.core.polling.event_cursor import is_memory

log = logging.getLogger(__name__)

SLACK = 0.05  # seconds; a sleep may end a little early


class AssetMemory:
    """One key in the store of every asset that a trigger watches; a trigger that several assets share has it in each.

    :param store: what Airflow gives an event trigger (`asset_state_store`); None where there is none.
    :param key: the key.
    """

    def __init__(self, store: Any, key: str) -> None:
        """Keep the store; nothing is asked yet."""
        self._parts = [] if store is None else _parts(store)
        self._key = key
        self._in_trouble = False
        self._waiting: list[tuple[float, Any]] = []
        if not self._parts:
            log.warning(
                "This Airflow keeps no memory for asset watchers (3.3 and later does): flow runs that end while the triggerer is "
                "away are not told"
            )

    async def read(self, pause: float) -> Any:
        """Give what was kept, None if there is nothing; while the store cannot be asked, wait: a new beginning loses runs.

        :param pause: seconds between two attempts.
        """
        while True:
            try:
                kept = [await _get(part, self._key) for part in self._parts]
            except Exception as error:  # noqa: BLE001  # whatever Airflow raises; it may pass
                self._tell("read", error)
                await asyncio.sleep(pause)
            else:
                self._in_trouble = False
                return max(filter(is_memory, kept), key=lambda one: one["since"], default=None)

    def will_keep(self, value: Any, pause: float) -> None:
        """Take a plain JSON value that is to be kept so many seconds from now, and not before what was taken earlier."""
        earlier = self._waiting[-1][0] if self._waiting else 0.0
        self._waiting.append((max(earlier, time.monotonic() + pause), value))

    async def keep(self) -> None:
        """Keep what is due, the latest of it; what cannot be written is tried again the next time."""
        due = sum(at <= time.monotonic() + SLACK for at, _ in self._waiting)
        if due:
            self._waiting = self._waiting[due - 1 :]
            written = await self._write(self._waiting[0][1])
            self._waiting = self._waiting[written:]

    async def _write(self, value: Any) -> bool:
        """Write; gives whether that went well."""
        try:
            for part in self._parts:
                await _set(part, self._key, value)
        except Exception as error:  # noqa: BLE001  # whatever Airflow raises; it may pass
            self._tell("written", error)
            return False
        self._in_trouble = False
        return True

    def _tell(self, what: str, error: Exception) -> None:
        if not self._in_trouble:
            log.warning(
                "The memory of an asset watcher could not be %s, which is tried again: %r", what, error
            )
        self._in_trouble = True


def _parts(store: Any) -> list[Any]:
    """Give the store of each asset.

    A store of several assets is asked by asset, and nothing public tells a trigger which they are: hence the private attribute,
    whose absence only means one asset; tests/triggerer/test_finished_runs.py notices when it changes.
    """
    several = [*getattr(store, "_by_name", {}).values()]
    return several if len(several) > 1 else [store]


async def _get(part: Any, key: str) -> Any:
    if hasattr(part, "aget"):
        return await part.aget(key)
    return await asyncio.to_thread(part.get, key)  # Airflow 3.3.0 and 3.3.1


async def _set(part: Any, key: str, value: Any) -> None:
    if hasattr(part, "aset"):
        await part.aset(key, value)
    else:
        await asyncio.to_thread(part.set, key, value)
