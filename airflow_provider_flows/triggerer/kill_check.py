"""Kills in a triggerer: the base of the triggers that wait for runs, the check of their tasks, the aborts.

A killed trigger aborts its flow runs only if Airflow has ended its task. Aborts at the same time share one
session and the rate limiter.

A triggerer processes the messages of its triggers one after the other, each in tens of milliseconds. The
first one takes 5 to 25 s, because the triggerer then sets up its access to the database.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, suppress
from contextvars import Context
from datetime import timedelta
from functools import cache
from inspect import signature
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from airflow.providers.common.compat.sdk import conf
from airflow.triggers.base import BaseTrigger

from airflow_provider_flows.compat import get_region, triggers_have_on_kill
from airflow_provider_flows.core.exceptions import FlowAuthError, FlowError
from airflow_provider_flows.triggerer.per_loop import PerLoop
from airflow_provider_flows.worker.kill_check import (
    is_finished_in,
    is_mapped,
    max_reply_seconds,
    on_kill_timeout,
    to_state_query,
)

if TYPE_CHECKING:
    from airflow_provider_flows.base_hook import BaseFlowsHook
    from airflow_provider_flows.core.polling.schedule import Schedule
    from airflow_provider_flows.hooks import FlowsHook
    from airflow_provider_flows.transport.rate_limiter import RateLimitedTransport

log = logging.getLogger(__name__)

COLLECT_SECONDS = 0.05  # Airflow calls `on_kill` of many triggers one after the other
ON_KILL_FRACTION = 0.95  # of `[triggerer] on_kill_timeout`, after which Airflow no longer waits for `on_kill`
MAX_CONCURRENT_ABORTS = 50
MAX_LOGGED_ERRORS = 5  # of one call of `abort_killed_runs`
MAX_ABORT_SECONDS = 300.0  # for the requests that abort runs: a rate limit may delay them
MAX_DEFERRAL_SECONDS = 10 * 366 * 86_400.0  # Airflow stores the time of its end, which must be a date
LEFT_IN_DOUBT = "Airflow did not report whether the task is finished (%s), so %s is left to the next try"
NOT_ABORTED = (
    "%s could not be aborted after its task was killed: %s. Check it at the service, and abort it there if "
    "it is active"
)
MAX_NAME_CHARACTERS = 40_000  # of one message: Airflow writes the names into a URL of at most 65,536
MAX_TASK_INSTANCES = 2_000  # of one message
NOT_CURRENT = 403  # status of an XCom that a trigger requests after its task instance was replaced


class UnknownIterationError(Exception):
    """Airflow does not report the state of a task's own iteration of its task loop."""


class _Waiter(NamedTuple):
    """A task instance, and the future of the trigger that waits for its state."""

    ti: Any
    is_finished: asyncio.Future[bool]


class TaskStateReader:
    """Reads the states of the task instances of one event loop's triggers.

    While a response is outstanding, further requests are collected for the next message.
    """

    def __init__(self) -> None:
        self._waiters: list[_Waiter] = []
        self._task: asyncio.Task[None] | None = None
        self._is_warm = False

    @classmethod
    def for_loop(cls) -> TaskStateReader:
        """Return the running loop's reader."""
        return _READERS.get()

    async def is_finished(self, ti: Any) -> bool:
        """Return whether a task instance is finished in Airflow, by a state that is read after this call.

        Call it in the trigger's context. In a task loop Airflow reports the state of the latest iteration
        only. If that one is not finished, or a Clear replaced the trigger's task instance, the own iteration
        may have a next try.

        :raises UnknownIterationError: the task is in a loop, and the state of its iteration is unknown.
        :raises Exception: Airflow did not respond, or rejected the message.
        """
        is_finished = await self._add(ti)
        if _is_in_loop(ti) and not (is_finished and await _is_current(ti)):
            raise UnknownIterationError
        return is_finished

    def warm_up(self, ti: Any) -> None:
        """Read one task's state in the background, if none has been read yet, and ignore the result.

        Then the first message, which takes longest, does not delay a kill.
        """
        if not self._is_warm:
            self._add(ti).add_done_callback(lambda future: future.cancelled() or future.exception())

    def _add(self, ti: Any) -> asyncio.Future[bool]:
        self._is_warm = True
        loop = asyncio.get_running_loop()
        waiter = _Waiter(ti, loop.create_future())
        self._waiters.append(waiter)
        if self._task is None:
            # in an empty context, because it must not log as the trigger that happens to be first
            self._task = loop.create_task(self._resolve_all(), context=Context())
        return waiter.is_finished

    async def _resolve_all(self) -> None:
        """Resolve all waiters, also those that are added in the meantime."""
        waiters: list[_Waiter] = []
        try:
            await asyncio.sleep(COLLECT_SECONDS)
            while self._waiters:
                waiters, self._waiters = self._waiters, []
                for batch in _split_into_batches(waiters):
                    await _query_states(batch)
        except BaseException as error:
            _fail([*waiters, *self._waiters], RuntimeError(f"the request failed: {error!r}"))
            self._waiters = []
            if not isinstance(error, Exception):
                raise
        finally:
            self._task = None


