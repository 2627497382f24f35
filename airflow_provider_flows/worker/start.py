"""How a try of a task resumes the flow run of an earlier try, or starts one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowTaskTimeout

from airflow_provider_flows.core.account_limits import StartWait
from airflow_provider_flows.core.check_retry import CheckRetry, choose_seed, has_own_seed
from airflow_provider_flows.core.exceptions import FlowError, FlowInputError, FlowTimeout
from airflow_provider_flows.core.flow_run import FlowState
from airflow_provider_flows.core.start_or_resume import (
    RunRecord,
    add_stamp,
    can_be_stamped,
    delete_created_runs,
    find_stamped_runs,
    select_record,
)
from airflow_provider_flows.core.validation import Problems
from airflow_provider_flows.storage.inputs import build_request
from airflow_provider_flows.storage.reuse_index import create_lookup, find_reusable_run
from airflow_provider_flows.worker.run_tracking import push_run_id
from airflow_provider_flows.worker.saved_run import open_links, seal_links
from airflow_provider_flows.worker.task_try import (
    TaskTry,
    abort_over_saved_connection,
    differs_from,
    is_run_elsewhere,
)

if TYPE_CHECKING:
    from airflow_provider_flows.core.flow_run import FlowRun
    from airflow_provider_flows.core.reuse import ReuseLookup
    from airflow_provider_flows.core.service import Service
    from airflow_provider_flows.core.start_or_resume import RunRequest
    from airflow_provider_flows.hooks import FlowsHook
    from airflow_provider_flows.storage.output_options import OutputOptions

ONLY_RESUMABLE = "%s, so this try can only resume the flow run of an earlier try: %s"
MISSING_RUN = (
    "Flow run %s of an earlier try was not found: %s responded with 404 to every poll, and does not list it. "
    "This try does not resume it. If it is still active at the service, it continues, and is billed: check "
    "it there"
)
NO_LIST = (
    "No record of an earlier try is saved, and %s does not list its flow runs. If an earlier try has started "
    "one that is still active, it continues, and is billed: check it at the service"
)
LIST_FAILED = (
    "No record of an earlier try is saved, and the list of flow runs cannot be searched. If an earlier try "
    "has started one that is still active, it continues, and is billed: check it at the service. %s"
)
STATE_KEPT = (
    "The task was cleared with its state kept; resuming flow run %s. To start a new one, clear the task "
    "instance without keeping its state: a Clear of the complete DAG run keeps it"
)
NO_STORE = (
    "The task state store requires Airflow 3.3 or later. On this version a retry of this task cannot resume "
    "the flow run that starts now. It will start another one, with the full timeout"
)
NO_STORE_BUT_LIST = (
    "The task state store requires Airflow 3.3 or later. On this version a retry of this task can resume the "
    "flow run that starts now only if %s lists it"
)


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """The flow run that a try is to resume or start.

    :param request: starts a new run.
    :param fingerprint: of the request. It is the saved record's if the inputs can no longer be read: the run
        of an earlier try can be resumed without them.
    :param deadline: epoch seconds, or None.
    :param input_problems: why the inputs cannot be read or no file can be written now, so that no new run can
        be started.
    :param options: of the outputs.
    :param lookup: in the index of reusable outputs; None without reuse, or if the inputs cannot be read.
    :param check_retry: the runs that the new one replaces because their outputs were rejected, or None.
    """

    request: RunRequest
    fingerprint: str
    deadline: float | None
    input_problems: Problems
    options: OutputOptions
    lookup: ReuseLookup | None
    check_retry: CheckRetry | None = None


def plan_run(
    task_try: TaskTry,
    arguments: tuple[Any, Any, Any, Any, str | None],
    options: OutputOptions,
    timeout: float | None,
    template_problems: tuple[Problems, Problems],
    *,
    check_retry: CheckRetry | None = None,
) -> PlannedRun:
    """Read the task's arguments, and validate what can be validated before a request is sent.

    The run of an earlier try can be resumed although its inputs have disappeared, or its files cannot be
    written for the moment: these are no errors yet.

    :param arguments: flow, inputs, parameters, additional, and the connection of the storage of input files.
    :param timeout: seconds from now until the deadline, if no earlier try has set it; None for no deadline.
    :param template_problems: known problems of the arguments, and of those in `options`.
    :param check_retry: the runs whose outputs this try has rejected; None if it has rejected none. Then it
        may resume the run of an earlier try that replaces rejected ones.
    :raises FlowInputError: an argument is invalid; the message lists every problem.
    """
    problems, output_problems = template_problems
    _find_earlier_runs(task_try)
    request = build_request(*arguments, problems, task_try.hook)
    task_try.task_state.is_listable = _is_run_listable(task_try.hook.service, request.additional)
    options.validate(task_try.hook.service, output_problems)
    record = _get_resumable_record(task_try) if check_retry is None else None
    is_readable = not problems
    if record is None or (output_problems and output_problems.error().is_permanent):
        problems.extend(output_problems)
        _raise_if_invalid(task_try, request, problems)
    else:  # the run is resumed without its inputs, and its files are written when it has finished
        if problems:
            task_try.log.warning(ONLY_RESUMABLE, "The inputs cannot be read", problems.error())
        if output_problems:
            task_try.log.warning(ONLY_RESUMABLE, "output_path cannot be used now", output_problems.error())
        problems.extend(output_problems)
    reused_request = request
    if is_readable or record is None:
        check_retry = _plan_check_retry(task_try, request, check_retry)
        fingerprint = request.fingerprint
        if check_retry is not None:
            request = check_retry.change(request)
            fingerprint = check_retry.get_fingerprint(request)
            reused_request = request if has_own_seed(reused_request) else reused_request
    else:
        check_retry, fingerprint = CheckRetry.from_dict(record.check_retry), record.fingerprint
    default_deadline = None if timeout is None else time.time() + timeout
    deadline = task_try.task_state.deadline(fingerprint, default_deadline)
    hook = task_try.hook
    lookup = None
    if not problems:
        lookup = create_lookup(options, hook.service, hook.settings.base_url, reused_request)
    return PlannedRun(request, fingerprint, deadline, problems, options, lookup, check_retry)


def _plan_check_retry(
    task_try: TaskTry, request: RunRequest, check_retry: CheckRetry | None
) -> CheckRetry | None:
    """Return which rejected runs a new run of a request replaces, and with which seed; None without any.

    :param check_retry: of the runs that this try has rejected, without the request.
    """
    if check_retry is not None:
        definition = task_try.hook.preflight.check(request, validate=task_try.validate).definition
        seed = choose_seed(request, definition, len(check_retry.rejected_runs))
        return check_retry.with_request(request, seed)
    record = task_try.task_state.current_record
    saved = None if record is None else CheckRetry.from_dict(record.check_retry)
    return saved if saved is not None and saved.base == request.fingerprint else None


def _is_run_listable(service: Service, additional: Any) -> bool:
    """Return whether a new flow run gets a stamp, by which a later try finds it in the service's list.

    :param additional: the caller's metadata.
    """
    can_find = service.staged_start and service.supports("list_runs") and service.supports("get_run")
    return can_find and can_be_stamped(additional)


def _find_earlier_runs(task_try: TaskTry) -> None:
    """Find the task's flow runs in the service's list, if an earlier try may have started one without record.

    No record is saved if the state was deleted, as a Clear does in Airflow 3.4, or if there is no store. The
    record of the run that is to be resumed is taken from its stamp. All other runs are deleted or aborted.
    """
    task_state, hook = task_try.task_state, task_try.hook
    if task_state.is_new or task_state.record is not None:
        return
    stamp = task_state.stamp_of_all_tries
    if not task_state.durable:
        hook.run(delete_created_runs(hook.service, stamp))
        return
    if not hook.service.supports("list_runs"):
        if hook.service.supports("get_run"):
            task_try.log.info(NO_LIST, hook.service.name)
        return
    try:
        runs = hook.run(find_stamped_runs(hook.service, stamp))
    except FlowError as error:
        task_try.log.warning(LIST_FAILED, error)
        return
    record = select_record(runs, task_state.generation)
    if record is not None:
        task_state.adopt_record(record)
    for run in runs:
        if record is None or run.flow_run_id != record.flow_run_id:
            _end_other_run(task_try, run)


def _end_other_run(task_try: TaskTry, run: FlowRun) -> None:
    """Delete a flow run of an earlier try that never ran, or abort an active one; log a failure."""
    is_ending = run.is_final or run.state is FlowState.ABORTING
    if is_ending or not (task_try.abort_on_kill or run.state is FlowState.CREATED):
        return
    try:
        if task_try.hook.abort(run.flow_run_id) and run.state is not FlowState.CREATED:
            task_try.log.info("The %s of an earlier try was aborted", run)
    except FlowError as error:
        task_try.log.warning("The %s of an earlier try could not be aborted: %s", run, error)


def _get_resumable_record(task_try: TaskTry) -> RunRecord | None:
    """Return the record of an earlier try's flow run that can be polled, None if there is none."""
    record = task_try.task_state.current_record
    if record is None or record.flow_run_id is None or not task_try.hook.service.supports("get_run"):
        return None
    return record


