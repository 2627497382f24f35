"""What is to be done when a task is over and nothing of ours runs any more: stop a run nobody waits for, forget an answer.

How a run is stopped stands in flow/starting.py, what is remembered in memory.py. Airflow calls these functions for every task of
every provider: in the worker that ran it, and in the API server when a person marks it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from threading import Thread
from typing import Any

from airflow.providers.common.compat.sdk import hookimpl

log = logging.getLogger(__name__)

PACKAGE = "airflow_provider_flows"
TRIGGER_CLASSPATH = f"{PACKAGE}.triggers.FlowRunTrigger"


@hookimpl
def on_task_instance_success(previous_state: Any, task_instance: Any) -> None:
    """Forget the answer that was kept until now; or stop the run of a deferred task that a person marked as success."""
    operators = sys.modules.get(
        f"{PACKAGE}.operators"
    )  # where they were not imported, the task is none of ours
    task = getattr(task_instance, "task", None)
    if operators is not None and isinstance(task, operators.RunFlowOperator):
        task.forget()
    _cancel_deferred_run(previous_state, task_instance)


@hookimpl
def on_task_instance_failed(previous_state: Any, task_instance: Any) -> None:
    """Stop the run of a deferred task that a person marked as failed."""
    _cancel_deferred_run(previous_state, task_instance)


@hookimpl(optionalhook=True)  # Airflow before 3.2 does not have it
def on_task_instance_skipped(previous_state: Any, task_instance: Any) -> None:
    """Stop the run of a deferred task that a person marked as skipped."""
    _cancel_deferred_run(previous_state, task_instance)


def _cancel_deferred_run(previous_state: Any, task_instance: Any) -> None:
    """Stop the flow run of a deferred task, which no triggerer may know of yet: then its trigger is told of nothing.

    Only the API server tells no previous state, for it was a person who set the new one; a failure that the scheduler finds may
    be followed by a retry, which goes on with the run. Only an ORM's task instance has its trigger; the worker's has none.
    """
    trigger = getattr(task_instance, "trigger", None) if previous_state is None else None
    if trigger is None or trigger.classpath != TRIGGER_CLASSPATH or not trigger.kwargs.get("abort_on_kill"):
        return
    # Airflow holds its database transaction open, and the person's click up, until this function returns
    Thread(target=_cancel_run, args=(dict(trigger.kwargs),), name="flows-cancel", daemon=True).start()


def _cancel_run(trigger_kwargs: Mapping[str, Any]) -> None:
    from airflow_provider_flows.hooks import FlowsHook

    try:
        FlowsHook.get_hook(trigger_kwargs["flows_conn_id"]).cancel(trigger_kwargs["flow_run_id"])
        log.info(
            "The task was marked while it was deferred; flow run %s is stopped", trigger_kwargs["flow_run_id"]
        )
    except Exception as error:  # noqa: BLE001  # whatever it is, the trigger's own on_kill is the other way
        log.warning(
            "The flow run %s could not be stopped from here: %s", trigger_kwargs["flow_run_id"], error
        )
