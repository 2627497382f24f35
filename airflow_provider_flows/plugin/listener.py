"""The listener for finished tasks: it deletes saved responses and aborts the flow runs of marked tasks.

Airflow calls these functions for every task of every provider: in the worker that ran it, and in the API
server when a user marks it as success, failed or skipped.
"""

from __future__ import annotations

import sys
from typing import Any

from airflow.providers.common.compat.sdk import hookimpl

PACKAGE = "airflow_provider_flows"
# the argument with the flow runs, by the path of the trigger
RUN_ARGUMENTS = {
    f"{PACKAGE}.triggers.FlowRunTrigger": "flow_run_id",
    f"{PACKAGE}.triggers.FlowBatchTrigger": "flow_run_ids",
}


@hookimpl
def on_task_instance_success(previous_state: Any, task_instance: Any) -> None:
    """Delete what was saved for a retry; abort the run of a deferred task that a user marked as success."""
    # a task of another provider must not cost the import of our operators
    operators = sys.modules.get(f"{PACKAGE}.operators")
    task = getattr(task_instance, "task", None)
    if operators is not None and isinstance(task, operators.RunFlowOperator):
        task.delete_saved_run()
    _abort_deferred_run(previous_state, task_instance)


@hookimpl
def on_task_instance_failed(previous_state: Any, task_instance: Any) -> None:
    """Abort the run of a deferred task that a user marked as failed."""
    _abort_deferred_run(previous_state, task_instance)


@hookimpl(optionalhook=True)  # added in Airflow 3.2
def on_task_instance_skipped(previous_state: Any, task_instance: Any) -> None:
    """Abort the run of a deferred task that a user marked as skipped."""
    _abort_deferred_run(previous_state, task_instance)


def _abort_deferred_run(previous_state: Any, task_instance: Any) -> None:
    """Abort the flow runs of a deferred task that a user marked.

    If no triggerer has picked up the trigger yet, Airflow does not call its `on_kill`. `previous_state` is
    None only in the API server, when a user sets the state. A failure detected by the scheduler is left
    alone, because a retry may resume the run. A task instance has its trigger only as an ORM object, not in a
    worker.
    """
    trigger = getattr(task_instance, "trigger", None) if previous_state is None else None
    argument = None if trigger is None else RUN_ARGUMENTS.get(trigger.classpath)
    if trigger is None or argument is None or not trigger.kwargs.get("abort_on_kill"):
        return
    from airflow_provider_flows.plugin.abort_queue import ABORT_QUEUE

    # in threads, because Airflow's database transaction and the user's request wait for this function
    flow_run_ids = trigger.kwargs[argument]
    for flow_run_id in [flow_run_ids] if isinstance(flow_run_ids, str) else flow_run_ids:
        ABORT_QUEUE.submit(
            trigger.kwargs["flows_conn_id"], flow_run_id, getattr(task_instance, "dag_id", None)
        )
