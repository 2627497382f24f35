"""Tests of what waits of one connection share when the service limits the rate, and of their deadlines."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time

import pytest

from airflow_provider_flows.core.exceptions import FlowTimeout
from airflow_provider_flows.transport.rate_limiter import DEFAULT_RETRY_AFTER_SECONDS
from airflow_provider_flows.triggerer.shared_poller import LAST_POLL_GRACE_SECONDS, MAX_CONCURRENT_POLLS
from tests.support.fixtures import disable_event_delay
from tests.support.flow_server import ApiRequest, ApiResponse, StubFlowServer
from tests.support.triggers import (
    collect_errors,
    error_text,
    run_trigger,
    run_triggers,
    wait_for_condition,
)

HOUR = "3600"


@pytest.fixture(autouse=True)
def _reject_lists(flow_server: StubFlowServer) -> None:
    """Respond 404 to every request for a list."""
    flow_server.list_response = lambda _: ApiResponse({}, 404)


def reject_one_poll(flow_server: StubFlowServer, status: int, **headers: str) -> list[float]:
    """Let the server reject the twentieth poll; return a list that will contain the time of the rejection."""
    rejected_at: list[float] = []

    def respond(key: str, _: ApiRequest) -> ApiResponse:
        if len(flow_server.poll_requests()) < 20 or rejected_at:
            return ApiResponse(flow_server.row(key))
        rejected_at.append(time.time())
        return ApiResponse(
            {"detail": "slow down"},
            status,
            {name.replace("_", "-"): value for name, value in headers.items()},
        )

    flow_server.run_response = respond
    return rejected_at


@pytest.mark.parametrize("status", [429, 503])
async def test_one_retry_after_pauses_all_waits(flow_server: StubFlowServer, status: int) -> None:
    """After one Retry-After no wait sends for that long; then requests start again, slowly at first."""
    rejected_at = reject_one_poll(flow_server, status, Retry_After="2")

    runs = await run_triggers(flow_server.create_runs(50, 3.0))

    assert all(run.is_completed for run in runs)
    (rejection,) = rejected_at
    times = [request.at for request in flow_server.requests]
    assert not [at for at in times if rejection + 1 < at < rejection + 2]
    assert len([at for at in times if rejection < at < rejection + 1]) <= MAX_CONCURRENT_POLLS
    after = [at for at in times if at >= rejection + 2][:12]
    gaps = [later - earlier for earlier, later in itertools.pairwise(after)]
    assert gaps[0] > 0.3
    assert statistics.median(gaps[5:]) < gaps[0]


async def test_503_without_retry_after_affects_one_run(flow_server: StubFlowServer) -> None:
    """A 503 without Retry-After delays the next poll of one run; the others are polled as before."""
    rejected_at = reject_one_poll(flow_server, 503)

    assert all(run.is_completed for run in await run_triggers(flow_server.create_runs(30, 1.5)))

    times = [request.at for request in flow_server.requests if request.at > rejected_at[0]]
    assert len(times) >= 30
    assert (
        max(later - earlier for earlier, later in itertools.pairwise(times)) < DEFAULT_RETRY_AFTER_SECONDS / 2
    )


async def test_429_without_retry_after_pauses_all_waits(flow_server: StubFlowServer) -> None:
    """A 429 without Retry-After pauses all requests for some seconds."""
    rejected_at = reject_one_poll(flow_server, 429)
    tasks = [asyncio.create_task(run_trigger(key)) for key in flow_server.create_runs(30, 60)]
    assert await wait_for_condition(lambda: rejected_at)
    await asyncio.sleep(2.5)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert not [
        request for request in flow_server.requests if rejected_at[0] + 1 < request.at < rejected_at[0] + 2.5
    ]


async def test_max_requests_per_second(flow_server: StubFlowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """`max_requests_per_second` of the connection bounds all its requests, however many wait."""
    flow_server.connect(monkeypatch, "bounded", max_requests_per_second=20)
    started_at = time.time()

    assert all(
        run.is_completed for run in await run_triggers(flow_server.create_runs(30, 0.5), conn_id="bounded")
    )

    times = [request.at for request in flow_server.requests]
    assert len(times) >= 30
    assert len(times) <= 20 * (time.time() - started_at) * 1.2 + 2
    assert max(sum(at <= other < at + 0.5 for other in times) for at in times) <= 16


async def test_deadline_holds_while_the_service_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a pause of an hour, or a server that never responds, a wait ends at its deadline."""
    disable_event_delay(monkeypatch)
    with StubFlowServer() as rate_limited, StubFlowServer() as hanging:
        rate_limited.run_response = lambda *_: ApiResponse({}, 429, {"Retry-After": HOUR})
        hanging.run_response = lambda *_: ApiResponse({}, delay=3600)
        flow_servers = {"rate_limited": rate_limited, "hanging": hanging}
        for name, flow_server in flow_servers.items():
            flow_server.list_response = lambda _: ApiResponse({}, 404)
            flow_server.connect(monkeypatch, name)
            flow_server.create_runs(40, 60)
        deadline = time.time() + 1

        errors = await asyncio.gather(
            *(
                collect_errors(flow_server.runs, deadline=deadline, conn_id=name)
                for name, flow_server in flow_servers.items()
            )
        )

        assert deadline <= time.time() < deadline + LAST_POLL_GRACE_SECONDS + 3
        assert all(
            "No poll succeeded" in error_text(error, FlowTimeout) for error in itertools.chain(*errors)
        )
        assert len(rate_limited.poll_requests()) <= MAX_CONCURRENT_POLLS


async def test_each_wait_has_its_own_deadline(flow_server: StubFlowServer) -> None:
    """A wait that ends at its deadline leaves those with later ones alone."""
    (first, second) = flow_server.create_runs(2, 1.0)
    longer = asyncio.create_task(run_trigger(second, time.time() + 30))
    assert await wait_for_condition(lambda: flow_server.requests)

    (error,) = await collect_errors([first], deadline=time.time() + 0.2)

    text = error_text(error, FlowTimeout)
    assert "it was 'running'" in text or "No poll succeeded" in text
    assert (await longer).is_completed
