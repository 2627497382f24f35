"""FlowStartTrigger: a trigger that waits until the account may have another active flow run."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextvars import copy_context
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_flows.core.account_limits import StartWait
from airflow_provider_flows.core.exceptions import FlowQuotaExceeded, FlowTimeout
from airflow_provider_flows.triggerer.kill_check import check_unknown, get_class_path, min_event_delay

log = logging.getLogger(__name__)

PUBLIC_MODULE = "airflow_provider_flows.triggers"  # Airflow stores the path of the class in its database
WORKER_SECONDS = 15.0  # after the event, in which the task's worker starts its run
ERROR_SECONDS = 60.0  # before the event after an error, so that the task does not come back all the time
CANNOT_COUNT = (
    "The triggerer cannot count the flow runs of the account (%s), so the worker tries again in a minute"
)


class FlowStartTrigger(BaseTrigger):
    """Wait until the account may have another active flow run, so that the task can start it.

    The worker counts again before it starts the run. The event has `start_deadline`.

    :param flows_conn_id: the Airflow connection.
    :param flow: the name of the flow, for the log.
    :param deadline: the time at which the task is resumed in any case, in epoch seconds, None for none.
    :param start_deadline: the deadline of the flow run, which the task needs again.
    :param is_stored: as for `FlowRunTrigger`.
    """

    __module__ = PUBLIC_MODULE

    def __init__(
        self,
        flows_conn_id: str,
        flow: str,
        deadline: float | None = None,
        start_deadline: float | None = None,
        *,
        is_stored: bool = False,
        **unknown_arguments: Any,
    ) -> None:
        check_unknown(type(self), unknown_arguments, is_stored=is_stored)
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's is not annotated
        self.flows_conn_id, self.flow = flows_conn_id, flow
        self.deadline, self.start_deadline = deadline, start_deadline

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments."""
        return get_class_path(self), {
            "flows_conn_id": self.flows_conn_id,
            "flow": self.flow,
            "deadline": self.deadline,
            "start_deadline": self.start_deadline,
            "is_stored": True,
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and yield one event. The worker reports what has ended the wait early."""
        started_at = time.monotonic()
        try:
            await self._wait()
        except (FlowTimeout, FlowQuotaExceeded):
            log.debug("The worker counts again, and reports this")
        except Exception as error:  # noqa: BLE001  # any error of Airflow's or the service's
            log.warning(CANNOT_COUNT, type(error).__name__)
            seconds_left = ERROR_SECONDS if self.deadline is None else self.deadline - time.time()
            await asyncio.sleep(max(0.0, min(ERROR_SECONDS, seconds_left)))
        if (early := min_event_delay() - (time.monotonic() - started_at)) > 0:
            await asyncio.sleep(early)
        yield TriggerEvent({"start_deadline": self.start_deadline})

    async def _wait(self) -> None:
        # an in-function import: expensive, and needed only when a trigger runs
        from airflow_provider_flows.triggerer.per_loop import get_cached_hook

        hook, context = await get_cached_hook(self.flows_conn_id), copy_context()
        wait = StartWait(
            self.deadline, log=lambda line: context.run(log.info, "%s", line), is_for_other_process=True
        )
        reservation = await hook.arun(hook.account.wait_for_start(self.flow, wait))
        # so that other triggers here do not resume their tasks for the same place
        reservation.expires_at = time.time() + min_event_delay() + WORKER_SECONDS
