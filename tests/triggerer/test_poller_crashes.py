"""Tests of mistakes in somebody's code inside a watch: whom they reach, and that there is a watch again afterwards.

The mistakes are those of a service of somebody else's; what the network does wrong is in test_watch.py.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from airflow_provider_flows.core.exceptions import FlowError
from airflow_provider_flows.core.http import Conversation
from airflow_provider_flows.core.run import FlowRun
from airflow_provider_flows.hooks import FlowsHook, GenerioHook
from airflow_provider_flows.services.generio.api import Generio
from airflow_provider_flows.triggerer.shared_poller import MOST_AT_ONCE, Watch
from tests.support.flow_station import FlowStation, Told
from tests.support.watching import alone, only, until, watched


@pytest.fixture
def station(monkeypatch: pytest.MonkeyPatch) -> Iterator[FlowStation]:
    """Give a server, with the connection `flows_default` to it."""
    with FlowStation() as station:
        station.connect(monkeypatch)
        yield station


class Odd(Generio):
    """A service of somebody else's, with mistakes."""

    def get_run(self, flow_run_id: str) -> Conversation[FlowRun]:
        """Break at one run."""
        if flow_run_id == "odd":
            raise RuntimeError("a mistake")
        return (yield from super().get_run(flow_run_id))

    def glance(self, flow_run_ids: Any) -> Conversation[Any]:  # noqa: ARG002  # the signature is the service's
        """Break at every list."""
        raise RuntimeError("another mistake")
        yield


class OddHook(GenerioHook):
    """Its hook."""

    def make_service(self, extra: Mapping[str, Any]) -> Odd:  # noqa: ARG002  # it has no options
        """Make it."""
        return Odd()


async def odd_hook() -> OddHook:
    """Give the hook, with its connection looked up."""
    hook = OddHook()
    hook._connection = (await FlowsHook.aget_hook("flows_default"))._connection
    return hook


async def test_unexpected_error_in_a_look_ends_that_wait_only(station: FlowStation) -> None:
    """A mistake in a service's code at one run ends the wait for that run with a FlowError that says what it means."""
    hook = await odd_hook()
    told = await asyncio.gather(
        *(watched(hook, key) for key in [*station.make(3, 0.4), "odd"]), return_exceptions=True
    )
    message = only(told.pop(), FlowError)  # type: ignore[arg-type]
    assert "odd" in message
    assert "a mistake" in message
    assert [isinstance(one, FlowRun) and one.completed for one in told] == [True] * 3


@pytest.mark.parametrize("how_many", [20, 100])
async def test_crash_reaches_everybody_and_is_over(station: FlowStation, how_many: int) -> None:
    """A mistake that breaks the watch itself ends every wait in it with a FlowError; the next one has a watch that works."""
    station.look = lambda key, _: Told(station.row(key), delay=0.3)
    hook = await odd_hook()
    watch = Watch.of(hook)

    told = await asyncio.gather(
        *(watched(hook, key) for key in station.make(how_many, 60)), return_exceptions=True
    )

    assert all("another mistake" in only(one, FlowError) for one in told)  # type: ignore[arg-type]
    station.make(1, 0.2, "next")
    assert Watch.of(hook) is not watch
    assert (await watched(hook, "next0")).completed
    assert await alone()
    gc.collect()  # a coroutine that was never awaited would warn now


async def test_event_loop_that_ends_leaves_nothing_behind(station: FlowStation) -> None:
    """A loop that is shut down while looks wait for their turn, as a triggerer's is, leaves nothing that was never awaited."""
    station.listing = lambda _: Told({}, 404)
    station.look = lambda *_: Told({}, delay=3600)
    ids = station.make(3 * MOST_AT_ONCE, 60)

    async def once() -> None:
        hook = await FlowsHook.aget_hook("flows_default")
        tasks = [asyncio.create_task(watched(hook, key)) for key in ids]
        assert await until(lambda: len(station.looks()) >= MOST_AT_ONCE)
        assert not any(task.done() for task in tasks)

    await asyncio.to_thread(lambda: asyncio.run(once()))
    gc.collect()  # a coroutine that was never awaited, or a session that is open, would warn now
