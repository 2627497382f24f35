"""A stand-in for the triggerer's supervisor, and triggers that are run and killed as Airflow does it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import (
    ErrorResponse,
    GetTaskStates,
    GetXCom,
    TaskStatesResult,
    XComResult,
)

from airflow_provider_flows.triggers import FlowRunTrigger
from airflow_provider_flows.worker.kill_check import on_kill_timeout

KILL_MESSAGE = "kill"
TaskKey = tuple[str, str, str, int]  # dag_id, run_id, task_id, map_index


def task_instance(
    task_id: str, map_index: int = -1, run_id: str = "manual", dag_id: str = "dag", **region: Any
) -> Any:
    """Return what a trigger knows of its task instance.

    :param region: `region_id` and `region_index`, as on an Airflow with regions.
    """
    return SimpleNamespace(dag_id=dag_id, run_id=run_id, task_id=task_id, map_index=map_index, **region)


@dataclass
class StubSupervisor:
    """Responds to one message after the other, as a triggerer's supervisor does.

    :param states: the states of task instances; a missing one does not exist.
    :param first_seconds: how long the first response takes.
    :param seconds: how long every other response takes.
    :param respond: replaces the response to a message.
    :param xcom_status: of the rejection of a request for an XCom; None sends one.
    """

    states: dict[TaskKey, str | None] = field(default_factory=dict)
    first_seconds: float = 0.0
    seconds: float = 0.0
    respond: Callable[[GetTaskStates], Any] | None = None
    xcom_status: int | None = None
    messages: list[GetTaskStates] = field(default_factory=list)
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> StubSupervisor:
        """Receive the messages of this process's triggers."""
        monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", self, raising=False)
        return self

    async def asend(self, message: Any) -> Any:
        """Respond to a message when it is its turn; only requests for states are recorded."""
        if isinstance(message, GetXCom):
            if self.xcom_status is None:
                return XComResult(key=message.key, value="an id")
            detail = {"status_code": self.xcom_status, "message": "rejected"}
            raise AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail=detail))
        if not isinstance(message, GetTaskStates):
            return None  # such as a secret of the connection to mask
        self.messages.append(message)
        delay = self.first_seconds if len(self.messages) == 1 else self.seconds
        async with self._lock:
            await asyncio.sleep(delay)
            return self.respond(message) if self.respond else self.result(message)

    def result(self, message: GetTaskStates) -> TaskStatesResult:
        """Return the states by the names that Airflow's execution API gives them."""
        found: dict[str, dict[str, Any]] = {}
        for (dag_id, run_id, task_id, map_index), state in self.states.items():
            if (
                dag_id == message.dag_id
                and task_id in (message.task_ids or [])
                and run_id in (message.run_ids or [])
                and message.map_index in {None, map_index}
            ):
                name = task_id if map_index < 0 else f"{task_id}_{map_index}"
                found.setdefault(run_id, {})[name] = state
        return TaskStatesResult(task_states=found)

    def set_state(self, tis: Iterable[Any], state: str) -> None:
        """Set the state of task instances."""
        self.states.update({(ti.dag_id, ti.run_id, ti.task_id, ti.map_index): state for ti in tis})


def create_trigger(
    flow_run_id: str, ti: Any = None, conn_id: str = "generio_default", **more: Any
) -> FlowRunTrigger:
    """Create a trigger as Airflow does, with `abort_on_kill` by default."""
    trigger = FlowRunTrigger(conn_id, flow_run_id, **({"abort_on_kill": True} | more))
    trigger.task_instance = ti or task_instance("run")
    return trigger


async def run_until_killed(trigger: FlowRunTrigger) -> None:
    """Run a trigger as Airflow's triggerer does: a cancellation calls `on_kill`, which has a time limit."""
    try:
        async for _ in trigger.run():
            pass
    except asyncio.CancelledError:
        await asyncio.wait_for(trigger.on_kill(), on_kill_timeout())


async def kill_all(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Kill triggers as Airflow does, one after the other, and wait for their ends."""
    tasks = list(tasks)
    for task in tasks:
        task.cancel(KILL_MESSAGE)
        await asyncio.sleep(0)
    with suppress(asyncio.CancelledError):
        await asyncio.gather(*tasks)
