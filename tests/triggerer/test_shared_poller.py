"""Tests of the watch that all triggers of a connection share: who shares it, that it ends, and that nobody hurts another.

Lists are in test_watch_lists.py, brakes and deadlines in test_watch_brakes.py, keys that change in test_lookups.py.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path

import pytest

from airflow_provider_flows.core.exceptions import FlowInputError, FlowNotFound
from airflow_provider_flows.core.run import FlowRun
from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.hooks import FlowsHook
from airflow_provider_flows.triggerer.shared_poller import MOST_AT_ONCE, Watch
from tests.support.flow_station import FlowStation, Told
from tests.support.modes import start_elsewhere
from tests.support.watching import all_ended, alone, ended, hurry, only, until, watched


@pytest.fixture
def station(monkeypatch: pytest.MonkeyPatch) -> Iterator[FlowStation]:
    """Give a server, with the connection `flows_default` to it."""
    hurry(monkeypatch)
    with FlowStation() as station:
        station.connect(monkeypatch)
        yield station


async def test_many_triggers_share_few_connections(station: FlowStation) -> None:
    """However many triggers wait, 32 requests are under way at the most, over as many connections, all of one session."""
    station.listing = lambda _: Told({}, 404)
    station.look = lambda key, _: Told(station.row(key), delay=0.1)
    ids = station.make(100, 0.6)

    runs = await all_ended(ids)

    assert [run.flow_run_id for run in runs if run.completed] == ids
    assert 8 < station.most_in_flight <= MOST_AT_ONCE
    assert len(station.peers) <= MOST_AT_ONCE


async def test_watch_is_shared_by_who_would_ask_the_same(
    station: FlowStation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections with equal settings share a watch; another key, another setting or another event loop has one of its own."""
    station.connect(monkeypatch, "same")
    station.connect(monkeypatch, "other_key", "k3y")
    station.connect(monkeypatch, "other_setting", max_requests_per_second=50)
    names = ("flows_default", "same", "other_key", "other_setting")
    hooks = [await FlowsHook.aget_hook(name) for name in names]

    one, same, *others = [Watch.of(hook) for hook in hooks]
    elsewhere = await asyncio.to_thread(lambda: asyncio.run(_watch_of(hooks[0])))

    assert one is same
    assert Watch.of(hooks[0]) is one
    assert len({id(watch) for watch in (one, *others, elsewhere)}) == 4


async def _watch_of(hook: FlowsHook) -> Watch:
    return Watch.of(hook)


