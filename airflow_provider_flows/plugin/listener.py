"""The listener for finished tasks: it deletes saved responses and aborts the flow runs of marked tasks.

Airflow calls these functions for every task of every provider: in the worker that ran it, and in the API
server when a user marks it as success, failed or skipped.
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
    """Delete what was saved for a retry; abort the run of a deferred task that a user marked as success."""
    # a task of another provider must not cost the import of our operators
    operators = sys.modules.get(f"{PACKAGE}.operators")
    task = getattr(task_instance, "task", None)
    if operators is not None and isinstance(task, operators.RunFlowOperator):
        task.delete_saved_run()
    _cancel_deferred_run(previous_state, task_instance)


@hookimpl
def on_task_instance_failed(previous_state: Any, task_instance: Any) -> None:
    """Abort the run of a deferred task that a user marked as failed."""
    _cancel_deferred_run(previous_state, task_instance)


@hookimpl(optionalhook=True)  # added in Airflow 3.2
def on_task_instance_skipped(previous_state: Any, task_instance: Any) -> None:
    """Abort the run of a deferred task that a user marked as skipped."""
    _cancel_deferred_run(previous_state, task_instance)


def _cancel_deferred_run(previous_state: Any, task_instance: Any) -> None:
    """Abort the flow run of a deferred task that a user marked.

    If no triggerer has picked up the trigger yet, Airflow does not call its `on_kill`. `previous_state` is
    None only in the API server, when a user sets the state. A failure detected by the scheduler is left
    alone, because a retry may resume the run. A task instance has its trigger only as an ORM object, not in a
    worker.
    """
    trigger = getattr(task_instance, "trigger", None) if previous_state is None else None
    if trigger is None or trigger.classpath != TRIGGER_CLASSPATH or not trigger.kwargs.get("abort_on_kill"):
        return
    # in a thread, because Airflow's database transaction and the user's request wait for this function
    Thread(target=_cancel_run, args=(dict(trigger.kwargs),), name="flows-cancel", daemon=True).start()


def _cancel_run(trigger_kwargs: Mapping[str, Any]) -> None:
    from airflow_provider_flows.hooks import FlowsHook

    flow_run_id = trigger_kwargs["flow_run_id"]
    try:
        FlowsHook.get_hook(trigger_kwargs["flows_conn_id"]).abort(flow_run_id)
        log.info(
            "The task was marked while it was deferred, so flow run %s was aborted "
            "(deleted if it had not started)",
            flow_run_id,
        )
    except Exception as error:  # noqa: BLE001  # the trigger's on_kill may still abort the run
        log.warning("Flow run %s could not be aborted by the API server: %s", flow_run_id, error)
