"""The end of a task: fetch its flow run's outputs, raise the run's failure, or time out.

The asset events of the task's outlets get metadata about the run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from string import printable
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote

from airflow_provider_flows.core.exceptions import (
    FlowAuthError,
    FlowError,
    FlowNotFound,
    FlowOutputRejected,
    FlowTimeout,
)

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_flows.core.check_retry import CheckRetry
    from airflow_provider_flows.core.flow_run import FlowOutput, FlowRun
    from airflow_provider_flows.core.reuse import ReuseLookup
    from airflow_provider_flows.hooks import FlowsHook
    from airflow_provider_flows.storage.atomic_file import Cancellation
    from airflow_provider_flows.storage.output_options import OutputOptions
    from airflow_provider_flows.worker.task_state import TaskState

log = logging.getLogger(__name__)

OUTPUTS_KEY = "outputs"
VERDICT_KEY = "verdict"
MAX_EVENT_FILES = 100  # in one event, or as assets of one alias; all of them are stored in Airflow's database
MAX_EVENT_URI_CHARACTERS = 32 * 1024  # of all URIs in one event
MAX_NAMED_FILES = 5  # in an error
MAX_URI_CHARACTERS = 1500  # Airflow's limit for an asset's URI


def finish(
    context: Context,
    hook: FlowsHook,
    run: FlowRun,
    options: OutputOptions,
    *,
    on_run_update: Callable[[FlowRun], None],
    task_state: TaskState | None = None,
    cancellation: Cancellation | None = None,
    lookup: ReuseLookup | None = None,
    check_retry: CheckRetry | None = None,
    is_replaceable: bool = False,
) -> dict[str, Any]:
    """End a task whose flow run is final.

    :param options: which outputs to fetch, and where to store them.
    :param on_run_update: called with the run, and again when its outputs are fetched, also if an error
        follows.
    :param task_state: saves a run before it is deleted at its service, for a retry.
    :param cancellation: cancels the writing of files from another thread.
    :param lookup: of the run's request in the index of reusable outputs, to which it is added; or None.
    :param check_retry: the earlier runs whose outputs were rejected; None if there are none.
    :param is_replaceable: whether another run may replace this one if its outputs are rejected.
    :returns: the dict that the task returns (`FlowRun.to_dict`).
    :raises FlowRunFailed: the run failed; FlowRunAborted if it was aborted.
    :raises FlowOutputRejected: the outputs do not satisfy `options.check_outputs`; they are stored.
    :raises FlowServiceError: an output could not be fetched.
    """
    run = hook.quote_errors(run)  # a triggerer does not know the task's inputs
    on_run_update(run)
    finisher = TaskFinisher(
        context,
        hook,
        options,
        on_run_update,
        task_state,
        cancellation,
        lookup,
        check_retry,
        is_replaceable=is_replaceable,
    )
    if run.is_final and not run.is_completed:
        finisher.raise_failure(run)
    return finisher.finish_completed(run)


def finish_without_wait(context: Context, run: FlowRun) -> dict[str, Any]:
    """Return the dict of a run that its task does not wait for."""
    add_asset_event_extra(context, run)  # Airflow emits the events of the outlets in any case
    return run.to_dict()


@dataclass(slots=True)
class TaskFinisher:
    """The end of one task: its context, its hook, and what `finish` was passed.

    The hook is replaced if its key is rejected and the connection was changed.
    """

    context: Context
    hook: FlowsHook
    options: OutputOptions
    on_run_update: Callable[[FlowRun], None]
    task_state: TaskState | None
    cancellation: Cancellation | None
    lookup: ReuseLookup | None
    check_retry: CheckRetry | None = None
    is_replaceable: bool = False

    def finish_completed(self, run: FlowRun) -> dict[str, Any]:
        """Fetch the outputs, delete the run at its service if requested, and return the task's dict.

        A reused run is left at its service. The outputs that were fetched when another could not be are
        pushed to XCom, and so are those that are rejected, with the verdict.

        :raises FlowServiceError: an output could not be fetched.
        :raises FlowOutputRejected: the outputs do not satisfy the checks.
        """
        run, fetch_error = self._fetch_outputs(run)
        rejection: FlowOutputRejected | None = None
        if fetch_error is None and self.options.check_outputs is not None:
            run = self._check_outputs(run)
            rejection = find_rejection(run)
        if rejection is None or not self.is_replaceable:
            self._publish_outputs(run, is_returned=fetch_error is None and rejection is None)
        else:
            self.on_run_update(run)
        if rejection is not None and not self.is_replaceable:
            self.context["ti"].xcom_push(VERDICT_KEY, dict(run.verdict or {}))
        if (error := fetch_error or rejection) is not None:
            raise error
        if self.lookup is not None:
            from airflow_provider_flows.storage.reuse_index import save_reusable_run  # imports stay cheap

            save_reusable_run(self.options, self.lookup, run)
        if self.options.delete_after_fetch and not run.reused:
            self._delete_run(run)
        add_asset_event_extra(self.context, run)
        return run.to_dict()

    def _check_outputs(self, run: FlowRun) -> FlowRun:
        """Return the run with the verdicts of the checks, and with the runs that they have rejected before.

        :raises Exception: any error of a store, or of a function of the task's author. The files are stored.
        """
        from airflow_provider_flows.checks.files import check_outputs  # imports stay cheap

        try:
            checked_run = run if run.verdict is not None else check_outputs(run, self.options)
        except Exception:
            self._publish_outputs(run, is_returned=False)
            raise
        earlier = () if self.check_retry is None else self.check_retry.rejected_runs
        earlier = tuple(row for row in earlier if row["flow_run_id"] != run.flow_run_id)
        counts = {
            "paid_runs": sum(row["is_paid"] for row in earlier) + (not run.reused),
            "rejected_runs": [{name: row[name] for name in ("flow_run_id", "problems")} for row in earlier],
        }
        return replace(checked_run, verdict={**(checked_run.verdict or {}), **counts})

    def raise_failure(self, run: FlowRun) -> NoReturn:
        """Fetch the outputs of a failed or aborted run if requested, and raise its failure.

        :raises FlowRunFailed: always, with the outputs that were fetched; FlowRunAborted if the run was
            aborted.
        """
        from airflow_provider_flows.core.flow_run import failure_error

        if self.options.fetch_partial_outputs:
            try:
                run, _ = self._fetch_outputs(run)  # which output is missing, and why, is in the log
                self._publish_outputs(run, is_returned=False)
            except Exception as error:  # noqa: BLE001  # the task's error is the failure of the run
                log.warning("Not all partial outputs of the %s could be fetched: %s", run, error)
        raise failure_error(run)

    def _fetch_outputs(self, run: FlowRun) -> tuple[FlowRun, Exception | None]:
        from airflow_provider_flows.storage.outputs import fetch_outputs  # imports stay cheap
        from airflow_provider_flows.worker.task_state import FileState

        files = FileState(self.context, run.flow_run_id)
        arguments = run, self.options, files, self.cancellation
        with files:
            try:
                fetched_run, error = fetch_outputs(self.hook, *arguments)
            except FlowAuthError:
                if not self._reload_hook():
                    raise
            else:
                if not (isinstance(error, FlowAuthError) and self._reload_hook()):
                    return fetched_run, error
            return fetch_outputs(self.hook, *arguments)

    def _reload_hook(self) -> bool:
        """Look the connection up again after its key was rejected; return whether that changed it."""
        conn_id = self.hook.flows_conn_id
        try:
            latest = type(self.hook).get_hook(conn_id)
        except Exception:  # noqa: BLE001  # any error of Airflow's; the rejection is what to report
            return False
        if latest.settings == self.hook.settings:
            return False
        log.info("The credentials of connection %s have changed; the outputs are fetched with them", conn_id)
        latest.max_transfer_seconds = self.hook.max_transfer_seconds
        latest.hidden_inputs = self.hook.hidden_inputs
        self.hook = latest
        return True

    def _publish_outputs(self, run: FlowRun, *, is_returned: bool) -> None:
        """Push the outputs to XCom under their own key if they would not be there otherwise.

        They are in the dict that the task returns. But `first.output["outputs"]` in a DAG file means the XCom
        of that key.
        """
        self.on_run_update(run)
        if not is_returned or _is_referenced(self.context.get("task"), OUTPUTS_KEY):
            self.context["ti"].xcom_push(OUTPUTS_KEY, run.to_dict()["outputs"])

    def _delete_run(self, run: FlowRun) -> None:
        """Delete a run at its service if every output is a stored file; otherwise leave it there."""
        from airflow_provider_flows.storage.output_download import is_stored

        doubtful = [output.name for output in run.outputs if output.warning]
        missing = [output.name for output in run.outputs if not is_stored(output, self.options)]
        if not run.outputs:
            log.warning("The %s is not deleted: its list of outputs is empty, and may be incomplete", run)
        elif missing:
            names = ", ".join(missing)
            log.warning("The %s is not deleted: these outputs are not stored as files: %s", run, names)
        elif doubtful:
            names = ", ".join(doubtful)
            log.warning("The %s is not deleted, because these outputs may be unusable: %s", run, names)
        elif self.task_state is not None and not self.task_state.save_run(run):
            log.warning(
                "The %s was not deleted, because a retry may still need it. "
                "Delete it yourself once the task has succeeded.",
                run,
            )
        else:
            self._try_delete(run)

    def _try_delete(self, run: FlowRun) -> None:
        try:
            self.hook.delete(run.flow_run_id)
        except FlowNotFound:
            log.info("The %s was already deleted at the service", run.short_name)
        except FlowError as error:
            log.warning("The %s could not be deleted. Delete it at the service: %s", run, error)
        else:
            name = run.short_name
            log.info("The %s was deleted at the service, because all of its files are stored", name)


def _is_referenced(task: Any, key: str) -> bool:
    """Return whether an argument of another task refers to a task's XCom of this key."""
    from airflow.sdk import XComArg  # imports stay cheap

    if task is None or not task.has_dag():
        return False
    try:
        # Airflow maps a task over returned values only, so `expand` has no such reference
        arguments = [
            other.partial_kwargs if other.is_mapped else other for other in task.get_direct_relatives()
        ]
        references = list(XComArg.iter_xcom_references(arguments))
    except Exception as error:  # noqa: BLE001  # the run is paid for; another XCom does no harm
        log.info("Whether a task refers to the XCom %r is unknown: %r", key, error)
        return True
    return any((operator.task_id, name) == (task.task_id, key) for operator, name in references)


