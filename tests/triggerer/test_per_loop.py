"""Tests of values that each event loop has of its own."""

from __future__ import annotations

import asyncio
import gc

from airflow_provider_flows.triggerer.per_loop import PerLoop


async def test_each_loop_has_its_own_value() -> None:
    """A loop gets the same value each time, and another loop another one."""
    values: PerLoop[list[str]] = PerLoop(list)
    values.get().append("here")

    async def elsewhere() -> list[str]:
        return values.get()

    assert values.get() == ["here"]
    assert await asyncio.to_thread(lambda: asyncio.run(elsewhere())) == []
    gc.collect()
    assert len(values._values) == 1  # the other loop is gone
