"""One try of an operator's task, and when it aborts its flow run or leaves it to the next try."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from threading import Thread
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException, AirflowTaskTimeout

from airflow_provider_flows.core.exceptions import (
    FlowAuthError,
    FlowError,
    FlowInputError,
    FlowNotFound,
    FlowServiceError,
    FlowTimeout,
)
from airflow_provider_flows.core.retry import NO_RETRY
from airflow_provider_flows.core.start_or_resume import find_stamped_runs
from airflow_provider_flows.storage.atomic_file import Cancellation
from airflow_provider_flows.worker.finish import DeadlinePolicy, finish_after_deadline
from airflow_provider_flows.worker.kill_check import (
    ABORTED_BY_KILL,
    FINISHED_STATES,
    NOTHING_TO_ABORT,
    ON_KILL_SECONDS,
    RESTARTING,
    read_task_state,
)

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.types import Logger

    from airflow_provider_flows.core.flow_run import FlowRun
    from airflow_provider_flows.core.http import Conversation
    from airflow_provider_flows.core.polling.wait import Wait
    from airflow_provider_flows.core.start_or_resume import RunRecord
    from airflow_provider_flows.hooks import FlowsHook
    from airflow_provider_flows.worker.task_state import TaskState

CREDENTIALS_CHANGED = "The credentials of connection %s have changed; the wait continues with the new ones"
RUN_CONTINUES = (
    "Flow run {flow_run_id} continues, because there is no valid key to abort it with. Correct the "
    "connection, then abort the run at the service, or clear the task, which aborts it."
)
CLEARED_WITH_STATE = (
    "The task was cleared with its state kept. This try ends, and the next one resumes flow run {}."
)
FINAL_ERRORS = (AirflowSkipException, AirflowFailException)  # after which Airflow runs no other try
FORBIDDEN_STATUS = 403  # how a service may respond to the id of another account's run


@dataclass(slots=True)
class TaskTry:
    """One try of a task: its context, its hook, and what earlier tries have saved.

    :param context: Airflow's context of the try.
    :param task_state: the record of the task's flow run, and the retries left.
    :param hook: the hook of the task's connection, for the main thread. `reload_hook` replaces it.
    :param create_hook: returns another hook of the connection, for the thread of `on_kill`.
    :param abort_on_kill: whether the flow run is aborted when no task waits for it any more.
    :param validate: whether a new run is validated against the flow's definition.
    :param log: the task's logger.
    :param deferred_run_id: the flow run that the task was deferred for, if it was.
    :param cancellation: is set when the task is killed, and then cancels the writing of files.
    :param is_left_to_next_try: whether the task was cleared with its state kept, so that no error of this try
        aborts the flow run.
    """

    context: Context
    task_state: TaskState
    hook: FlowsHook
    create_hook: Callable[[], FlowsHook]
    abort_on_kill: bool
    validate: bool
    log: Logger
    deferred_run_id: str | None = None
    cancellation: Cancellation = field(default_factory=Cancellation)
    is_left_to_next_try: bool = False

    @property
    def started_at(self) -> float:
        """The start of the try, in epoch seconds."""
        ti: Any = self.context["ti"]
        return float(ti.start_date.timestamp())

    @property
    def flow_run_id(self) -> str | None:
        """The flow run that the try is responsible for, its own or an earlier try's, or None."""
        return self.deferred_run_id or self.task_state.flow_run_id

    def replace_run(self) -> None:
        """Prepare the start of another run, because the outputs of the completed one were rejected.

        The record of that one remains until the other's is saved, and applies again if no run is created.
        """
        self.deferred_run_id = None
        self.hook = self.create_hook()  # its key may have changed since the start
        record = self.task_state.record
        if record is not None:
            self.task_state.adopt_record(record)
        self.task_state.was_rejected, self.task_state.is_new = True, False


def differs_from(record: RunRecord, hook: FlowsHook) -> bool:
    """Return whether a record names another connection than a hook's, or another host of that connection."""
    is_other_connection = record.conn_id not in {None, hook.flows_conn_id}
    return is_other_connection or record.host not in {None, hook.settings.base_url}