def resume_or_start(
    task_try: TaskTry, planned_run: PlannedRun, defer: Callable[[], None] | None = None
) -> FlowRun:
    """Resume the flow run of an earlier try, or return one whose outputs are reused, or start one.

    A start waits until the account may have another active run.

    :param defer: defers the task for that; None to wait in this process.
    :raises FlowInputError: a new run would be invalid; the message lists every problem.
    :raises FlowTimeout: the deadline has passed, and no run was started.
    :raises FlowError: an earlier try saved a paid run, and it cannot be read.
    """
    run = _resume(task_try, planned_run)
    if run is not None:
        return run
    run = find_reusable_run(planned_run.options, planned_run.lookup)
    if run is not None:
        push_run_id(task_try.context["ti"], run.flow_run_id)
        return run
    _raise_if_invalid(task_try, planned_run.request, planned_run.input_problems)
    return _start(task_try, planned_run, defer)


def _raise_if_invalid(task_try: TaskTry, request: RunRequest, problems: Problems) -> None:
    """Raise the problems found so far, with those of a check against the flow's definition."""
    if problems:
        preflight = task_try.hook.preflight
        preflight.check(request, problems, validate=task_try.validate).raise_if_invalid()


def _resume(task_try: TaskTry, planned_run: PlannedRun) -> FlowRun | None:
    fingerprint = planned_run.fingerprint
    task_state, hook = task_try.task_state, task_try.hook
    if planned_run.check_retry is not None and planned_run.check_retry.names(task_state.flow_run_id):
        return None
    if not hook.service.supports("get_run"):
        task_state.load_saved_file()
        task_state.raise_if_unreadable(fingerprint)
    if is_run_elsewhere(task_try, hook):
        abort_over_saved_connection(task_try)
        return None
    is_same_request, earlier_run_id = task_state.matches(fingerprint), task_state.flow_run_id
    aborted_run_ids: list[str] = []
    run = hook.resume(
        fingerprint,
        _open_record(task_state.record, hook),
        task_state.generation,
        abort=task_try.abort_on_kill,
        on_abort=aborted_run_ids.append,
        on_missing=lambda flow_run_id: task_try.log.warning(MISSING_RUN, flow_run_id, hook.service.name),
    )
    if run is None:
        task_state.raise_if_unreadable(fingerprint)
    if run is not None:
        push_run_id(task_try.context["ti"], run.flow_run_id)
        if task_state.was_kept:
            task_try.log.info(STATE_KEPT, run.flow_run_id)
        task_try.log.info("Resuming the %s of an earlier try; its state is %r", run, run.raw_state)
        _save_resumed(task_try, run, planned_run.deadline)
    elif earlier_run_id is not None and not is_same_request:
        task_try.log.info(
            "The task was cleared or its arguments changed, so this try does not resume flow run %s. "
            "It starts a new one. The old flow run was %s",
            earlier_run_id,
            "aborted" if aborted_run_ids else "not aborted",
        )
    return run