def find_rejection(run: FlowRun) -> FlowOutputRejected | None:
    """Return the error of a run whose outputs the checks have rejected, None if they have not."""
    if run.verdict is None or run.verdict["accepted"]:
        return None
    files = [output.uri for output in run.outputs if output.verdict is not None and output.uri is not None]
    more = f" and {len(files) - MAX_NAMED_FILES} more" if len(files) > MAX_NAMED_FILES else ""
    stored = f" Stored: {', '.join(files[:MAX_NAMED_FILES])}{more}." if files else ""
    paid = run.verdict.get("paid_runs", 0)
    others = f" {paid} flow runs of this task are paid for." if paid > 1 else ""
    return FlowOutputRejected(
        f"The outputs of the {run} do not satisfy check_outputs: {'; '.join(run.verdict['problems'])}."
        f"{stored}{others} A retry would find the same outputs. Change the inputs or the checks, and clear "
        "the task, which starts a new flow run.",
        run,
    )


class DeadlinePolicy(Enum):
    """What happens to a flow run that is still active when the deadline of its task has passed."""

    ABORT = auto()
    LEAVE = auto()
    """The run continues, because of `abort_on_kill=False`."""
    HAND_OVER = auto()
    """The run continues, and the next try of the task resumes it."""


def finish_after_deadline(
    hook: FlowsHook, flow_run_id: str, error: FlowTimeout, policy: DeadlinePolicy
) -> FlowRun:
    """Return a run that completed although its deadline has passed; else raise what happened to it.

    :param error: the deadline's error, to which the outcome is added.
    :raises FlowTimeout: the run did not complete. Another try makes sense (`is_permanent` is false) if it is
        handed over.
    """
    try:
        should_abort = policy is DeadlinePolicy.ABORT
        run = hook.abort_and_wait(flow_run_id) if should_abort else hook.get_run(flow_run_id)
    except FlowError as request_error:
        outcome = f"The flow run may still be active; check it at the service: {request_error}"
    else:
        if run is not None and run.is_completed:
            return run
        outcome = _outcome(run, policy)
    message = f"{error} {outcome}"
    raise FlowTimeout(message, is_permanent=policy is not DeadlinePolicy.HAND_OVER) from error