def is_run_elsewhere(task_try: TaskTry, hook: FlowsHook) -> bool:
    """Return whether a hook's connection does not reach the saved flow run.

    Another connection may lead to the same account, and another host to the same service. A run with the same
    id is the saved one only if it is on the same host, or has the record's stamp.

    :raises FlowServiceError: the service could not be reached, or rejected the poll.
    """
    record = task_try.task_state.record
    if record is None or record.flow_run_id is None or record.saved_run is not None:
        return False
    if not differs_from(record, hook):
        return False
    if not hook.service.supports("get_run"):
        return True
    try:
        run = hook.get_run(record.flow_run_id)
    except FlowServiceError as error:
        if isinstance(error, FlowNotFound) or error.status == FORBIDDEN_STATUS:
            return True
        raise
    return record.host != hook.settings.base_url and not record.is_stamped_on(run)


def abort_over_saved_connection(task_try: TaskTry) -> None:
    """Abort the saved flow run over the connection that its record names; log any failure."""
    record = task_try.task_state.record
    if record is None or record.flow_run_id is None:
        return
    try:
        outcome = _try_abort_over_saved_connection(task_try, record, record.flow_run_id)
    except Exception as error:  # noqa: BLE001  # Airflow raises several types if there is no such connection
        reason = str(error) if isinstance(error, FlowError) else f"the connection: {type(error).__name__}"
    else:
        if outcome:
            task_try.log.info(
                "Flow run %s of an earlier try was started over connection %r (%s), and %s",
                record.flow_run_id,
                record.conn_id,
                record.host,
                outcome,
            )
            return
        reason = "abort_on_kill is False"
    task_try.log.warning(
        "Flow run %s of an earlier try was started over connection %r (%s), and was not aborted (%s). If it "
        "is still active, it continues, and is billed. Check it there",
        record.flow_run_id,
        record.conn_id,
        record.host or "host unknown",
        reason,
    )


def _try_abort_over_saved_connection(task_try: TaskTry, record: RunRecord, flow_run_id: str) -> str:
    """Abort a flow run over the connection that its record names.

    :returns: what happened to the run; empty if it must not be aborted.
    :raises FlowError: it could not be aborted.
    """
    if not task_try.abort_on_kill:
        return ""
    saved_hook = type(task_try.hook).get_hook(record.conn_id or task_try.hook.flows_conn_id)
    with closing(saved_hook):
        host = saved_hook.settings.base_url
        if record.host not in {None, host}:
            message = f"the connection leads to {host} now"
            raise FlowError(message)
        if saved_hook.abort(flow_run_id):
            return "was aborted over that connection"
        return f"is {saved_hook.get_run(flow_run_id).raw_state}"


def on_execution_timeout(task_try: TaskTry, fingerprint: str) -> FlowRun | None:
    """Leave the run to the next try when `execution_timeout` has passed, or handle it as a deadline.

    :returns: the run if it completed; None if Airflow is to raise its own error: a retry is left, or no run.
    :raises FlowTimeout: no retry is left, and the run did not complete.
    """
    flow_run_id = task_try.task_state.flow_run_id if task_try.task_state.matches(fingerprint) else None
    if flow_run_id is None or not task_try.hook.service.supports("get_run"):
        return None
    if _will_be_resumed(task_try):
        task_try.log.warning("The execution_timeout passed; the next try resumes flow run %s", flow_run_id)
        return None
    return on_deadline(task_try, flow_run_id, FlowTimeout("The execution_timeout of the task passed."))


def on_deadline(task_try: TaskTry, flow_run_id: str, error: FlowTimeout) -> FlowRun:
    """Return the run if it completed although the deadline has passed.

    :raises FlowTimeout: it did not complete. It is aborted, unless the next try resumes it or `abort_on_kill`
        is false.
    """
    policy = DeadlinePolicy.ABORT if task_try.abort_on_kill else DeadlinePolicy.LEAVE
    if _will_be_resumed(task_try):
        policy = DeadlinePolicy.HAND_OVER
    run = finish_after_deadline(task_try.hook, flow_run_id, error, policy)
    task_try.log.info("The deadline passed, but the %s had completed", run.short_name)
    return run


