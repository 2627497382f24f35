"""FlowBatchTrigger: one trigger that waits for all active flow runs of a batch."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import TriggerEvent

from airflow_provider_flows.core.exceptions import FlowAuthError, FlowError
from airflow_provider_flows.core.polling.schedule import Schedule
from airflow_provider_flows.core.template_problems import require_booleans
from airflow_provider_flows.triggerer.kill_check import (
    KillableTrigger,
    abort_killed_runs,
    check_unknown,
    get_class_path,
    min_event_delay,
    reload_hook,
)

if TYPE_CHECKING:
    from airflow_provider_flows.hooks import FlowsHook

log = logging.getLogger(__name__)

PUBLIC_MODULE = "airflow_provider_flows.triggers"  # Airflow stores the path of the class in its database
MAX_COLLECT_SECONDS = 60.0  # after the first final run, in which others are collected for the same event


class FlowBatchTrigger(KillableTrigger):
    """Wait until enough of a batch's active flow runs are final, so that its task can start others.

    Its event has `final_run_ids`. It is emitted when `min_final_runs` runs are final, one minute after the
    first one is, at the deadline, or when no run is active any more.

    :param flows_conn_id: the Airflow connection.
    :param flow_run_ids: the active flow runs.
    :param min_final_runs: how many of them must be final for an event.
    :param poll_interval: shortest time between two polls of a run, in seconds.
    :param max_poll_interval: longest time between two polls of a run, in seconds.
    :param deadline: the first deadline of these runs, in epoch seconds, None for none.
    :param abort_on_kill: whether to abort the flow runs when Airflow has ended the task.
    :param rejections: how many earlier triggers have ended because their connection was unusable.
    :param is_stored: as for `FlowRunTrigger`.
    """

    __module__ = PUBLIC_MODULE

    def __init__(  # noqa: PLR0917  # the order of FlowRunTrigger
        self,
        flows_conn_id: str,
        flow_run_ids: Sequence[str],
        min_final_runs: int = 1,
        poll_interval: float = 5.0,
        max_poll_interval: float = 60.0,
        deadline: float | None = None,
        *,
        abort_on_kill: bool = False,
        rejections: int = 0,
        is_stored: bool = False,
        **unknown_arguments: Any,
    ) -> None:
        check_unknown(type(self), unknown_arguments, is_stored=is_stored)
        require_booleans({"abort_on_kill": abort_on_kill})
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's is not annotated
        self.flows_conn_id, self.flow_run_ids = flows_conn_id, list(flow_run_ids)
        self.min_final_runs = min_final_runs
        self.poll_interval, self.max_poll_interval = poll_interval, max_poll_interval
        self.deadline, self.abort_on_kill, self.rejections = deadline, abort_on_kill, rejections

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments."""
        return get_class_path(self), {
            "flows_conn_id": self.flows_conn_id,
            "flow_run_ids": self.flow_run_ids,
            "min_final_runs": self.min_final_runs,
            "poll_interval": self.poll_interval,
            "max_poll_interval": self.max_poll_interval,
            "deadline": self.deadline,
            "abort_on_kill": self.abort_on_kill,
            "rejections": self.rejections,
            "is_stored": True,
        }

    @property
    def runs_name(self) -> str:
        """How messages name the flow runs."""
        return f"the batch with {len(self.flow_run_ids)} flow runs"

    async def abort_runs(self, hook: FlowsHook) -> None:
        """Abort the flow runs, and log how many were active."""
        count = await abort_killed_runs(hook, self.flow_run_ids)
        log.info("The task was killed, so %d of %d flow runs were aborted", count, len(self.flow_run_ids))

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and yield one event: `final_run_ids`, or `error` and `rejections`."""
        started_at = time.monotonic()
        result: dict[str, Any]
        try:
            result = {"final_run_ids": sorted(await self._wait_until_due())}
        except Exception as error:  # noqa: BLE001  # also any of Airflow's; the worker may have a usable connection
            text = error.summary if isinstance(error, FlowError) else type(error).__name__
            result = {"error": text, "rejections": self.rejections + 1}
        if (early := min_event_delay() - (time.monotonic() - started_at)) > 0:
            await asyncio.sleep(early)
        self.has_fired = True
        yield TriggerEvent(result)

    async def _wait_until_due(self) -> set[str]:
        """Wait until the event is due, and return the ids of the runs that are final, or cannot be polled.

        :raises Exception: the connection is unusable.
        """
        # an in-function import: expensive, and needed only when a trigger runs
        from airflow_provider_flows.triggerer.per_loop import get_cached_hook

        self.hook = hook = await get_cached_hook(self.flows_conn_id)
        self.warm_up_task_states()
        try:
            return await self._wait_with(hook)
        except FlowAuthError:
            self.hook = latest = await reload_hook(hook)
            if latest.settings == hook.settings:
                raise
        return await self._wait_with(latest)

    async def _wait_with(self, hook: FlowsHook) -> set[str]:
        waits = {
            asyncio.create_task(self._wait_for_run(hook, flow_run_id)): flow_run_id
            for flow_run_id in self.flow_run_ids
        }
        try:
            return await self._collect(waits)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def _wait_for_run(self, hook: FlowsHook, flow_run_id: str) -> None:
        from airflow_provider_flows.triggerer.shared_poller import (
            SharedPoller,  # imported by now, in a thread
        )

        schedule = Schedule(self.poll_interval, self.max_poll_interval)
        wait = hook.create_wait(flow_run_id, schedule, lambda *_: None)
        try:
            await SharedPoller.for_hook(hook).wait_until_final(wait)
        except FlowAuthError:
            raise
        except FlowError:  # a permanent error, which the worker reports
            return

    async def _collect(self, waits: dict[asyncio.Task[None], str]) -> set[str]:
        final_ids: set[str] = set()
        pending: set[asyncio.Task[None]] = set(waits)
        collect_until: float | None = None
        while pending and len(final_ids) < self.min_final_runs:
            limits = [] if self.deadline is None else [self.deadline - time.time()]
            limits += [] if collect_until is None else [collect_until - time.monotonic()]
            timeout = max(0.0, min(limits)) if limits else None
            done, pending = await asyncio.wait(pending, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                break
            for wait in done:
                wait.result()
                final_ids.add(waits[wait])
            collect_until = collect_until or time.monotonic() + MAX_COLLECT_SECONDS
        return final_ids
