"""What the tests of FlowRunFinishedTrigger share: a store that outlives triggers, and a watcher from its start to its end.

It asserts nothing. That Airflow's own store does as well is shown in test_finished.py and in test_stack.py.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_provider_flows.triggers import FlowRunFinishedTrigger
from tests.support.triggers import wait_for_condition

POLL_SECONDS = 0.1  # seconds; a poll interval


class FileStore:
    """A store of one asset, as Airflow gives one to an event trigger, in a file; `broken` makes it fail."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.broken = False
        self.writes = 0

    async def aget(self, key: str, default: Any = None) -> Any:
        """Give a value."""
        await self._fail_if_broken()
        return self.content().get(key, default)

    async def aset(self, key: str, value: Any) -> None:
        """Keep a value; Airflow takes what is JSON, and no None."""
        await self._fail_if_broken()
        self.writes += 1
        self._path.write_text(json.dumps({**self.content(), key: value}))

    def content(self) -> dict[str, Any]:
        """Give all that is kept."""
        return dict(json.loads(self._path.read_text())) if self._path.exists() else {}

    async def _fail_if_broken(self) -> None:
        await asyncio.sleep(0)
        if self.broken:
            raise RuntimeError("The store cannot be asked")


class BlockingStore:
    """The same for Airflow 3.3.0 and 3.3.1, whose stores block."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def get(self, key: str, default: Any = None) -> Any:
        """Give a value."""
        return self.values.get(key, default)

    def set(self, key: str, value: Any) -> None:
        """Keep a value."""
        self.values[key] = json.loads(json.dumps(value))


@dataclass
class Watcher:
    """A trigger that runs, and what it told."""

    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ids(self) -> list[str]:
        """The flow runs that it told of, in order."""
        return [event["flow_run_id"] for event in self.events]

    async def wait_for_events(self, *flow_run_ids: str) -> bool:
        """Wait until it has told of just these, in any order; tells whether it did in time."""
        return await wait_for_condition(lambda: sorted(self.ids) == sorted(flow_run_ids))


@asynccontextmanager
async def run_watcher(
    store: Any = None, *, save_delay: float = POLL_SECONDS, **arguments: Any
) -> AsyncIterator[Watcher]:
    """Run a trigger as a triggerer does, from the start of the block to its end, where it is cancelled.

    :param save_delay: seconds; the real ones would make a test take minutes.
    """
    trigger = FlowRunFinishedTrigger(**{"poll_interval": POLL_SECONDS, **arguments})
    trigger.asset_state_store = store
    trigger.save_delay = save_delay
    watcher = Watcher()

    async def run() -> None:
        async for event in trigger.run():
            watcher.events.append(json.loads(json.dumps(event.payload)))

    task = asyncio.create_task(run())
    try:
        yield watcher
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