@contextmanager
def abort_on_error(task_try: TaskTry) -> Iterator[None]:
    """Abort the flow run if an error ends the block, and no retry resumes the run."""
    try:
        yield
    except FlowTimeout:  # the run is settled, and the error says how
        raise
    except (Exception, AirflowTaskTimeout) as error:
        abort_if_abandoned(task_try, error)
        raise


def abort_if_abandoned(task_try: TaskTry, error: BaseException) -> None:
    """Abort the flow run, also one of an earlier try, if no retry resumes it after this error."""
    if not task_try.abort_on_kill or task_try.is_left_to_next_try:
        return
    flow_run_id = task_try.flow_run_id
    if flow_run_id is None:
        _abort_unrecorded_runs(task_try, error)
        return
    if _will_retry(task_try, error):
        return
    try:
        if task_try.hook.service.supports("get_run"):
            _abort(task_try, task_try.hook, flow_run_id)
    except FlowError as abort_error:
        is_same = isinstance(error, FlowInputError) and str(error) == str(abort_error)  # of the connection
        if is_same or (isinstance(error, FlowAuthError) and isinstance(abort_error, FlowAuthError)):
            add_continuing_run(error, flow_run_id)  # the task fails with it, so it is not logged as well
            return
        task_try.log.warning(
            "Flow run %s could not be aborted. Check it at the service: %s", flow_run_id, abort_error
        )


def _abort_unrecorded_runs(task_try: TaskTry, error: BaseException) -> None:
    """Abort the flow runs of earlier tries that are only in the service's list, because there is no store."""
    task_state, ti = task_try.task_state, task_try.context["ti"]
    if task_state.is_new or task_state.has_store or not task_state.durable:
        return
    if int(ti.try_number) <= task_state.generation and allows_retry(task_try.context, error):
        return  # the next try finds them
    try:
        service = task_try.hook.service
        if not service.supports("list_runs"):
            return
        for run in task_try.hook.run(find_stamped_runs(service, task_state.stamp_of_all_tries)):
            if not run.is_final and task_try.hook.abort(run.flow_run_id):
                task_try.log.info("The %s of an earlier try was aborted", run)
    except FlowError as search_error:
        reason = search_error.summary if isinstance(error, FlowAuthError) else search_error
        task_try.log.warning("Whether an earlier try has left an active flow run is unknown: %s", reason)


def add_continuing_run(error: BaseException, flow_run_id: str) -> None:
    """Add to the message of an error of the connection that a flow run continues."""
    error.args = (f"{str(error).rstrip('.')}. {RUN_CONTINUES.format(flow_run_id=flow_run_id)}",)


def reload_hook(task_try: TaskTry) -> bool:
    """Look the connection up again after its key was rejected; return whether that changed it."""
    try:
        latest = task_try.create_hook()
        is_changed = latest.settings != task_try.hook.settings
    except Exception:  # noqa: BLE001  # any error of Airflow's; the rejection is what to report
        return False
    if is_changed:
        task_try.hook = latest
        task_try.log.info(CREDENTIALS_CHANGED, latest.flows_conn_id)
    return is_changed


def run_poll(
    task_try: TaskTry, wait: Wait, poll: Callable[[], Conversation[FlowRun | None]]
) -> FlowRun | None:
    """Poll, and again with the connection's new credentials if the old ones were rejected."""
    while True:
        try:
            return task_try.hook.run(poll(), retry=NO_RETRY)
        except FlowAuthError:
            if not reload_hook(task_try):
                raise
            wait.reset_permanent_errors()


def _abort(task_try: TaskTry, hook: FlowsHook, flow_run_id: str) -> bool | None:
    """Abort a flow run of this try or of an earlier one, over the connection that it was started with.

    :returns: whether it was deleted or its abort was requested; None if that happened over another connection
        than the hook's, which is logged.
    :raises FlowError: the run could not be aborted.
    """
    if flow_run_id == task_try.task_state.flow_run_id and is_run_elsewhere(task_try, hook):
        abort_over_saved_connection(task_try)
        return None
    return hook.abort(flow_run_id)