async def test_connection_that_broke_hurts_no_other(
    station: FlowStation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A connection whose CA bundle was deleted while it is waited with keeps no trigger of another connection from waiting."""
    bundle = tmp_path / "ca.pem"
    bundle.write_text("")
    station.connect(monkeypatch, "bundled", ca_bundle=str(bundle))
    (first, second) = station.make(2, 0.5)
    early = asyncio.create_task(ended(first, conn_id="bundled"))
    assert await until(lambda: station.asked)
    bundle.unlink()

    assert (await ended(second)).completed
    assert (await early).completed


async def test_watch_ends_with_its_last_subscriber(station: FlowStation) -> None:
    """When nobody waits any more no task is left and no connection is open, and who comes then gets a watch that works."""
    for prefix in ("a", "b"):
        assert all(run.completed for run in await all_ended(station.make(20, 0.2, prefix)))
        assert await alone()
        assert await until(lambda: station.open == 0)
    gc.collect()  # a session that was not closed would warn now


async def test_event_loop_that_is_over_is_forgotten(station: FlowStation) -> None:
    """What is kept of an event loop does not keep it, nor the keys that were used in it, alive."""
    station.make(1, 0.1)

    found: list[asyncio.AbstractEventLoop] = []

    async def once() -> None:
        await ended("r0")
        found.append(asyncio.get_running_loop())

    await asyncio.to_thread(lambda: asyncio.run(once()))
    gc.collect()
    assert not [
        kept for kept in gc.get_referrers(found[0]) if isinstance(kept, asyncio.Future)
    ]  # a task is one


async def test_coming_and_going_loses_nobody(station: FlowStation) -> None:
    """Waits that begin and are given up at any moment leave every other one its run."""
    station.make(1, 0.0, "over")
    station.make(1, 60.0, "long")
    hook = await FlowsHook.aget_hook("flows_default")
    done: list[FlowRun] = []

    async def come_and_go(chance: random.Random) -> None:
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            with suppress(TimeoutError):
                async with asyncio.timeout(chance.random() * 0.05):
                    await watched(hook, "long0")
            async with asyncio.timeout(10):
                done.append(await watched(hook, "over0"))
            await asyncio.sleep(chance.choice((0, 0, 0.001, 0.01)))

    await asyncio.gather(*(come_and_go(random.Random(seed)) for seed in range(5)))  # noqa: S311

    assert len(done) >= 5
    assert all(run.completed for run in done)
    assert await alone()
    assert await until(lambda: station.open == 0)


async def test_who_comes_at_the_end_is_served(station: FlowStation) -> None:
    """Whoever comes in the moment in which the watch ends, a few turns of the loop sooner or later, has a watch that works."""
    station.make(1, 0.0)
    hook = await FlowsHook.aget_hook("flows_default")
    for turns in (*range(20), *range(20)):
        async with asyncio.timeout(10):
            assert (await watched(hook, "r0")).completed
        for _ in range(turns):
            await asyncio.sleep(0)
    assert await alone()


async def test_watch_does_not_outlive_requests_that_hang(station: FlowStation) -> None:
    """When all have left, requests without answer hold the watch no longer, however many wait for a place."""
    station.look = lambda *_: Told({}, delay=3600)
    station.listing = lambda _: Told({}, 404)
    tasks = [asyncio.create_task(ended(key)) for key in station.make(3 * MOST_AT_ONCE, 60)]
    assert await until(lambda: len(station.looks()) >= MOST_AT_ONCE)

    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    assert await alone()
    assert await until(lambda: station.open == 0)


async def test_gone_subscribers_hold_no_place(station: FlowStation) -> None:
    """A trigger that is cancelled in the middle of a request that hangs takes nobody's place from then on."""
    station.listing = lambda _: Told({}, 404)
    station.look = lambda key, _: Told(station.row(key), delay=3600 if key.startswith("stuck") else 0)
    tasks = [asyncio.create_task(ended(key)) for key in station.make(MOST_AT_ONCE, 60, "stuck")]
    assert await until(lambda: len(station.looks()) >= MOST_AT_ONCE)
    other = asyncio.create_task(ended(station.make(1, 0.1)[0]))
    await asyncio.sleep(0.2)

    for task in tasks:
        task.cancel()

    async with asyncio.timeout(3):
        assert (await other).completed


async def test_cancelled_trigger_hurts_nobody(station: FlowStation) -> None:
    """Of many triggers each second one is cancelled, the first of all among them; the others see the end of their runs."""
    ids = station.make(40, 0.6)
    tasks = [asyncio.create_task(ended(key)) for key in ids]
    assert await until(lambda: station.asked)
    for task in tasks[::2]:
        task.cancel()

    told = await asyncio.gather(*tasks, return_exceptions=True)

    assert all(isinstance(one, asyncio.CancelledError) for one in told[::2])
    assert [one.flow_run_id for one in told[1::2] if isinstance(one, FlowRun) and one.completed] == ids[1::2]


MALFORMED = [
    b"<html><body>Oops</body></html>",
    b'{"flow_id": "r0", "sta',
    [],
    "text",
    7,
    {"flow_id": ["r0"]},
    {"state": None},
    b"",
]


async def test_malformed_answer_hurts_its_run_only(station: FlowStation) -> None:
    """Answers about one run that cannot be read are waited out; the others are looked at as if nothing were."""
    ids = station.make(5, 0.4)
    answers = iter(MALFORMED)
    station.look = lambda key, _: Told(next(answers, station.row(key)) if key == "r0" else station.row(key))
    began = time.monotonic()
    slow = asyncio.create_task(ended("r0"))

    assert all(run.completed for run in await all_ended(ids[1:]))
    assert time.monotonic() - began < 3
    assert (await slow).completed
    assert len(station.looks(["r0"])) > len(MALFORMED)


async def test_refused_look_ends_its_wait_only(station: FlowStation) -> None:
    """A run that the service does not know ends its own wait with FlowNotFound, which names the connection once."""
    ids = station.make(3, 0.5)
    told = await asyncio.gather(*(ended(key) for key in [*ids, "nobody"]), return_exceptions=True)
    assert only(told.pop(), FlowNotFound).count("Connection 'flows_default'") == 1  # type: ignore[arg-type]
    assert [isinstance(one, FlowRun) and one.completed for one in told] == [True] * 3


WHO: ContextVar[str] = ContextVar("who", default="nobody")


async def test_lines_are_told_in_the_triggers_own_context(station: FlowStation) -> None:
    """What is told of a run is told in the context of its own trigger, though another one happened to start the watch."""
    heard: list[tuple[str, str]] = []

    async def wait(key: str) -> None:
        WHO.set(key)
        await ended(key)

    handler = Heard(heard)
    logger = logging.getLogger("airflow_provider_flows")
    logger.addHandler(handler)
    try:
        await asyncio.gather(*(asyncio.create_task(wait(key)) for key in station.make(15, 0.4)))
    finally:
        logger.removeHandler(handler)

    assert {who for who, _ in heard} == {f"r{number}" for number in range(15)}
    assert all(f"flow run {who} " in line for who, line in heard)


class Heard(logging.Handler):
    """A log that keeps who wrote each line."""

    def __init__(self, heard: list[tuple[str, str]]) -> None:
        super().__init__()
        self._heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self._heard.append((WHO.get(), record.getMessage()))


async def test_promptchainer_has_nothing_to_watch(
    flow_emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trigger for a PromptChainer connection ends at once with an error that says why."""
    assert flow_emulator.url
    hurry(monkeypatch)
    with pytest.raises(FlowInputError, match=r"promptchainer cannot look at a flow run: a run has no id"):
        await ended("any", conn_id="promptchainer_default")


async def test_hundreds_at_once_all_end_right(
    flow_emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three hundred triggers that wait at once each has one event, which tells of its own run, completed."""
    hurry(monkeypatch)
    flow_emulator.run_seconds = 2
    ids = [start_elsewhere(flow_emulator) for _ in range(300)]

    runs = await all_ended(ids, often=(0.3, 0.6))

    assert [run.flow_run_id for run in runs if run.completed] == ids
    assert await alone()


async def test_wait_past_its_deadline_still_looks_once(station: FlowStation) -> None:
    """A wait whose deadline has passed still looks once: a run that is over by then is not late."""
    station.make(1, 0.0)
    assert (await watched(await FlowsHook.aget_hook("flows_default"), "r0", time.time() - 10)).completed
    assert len(station.asked) == 1
