"""What the tests of the watch share: triggers that are held to their end, and an event loop that must be clean again.

It asserts only what every trigger must keep: that it has exactly one event.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any

from airflow_provider_flows.core.exceptions import FlowError
from airflow_provider_flows.core.polling.schedule import Schedule
from airflow_provider_flows.core.run import FlowRun
from airflow_provider_flows.hooks import FlowsHook
from airflow_provider_flows.triggerer import hook_cache
from airflow_provider_flows.triggerer.shared_poller import SharedPoller
from airflow_provider_flows.triggers import FlowRunTrigger, run_from_event

POLL_INTERVALS = (0.1, 0.1)  # poll_interval, max_poll_interval


async def run_trigger(
    flow_run_id: str,
    deadline: float | None = None,
    conn_id: str = "flows_default",
    poll_intervals: tuple[float, float] = POLL_INTERVALS,
) -> FlowRun:
    """Run a trigger to its end, and give what its one event says, or raise it."""
    trigger = FlowRunTrigger(conn_id, flow_run_id, *poll_intervals, deadline)
    (event,) = [event async for event in trigger.run()]
    return run_from_event(event.payload)


async def run_triggers(ids: Iterable[str], **more: Any) -> list[FlowRun]:
    """Run a trigger for each id, all at once."""
    return await asyncio.gather(*(run_trigger(key, **more) for key in ids))


async def collect_errors(ids: Iterable[str], **more: Any) -> list[BaseException | None]:
    """Run a trigger for each id, all at once, and give the errors that they ended with."""
    results = await asyncio.gather(*(run_trigger(key, **more) for key in ids), return_exceptions=True)
    return [result if isinstance(result, BaseException) else None for result in results]


async def wait_in_poller(hook: FlowsHook, flow_run_id: str, deadline: float | None = None) -> FlowRun:
    """Wait in the watch of a hook, without a trigger."""
    wait = hook.create_wait(flow_run_id, Schedule(*POLL_INTERVALS, deadline))
    return await SharedPoller.for_hook(hook).wait_until_final(wait)


async def wait_for_condition(condition: Callable[[], Any], max_seconds: float = 3.0) -> bool:
    """Wait until something holds; tells whether it did in time."""
    deadline = time.monotonic() + max_seconds
    while not condition() and time.monotonic() < deadline:  # noqa: ASYNC110  # what is waited for may happen in another thread
        await asyncio.sleep(0.01)
    return bool(condition())


async def wait_for_idle_loop(max_seconds: float = 3.0) -> bool:
    """Wait until no other task is left on the loop; tells whether that came in time."""
    return await wait_for_condition(lambda: asyncio.all_tasks() == {asyncio.current_task()}, max_seconds)


def age_hook_cache(conn_id: str = "flows_default", seconds: float = 30.0) -> None:
    """Let the look-up of a connection be older than it is: nobody wants to wait for that in a test."""
    hook_cache._LOOKUPS[asyncio.get_running_loop()][conn_id].started_at -= seconds


def error_text(error: BaseException | None, kind: type[FlowError]) -> str:
    """Give the text of an error, which must be of exactly this kind."""
    assert type(error) is kind, repr(error)
    return str(error)