def _will_retry(task_try: TaskTry, error: BaseException) -> bool:
    """Return whether a retry resumes the run after this error."""
    return (
        not isinstance(error, FINAL_ERRORS)
        and _will_be_resumed(task_try)
        and allows_retry(task_try.context, error)
    )


def allows_retry(context: Context, error: BaseException) -> bool:
    """Return whether Airflow may run a task again after an error, as the task's retry policy decides.

    :param context: Airflow's context of the try; whether a try is left is not checked.
    """
    if isinstance(error, FINAL_ERRORS):
        return False
    policy = getattr(context.get("task"), "retry_policy", None)
    if policy is None:
        return True
    ti: Any = context["ti"]
    try:
        decision = policy.evaluate(error, ti.try_number, int(ti.max_tries or 0), context)
    except Exception:  # noqa: BLE001  # Airflow then retries as without a policy
        return True
    return str(decision.action.value) != "fail"


def _will_be_resumed(task_try: TaskTry) -> bool:
    """Return whether a retry would resume the run. Without a saved record, the service must list the run."""
    task_state = task_try.task_state
    if not task_state.will_be_resumed(time.time()):
        return False
    if task_state.has_store:
        return True
    try:
        runs = task_try.hook.run(find_stamped_runs(task_try.hook.service, task_state.stamp_of_all_tries))
    except FlowError:
        return False
    return any(run.flow_run_id == task_state.flow_run_id for run in runs)


def on_kill(task_try: TaskTry) -> None:
    """Abort the flow run only if Airflow has ended the task.

    If that is uncertain, leave the run for the next try.

    :raises FlowError: the task was cleared with its state kept. Nothing else ends the wait for a run that
        continues, and the next try begins only when this one has ended, which Airflow 3.4 allows to take a
        minute.
    """
    # A thread, because Airflow calls this in a signal handler, which may have interrupted a request to the
    # supervisor.
    thread = Thread(target=_abort_if_finished, args=(task_try,), daemon=True)
    thread.start()
    thread.join(ON_KILL_SECONDS)
    if task_try.is_left_to_next_try:
        raise FlowError(CLEARED_WITH_STATE.format(task_try.flow_run_id))


def _abort_if_finished(task_try: TaskTry) -> None:
    try:
        state = read_task_state(task_try.context["ti"])
        if state not in FINISHED_STATES:
            _log_not_finished(task_try)
            return
        if state == RESTARTING and task_try.task_state.on_clear():
            # a response that is lost with this process cannot be resumed, so its request is not interrupted
            is_resumable = task_try.flow_run_id is not None and task_try.hook.service.supports("get_run")
            task_try.is_left_to_next_try = is_resumable
            return
        task_try.cancellation.cancel()  # before the id is read: a start that saves an id checks it afterwards
        flow_run_id = task_try.flow_run_id
        if flow_run_id is not None and task_try.hook.service.supports("get_run"):
            hook = task_try.create_hook()  # not the try's, which the main thread may be using
            was_aborted = _abort(task_try, hook, flow_run_id)
            if was_aborted is not None:
                task_try.log.info(ABORTED_BY_KILL if was_aborted else NOTHING_TO_ABORT, flow_run_id)
    except Exception:  # nothing may escape from a kill
        if task_try.flow_run_id is None:
            task_try.log.exception(
                "The task was killed, and whether it started a flow run is unknown. Check at the service"
            )
        else:
            task_try.log.exception(
                "Flow run %s could not be aborted. Check it at the service", task_try.flow_run_id
            )


def _log_not_finished(task_try: TaskTry) -> None:
    if task_try.flow_run_id is None:
        task_try.log.info("The task is not finished in Airflow; no flow run has been started yet")
    else:
        task_try.log.info("The task is not finished in Airflow; flow run %s continues", task_try.flow_run_id)