def _outcome(run: FlowRun | None, policy: DeadlinePolicy) -> str:
    """Return a sentence about a run after its deadline, as last polled."""
    if run is None:
        return "The flow run no longer exists at the service."
    if run.is_final:
        return f"The flow run ended in state {run.raw_state!r}."
    return {
        DeadlinePolicy.ABORT: (
            "This task asked the service to abort the flow run, "
            f"which is still {run.raw_state!r}. Check it there."
        ),
        DeadlinePolicy.LEAVE: "The flow run continues (abort_on_kill=False).",
        DeadlinePolicy.HAND_OVER: "The flow run continues, and the next try resumes it.",
    }[policy]


def add_asset_event_extra(context: Context, run: FlowRun) -> None:
    """Add the flow run to the asset event of each outlet, and create assets for the aliases among them.

    An asset's event gets the extra `flow`, `flow_run_id`, `service` and `state`, the lists `uris` and `sizes`
    (bytes, or None if unknown) in the same order, and `more`, the number of files that are not in these
    lists. An alias gets one event for each file. Its asset has the file's URI, percent-encoded unless it is
    ASCII, and its extra has `uri`, `size`, `sha256` and `media_type` instead of the lists. With checks the
    extra has a `verdict`: that of the run, or for an alias that of the file. An extra that the task's author
    has set takes precedence.

    Errors are logged and not raised, because the flow run is paid for and its outputs are stored.
    """
    for outlet in getattr(context.get("task"), "outlets", None) or ():
        try:
            _add_extra(context["outlet_events"][outlet], outlet, run)
        except Exception as error:  # noqa: BLE001  # an outlet may be of any type
            log.warning("The event of outlet %r has no metadata about the %s: %r", outlet, run, error)


