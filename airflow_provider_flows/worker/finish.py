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
    from airflow_provider_flows.storage.atomic_file import Halt
    from airflow_provider_flows.storage.output_options import Delivery

log = logging.getLogger(__name__)

OUTPUTS_KEY = "outputs"
GOES_ON = "The flow run goes on (abort_on_kill=False)."


def end(
    context: Context,
    hook: FlowsHook,
    run: FlowRun,
    delivery: Delivery,
    *,
    keep: Callable[[FlowRun], bool] | None = None,
    halt: Halt | None = None,
    seen: Callable[[FlowRun], None] = lambda _: None,
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
    from airflow_provider_flows.storage.outputs import (
        gather,
    )  # needed at the end only: importing the operators stays cheap
    from airflow_provider_flows.worker.asset_events import tell_outlets
    from airflow_provider_flows.worker.task_state import FileMemory

    seen(run)
    files = FileMemory(context, run.flow_run_id)
    if not run.completed and delivery.partial:
        try:
            run, _ = gather(
                hook, run, delivery, files, halt
            )  # which output is not there, and why, is in the log
            seen(run)
            context["ti"].xcom_push(OUTPUTS_KEY, run.as_dict()["outputs"])
        except Exception as error:  # noqa: BLE001  # whatever it is, that the run failed matters more
            log.warning("Not all partial outputs of the %s could be fetched: %s", run, error)
    run, trouble = gather(hook, run.completed_or_raise(), delivery, files, halt)
    seen(run)
    told = run.as_dict()
    context["ti"].xcom_push(OUTPUTS_KEY, told["outputs"])
    if trouble is not None:
        raise trouble
    if delivery.delete:
        _delete(hook, run, delivery, keep)
    tell_outlets(context, run)
    return told


def _delete(
    hook: FlowsHook, run: FlowRun, delivery: Delivery, keep: Callable[[FlowRun], bool] | None
) -> None:
    """Delete a run at the service once every output is a file in its place; in doubt leave it, nothing is lost then."""
    from airflow_provider_flows.storage.output_download import in_place

    if not run.outputs:
        log.warning(
            "The %s is not deleted, for it has no outputs: they may be missing from its list only", run
        )
        return
    missing = [output.name for output in run.outputs if not in_place(output, delivery)]
    if missing:
        log.warning(
            "The %s is not deleted, for these outputs are no files in their place: %s",
            run,
            ", ".join(missing),
        )
        return
    if keep is not None and not _kept(run, keep):
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


def _kept(run: FlowRun, keep: Callable[[FlowRun], bool]) -> bool:
    try:
        return keep(run)
    except Exception as error:  # noqa: BLE001  # whatever the store raises: then nobody knows
        log.warning("The %s could not be kept for a retry (%s)", run, type(error).__name__)
        return False


def end_late(
    hook: FlowsHook, flow_run_id: str, error: FlowTimeout, *, stop: bool, abort_on_kill: bool
) -> FlowRun:
    """Give a run whose time is over if it completed in the last moment; else say in the error what became of it.

    :param stop: whether it is to be stopped, if `abort_on_kill` allows; otherwise the next try goes on with it.
    :raises FlowTimeout: it did not complete.
    """
    try:
        run = hook.see_off(flow_run_id) if stop and abort_on_kill else hook.get_run(flow_run_id)
    except FlowError as trouble:
        fate = f"The flow run could not be reached, look at it at the service: {trouble}"
    else:
        if run is not None and run.completed:
            return run
        fate = _fate(run, stop=stop, abort_on_kill=abort_on_kill)
    message = f"{error} {fate}"
    raise FlowTimeout(message, lasting=stop) from error


def _fate(run: FlowRun | None, *, stop: bool, abort_on_kill: bool) -> str:
    """Word what became of a run whose time is over."""
    if run is None:
        return "The flow run is gone from the service."
    if run.final:
        return f"The flow run is {run.state_word}."
    if not stop:
        return "The flow run goes on; the next try goes on with it."
    return f"The flow run was asked to stop; it is {run.state_word} still." if abort_on_kill else GOES_ON
