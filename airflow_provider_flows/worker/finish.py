"""The one ending of operator and sensor in every mode: completed or raise, outputs, events, the dict; or too late.

It neither waits nor decides where files go (delivery.py and outputs.py do).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.core.exceptions import FlowError, FlowNotFound, FlowTimeout

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_flows.core.run import FlowRun
    from airflow_provider_flows.hooks import FlowsHook
    from airflow_provider_flows.storage.atomic_file import Cancellation
    from airflow_provider_flows.storage.output_options import OutputOptions

log = logging.getLogger(__name__)

OUTPUTS_KEY = "outputs"
RUN_CONTINUES = "The flow run goes on (abort_on_kill=False)."


def finish(
    context: Context,
    hook: FlowsHook,
    run: FlowRun,
    options: OutputOptions,
    *,
    save_run: Callable[[FlowRun], bool] | None = None,
    cancellation: Cancellation | None = None,
    on_run_update: Callable[[FlowRun], None] = lambda _: None,
) -> dict[str, Any]:
    """Give what a task returns for a run that is final.

    The outputs are pushed to XCom under a key of their own as well, so that `first.output["outputs"]` can be another task's
    inputs; also those that could be had when another could not.

    :param keep: keeps the run for a next try, which could not read it any more once it is deleted; gives whether it may be.
    :param halt: ends the writing of files, from another thread.
    :param seen: is told of the run, and of it again once its outputs are fetched, also where an error follows.
    :raises FlowRunFailed: the run failed; FlowRunAborted if somebody aborted it.
    :raises FlowServiceError: an output could not be fetched.
    """
    from airflow_provider_flows.core.run import raise_for_state
    from airflow_provider_flows.storage.outputs import (
        fetch_outputs,
    )  # needed at the end only: importing the operators stays cheap
    from airflow_provider_flows.worker.asset_events import add_asset_event_extra
    from airflow_provider_flows.worker.task_state import FileState

    on_run_update(run)
    files = FileState(context, run.flow_run_id)
    if not run.is_completed and options.fetch_partial_outputs:
        try:
            run, _ = fetch_outputs(
                hook, run, options, files, cancellation
            )  # which output is not there, and why, is in the log
            on_run_update(run)
            context["ti"].xcom_push(OUTPUTS_KEY, run.to_dict()["outputs"])
        except Exception as error:  # noqa: BLE001  # whatever it is, that the run failed matters more
            log.warning("Not all partial outputs of the %s could be fetched: %s", run, error)
    raise_for_state(run)
    run, fetch_error = fetch_outputs(hook, run, options, files, cancellation)
    on_run_update(run)
    result = run.to_dict()
    context["ti"].xcom_push(OUTPUTS_KEY, result["outputs"])
    if fetch_error is not None:
        raise fetch_error
    if options.delete_after_fetch:
        _delete_run(hook, run, options, save_run)
    add_asset_event_extra(context, run)
    return result


def _delete_run(
    hook: FlowsHook, run: FlowRun, options: OutputOptions, save_run: Callable[[FlowRun], bool] | None
) -> None:
    """Delete a run at the service once every output is a file in its place; in doubt leave it, nothing is lost then."""
    from airflow_provider_flows.storage.output_download import is_stored

    if not run.outputs:
        log.warning(
            "The %s is not deleted, for it has no outputs: they may be missing from its list only", run
        )
        return
    missing = [output.name for output in run.outputs if not is_stored(output, options)]
    if missing:
        log.warning(
            "The %s is not deleted, for these outputs are no files in their place: %s",
            run,
            ", ".join(missing),
        )
        return
    if save_run is not None and not _try_save_run(run, save_run):
        log.warning("The %s is not deleted, for a retry may need it; delete it at the service", run)
        return
    try:
        hook.delete(run.flow_run_id)
    except FlowNotFound:
        log.info("The %s was deleted before", run)
    except FlowError as error:
        log.warning("The %s could not be deleted; delete it at the service: %s", run, error)
    else:
        log.info("The %s is deleted at the service; all its files are in their place", run)


def _try_save_run(run: FlowRun, save_run: Callable[[FlowRun], bool]) -> bool:
    try:
        return save_run(run)
    except Exception as error:  # noqa: BLE001  # whatever the store raises: then nobody knows
        log.warning("The %s could not be kept for a retry (%s)", run, type(error).__name__)
        return False


def finish_after_deadline(
    hook: FlowsHook, flow_run_id: str, error: FlowTimeout, *, cancel: bool, abort_on_kill: bool
) -> FlowRun:
    """Give a run whose time is over if it completed in the last moment; else say in the error what became of it.

    :param stop: whether it is to be stopped, if `abort_on_kill` allows; otherwise the next try goes on with it.
    :raises FlowTimeout: it did not complete.
    """
    try:
        run = hook.cancel_and_wait(flow_run_id) if cancel and abort_on_kill else hook.get_run(flow_run_id)
    except FlowError as request_error:
        consequence = f"The flow run could not be reached, look at it at the service: {request_error}"
    else:
        if run is not None and run.is_completed:
            return run
        consequence = _consequence(run, cancel=cancel, abort_on_kill=abort_on_kill)
    message = f"{error} {consequence}"
    raise FlowTimeout(message, is_permanent=cancel) from error


def _consequence(run: FlowRun | None, *, cancel: bool, abort_on_kill: bool) -> str:
    """Word what became of a run whose time is over."""
    if run is None:
        return "The flow run is gone from the service."
    if run.is_final:
        return f"The flow run is {run.raw_state}."
    if not cancel:
        return "The flow run goes on; the next try goes on with it."
    return f"The flow run was asked to stop; it is {run.raw_state} still." if abort_on_kill else RUN_CONTINUES
