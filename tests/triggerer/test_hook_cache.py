"""Tests of how a connection is looked up for triggers: once for all, again when it is old, and anew when its key is refused.

The look-ups are Airflow's, from the environment; what is asked of the service with them is in test_watch.py.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator

import pytest

from airflow_provider_flows.core.exceptions import FlowAuthError, FlowError, FlowInputError
from airflow_provider_flows.hooks import GenerioHook
from airflow_provider_flows.triggerer.hook_cache import FRESH_SECONDS, hook_of
from tests.support.flow_station import FlowStation
from tests.support.watching import aged, ended, errors_of, hurry, only, until


@pytest.fixture
def station(monkeypatch: pytest.MonkeyPatch) -> Iterator[FlowStation]:
    """Give a server, with the connection `flows_default` to it."""
    hurry(monkeypatch)
    with FlowStation() as station:
        station.connect(monkeypatch)
        yield station


async def test_connection_is_looked_up_once_for_all(station: FlowStation) -> None:
    """Whoever comes while a look-up is fresh gets the very same hook, also who comes while it is under way."""
    hooks = await asyncio.gather(*(hook_of("flows_default") for _ in range(50)))
    assert {id(hook) for hook in [*hooks, await hook_of("flows_default")]} == {id(hooks[0])}
    assert isinstance(hooks[0], GenerioHook)
    assert hooks[0].settings.base_url == station.url


@pytest.mark.usefixtures("station")
async def test_old_look_up_is_made_again() -> None:
    """A look-up that is a minute old serves nobody new; one that is just younger does."""
    first = await hook_of("flows_default")
    aged(seconds=FRESH_SECONDS - 5)
    assert await hook_of("flows_default") is first
    aged(seconds=10)
    assert await hook_of("flows_default") is not first


@pytest.mark.usefixtures("station")
async def test_doubt_is_answered_anew_but_not_at_once() -> None:
    """Who doubts a hook gets one that was looked up since; a look-up of just now is not made again."""
    first = await hook_of("flows_default")
    assert await hook_of("flows_default", instead_of=first) is first
    aged()
    again = await asyncio.gather(*(hook_of("flows_default", instead_of=first) for _ in range(20)))
    assert {id(hook) for hook in again} == {id(again[0])}
    assert again[0] is not first


@pytest.mark.usefixtures("station")
async def test_first_to_ask_may_leave() -> None:
    """A look-up goes on for the others when the one who asked first is cancelled."""
    tasks = [asyncio.create_task(hook_of("flows_default")) for _ in range(3)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    assert await tasks[1] is await tasks[2]


async def test_failed_look_up_is_not_kept(station: FlowStation, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is missing or of another type is an error for who asked, and looked up again by who comes next."""
    monkeypatch.setenv("AIRFLOW_CONN_LATE", '{"conn_type": "http", "host": "x"}')
    with pytest.raises(FlowInputError, match="'late' is of type 'http'"):
        await hook_of("late")
    station.connect(monkeypatch, "late")
    assert (await hook_of("late")).flows_conn_id == "late"


@pytest.mark.usefixtures("station")
async def test_each_event_loop_looks_up_for_itself() -> None:
    """A hook of one event loop is not handed out in another."""
    here = await hook_of("flows_default")
    assert await asyncio.to_thread(lambda: asyncio.run(hook_of("flows_default"))) is not here


async def rotated(station: FlowStation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the server take a new key only, and Airflow know it; the look-ups so far are some time ago."""
    assert await until(lambda: len(station.asked) > 3)
    station.keys = {"new"}
    station.connect(monkeypatch, key="new")
    aged()


async def test_key_that_is_changed_ends_no_wait(
    station: FlowStation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """When the old key is refused and the connection has a new one, all waits go on with it, and each says so once."""
    caplog.set_level(logging.INFO)
    ids = station.make(20, 2.5)
    runs = asyncio.gather(*(ended(key) for key in ids))
    await rotated(station, monkeypatch)

    assert [run.flow_run_id for run in await runs if run.completed] == ids
    assert {asked.key for asked in station.asked} == {"key", "new"}


async def test_key_is_refused_for_good(station: FlowStation) -> None:
    """When the key is refused and the connection has no other, each wait ends in an error that names the connection once."""
    tasks = asyncio.gather(*(ended(key) for key in station.make(15, 60)), return_exceptions=True)
    assert await until(lambda: len(station.asked) > 3)
    station.keys = set()
    aged()

    for error in await tasks:
        message = only(error, FlowAuthError)  # type: ignore[arg-type]
        assert message.count("Connection 'flows_default'") == 1
        assert "check the connection's password" in message


async def test_wrong_key_from_the_start(station: FlowStation) -> None:
    """A key that was never right ends each wait after a few looks, without a second look-up of the connection."""
    station.keys = set()
    errors = await errors_of(station.make(3, 60))
    assert all("Connection 'flows_default'" in only(error, FlowAuthError) for error in errors)


async def test_changed_key_reaches_who_came_long_before(
    station: FlowStation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a wait whose hook is older than the one that was looked up last, before the change, gets the new key."""
    (first, second) = station.make(2, 4.0)
    old = asyncio.create_task(ended(first))
    assert await until(lambda: station.asked)
    aged(seconds=FRESH_SECONDS + 1)
    young = asyncio.create_task(ended(second, often=(0.3, 0.3)))  # its look-up is made anew, with the old key
    await asyncio.sleep(0.7)
    await rotated(station, monkeypatch)

    assert (await old).completed
    assert (await young).completed


async def test_key_that_is_changed_twice(station: FlowStation, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait survives one change of the key after another."""
    runs = asyncio.gather(*(ended(key) for key in station.make(5, 2.5)))
    await rotated(station, monkeypatch)
    assert await until(lambda: station.asked[-1].key == "new")
    await asyncio.sleep(0.3)
    station.keys = {"newer"}
    station.connect(monkeypatch, key="newer")
    aged()
    assert all(run.completed for run in await runs)


async def test_connection_that_is_taken_away_is_an_error_of_ours(
    station: FlowStation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that is refused while its connection has been deleted ends the wait with an error event, not a broken trigger."""
    task = asyncio.create_task(ended(station.make(1, 60)[0]))
    assert await until(lambda: station.asked)
    station.keys = set()
    monkeypatch.delenv("AIRFLOW_CONN_FLOWS_DEFAULT")
    assert "AIRFLOW_CONN_FLOWS_DEFAULT" not in os.environ
    aged()
    with pytest.raises(FlowError, match="flows_default"):
        await task
