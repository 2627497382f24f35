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
from airflow_provider_flows.worker.kill_check import ON_KILL_SECONDS, ais_over

if TYPE_CHECKING:
    from airflow_provider_flows.core.polling.wait import Wait
    from airflow_provider_flows.hooks import FlowsHook

__all__ = ["FlowRunFinishedTrigger", "FlowRunTrigger", "outcome", "settling_seconds"]

log = logging.getLogger(__name__)  # one for all: to make a logger for each trigger takes longer than a look
PROGRESS_SECONDS = (
    30.0  # between two lines about progress: each line costs a triggerer half a millisecond of CPU
)
KILLS_ARE_TOLD = hasattr(BaseTrigger, "on_kill")  # by Airflow 3.3 and later

_KILLS: set[asyncio.Task[None]] = set()  # an event loop alone would forget a task that nobody holds


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
        memory: Mapping[str, Any] | None = None,
        **_later: Any,  # a trigger that a newer version stored must not fail in an older triggerer
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's is not annotated
        self.flows_conn_id = flows_conn_id
        self.flow_run_id = flow_run_id
        self.poll_interval = poll_interval
        self.max_poll_interval = max_poll_interval
        self.deadline = deadline
        self.abort_on_kill = abort_on_kill
        self.memory = None if memory is None else dict(memory)
        self._told = False
        self._context: Context | None = None  # in which its lines are told
        self._opened: FlowsHook | None = (
            None  # kept for `on_kill`: a look-up takes seconds in a triggerer that has just started
        )

    @classmethod
    def going_on(cls, flows_conn_id: str, wait: Wait, *, abort_on_kill: bool = False) -> Self:
        """Make the trigger that goes on with a wait where a worker leaves it."""
        plan = wait.schedule
        return cls(
            flows_conn_id,
            wait.flow_run_id,
            plan.poll_interval,
            plan.max_poll_interval,
            plan.deadline,
            abort_on_kill=abort_on_kill,
            memory=wait.memory,
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
            {"memory": self.memory} if self.memory else {}
        )
        return f"{type(self).__module__}.{type(self).__qualname__}", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and yield one event: `flow_run_id` and either `run` or `error`; `outcome` reads it."""
        began = time.monotonic()
        told: dict[str, Any]
        try:
            told = {"run": (await self._final()).as_event()}
        except FlowError as error:
            told = {"error": error.as_dict()}
        if (early := settling_seconds() - (time.monotonic() - began)) > 0:
            await asyncio.sleep(early)
        self._told = True
        yield TriggerEvent({"flow_run_id": self.flow_run_id, **told})

    async def on_kill(self) -> None:
        """Abort the flow run if the task is really over; in doubt do nothing, the next try goes on with the run."""
        if self._told or not self.abort_on_kill:
            return
        # A task of its own, because Airflow cancels the trigger anew every second until it is gone, this method with it.
        kill = asyncio.create_task(self._stop_if_over())
        _KILLS.add(kill)
        kill.add_done_callback(_KILLS.discard)
        while not kill.done():
            with suppress(asyncio.CancelledError):
                await asyncio.shield(kill)

    async def _stop_if_over(self) -> None:
        from airflow_provider_flows.core.start import stopped
        from airflow_provider_flows.hooks import FlowsHook

        try:
            async with asyncio.timeout(ON_KILL_SECONDS):
                if await ais_over(self.task_instance):
                    hook = self._opened or await FlowsHook.aget_hook(self.flows_conn_id)
                    await hook.apatient(stopped(hook.service, self.flow_run_id))
                    self.log.info("The task was killed; flow run %s is stopped", self.flow_run_id)
        except Exception:  # a kill must not fail for any reason; the next try or a person finds the run
            self.log.exception(
                "The flow run %s could not be stopped; look at it at the service", self.flow_run_id
            )

    async def _final(self) -> FlowRun:
        """Wait in the watch that all triggers of the connection share; a key that is refused is read anew."""
        from airflow_provider_flows.triggerer.hook_cache import (
            hook_of,
        )  # dear, and needed when a trigger runs only

        self._opened = hook = await hook_of(self.flows_conn_id)
        from airflow_provider_flows.triggerer.shared_poller import (
            Watch,  # by now it is imported, which takes too long on the loop
        )

        self._context = copy_context()
        schedule = Schedule(self.poll_interval, self.max_poll_interval, self.deadline)
        wait = hook.waiting_for(self.flow_run_id, schedule, self._tell, PROGRESS_SECONDS)
        if self.memory:
            wait.recall(self.memory)
            self.memory = None  # the wait has it now; thousands of waits keep as little as they can
        while True:
            try:
                return await Watch.of(hook).until_final(wait)
            except FlowServiceError as error:
                hook.name_in(error)
                latest = await _latest(hook) if isinstance(error, FlowAuthError) else hook
                if latest.settings == hook.settings:
                    raise
            self.log.info(
                "The key of connection %s was changed; the wait goes on with the new one", self.flows_conn_id
            )
            self._opened = hook = latest
            wait.reprieved()

    def _tell(self, level: int, line: str) -> None:
        """Tell a line as this trigger: the watch belongs to none, and what is told in its context would not reach this log."""
        (self._context or copy_context()).run(log.log, level, line)


async def _latest(hook: FlowsHook) -> FlowsHook:
    """Look a hook's connection up anew; where that fails, the old hook: the service's refusal matters more than why."""
    from airflow_provider_flows.triggerer.hook_cache import hook_of

    try:
        return await hook_of(hook.flows_conn_id, instead_of=hook)
    except Exception:  # noqa: BLE001  # whatever it is
        return hook


@cache  # Airflow's configuration is read anew each time that it is asked, which takes as long as a look
def settling_seconds() -> float:
    """Give the seconds that must lie between a deferral and its event.

    A task that comes back before its executor reported the end of its process is failed by the scheduler ("finished with state
    success, but the task instance's state attribute is queued"); the report is late by up to `[workers] min_heartbeat_interval`.
    """
    return float(conf.getfloat("workers", "min_heartbeat_interval", fallback=5.0)) + 1.0


def outcome(event: Mapping[str, Any] | None) -> FlowRun:
    """Read a `FlowRunTrigger`'s event: the run, final, or the very error that a blocking wait would have raised.

    :raises FlowError: what ended the wait, or that the event is none of this trigger's.
    """
    if isinstance(event, Mapping) and isinstance(event.get("run"), Mapping):
        return FlowRun.from_event(event["run"])
    if isinstance(event, Mapping) and isinstance(event.get("error"), Mapping):
        raise error_from_dict(event["error"])
    message = f"The task was resumed with an event that no FlowRunTrigger makes: {event!r}. Clear the task to start again."
    raise FlowError(message)
