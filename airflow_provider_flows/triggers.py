"""The triggers: FlowRunTrigger for deferred tasks, and FlowRunFinishedTrigger for asset watchers.

FlowBatchTrigger and FlowStartTrigger, which other modules define, are exported here as well.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextvars import Context, copy_context
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from airflow.providers.common.compat.sdk import conf
from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from airflow_provider_flows.batch.trigger import FlowBatchTrigger
from airflow_provider_flows.core.exceptions import (
    FlowAuthError,
    FlowError,
    FlowInputError,
    FlowServiceError,
    error_from_dict,
)
from airflow_provider_flows.core.flow_run import FlowRun, FlowState
from airflow_provider_flows.core.polling.finished_runs import EventCursor, event_payloads
from airflow_provider_flows.core.polling.schedule import Schedule
from airflow_provider_flows.core.template_problems import require_booleans
from airflow_provider_flows.triggerer.kill_check import (
    KillableTrigger,
    abort_killed_run,
    check_unknown,
    deferral_timeout,
    get_class_path,
    is_deferral_timeout,
    min_event_delay,
    reload_hook,
)
from airflow_provider_flows.triggerer.start_trigger import FlowStartTrigger
from airflow_provider_flows.worker.kill_check import ABORTED_BY_KILL, NOTHING_TO_ABORT

if TYPE_CHECKING:
    from airflow_provider_flows.core.polling.wait import Wait
    from airflow_provider_flows.core.redaction import ErrorTexts
    from airflow_provider_flows.hooks import FlowsHook

__all__ = [
    "FlowBatchTrigger",
    "FlowRunFinishedTrigger",
    "FlowRunTrigger",
    "FlowStartTrigger",
    "deferral_timeout",
    "is_deferral_timeout",
    "min_event_delay",
    "run_from_event",
]

log = logging.getLogger(__name__)  # one for all triggers: to create a logger takes longer than a poll

MIN_PROGRESS_LOG_SECONDS = 30.0  # between two lines about progress: a line costs a triggerer half a ms of CPU
FINAL_STATE_NAMES = tuple(state.value for state in FlowState if state.is_final)
NO_EVENT = (
    "The deadline passed before the flow run {flow_run_id} was final, and no triggerer has reported its end. "
    "Check that a triggerer is running. If runs of this flow take this long, increase timeout."
)
UNUSABLE_IN_TRIGGERER = (
    "The triggerer cannot poll flow run %s, so this worker polls it with its own connection. Check the "
    "connection where the triggerer reads it. Reason: %s"
)
SCHEDULER_LOOPS = 5  # in which the scheduler certainly creates the DAG run for an event


class FlowRunTrigger(KillableTrigger):
    """Wait until a flow run is final, its deadline has passed, or a permanent error persists.

    Airflow stores the arguments in its database as plain JSON; they have ids, paths and numbers, no secrets.

    :param flows_conn_id: the Airflow connection.
    :param flow_run_id: the flow run to wait for.
    :param poll_interval: shortest time between two polls, in seconds.
    :param max_poll_interval: longest time between two polls, in seconds.
    :param deadline: epoch seconds at which the wait ends, None for never.
    :param abort_on_kill: whether to abort the flow run when Airflow has ended its task (Airflow >= 3.3).
    :param wait_state: the wait as the worker left it (`Wait.to_dict`), so that nothing is logged twice.
    :param rejections: how many earlier triggers have ended because their connection was unusable.
    :param task_arguments: what the task needs again when it is resumed; the event returns it.
    :param is_stored: whether these are the arguments of `serialize`, as Airflow stores them. Those of a newer
        version may be among them, which are ignored.
    :raises FlowInputError: another argument is unknown.
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
        wait_state: Mapping[str, Any] | None = None,
        rejections: int = 0,
        task_arguments: Mapping[str, Any] | None = None,
        is_stored: bool = False,
        **unknown_arguments: Any,
    ) -> None:
        check_unknown(type(self), unknown_arguments, is_stored=is_stored)
        require_booleans({"abort_on_kill": abort_on_kill})
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's is not annotated
        self.flows_conn_id = flows_conn_id
        self.flow_run_id = flow_run_id
        self.poll_interval = poll_interval
        self.max_poll_interval = max_poll_interval
        self.deadline = deadline
        self.abort_on_kill = abort_on_kill
        self.wait_state = None if wait_state is None else dict(wait_state)
        self.rejections = rejections
        self.task_arguments = None if task_arguments is None else dict(task_arguments)
        self._context: Context | None = None  # in which its lines are logged

    @classmethod
    def from_wait(cls, flows_conn_id: str, wait: Wait, **more: Any) -> Self:
        """Create the trigger that continues a worker's wait.

        :param more: the trigger's arguments that the wait does not have.
        """
        schedule = wait.schedule
        return cls(
            flows_conn_id,
            wait.flow_run_id,
            schedule.poll_interval,
            schedule.max_poll_interval,
            schedule.deadline,
            wait_state=wait.to_dict(),
            **more,
        )

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments."""
        arguments: dict[str, Any] = {
            "flows_conn_id": self.flows_conn_id,
            "flow_run_id": self.flow_run_id,
            "poll_interval": self.poll_interval,
            "max_poll_interval": self.max_poll_interval,
            "deadline": self.deadline,
            "abort_on_kill": self.abort_on_kill,
            "is_stored": True,
        }
        if self.wait_state:
            arguments["wait_state"] = self.wait_state
        if self.rejections:
            arguments["rejections"] = self.rejections
        if self.task_arguments is not None:
            arguments["task_arguments"] = self.task_arguments
        return get_class_path(self), arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and yield one event: `flow_run_id`, and `run` or `error`. `run_from_event` reads it.

        If the connection is unusable here, the event also has `deadline` and `rejections`, which the next
        trigger needs.
        """
        started_at = time.monotonic()
        result: dict[str, Any]
        try:
            result = {"run": (await self._wait_until_final()).to_event()}
        except (FlowAuthError, FlowInputError) as error:
            rejections = self.rejections + 1
            result = {"error": error.to_dict(), "deadline": self.deadline, "rejections": rejections}
        except FlowError as error:
            result = {"error": error.to_dict()}
        if (early := min_event_delay() - (time.monotonic() - started_at)) > 0:
            await asyncio.sleep(early)
        self.has_fired = True
        if self.task_arguments is not None:
            result["task_arguments"] = self.task_arguments
        yield TriggerEvent({"flow_run_id": self.flow_run_id, **result})

    @property
    def runs_name(self) -> str:
        """How messages name the flow run."""
        return f"flow run {self.flow_run_id}"

    async def abort_runs(self, hook: FlowsHook) -> None:
        """Abort the flow run, and log whether it was active."""
        was_aborted = await abort_killed_run(hook, self.flow_run_id)
        log.info(ABORTED_BY_KILL if was_aborted else NOTHING_TO_ABORT, self.flow_run_id)

    async def _wait_until_final(self) -> FlowRun:
        """Wait in the poller that all triggers of the connection share; reload rejected credentials."""
        # in-function imports: expensive, and needed only when a trigger runs
        from airflow_provider_flows.triggerer.per_loop import get_cached_hook

        try:
            self.hook = hook = await get_cached_hook(self.flows_conn_id)
        except FlowError:
            raise
        except Exception as error:  # any error of Airflow's; the worker may be able to look it up
            log.warning("Connection %s cannot be looked up", self.flows_conn_id, exc_info=True)
            message = (
                f"Connection {self.flows_conn_id!r} cannot be looked up in the triggerer "
                f"({type(error).__name__}). Check that the connection is also defined there"
            )
            raise FlowInputError(message) from error
        self.warm_up_task_states()
        # imported by now, in a thread, because that takes too long on the loop
        from airflow_provider_flows.triggerer.shared_poller import SharedPoller

        self._context = copy_context()
        schedule = Schedule(self.poll_interval, self.max_poll_interval, self.deadline)
        wait = hook.create_wait(self.flow_run_id, schedule, self._log_line, MIN_PROGRESS_LOG_SECONDS)
        if self.wait_state:
            wait.restore(self.wait_state)
            self.wait_state = None  # thousands of triggers hold no more than they need
        while True:
            try:
                return await SharedPoller.for_hook(hook).wait_until_final(wait)
            except FlowServiceError as error:
                latest = await reload_hook(hook) if isinstance(error, FlowAuthError) else hook
                if latest.settings == hook.settings:
                    raise
            message = "The credentials of connection %s have changed; the wait continues with the new ones"
            self.log.info(message, self.flows_conn_id)
            self.hook = hook = latest
            wait.reset_permanent_errors()

    def _log_line(self, level: int, line: str) -> None:
        """Log a line in this trigger's context, by which Airflow finds its log; the poller has another."""
        (self._context or copy_context()).run(log.log, level, line)