_READERS: PerLoop[TaskStateReader] = PerLoop(TaskStateReader)


async def _query_states(waiters: list[_Waiter]) -> None:
    """Send one message, and set the results of its waiters."""
    waiting = [waiter for waiter in waiters if not waiter.is_finished.done()]
    if not waiting:
        return
    try:
        async with asyncio.timeout(max_reply_seconds()):
            states = await _read_states(to_state_query([waiter.ti for waiter in waiting]))
        results = [(waiter, is_finished_in(states, waiter.ti)) for waiter in waiting]
    except asyncio.CancelledError:
        # Airflow also cancels the waits for responses when it has lost its connection.
        _fail(waiting, ConnectionError("the connection to Airflow was closed"))
        if (task := asyncio.current_task()) is not None and task.cancelling():
            raise
    except Exception as error:  # noqa: BLE001  # each trigger reports it
        _fail(waiting, error)
    else:
        for waiter, is_finished in results:
            if not waiter.is_finished.done():
                waiter.is_finished.set_result(is_finished)


def _fail(waiters: Iterable[_Waiter], error: Exception) -> None:
    for waiter in waiters:
        if not waiter.is_finished.done():
            waiter.is_finished.set_exception(error)


async def _read_states(query: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the states of task instances.

    Airflow has no public API that gets a task's state without blocking the event loop, so this function sends
    Airflow's internal message `GetTaskStates`. tests/worker/test_kill_check.py fails if Airflow moves it.
    """
    from airflow.sdk.execution_time.comms import GetTaskStates, TaskStatesResult
    from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS

    response: Any = await SUPERVISOR_COMMS.asend(GetTaskStates(**query))
    if not isinstance(response, TaskStatesResult):
        message = f"Airflow responded to GetTaskStates with {type(response).__name__}"
        raise TypeError(message)
    return response.task_states


def _is_in_loop(ti: Any) -> bool:
    """Return whether a task instance is certainly in a task loop; mapped ones have regions in any case."""
    return bool(get_region(ti)) and not is_mapped(ti)


async def _is_current(ti: Any) -> bool:
    """Return whether no Clear has replaced the task instance of the trigger that calls this function.

    Airflow replaces the task instance for each try. It rejects a request for an XCom by a trigger whose own
    one is not current, and there is no message that requests this directly. It knows the trigger by the
    context. tests/system/test_loops.py fails if Airflow changes that.
    """
    from airflow.sdk.exceptions import AirflowRuntimeError
    from airflow.sdk.execution_time.comms import GetXCom
    from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS

    message = GetXCom(
        key="flow_run_id", dag_id=ti.dag_id, run_id=ti.run_id, task_id=ti.task_id, map_index=ti.map_index
    )
    try:
        async with asyncio.timeout(max_reply_seconds()):
            await SUPERVISOR_COMMS.asend(message)
    except AirflowRuntimeError as error:
        detail = error.error.detail or {}
        if detail.get("status_code") != NOT_CURRENT:
            raise
        return False
    return True


def _split_into_batches(waiters: Iterable[_Waiter]) -> Iterator[list[_Waiter]]:
    """Split waiters into the batches of one message each.

    Airflow's response has the same key for instance 1 of the mapped task `a` and for the task `a_1`, so a
    message contains only tasks whose ids end in equally many numbers.
    """
    groups: dict[tuple[str, int], list[_Waiter]] = {}
    for waiter in waiters:
        numbers = re.search(r"(?:_\d+)*$", waiter.ti.task_id)
        key = (waiter.ti.dag_id, numbers.group().count("_") if numbers else 0)
        groups.setdefault(key, []).append(waiter)
    for group in groups.values():
        batch: list[_Waiter] = []
        task_ids: set[str] = set()
        run_ids: set[str] = set()
        for waiter in sorted(group, key=lambda waiter: str(waiter.ti.run_id)):
            next_task_ids, next_run_ids = task_ids | {waiter.ti.task_id}, run_ids | {waiter.ti.run_id}
            if batch and not _fits(next_task_ids, next_run_ids):
                yield batch
                batch, next_task_ids, next_run_ids = [], {waiter.ti.task_id}, {waiter.ti.run_id}
            batch.append(waiter)
            task_ids, run_ids = next_task_ids, next_run_ids
        yield batch


def _fits(task_ids: set[str], run_ids: set[str]) -> bool:
    """Return whether a message may contain all these tasks of all these DAG runs."""
    characters = sum(len(quote(name, safe="")) + len("&task_ids=") for name in task_ids | run_ids)
    return characters <= MAX_NAME_CHARACTERS and len(task_ids) * len(run_ids) <= MAX_TASK_INSTANCES


_ABORT_TASKS: set[asyncio.Task[None]] = set()  # an event loop itself holds its tasks only weakly


class KillableTrigger(BaseTrigger):
    """A trigger that waits for flow runs.

    A subclass sets `has_fired` before its event, and `hook` as soon as it has one.
    """

    flows_conn_id: str
    abort_on_kill: bool
    has_fired = False
    hook: FlowsHook | None = None  # for `on_kill`: a lookup takes seconds in a new triggerer

    @property
    def runs_name(self) -> str:
        """How messages name the flow runs."""
        raise NotImplementedError

    async def abort_runs(self, hook: FlowsHook) -> None:
        """Abort the flow runs, and log the result.

        :raises FlowServiceError: the service could not be reached, or rejected the request.
        """
        raise NotImplementedError

    async def on_kill(self) -> None:
        """Abort the flow runs only if Airflow has ended its task.

        If that is uncertain, leave the runs for the next try. An abort that takes longer than
        `[triggerer] on_kill_timeout` continues in the background.
        """
        if self.has_fired or not self.abort_on_kill:
            return
        # In a task of its own, because Airflow cancels the trigger, and this method, every second until it
        # ends.
        abort = asyncio.create_task(self._abort_if_finished())
        _ABORT_TASKS.add(abort)
        abort.add_done_callback(_ABORT_TASKS.discard)
        deadline = time.monotonic() + ON_KILL_FRACTION * on_kill_timeout()
        while not abort.done() and (remaining := deadline - time.monotonic()) > 0:
            with suppress(asyncio.CancelledError):
                await asyncio.wait({abort}, timeout=remaining)

    async def _abort_if_finished(self) -> None:
        """Abort the runs if the task is finished; no error may escape, because no caller would see it."""
        try:
            async with asyncio.timeout(max_reply_seconds()):
                is_finished = await TaskStateReader.for_loop().is_finished(self.task_instance)
        except Exception as error:  # noqa: BLE001  # any error of Airflow's
            log.info(LEFT_IN_DOUBT, type(error).__name__, self.runs_name)
            return
        if is_finished:
            await self._abort_finished_task()

    async def _abort_finished_task(self) -> None:
        """Abort the runs of a finished task, also with a connection that was changed."""
        from airflow_provider_flows.triggerer.per_loop import get_cached_hook

        name = f"{self.runs_name[:1].upper()}{self.runs_name[1:]}"
        try:
            async with asyncio.timeout(MAX_ABORT_SECONDS):
                hook = self.hook or await get_cached_hook(self.flows_conn_id)
                try:
                    await self.abort_runs(hook)
                except FlowAuthError:
                    latest = await reload_hook(hook)
                    if latest.settings == hook.settings:
                        raise
                    await self.abort_runs(latest)
        except asyncio.CancelledError:
            log.warning(NOT_ABORTED, name, "the triggerer stopped")
            raise
        except TimeoutError:
            log.warning(NOT_ABORTED, name, f"no success within {MAX_ABORT_SECONDS:.0f} s")
        except FlowError as error:
            log.warning(NOT_ABORTED, name, error)
        except Exception as error:  # with its traceback, because it is not expected
            log.warning(NOT_ABORTED, name, repr(error), exc_info=True)

    def warm_up_task_states(self) -> None:
        """Let the triggerer process its first message now, because it would take too long during a kill."""
        if (
            triggers_have_on_kill()
            and self.abort_on_kill
            and getattr(self, "task_instance", None) is not None
        ):
            TaskStateReader.for_loop().warm_up(self.task_instance)


@cache  # Airflow reads its configuration again for each call, which takes as long as a poll
def min_event_delay() -> float:
    """Return the seconds that must lie between a deferral and its event.

    The scheduler fails a task that comes back before its executor has reported the end of its process
    ("finished with state success, but the task instance's state attribute is queued"). That report is delayed
    by up to `[workers] min_heartbeat_interval`.
    """
    return float(conf.getfloat("workers", "min_heartbeat_interval", fallback=5.0)) + 1.0


def deferral_timeout(schedule: Schedule) -> timedelta | None:
    """Return the time after which Airflow itself ends a deferral, if no triggerer does so at the deadline.

    That is two poll intervals after the deadline, or after the earliest event; None without a deadline.
    """
    if schedule.deadline is None:
        return None
    seconds = max(schedule.deadline - time.time(), min_event_delay()) + 2 * schedule.poll_interval
    return timedelta(seconds=seconds) if seconds < MAX_DEFERRAL_SECONDS else None


def is_deferral_timeout(next_method: str, next_kwargs: Mapping[str, Any] | None) -> bool:
    """Return whether a task is resumed because no event arrived within its `deferral_timeout`.

    Airflow then passes a marker in place of a method, and resume_execution raises TaskDeferralTimeout.
    """
    return next_method == "__fail__" and (next_kwargs or {}).get("error") == "Trigger timeout"


async def reload_hook(hook: FlowsHook) -> FlowsHook:
    """Look the connection up again; return the old hook if that fails: the rejection is what to report."""
    from airflow_provider_flows.triggerer.per_loop import get_cached_hook

    try:
        return await get_cached_hook(hook.flows_conn_id, stale=hook)
    except Exception:  # noqa: BLE001  # any error of Airflow's
        return hook


def check_unknown(trigger: type[BaseTrigger], unknown: Collection[str], *, is_stored: bool) -> None:
    """Ignore a trigger's unknown arguments if a newer version has stored them, and log it.

    :raises FlowInputError: they are the DAG author's.
    """
    if is_stored and unknown:
        names = ", ".join(map(repr, sorted(unknown)))
        line = "%s ignores arguments that a newer version has stored: %s. Upgrade the triggerer's provider"
        log.warning(line, trigger.__name__, names)
    elif unknown:
        from airflow_provider_flows.core.validation import reject_unknown_arguments

        parameters = signature(trigger).parameters.items()
        known = [name for name, one in parameters if one.kind is not one.VAR_KEYWORD and name != "is_stored"]
        reject_unknown_arguments(trigger.__name__, unknown, known)


def get_class_path(trigger: BaseTrigger) -> str:
    """Return the path under which Airflow stores a trigger."""
    return f"{type(trigger).__module__}.{type(trigger).__qualname__}"


class _AbortSession:
    """One session for the aborts of one connection."""

    def __init__(self, hook: BaseFlowsHook) -> None:
        self.user_count = 0
        self._hook = hook
        self._identity = (type(hook), hook.settings, hook.extra)
        self._slots = asyncio.Semaphore(MAX_CONCURRENT_ABORTS)
        self._open_lock = asyncio.Lock()
        self._transport: RateLimitedTransport | None = None
        self._exits = AsyncExitStack()

    def serves(self, hook: BaseFlowsHook) -> bool:
        """Return whether a hook has the same type, settings and credentials."""
        return self._hook is hook or self._identity == (type(hook), hook.settings, hook.extra)

    async def abort(self, flow_run_id: str) -> bool:
        """Abort a run as soon as a slot is free."""
        # in-function imports: with aiohttp, which the lookup of the hook has imported in a thread
        from airflow_provider_flows.core.retry import with_retries
        from airflow_provider_flows.core.service import abort_run
        from airflow_provider_flows.transport.asynchronous import run

        async with self._slots:
            async with self._open_lock:
                if self._transport is None:
                    self._transport = await self._exits.enter_async_context(self._hook.async_transport())
            with self._hook.add_connection_to_errors():
                conversation = abort_run(self._hook.service, flow_run_id)
                return await run(with_retries(conversation, self._hook.abort_retry), self._transport.send)

    async def close(self) -> None:
        """Close the session."""
        await self._exits.aclose()


_SESSIONS: PerLoop[list[_AbortSession]] = PerLoop(list)


async def abort_killed_run(hook: BaseFlowsHook, flow_run_id: str) -> bool:
    """Delete a run that never started, abort an active one, and leave a final one unchanged.

    :returns: whether the run was deleted or its abort was requested.
    :raises FlowServiceError: the service could not be reached, or rejected the request.
    """
    sessions = _SESSIONS.get()
    session = next((one for one in sessions if one.serves(hook)), None)
    if session is None:
        sessions.append(session := _AbortSession(hook))
    session.user_count += 1
    try:
        return await session.abort(flow_run_id)
    finally:
        session.user_count -= 1
        if not session.user_count:
            sessions.remove(session)
            await session.close()


async def abort_killed_runs(hook: BaseFlowsHook, flow_run_ids: Collection[str]) -> int:
    """Abort several runs as `abort_killed_run` does, and log those that could not be aborted.

    :returns: how many were deleted, or their abort was requested.
    """
    aborts = (abort_killed_run(hook, flow_run_id) for flow_run_id in flow_run_ids)
    results = await asyncio.gather(*aborts, return_exceptions=True)
    errors = [
        (flow_run_id, result)
        for flow_run_id, result in zip(flow_run_ids, results, strict=True)
        if isinstance(result, BaseException)
    ]
    for flow_run_id, error in errors[:MAX_LOGGED_ERRORS]:
        log.warning("Flow run %s could not be aborted. Check it at the service: %s", flow_run_id, error)
    if len(errors) > MAX_LOGGED_ERRORS:
        more = len(errors) - MAX_LOGGED_ERRORS
        log.warning("%d other flow runs could not be aborted either. Check them at the service", more)
    return sum(result is True for result in results)
