"""When asset watchers may emit events: one for an asset in each turn of Airflow's scheduler.

Airflow has one queue row for an asset and a DAG (`asset_dag_run_queue`). An event creates the row if there is
none, and the DAG run that the scheduler makes of the row gets the asset's events up to the row's creation. An
event that is added while the row exists is left to the DAG run after the next event. A trigger cannot ask
Airflow for the row, so a turn is a time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection

from airflow_provider_flows.triggerer.per_loop import PerLoop


class EventTurns:
    """When the next event of each asset may be emitted, for all triggers on an event loop."""

    def __init__(self) -> None:
        self._next_turns: dict[str, float] = {}  # by the monotonic clock

    @classmethod
    def for_loop(cls) -> EventTurns:
        """Return the turns that all triggers on the running loop share."""
        return _TURNS.get()

    def start(self, assets: Collection[str], interval: float) -> None:
        """Begin with a full turn for unknown assets: another triggerer may just have emitted an event."""
        for asset in assets:
            self._next_turns.setdefault(asset, time.monotonic() + interval)

    async def wait(self, assets: Collection[str]) -> float:
        """Wait until an event may be emitted for all these assets; return the seconds waited."""
        started_at = time.monotonic()
        while (delay := self._next_turn(assets) - time.monotonic()) > 0:  # noqa: ASYNC110  # it waits for a time, not an event
            await asyncio.sleep(delay)
        return time.monotonic() - started_at

    def take(self, assets: Collection[str], interval: float) -> None:
        """Record an event that is emitted now.

        :param interval: seconds until the next one.
        """
        self._next_turns.update(dict.fromkeys(assets, time.monotonic() + interval))

    def _next_turn(self, assets: Collection[str]) -> float:
        return max((self._next_turns.get(asset, 0.0) for asset in assets), default=0.0)


_TURNS: PerLoop[EventTurns] = PerLoop(EventTurns)