class FlowRunFinishedTrigger(BaseEventTrigger):
    """Emit events for the flow runs that finish at a service, for the asset of an `AssetWatcher`.

    An event contains all runs that finished since the previous one, at most 500 runs or 256 KiB. Its payload
    has `flow_run_ids`, a list, and `runs`, a list of dicts in the order of their ends, each with
    `flow_run_id`, `flow`, `service`, `state`, `progress`, `created_at`, `started_at`, `finished_at`,
    `duration` (seconds) and `error`. Times are ISO 8601 in UTC.

    The next event of an asset comes at least `event_interval` later, because Airflow might deliver an earlier
    one only together with the event after it (`triggerer.asset_watchers`).

    Runs that finished before the first poll emit no events. If the first list has no end times, the Date
    header of its response separates earlier runs from new ones. Without that header, the watcher uses the
    local clock, which must then be accurate. A run that never reports its end emits its event when it is
    first found to have finished.

    What was emitted is saved in Airflow's asset state store (3.3 and later), so runs that finish while no
    triggerer runs, or while the DAG is paused, emit their events later. The state is saved five seconds after
    an event. A triggerer that dies in between emits the event again, and loses none.

    All watchers of a connection in one triggerer share one list of its runs for each interval. No error of
    the service ends the trigger.

    :param flows_conn_id: the Airflow connection, of a service that lists its runs (Generio:
        https://docs.generio.ai, "List all flows"). Its credentials are not among the arguments, which Airflow
        stores in its database.
    :param flow: the flow's name as it is in the service's runs, or several; None for any.
    :param states: the final states that emit an event: `completed`, `failed`, `aborted`.
    :param poll_interval: time between two lists, in seconds or as a timedelta.
    :param is_stored: whether these are the arguments of `serialize`, as in `FlowRunTrigger`.
    :raises FlowInputError: an argument is invalid or unknown.
    """

    save_delay: float = 5.0
    """Seconds after which Airflow has certainly written an event to its database.

    The triggerer passes on events once a second (airflow/jobs/triggerer_job_runner.py), and does not notify
    the trigger when an event is in the database."""

    @cached_property
    def event_interval(self) -> float:
        """Minimum seconds between two events of an asset, in which Airflow creates the DAG run for the first.

        That is `save_delay`, and a few loops of the scheduler (`[scheduler] scheduler_idle_sleep_time`): 10 s
        by default.
        """
        loop_seconds = conf.getfloat("scheduler", "scheduler_idle_sleep_time", fallback=1.0)
        return self.save_delay + SCHEDULER_LOOPS * max(1.0, float(loop_seconds))

    def __init__(
        self,
        flows_conn_id: str = "flows_default",
        flow: str | Sequence[str] | None = None,
        states: str | Sequence[str] = (FlowState.COMPLETED.value,),
        poll_interval: float | timedelta = 60.0,
        *,
        is_stored: bool = False,
        **unknown_arguments: Any,
    ) -> None:
        check_unknown(type(self), unknown_arguments, is_stored=is_stored)
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's is not annotated
        self.flows_conn_id = flows_conn_id
        self.flow = None if flow is None else _parse_names("flow", flow)
        self.states = _parse_names("states", states)
        self.poll_interval = Schedule.of(poll_interval, poll_interval).poll_interval
        if unknown := [state for state in self.states if state not in FINAL_STATE_NAMES]:
            message = f"states must be among {', '.join(FINAL_STATE_NAMES)}, not {', '.join(unknown)}"
            raise FlowInputError(message)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments, in one form: Airflow identifies a watcher by them."""
        return get_class_path(self), {
            "flows_conn_id": self.flows_conn_id,
            "flow": self.flow,
            "states": self.states,
            "poll_interval": self.poll_interval,
            "is_stored": True,
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll forever, and yield events, each for all runs that finished since the previous one."""
        # in-function imports: expensive, and needed only when a trigger runs
        from airflow_provider_flows.triggerer.asset_watchers import (
            EventThrottle,
            FinishedRunsFeed,
            WatcherState,
            get_asset_names,
        )

        store = getattr(self, "asset_state_store", None)
        throttle, assets = EventThrottle.for_loop(), get_asset_names(store) or [self._key()]
        throttle.register(assets, self.event_interval)
        watcher_state = WatcherState(store, self._key())
        cursor = EventCursor.from_dict(await watcher_state.load(self.poll_interval))
        feed = FinishedRunsFeed.for_connection(self.flows_conn_id)
        async for snapshot in feed.snapshots(self.poll_interval):
            next_cursor, new_runs = cursor.after(snapshot, self._matches)
            if new_runs and await throttle.wait(assets) >= self.poll_interval:
                continue  # a newer list is due, and its runs belong in the same event
            emitted_ids: set[str] = set()
            for payload in event_payloads(new_runs):
                await throttle.wait(assets)
                throttle.record_event(assets, self.event_interval)
                yield TriggerEvent(payload)
                emitted_ids.update(payload["flow_run_ids"])
                # an event that is saved as emitted before Airflow has it in its database would be lost with
                # the triggerer
                await asyncio.sleep(self.save_delay)
                if len(emitted_ids) < len(new_runs):
                    await watcher_state.save(cursor.after_emitting(snapshot, emitted_ids).to_dict())
            if next_cursor is not cursor:
                cursor = next_cursor
                await watcher_state.save(cursor.to_dict())
            else:
                await watcher_state.flush()

    def _matches(self, run: FlowRun) -> bool:
        return run.state.value in self.states and (self.flow is None or run.flow in self.flow)

    def _key(self) -> str:
        """Return the key of the saved state, which differs for watchers that emit different events."""
        identity = json.dumps([self.flows_conn_id, self.flow, self.states])
        return f"flow_runs_emitted_{hashlib.sha256(identity.encode()).hexdigest()[:32]}"