def _save_resumed(task_try: TaskTry, run: FlowRun, deadline: float | None) -> None:
    """Save the record of the run that is resumed, if it differs from the saved one."""
    task_state, hook = task_try.task_state, task_try.hook
    record = task_state.record
    if record is None:
        return
    is_other_run = record.flow_run_id != run.flow_run_id  # found by its stamp
    is_unsaved = task_state.was_kept or task_state.is_adopted
    if is_other_run or is_unsaved or differs_from(record, hook):
        record = replace(record, conn_id=hook.flows_conn_id, host=hook.settings.base_url)
        task_state.save(replace(record, flow_run_id=run.flow_run_id, deadline=deadline))


def _open_record(record: RunRecord | None, hook: FlowsHook) -> RunRecord | None:
    """Return the record of an earlier try with the signed links that it has saved."""
    if record is None or record.saved_run is None:
        return record
    return replace(record, saved_run=open_links(record.saved_run, hook.settings.secrets))


def _start(task_try: TaskTry, planned_run: PlannedRun, defer: Callable[[], None] | None) -> FlowRun:
    hook, task_state, request = task_try.hook, task_try.task_state, planned_run.request
    _raise_if_late(planned_run)
    _warn_if_repeated(task_try, planned_run)

    def save(record: RunRecord | None) -> None:
        if hook.service.staged_start:  # nothing is billed yet
            _raise_if_killed(task_try, request)
        if record is not None and record.saved_run is not None:
            record = replace(record, saved_run=seal_links(record.saved_run, hook.settings.secrets))
        task_state.save_at_start(record, is_staged=hook.service.staged_start)
        _raise_if_killed(task_try, request)

    record = _create_record(task_try, planned_run)
    if not task_state.durable:  # else the start protocol adds it
        request = replace(request, additional=add_stamp(request.additional, record.stamp))
    try:
        run = hook.start_from_request(
            request,
            record=record if task_state.durable else None,
            save=save,
            validate=task_try.validate,
            wait=StartWait(
                planned_run.deadline, partial(_on_wait, task_try, request, defer), task_try.log.info
            ),
        )
    except (Exception, AirflowTaskTimeout):
        task_state.save_after_error()
        raise
    if not task_state.durable:
        save(replace(record, flow_run_id=run.flow_run_id))
    if run.is_final:
        task_try.log.info("The %s ended in state %r", run, run.raw_state)
    else:
        task_try.log.info("Started the %s", run)
    return run


