"""A minimum interval between the events of an asset, so that Airflow delivers each to a DAG run.

Airflow has one queue row for an asset and a DAG (`asset_dag_run_queue`). An event creates the row if there is
none. The scheduler then creates a DAG run and deletes the row; the DAG run gets the asset's events up to the
row's creation. An event that is added while the row exists waits for the DAG run after the next event. A
trigger cannot read the row, so it waits for a fixed time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection

from airflow_provider_flows.triggerer.per_loop import PerLoop


class EventThrottle:
    """When the next event of each asset may be emitted, for all triggers on an event loop."""

    def __init__(self) -> None:
        self._next_times: dict[str, float] = {}  # by the monotonic clock

    @classmethod
    def for_loop(cls) -> EventThrottle:
        """Return the throttle that all triggers on the running loop share."""
        return _THROTTLES.get()

    def register(self, assets: Collection[str], interval: float) -> None:
        """Hold the first event of unknown assets back: another triggerer may just have emitted one."""
        for asset in assets:
            self._next_times.setdefault(asset, time.monotonic() + interval)

    async def wait(self, assets: Collection[str]) -> float:
        """Wait until an event may be emitted for all these assets; return the seconds waited."""
        started_at = time.monotonic()
        while (delay := self._next_time(assets) - time.monotonic()) > 0:  # noqa: ASYNC110  # it waits for a time, not an event
            await asyncio.sleep(delay)
        return time.monotonic() - started_at

    def record_event(self, assets: Collection[str], interval: float) -> None:
        """Record an event that is emitted now.

        :param interval: seconds until the next one.
        """
        self._next_times.update(dict.fromkeys(assets, time.monotonic() + interval))

    def _next_time(self, assets: Collection[str]) -> float:
        return max((self._next_times.get(asset, 0.0) for asset in assets), default=0.0)


_THROTTLES: PerLoop[EventThrottle] = PerLoop(EventThrottle)
