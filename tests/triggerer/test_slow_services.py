"""Tests that a wait and an asset watcher go on after a response without end."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from pathlib import Path

import pytest

from airflow_provider_flows.core.exceptions import FlowTimeout
from tests.support.asset_watchers import FileStore, run_watcher
from tests.support.downloads import ActionSequence, hook_to
from tests.support.hostile import BEHAVIOURS, broken_framing, slow
from tests.support.hostile.server import json_response
from tests.support.servers import MisbehavingServer
from tests.support.triggers import wait_for_condition, wait_in_poller

TIMEOUTS = {"connect_timeout": 0.2, "read_timeout": 0.3, "retries": 0}
pytestmark = pytest.mark.usefixtures("no_proxy")


def respond_with(state: str, finished_at: float | None = None) -> bytes:
    """Return a response that is a run's poll and a list with that run."""
    row = {"flow_id": "r", "template": "t", "state": state, "progress": 1.0, "created_at": 1e9}
    row |= {"started_at": 1e9} if finished_at is None else {"started_at": 1e9, "finished_at": finished_at}
    return json_response({**row, "flows": [row]})


def respond_running(connection: socket.socket) -> None:
    """Respond with a running run."""
    connection.sendall(respond_with("running"))


def respond_completed(connection: socket.socket) -> None:
    """Respond with a completed run."""
    connection.sendall(respond_with("completed", time.time()))


@pytest.mark.parametrize("name", [*broken_framing.NAMES, *slow.RESPONSES, "silence"])
async def test_deferred_wait_goes_on(name: str) -> None:
    """The poll after a bad response finds the end of the run, and nothing is left on the loop."""
    actions = ActionSequence(respond_running, BEHAVIOURS[name], respond_completed)
    with MisbehavingServer(actions) as server:
        async with asyncio.timeout(15):
            run = await wait_in_poller(hook_to(server.url, **TIMEOUTS), "r")
        assert run.is_completed
        assert await wait_for_condition(lambda: asyncio.all_tasks() == {asyncio.current_task()})


@pytest.mark.parametrize(
    "name", ["a slow body", "slow headers", "a chunk size that is no number, in a later segment", "silence"]
)
async def test_deferred_wait_ends_at_its_deadline(name: str) -> None:
    """A wait with a deadline ends soon after it, and its poll with it."""
    with MisbehavingServer(BEHAVIOURS[name]) as server:
        started_at = time.monotonic()
        with pytest.raises(FlowTimeout):
            await wait_in_poller(hook_to(server.url, read_timeout=600), "r", time.time() + 0.3)
        assert time.monotonic() - started_at < 6
        assert await wait_for_condition(lambda: asyncio.all_tasks() == {asyncio.current_task()})


@pytest.mark.parametrize(
    "name",
    [
        "a slow body",
        "endless 100 Continue",
        "a chunk size that is no number, in a later segment",
        "no line break after a chunk, in a later segment",
    ],
)
async def test_asset_watcher_goes_on(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list after a bad response has the run that ended in between, and the watcher emits its event."""
    actions = ActionSequence(respond_running, respond_running, BEHAVIOURS[name], respond_completed)
    with MisbehavingServer(actions) as server:
        connection = {"conn_type": "generio", "host": server.url, "password": "k", "extra": TIMEOUTS}
        monkeypatch.setenv("AIRFLOW_CONN_FLOWS_DEFAULT", json.dumps(connection))
        async with run_watcher(FileStore(tmp_path / "state.json")) as watcher:
            assert await wait_for_condition(lambda: watcher.ids == ["r"], max_seconds=15)
