"""Tests of errors in a service's code in a shared poller: which waits they end, and that the next works."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Mapping
from typing import Any

import pytest

from airflow_provider_flows.core.exceptions import FlowError
from airflow_provider_flows.core.flow_run import FlowRun
from airflow_provider_flows.core.http import Conversation
from airflow_provider_flows.hooks import FlowsHook, GenerioHook
from airflow_provider_flows.services.generio.api import Generio
from airflow_provider_flows.triggerer.shared_poller import MAX_CONCURRENT_POLLS, SharedPoller
from tests.support.flow_server import ApiResponse, StubFlowServer
from tests.support.triggers import error_text, wait_for_condition, wait_for_idle_loop, wait_in_poller


class FaultyService(Generio):
    """A third party's service, with bugs."""

    def get_run(self, flow_run_id: str) -> Conversation[FlowRun]:
        """Fail for one run."""
        if flow_run_id == "faulty":
            raise RuntimeError("a bug in get_run")
        return (yield from super().get_run(flow_run_id))

    def list_active(self, flow_run_ids: Any) -> Conversation[Any]:  # noqa: ARG002  # the signature is the service's
        """Fail for every list."""
        raise RuntimeError("a bug in list_active")
        yield


class FaultyHook(GenerioHook):
    """The hook of that service."""

    def create_service(self, extra: Mapping[str, Any]) -> FaultyService:  # noqa: ARG002  # it has no options
        """Return the service."""
        return FaultyService()


async def load_hook() -> FaultyHook:
    """Return the hook, with its connection looked up."""
    hook = FaultyHook()
    hook._connection = (await FlowsHook.aget_hook("flows_default"))._connection
    return hook


async def test_unexpected_error_in_a_poll_ends_one_wait(flow_server: StubFlowServer) -> None:
    """An unexpected error in one poll ends that wait with a FlowError that names the run."""
    hook = await load_hook()
    results = await asyncio.gather(
        *(wait_in_poller(hook, key) for key in [*flow_server.create_runs(3, 0.4), "faulty"]),
        return_exceptions=True,
    )
    message = error_text(results.pop(), FlowError)
    assert "flow run faulty" in message
    assert "a bug in get_run" in message
    assert [isinstance(result, FlowRun) and result.is_completed for result in results] == [True] * 3


@pytest.mark.parametrize("count", [20, 100])
async def test_crashed_poller_fails_its_waits_and_is_replaced(
    flow_server: StubFlowServer, count: int
) -> None:
    """An error that breaks the poller ends all its waits with a FlowError; the next one gets a new poller."""
    flow_server.run_response = lambda key, _: ApiResponse(flow_server.row(key), delay=0.3)
    hook = await load_hook()
    poller = SharedPoller.for_hook(hook)

    results = await asyncio.gather(
        *(wait_in_poller(hook, key) for key in flow_server.create_runs(count, 60)), return_exceptions=True
    )

    assert all("a bug in list_active" in error_text(result, FlowError) for result in results)
    flow_server.create_runs(1, 0.2, "next")
    assert SharedPoller.for_hook(hook) is not poller
    assert (await wait_in_poller(hook, "next0")).is_completed
    assert await wait_for_idle_loop()
    gc.collect()  # a coroutine that was never awaited would warn now


async def test_shutdown_of_the_event_loop_closes_everything(flow_server: StubFlowServer) -> None:
    """A loop that is shut down while polls are queued leaves no coroutine that was never awaited."""
    flow_server.list_response = lambda _: ApiResponse({}, 404)
    flow_server.run_response = lambda *_: ApiResponse({}, delay=3600)
    ids = flow_server.create_runs(3 * MAX_CONCURRENT_POLLS, 60)

    async def shut_down_while_polling() -> None:
        hook = await FlowsHook.aget_hook("flows_default")
        tasks = [asyncio.create_task(wait_in_poller(hook, key)) for key in ids]
        assert await wait_for_condition(lambda: len(flow_server.poll_requests()) >= MAX_CONCURRENT_POLLS)
        assert not any(task.done() for task in tasks)

    await asyncio.to_thread(lambda: asyncio.run(shut_down_while_polling()))
    gc.collect()  # a coroutine that was never awaited, or a session that is open, would warn now