def _add_extra(event: Any, outlet: Any, run: FlowRun) -> None:
    from airflow.sdk import Asset, AssetAlias  # imports stay cheap

    run_extra = {
        "flow": run.flow,
        "flow_run_id": run.flow_run_id,
        "service": run.service,
        "state": run.state.value,
        **({} if run.verdict is None else {"verdict": dict(run.verdict)}),
    }
    files = _event_files(run)
    if not isinstance(outlet, AssetAlias):
        files_extra = {"uris": [file.uri for file in files], "sizes": [file.size for file in files]}
        more = sum(output.uri is not None for output in run.outputs) - len(files)
        event.extra = {**run_extra, **files_extra, **({"more": more} if more else {}), **event.extra}
        return
    for file in files:
        file_extra: dict[str, Any] = {
            "uri": file.uri,
            "size": file.size,
            "sha256": file.sha256,
            "media_type": file.media_type,
        }
        if run.verdict is not None:
            file_extra["verdict"] = None if file.verdict is None else dict(file.verdict)
        event.add(Asset(_to_ascii(str(file.uri))), extra={**run_extra, **file_extra})


def add_batch_event_extra(context: Context, result: Mapping[str, Any]) -> None:
    """Add what a batch returns to the asset event of each outlet; an alias gets the manifest as its asset.

    Errors are logged and not raised, because the flow runs are paid for and their outputs are stored.
    """
    from airflow.sdk import Asset, AssetAlias  # imports stay cheap

    for outlet in getattr(context.get("task"), "outlets", None) or ():
        try:
            event: Any = context["outlet_events"][outlet]
            if isinstance(outlet, AssetAlias):
                event.add(Asset(_to_ascii(str(result["manifest"]))), extra=dict(result))
            else:
                event.extra = {**result, **event.extra}
        except Exception as error:  # noqa: BLE001  # an outlet may be of any type
            log.warning("The event of outlet %r has no metadata about the batch: %r", outlet, error)


def _event_files(run: FlowRun) -> list[FlowOutput]:
    """Return the outputs that are files, at most as many as fit into one event."""
    files: list[FlowOutput] = []
    remaining = MAX_EVENT_URI_CHARACTERS
    for output in run.outputs:
        remaining -= len(output.uri or "")
        if output.uri is None or len(_to_ascii(output.uri)) > MAX_URI_CHARACTERS:
            continue
        if remaining < 0 or len(files) == MAX_EVENT_FILES:
            break
        files.append(output)
    return files


def _to_ascii(uri: str) -> str:
    """Percent-encode a non-ASCII URI; otherwise Airflow would fail the task at its end."""
    return uri if uri.isascii() else quote(uri, safe=printable)
