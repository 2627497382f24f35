"""Helpers for tests of triggers and the shared poller: triggers that run to their end, an idle event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any

from airflow_provider_flows.core.exceptions import FlowError
from airflow_provider_flows.core.flow_run import FlowRun
from airflow_provider_flows.core.polling.schedule import Schedule
from airflow_provider_flows.hooks import FlowsHook
from airflow_provider_flows.triggerer import per_loop
from airflow_provider_flows.triggerer.shared_poller import SharedPoller
from airflow_provider_flows.triggers import FlowRunTrigger, run_from_event

POLL_INTERVALS = (0.1, 0.1)  # poll_interval, max_poll_interval


async def run_trigger(
    flow_run_id: str,
    deadline: float | None = None,
    conn_id: str = "flows_default",
    poll_intervals: tuple[float, float] = POLL_INTERVALS,
) -> FlowRun:
    """Run a trigger to its end, and return the run of its one event, or raise its error."""
    trigger = FlowRunTrigger(conn_id, flow_run_id, *poll_intervals, deadline)
    (event,) = [event async for event in trigger.run()]
    return run_from_event(event.payload)


async def run_triggers(ids: Iterable[str], **more: Any) -> list[FlowRun]:
    """Run a trigger for each id, all at once."""
    return await asyncio.gather(*(run_trigger(key, **more) for key in ids))


async def collect_errors(ids: Iterable[str], **more: Any) -> list[BaseException | None]:
    """Run a trigger for each id, all at once, and return their errors."""
    results = await asyncio.gather(*(run_trigger(key, **more) for key in ids), return_exceptions=True)
    return [result if isinstance(result, BaseException) else None for result in results]


async def wait_in_poller(hook: FlowsHook, flow_run_id: str, deadline: float | None = None) -> FlowRun:
    """Wait in the shared poller of a hook, without a trigger."""
    wait = hook.create_wait(flow_run_id, Schedule(*POLL_INTERVALS, deadline))
    return await SharedPoller.for_hook(hook).wait_until_final(wait)


async def wait_for_condition(condition: Callable[[], Any], max_seconds: float = 3.0) -> bool:
    """Wait until a condition is true; return whether it was in time."""
    deadline = time.monotonic() + max_seconds
    while not condition() and time.monotonic() < deadline:  # noqa: ASYNC110  # another thread may fulfill the condition
        await asyncio.sleep(0.01)
    return bool(condition())


async def wait_for_idle_loop(max_seconds: float = 3.0) -> bool:
    """Wait until the loop has no other task; return whether it was in time."""
    return await wait_for_condition(lambda: asyncio.all_tasks() == {asyncio.current_task()}, max_seconds)


def age_hook_cache(conn_id: str = "flows_default", seconds: float = 30.0) -> None:
    """Make a cached hook older, so that it expires sooner."""
    entry = per_loop._HOOKS.get()._entries[conn_id]
    entry.started_at -= seconds
    entry.expires_at -= seconds


def error_text(error: BaseException | None, kind: type[FlowError]) -> str:
    """Return the text of an error, which must be of exactly this type."""
    assert type(error) is kind, repr(error)
    return str(error)
