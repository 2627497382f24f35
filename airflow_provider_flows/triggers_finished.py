"""The trigger of asset watchers: tells, run by run, which flow runs end at a service, whoever started them.

It belongs to no task. What is asked of the service stands in bulletin.py, what is news in flow/told.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.polling.event_cursor import EventCursor
from airflow_provider_flows.core.polling.schedule import Schedule
from airflow_provider_flows.core.run import FlowState

if TYPE_CHECKING:
    from airflow_provider_flows.core.run import FlowRun

log = logging.getLogger(__name__)

FINAL_STATE_NAMES = tuple(state.value for state in FlowState if state.is_final)
EVENT_FIELDS = (
    "flow_run_id",
    "flow",
    "service",
    "state",
    "progress",
    "created_at",
    "started_at",
    "finished_at",
    "duration",
    "error",
)
MAX_EVENT_TEXT_CHARACTERS = 1000  # characters of a text that the service wrote


class FlowRunFinishedTrigger(BaseEventTrigger):
    """Tells of each flow run that ends, once, as an event of the asset that an `AssetWatcher` gives it to.

    What has ended before it looks for the first time is not told; where the first list does not tell when runs ended, the Date of
    the service's answer says what was before, and this machine's clock if there is none. A run that never tells its end is told
    when it is first seen to have ended. It remembers in Airflow's asset state store (3.3 and later)
    what it told, so what ends while no triggerer runs, or while the DAG is paused, is told later. The memory is written
    five seconds after the events, or at the next list if that is later, whatever the interval: a triggerer that dies in between
    tells them again, and loses none.

    All watchers of a connection in one triggerer share one list of its runs for each interval. Errors of the service end
    nothing. The event's payload holds `flow_run_id`, `flow`, `service`, `state`, `progress`, `created_at`, `started_at`,
    `finished_at` (ISO 8601, UTC), `duration` (seconds) and `error`.

    :param flows_conn_id: the Airflow connection, of a service that lists its runs (Generio: https://docs.generio.ai, "List all
        flows"); its key is not among the arguments, which lie in Airflow's database.
    :param flow: the flow's name, as the service writes it in its runs, or several; None for any.
    :param states: the final states to tell of: `completed`, `failed`, `aborted`.
    :param poll_interval: seconds or timedelta between two lists.
    :raises FlowInputError: an argument is wrong.
    """

    save_delay: float = 5.0
    """Seconds after which Airflow has surely written an event to its database; its triggerer hands events over once a second
    (airflow/jobs/triggerer_job_runner.py), and tells a trigger of its own kind nothing of it."""

    def __init__(
        self,
        flows_conn_id: str = "flows_default",
        flow: str | Sequence[str] | None = None,
        states: str | Sequence[str] = (FlowState.COMPLETED.value,),
        poll_interval: float | timedelta = 60.0,
        **newer_arguments: Any,  # a trigger that a newer version stored must not fail in an older triggerer
    ) -> None:
        if newer_arguments:
            log.warning(
                "FlowRunFinishedTrigger does not know %s, and goes on without",
                ", ".join(map(repr, sorted(newer_arguments))),
            )
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's is not annotated
        self.flows_conn_id = flows_conn_id
        self.flow = None if flow is None else _parse_names("flow", flow)
        self.states = _parse_names("states", states)
        self.poll_interval = Schedule.of(poll_interval, poll_interval).poll_interval
        if unknown := [state for state in self.states if state not in FINAL_STATE_NAMES]:
            message = f"states must be among {', '.join(FINAL_STATE_NAMES)}, for a run is told of when it is over; not {', '.join(unknown)}"
            raise FlowInputError(message)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Give the class path and the arguments, always in the same form: Airflow knows a watcher again by them."""
        names = ("flows_conn_id", "flow", "states", "poll_interval")
        return f"{type(self).__module__}.{type(self).__qualname__}", {
            name: getattr(self, name) for name in names
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look for ever; one event for each run."""
        from airflow_provider_flows.triggerer.finished_runs_feed import (
            FinishedRunsFeed,
        )  # dear, and needed when a trigger runs only
        from airflow_provider_flows.triggerer.watcher_state import WatcherState

        watcher_state = WatcherState(getattr(self, "asset_state_store", None), self._key())
        cursor = EventCursor(await watcher_state.load(self.poll_interval))
        async for snapshot in FinishedRunsFeed.for_connection(self.flows_conn_id).snapshots(
            self.poll_interval
        ):
            new_runs = cursor.take_new(snapshot, self._matches)
            for run in new_runs:
                yield TriggerEvent(_payload(run))
            # an event that is not in the database when it is remembered as told would be lost with the triggerer
            if cursor.has_changed:
                watcher_state.save_after(cursor.to_dict(), self.save_delay if new_runs else 0.0)
                cursor.has_changed = False
            if new_runs:
                await asyncio.sleep(min(self.save_delay, self.poll_interval))
            await watcher_state.flush()

    def _matches(self, run: FlowRun) -> bool:
        return run.state.value in self.states and (self.flow is None or run.flow in self.flow)

    def _key(self) -> str:
        """Name the memory by all that decides what is told: several watchers of one asset have one each."""
        identity = json.dumps([self.flows_conn_id, self.flow, self.states])
        return f"flow_runs_emitted_{hashlib.sha256(identity.encode()).hexdigest()[:32]}"


def _parse_names(name: str, argument: str | Sequence[str]) -> list[str]:
    """Read one word or several into a list in a fixed order."""
    values = [argument] if isinstance(argument, str) else list(argument)
    if not values or not all(isinstance(value, str) and value.strip() for value in values):
        message = f"{name} must be a word or a list of words, not {argument!r}"
        raise FlowInputError(message)
    return sorted({value.strip() for value in values})


def _payload(run: FlowRun) -> dict[str, Any]:
    """Give what is told of a run; it lies in Airflow's database, so texts of the service's are cut."""
    event = run.to_event()
    return {
        name: value[:MAX_EVENT_TEXT_CHARACTERS] if isinstance(value := event[name], str) else value
        for name in EVENT_FIELDS
    }