def _raise_if_killed(task_try: TaskTry, request: RunRequest) -> None:
    if task_try.cancellation.event.is_set():
        message = f"The task was killed during the start of flow {request.flow}."
        raise FlowError(message)


def _on_wait(task_try: TaskTry, request: RunRequest, defer: Callable[[], None] | None) -> None:
    _raise_if_killed(task_try, request)
    if defer is not None:
        defer()


def _raise_if_late(planned_run: PlannedRun) -> None:
    if planned_run.deadline is not None and time.time() >= planned_run.deadline:
        message = (
            f"Flow {planned_run.request.flow} was not started, because its timeout had already passed. No "
            "flow run was created. Clear the task to start over; if runs of this flow take this long, "
            "increase timeout."
        )
        raise FlowTimeout(message)


def _warn_if_repeated(task_try: TaskTry, planned_run: PlannedRun) -> None:
    """Log a warning if an earlier try sent this request and did not get a response, and it may have run."""
    task_state, service = task_try.task_state, task_try.hook.service
    has_no_response = task_state.matches(planned_run.fingerprint) and task_state.flow_run_id is None
    if has_no_response and not service.staged_start:
        task_try.log.warning(
            "An earlier try sent flow %s to %s and got no response: "
            "the flow may have run before, and this try runs it again",
            planned_run.request.flow,
            service.name,
        )


def _create_record(task_try: TaskTry, planned_run: PlannedRun) -> RunRecord:
    """Return the record of a new start; log a warning if this Airflow cannot save it."""
    task_state, hook = task_try.task_state, task_try.hook
    if task_state.durable and not task_state.has_store:
        if task_state.is_listable:
            task_try.log.warning(NO_STORE_BUT_LIST, hook.service.name)
        else:
            task_try.log.warning(NO_STORE)
    return RunRecord(
        planned_run.fingerprint,
        task_state.generation,
        planned_run.deadline,
        conn_id=hook.flows_conn_id,
        host=hook.settings.base_url,
        created_by=task_state.stamp_of_this_try,
        check_retry=None if planned_run.check_retry is None else planned_run.check_retry.to_dict(),
    )


def reject_unused_output_path(task: Any, hook: FlowsHook) -> None:
    """Raise an error if a task itself has an output path, and ends before there are outputs.

    One in `default_args` is for the other tasks. A service without run ids returns the outputs at once.

    :param task: an operator that does not wait for its flow run.
    """
    if not hook.service.supports("get_run"):
        return
    groups = [group for group in (task.get_dag(), task.task_group) if group is not None]
    if task.output_path in [None, *((group.default_args or {}).get("output_path") for group in groups)]:
        return
    message = (
        "output_path cannot be combined with wait_for_completion=False: the task ends before the run has "
        "outputs. Remove one of the two; FetchFlowRunOperator stores the outputs later"
    )
    raise FlowInputError(message)
