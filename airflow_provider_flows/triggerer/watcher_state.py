"""The saved state of an asset watcher, in Airflow's asset state store (Airflow 3.3 and later)."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from airflow_provider_flows.compat import get_asset_state, set_asset_state
from airflow_provider_flows.core.polling.finished_runs import is_cursor_state

log = logging.getLogger(__name__)


class WatcherState:
    """One key in the store of each asset that a trigger watches.

    :param store: what Airflow gives an event trigger (`asset_state_store`), None where Airflow has none.
    :param key: the key.
    """

    def __init__(self, store: Any, key: str) -> None:
        """Prepare the state; nothing is read yet."""
        self._stores = [] if store is None else _asset_stores(store)
        self._key = key
        self._is_failing = False
        self._unsaved: Any = None
        if not self._stores:
            log.warning(
                "The asset state store requires Airflow 3.3 or later. On this version asset watchers emit no "
                "events for flow runs that finish while no triggerer runs"
            )

    async def load(self, retry_delay: float) -> Any:
        """Return the saved value, None if there is none; wait while the store fails, or events would be lost.

        :param retry_delay: seconds between two attempts.
        """
        while True:
            try:
                values = [await get_asset_state(store, self._key) for store in self._stores]
            except Exception as error:  # noqa: BLE001  # any error of Airflow's; it may be transient
                self._log_failure("read", error)
                await asyncio.sleep(retry_delay)
            else:
                self._is_failing = False
                return max(
                    filter(is_cursor_state, values), key=lambda one: one["emitted_until"], default=None
                )

    async def save(self, value: Any) -> None:
        """Save a JSON value; if that fails, `flush` retries it."""
        self._unsaved = value
        await self.flush()

    async def flush(self) -> None:
        """Save the latest value, if that has not succeeded yet."""
        if self._unsaved is not None and await self._write(self._unsaved):
            self._unsaved = None

    async def _write(self, value: Any) -> bool:
        """Save a value; return whether that succeeded."""
        try:
            for store in self._stores:
                await set_asset_state(store, self._key, value)
        except Exception as error:  # noqa: BLE001  # any error of Airflow's; it may be transient
            self._log_failure("written", error)
            return False
        self._is_failing = False
        return True

    def _log_failure(self, action: str, error: Exception) -> None:
        if not self._is_failing:
            log.warning("The state of an asset watcher could not be %s and is retried: %r", action, error)
        self._is_failing = True


def get_asset_names(store: Any) -> list[str]:
    """Return the names of the assets that a trigger watches; none if Airflow does not provide them."""
    return [*getattr(store, "_by_name", {})]


def _asset_stores(store: Any) -> list[Any]:
    """Return the store of each asset.

    A store for several assets is indexed by asset, and there is no public way for a trigger to list its
    assets. Without the private attribute there is only one asset. tests/triggerer/test_watcher_state.py fails
    if it changes.
    """
    stores = [*getattr(store, "_by_name", {}).values()]
    return stores if len(stores) > 1 else [store]
