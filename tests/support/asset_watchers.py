"""Helpers for tests of asset watchers: a store that outlives triggers, finished runs, a running watcher."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_provider_flows.triggers import FlowRunFinishedTrigger
from tests.support.flow_server import StubFlowServer, StubRun
from tests.support.triggers import wait_for_condition

POLL_SECONDS = 0.1
QUIET_SECONDS = 0.35  # in which a watcher polls two or three times


def finish_runs(flow_server: StubFlowServer, *ids: str, ago: float = 0.0, **more: Any) -> None:
    """Finish runs, each after one second, so many seconds ago."""
    flow_server.runs.update({key: StubRun(time.time() - ago - 1, 1, **more) for key in ids})


async def wait_for_lists(flow_server: StubFlowServer, lists: int = 2) -> None:
    """Wait until so many more lists were requested."""
    before = len(flow_server.list_requests())
    assert await wait_for_condition(lambda: len(flow_server.list_requests()) >= before + lists)


class FileStore:
    """The state store of an asset, as Airflow's event triggers have it, in a file; `broken` makes it fail."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.broken = False
        self.writes = 0

    async def aget(self, key: str, default: Any = None) -> Any:
        """Return a value."""
        await self._fail_if_broken()
        return self.content().get(key, default)

    async def aset(self, key: str, value: Any) -> None:
        """Save a value; Airflow accepts JSON except None."""
        await self._fail_if_broken()
        self.writes += 1
        self._path.write_text(json.dumps({**self.content(), key: value}))

    def content(self) -> dict[str, Any]:
        """Return all saved values."""
        return dict(json.loads(self._path.read_text())) if self._path.exists() else {}

    async def _fail_if_broken(self) -> None:
        await asyncio.sleep(0)
        if self.broken:
            raise RuntimeError("The store is not available")


class BlockingStore:
    """A store of Airflow 3.3.0 and 3.3.1, whose methods block."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value."""
        return self.values.get(key, default)

    def set(self, key: str, value: Any) -> None:
        """Save a value."""
        self.values[key] = json.loads(json.dumps(value))


@dataclass
class Watcher:
    """A running trigger, and the payloads of its events."""

    payloads: list[dict[str, Any]] = field(default_factory=list)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The flow runs of its events, in order."""
        return [run for payload in self.payloads for run in payload["runs"]]

    @property
    def ids(self) -> list[str]:
        """The ids of these flow runs."""
        return [flow_run_id for payload in self.payloads for flow_run_id in payload["flow_run_ids"]]

    async def wait_for_events(self, *flow_run_ids: str) -> bool:
        """Wait until it has emitted events of exactly these runs, in any order; return False after 3 s."""
        return await wait_for_condition(lambda: sorted(self.ids) == sorted(flow_run_ids))


@asynccontextmanager
async def run_watcher(
    store: Any = None,
    *,
    save_delay: float = POLL_SECONDS,
    event_interval: float = POLL_SECONDS,
    asset: str | None = None,
    **arguments: Any,
) -> AsyncIterator[Watcher]:
    """Run a trigger as a triggerer does, and cancel it at the end of the block.

    :param save_delay: seconds, and likewise `event_interval`; with the trigger's own a test would take
        minutes.
    :param asset: the name of the asset that it watches; its store is a `FileStore` then.
    """
    trigger = FlowRunFinishedTrigger(**{"poll_interval": POLL_SECONDS, **arguments})
    trigger.asset_state_store = store
    if asset is not None:
        store._by_name = {asset: store}  # as Airflow's stores have it
    trigger.save_delay, trigger.event_interval = save_delay, event_interval
    watcher = Watcher()

    async def run() -> None:
        async for event in trigger.run():
            watcher.payloads.append(json.loads(json.dumps(event.payload)))

    task = asyncio.create_task(run())
    try:
        yield watcher
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
