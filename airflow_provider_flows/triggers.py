"""The trigger of tasks: waits in the triggerer for a flow run to be final, and tells its task what it saw.

It fetches nothing and ends no task; operators.py and sensors.py do that with what `outcome` makes of the event. The trigger of
asset watchers can be imported from here as well; it stands in finished.py.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from contextvars import Context, copy_context
from functools import cache
from typing import TYPE_CHECKING, Any, Self

from airflow.providers.common.compat.sdk import conf
from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_flows.core.exceptions import FlowAuthError, FlowError, FlowServiceError, error_from_dict
from airflow_provider_flows.core.polling.schedule import Schedule
from airflow_provider_flows.core.run import FlowRun
from airflow_provider_flows.triggers_finished import FlowRunFinishedTrigger
from airflow_provider_flows.worker.kill_check import ON_KILL_SECONDS, ais_task_finished

if TYPE_CHECKING:
    from airflow_provider_flows.core.polling.wait import Wait
    from airflow_provider_flows.hooks import FlowsHook

__all__ = ["FlowRunFinishedTrigger", "FlowRunTrigger", "min_event_delay", "run_from_event"]

log = logging.getLogger(__name__)  # one for all: to make a logger for each trigger takes longer than a look
MIN_PROGRESS_LOG_SECONDS = (
    30.0  # between two lines about progress: each line costs a triggerer half a millisecond of CPU
)
SUPPORTS_ON_KILL = hasattr(BaseTrigger, "on_kill")  # by Airflow 3.3 and later

_KILL_TASKS: set[asyncio.Task[None]] = set()  # an event loop alone would forget a task that nobody holds


class FlowRunTrigger(BaseTrigger):
    """Waits until a flow run is final, or its deadline has passed, or the service says something that ends the wait.

    Its arguments lie in Airflow's database as plain JSON: ids and numbers only.

    :param flows_conn_id: the Airflow connection to use.
    :param flow_run_id: the flow run to wait for.
    :param poll_interval: seconds; the most often that it looks.
    :param max_poll_interval: seconds; the least often that it looks.
    :param deadline: epoch seconds at which the wait ends, None for never.
    :param abort_on_kill: whether the flow run is aborted when its task is really over (Airflow 3.3 and later tell).
    :param memory: what the look before the deferral saw and told (`Wait.memory`), so that nothing is told twice.
    """

    def __init__(
        self,
        flows_conn_id: str,
        flow_run_id: str,
        poll_interval: float = 5.0,
        max_poll_interval: float = 60.0,
        deadline: float | None = None,
        *,
        abort_on_kill: bool = False,
        state: Mapping[str, Any] | None = None,
        **_newer_arguments: Any,  # a trigger that a newer version stored must not fail in an older triggerer
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's is not annotated
        self.flows_conn_id = flows_conn_id
        self.flow_run_id = flow_run_id
        self.poll_interval = poll_interval
        self.max_poll_interval = max_poll_interval
        self.deadline = deadline
        self.abort_on_kill = abort_on_kill
        self.state = None if state is None else dict(state)
        self._has_fired = False
        self._context: Context | None = None  # in which its lines are told
        self._hook: FlowsHook | None = (
            None  # kept for `on_kill`: a look-up takes seconds in a triggerer that has just started
        )

    @classmethod
    def from_wait(cls, flows_conn_id: str, wait: Wait, *, abort_on_kill: bool = False) -> Self:
        """Make the trigger that goes on with a wait where a worker leaves it."""
        schedule = wait.schedule
        return cls(
            flows_conn_id,
            wait.flow_run_id,
            schedule.poll_interval,
            schedule.max_poll_interval,
            schedule.deadline,
            abort_on_kill=abort_on_kill,
            state=wait.to_dict(),
        )

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Give the class path and the arguments."""
        names = (
            "flows_conn_id",
            "flow_run_id",
            "poll_interval",
            "max_poll_interval",
            "deadline",
            "abort_on_kill",
        )
        arguments = {name: getattr(self, name) for name in names} | (
            {"state": self.state} if self.state else {}
        )
        return f"{type(self).__module__}.{type(self).__qualname__}", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and yield one event: `flow_run_id` and either `run` or `error`; `outcome` reads it."""
        started_at = time.monotonic()
        result: dict[str, Any]
        try:
            result = {"run": (await self._wait_until_final()).to_event()}
        except FlowError as error:
            result = {"error": error.to_dict()}
        if (early := min_event_delay() - (time.monotonic() - started_at)) > 0:
            await asyncio.sleep(early)
        self._has_fired = True
        yield TriggerEvent({"flow_run_id": self.flow_run_id, **result})

    async def on_kill(self) -> None:
        """Abort the flow run if the task is really over; in doubt do nothing, the next try goes on with the run."""
        if self._has_fired or not self.abort_on_kill:
            return
        # A task of its own, because Airflow cancels the trigger anew every second until it is gone, this method with it.
        kill = asyncio.create_task(self._cancel_if_finished())
        _KILL_TASKS.add(kill)
        kill.add_done_callback(_KILL_TASKS.discard)
        while not kill.done():
            with suppress(asyncio.CancelledError):
                await asyncio.shield(kill)

    async def _cancel_if_finished(self) -> None:
        from airflow_provider_flows.core.start import cancel
        from airflow_provider_flows.hooks import FlowsHook

        try:
            async with asyncio.timeout(ON_KILL_SECONDS):
                if await ais_task_finished(self.task_instance):
                    hook = self._hook or await FlowsHook.aget_hook(self.flows_conn_id)
                    await hook.arun(cancel(hook.service, self.flow_run_id))
                    self.log.info("The task was killed; flow run %s is stopped", self.flow_run_id)
        except Exception:  # a kill must not fail for any reason; the next try or a person finds the run
            self.log.exception(
                "The flow run %s could not be stopped; look at it at the service", self.flow_run_id
            )

    async def _wait_until_final(self) -> FlowRun:
        """Wait in the watch that all triggers of the connection share; a key that is refused is read anew."""
        from airflow_provider_flows.triggerer.hook_cache import (
            get_hook_cached,
        )  # dear, and needed when a trigger runs only

        self._hook = hook = await get_hook_cached(self.flows_conn_id)
        from airflow_provider_flows.triggerer.shared_poller import (
            SharedPoller,  # by now it is imported, which takes too long on the loop
        )

        self._context = copy_context()
        schedule = Schedule(self.poll_interval, self.max_poll_interval, self.deadline)
        wait = hook.create_wait(self.flow_run_id, schedule, self._log_line, MIN_PROGRESS_LOG_SECONDS)
        if self.state:
            wait.restore(self.state)
            self.state = None  # the wait has it now; thousands of waits keep as little as they can
        while True:
            try:
                return await SharedPoller.for_hook(hook).wait_until_final(wait)
            except FlowServiceError as error:
                hook.add_connection_to(error)
                latest = await _reload_hook(hook) if isinstance(error, FlowAuthError) else hook
                if latest.settings == hook.settings:
                    raise
            self.log.info(
                "The key of connection %s was changed; the wait goes on with the new one", self.flows_conn_id
            )
            self._hook = hook = latest
            wait.reset_rejections()

    def _log_line(self, level: int, line: str) -> None:
        """Tell a line as this trigger: the watch belongs to none, and what is told in its context would not reach this log."""
        (self._context or copy_context()).run(log.log, level, line)


async def _reload_hook(hook: FlowsHook) -> FlowsHook:
    """Look a hook's connection up anew; where that fails, the old hook: the service's refusal matters more than why."""
    from airflow_provider_flows.triggerer.hook_cache import get_hook_cached

    try:
        return await get_hook_cached(hook.flows_conn_id, stale=hook)
    except Exception:  # noqa: BLE001  # whatever it is
        return hook


@cache  # Airflow's configuration is read anew each time that it is asked, which takes as long as a look
def min_event_delay() -> float:
    """Give the seconds that must lie between a deferral and its event.

    A task that comes back before its executor reported the end of its process is failed by the scheduler ("finished with state
    success, but the task instance's state attribute is queued"); the report is late by up to `[workers] min_heartbeat_interval`.
    """
    return float(conf.getfloat("workers", "min_heartbeat_interval", fallback=5.0)) + 1.0


def run_from_event(event: Mapping[str, Any] | None) -> FlowRun:
    """Read a `FlowRunTrigger`'s event: the run, final, or the very error that a blocking wait would have raised.

    :raises FlowError: what ended the wait, or that the event is none of this trigger's.
    """
    if isinstance(event, Mapping) and isinstance(event.get("run"), Mapping):
        return FlowRun.from_event(event["run"])
    if isinstance(event, Mapping) and isinstance(event.get("error"), Mapping):
        raise error_from_dict(event["error"])
    message = f"The task was resumed with an event that no FlowRunTrigger makes: {event!r}. Clear the task to start again."
    raise FlowError(message)
