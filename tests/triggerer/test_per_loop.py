"""Tests of values that belong to one event loop."""

from __future__ import annotations

import asyncio
import gc

from airflow_provider_flows.triggerer.per_loop import PerLoop


async def test_each_loop_has_its_own_value() -> None:
    """A loop gets the same value each time, another loop another one; a value is freed with its loop."""
    values: PerLoop[list[str]] = PerLoop(list)
    values.get().append("own")

    async def get_on_other_loop() -> list[str]:
        return values.get()

    assert values.get() == ["own"]
    assert await asyncio.to_thread(lambda: asyncio.run(get_on_other_loop())) == []
    gc.collect()
    assert len(values._values) == 1  # the other loop is gone