def run_from_event(event: Mapping[str, Any] | None, error_texts: ErrorTexts | None = None) -> FlowRun:
    """Return the final run of a `FlowRunTrigger`'s event, or raise what a blocking wait would have raised.

    :param error_texts: hides the task's inputs in an error's message; the triggerer does not know them.
    :raises FlowError: the error that ended the wait, or the event is not one of this trigger's.
    """
    if isinstance(event, Mapping) and isinstance(event.get("run"), Mapping):
        return FlowRun.from_event(event["run"])
    if isinstance(event, Mapping) and isinstance(event.get("error"), Mapping):
        data = dict(event["error"])
        if error_texts is not None:
            data["message"] = error_texts.hide_inputs(str(data.get("message")))
        raise error_from_dict(data)
    message = f"The task was resumed with an event that no FlowRunTrigger emits: {event!r}. Clear the task."
    raise FlowError(message)


def _parse_names(name: str, argument: str | Sequence[str]) -> list[str]:
    """Return one name or several as a sorted list."""
    values = [argument] if isinstance(argument, str) else list(argument)
    if not values or not all(isinstance(value, str) and value.strip() for value in values):
        message = f"{name} must be a non-empty string or a list of non-empty strings, not {argument!r}"
        raise FlowInputError(message)
    return sorted({value.strip() for value in values})
