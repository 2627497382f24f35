"""The check whether tasks are finished in Airflow, with one message for all tasks that are killed at once.

A triggerer processes the messages of its triggers one after the other, each in tens of milliseconds. The
first one takes 5 to 25 s, because the triggerer then sets up its access to the database.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator, Mapping
from contextvars import Context
from typing import Any, NamedTuple
from urllib.parse import quote

from airflow_provider_flows.compat import get_region
from airflow_provider_flows.triggerer.per_loop import PerLoop
from airflow_provider_flows.worker.kill_check import (
    is_finished_in,
    is_mapped,
    max_reply_seconds,
    to_state_query,
)

COLLECT_SECONDS = 0.05  # Airflow calls `on_kill` of many triggers one after the other
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
