"""The commands that wait: `run`, which also starts a flow run and fetches its outputs, and `watch`.

While they wait, they show a progress bar, and Ctrl-C may abort the flow run.
"""

from __future__ import annotations

import logging
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from airflow_provider_flows.cli import arguments
from airflow_provider_flows.cli.command import SigtermReceived, command
from airflow_provider_flows.cli.flow_runs import (
    EXIT_CODES_BY_STATE,
    command_line,
    failure_message,
    fetch_and_print,
    to_run_summary,
)
from airflow_provider_flows.cli.parser import Exit
from airflow_provider_flows.cli.terminal import (
    INTERRUPTED_MESSAGE,
    confirm,
    echo_err,
    escape_control_chars,
    is_interactive,
    is_terminal,
    show_one,
)
from airflow_provider_flows.core.account_limits import StartWait
from airflow_provider_flows.core.exceptions import (
    FlowError,
    FlowInputError,
    FlowInvalid,
    FlowNotFound,
    FlowServiceError,
    FlowTimeout,
)
from airflow_provider_flows.core.flow_run import FlowRun
from airflow_provider_flows.core.retry import NO_RETRY
from airflow_provider_flows.core.start_or_resume import RunRecord, RunRequest
from airflow_provider_flows.core.validation import Problems
from airflow_provider_flows.hooks import FlowsHook
from airflow_provider_flows.storage.reuse_index import create_lookup, find_reusable_run

if TYPE_CHECKING:
    from airflow_provider_flows.core.polling.schedule import Schedule

ProgressCallback = Callable[[FlowRun], None]
GENERATION = 0  # a command has no retries


@command
def run(args: Namespace) -> Exit:
    """Start a flow run, wait for it, fetch its outputs and print what a task would return."""
    arguments.reject_options_without_wait(args)
    hook, output_options, problems = (
        FlowsHook.get_hook(args.conn_id),
        arguments.parse_output_options(args),
        Problems(),
    )
    request, schedule = arguments.parse_request(args, problems, hook), arguments.parse_schedule(args)
    output_options.validate(hook.service, problems)
    if problems:
        hook.preflight.check(request, problems, validate=not args.no_validate).raise_if_invalid()
    lookup = create_lookup(output_options, hook.service, hook.settings.base_url, request)
    reused_run = find_reusable_run(output_options, lookup)
    if reused_run is not None:
        echo_err(f"The outputs of the {reused_run} are reused; no flow run is started.")
        show_one(reused_run.to_dict(), args.output)
        return Exit.DONE
    flow_run = _RunStarter(hook, request, args, schedule.deadline).start()
    if flow_run is None:
        return Exit.INTERRUPTED
    if args.no_wait and not flow_run.is_final:
        show_one(flow_run.to_dict(), args.output)
        return Exit.DONE
    final: FlowRun | None = flow_run
    if not flow_run.is_final:
        final = _wait_for_run(hook, flow_run.flow_run_id, schedule, args, is_named=True)
    return Exit.INTERRUPTED if final is None else fetch_and_print(hook, final, output_options, args, lookup)


@command
def watch(args: Namespace) -> Exit:
    """Wait for a flow run, and print how it ended."""
    hook = FlowsHook.get_hook(args.conn_id)
    schedule = arguments.parse_schedule(args)
    flow_run = hook.get_run(args.flow_run_id)  # before the wait, which would poll an unknown id several times
    final = flow_run if flow_run.is_final else _wait_for_run(hook, args.flow_run_id, schedule, args)
    if final is None:
        return Exit.INTERRUPTED
    if not final.is_completed:
        echo_err(failure_message(final))
    show_one(to_run_summary(final), args.output)
    return EXIT_CODES_BY_STATE.get(final.state, Exit.FAILED)


class _RunStarter:
    """One start, which Ctrl-C may interrupt."""

    def __init__(self, hook: FlowsHook, request: RunRequest, args: Namespace, deadline: float | None) -> None:
        self._hook, self._request, self._args = hook, request, args
        self._record = RunRecord(request.fingerprint, GENERATION)
        self._validate = not args.no_validate
        self._wait = StartWait(deadline, log=echo_err)
        self._is_sent = False
        # whether a run has an id at the service and can be polled
        self._supports_get_run = hook.service.supports("get_run")

    def start(self) -> FlowRun | None:
        """Start the flow run; return None if Ctrl-C prevented the start or left the run running.

        :raises FlowInputError: the service rejects the arguments.
        :raises FlowServiceError: no run was started, as far as is known; stderr says what is not.
        """
        try:
            flow_run = self._hook.start_from_request(
                self._request,
                record=self._record,
                save=self._save,
                validate=self._validate,
                wait=self._wait,
            )
            if self._supports_get_run:
                echo_err(f"The {flow_run} is started.")
        except KeyboardInterrupt as interrupt:
            return self._handle_interrupt(interrupt)
        except FlowInvalid as error:  # the service rejected the request, so nothing is paid
            raise FlowInputError(str(error)) from error
        except FlowServiceError as error:
            found = self._find_run() if error.outcome_unknown and self._is_sent else None
            if found is None:
                raise
            echo_err(f"The {found} is started, although the service responded: {error}")
            return found
        return flow_run

    def _save(self, record: RunRecord | None) -> None:
        self._is_sent = record is not None
        if record is None:
            return
        self._record = record
        if not self._supports_get_run and record.flow_run_id is None:
            echo_err(
                f"The flow {self._request.flow} has been sent; the service responds when it has finished."
            )
        elif self._hook.service.staged_start and record.flow_run_id is not None:
            echo_err(
                f"The flow run {record.flow_run_id} of flow {self._request.flow} is created; "
                "sending its inputs."
            )

    def _handle_interrupt(self, interrupt: KeyboardInterrupt) -> FlowRun | None:
        """Delete a run that was not started; ask whether to abort one that was."""
        if not self._is_sent:
            echo_err(f"{INTERRUPTED_MESSAGE} The flow {self._request.flow} was not started.")
            return None
        echo_err(INTERRUPTED_MESSAGE)
        flow_run = self._find_run()
        if flow_run is None:
            return None
        return (
            flow_run
            if flow_run.is_final
            else _abort_if_confirmed(self._hook, flow_run.flow_run_id, self._args, interrupt)
        )

    def _find_run(self) -> FlowRun | None:
        """Return the run if it was started, otherwise delete it; report what could not be determined."""
        flow_run_id, service = self._record.flow_run_id, self._hook.service
        if not self._supports_get_run or (flow_run_id is None and not service.staged_start):
            hint = (
                "find its run: airflow flows runs"
                if service.supports("list_runs")
                else "its outputs cannot be fetched"
            )
            echo_err(f"The flow {self._request.flow} may run nevertheless; {hint}.")
            return None
        missing_run_ids: list[str] = []
        try:
            found = self._hook.resume(
                self._request.fingerprint,
                self._record,
                GENERATION,
                abort=False,
                on_missing=missing_run_ids.append,
            )
        except (FlowError, KeyboardInterrupt) as error:
            if isinstance(error, FlowError):
                echo_err(error)
            if flow_run_id is not None:
                get_command, abort_command = (
                    command_line("get", flow_run_id, self._args),
                    command_line("abort", flow_run_id, self._args),
                )
                echo_err(
                    f"The flow run {flow_run_id} may have started. "
                    f"Check it: {get_command}; abort it: {abort_command}"
                )
            return None
        if missing_run_ids:
            echo_err(f"The service does not find the flow run {flow_run_id}; it may run nevertheless.")
        elif found is None:
            echo_err("No flow run is running; the one that had been created was deleted.")
        return found


def _wait_for_run(
    hook: FlowsHook, flow_run_id: str, schedule: Schedule, args: Namespace, *, is_named: bool = False
) -> FlowRun | None:
    """Wait for a flow run and show its progress; return None if Ctrl-C ended the wait and the run continues.

    :param is_named: whether a line before has named the run in full.
    :raises FlowTimeout: the timeout expired; the run continues.
    """
    try:
        bar = is_terminal(sys.stdout) and is_terminal(sys.stderr)
        wait = hook.create_wait(
            flow_run_id, schedule, _echo_warning if bar else _echo_log_line, is_named=is_named
        )
        with _progress_bar(flow_run_id) if bar else _no_progress_bar() as show:
            return hook.run(wait.poll_until_final(show), retry=NO_RETRY)
    except FlowTimeout as error:
        message = f"{error} The flow run continues; watch it: {command_line('watch', flow_run_id, args)}"
        raise FlowTimeout(message) from error
    except KeyboardInterrupt as interrupt:
        return _abort_if_confirmed(hook, flow_run_id, args, interrupt)
    except FlowServiceError as error:
        if not isinstance(error, FlowNotFound):
            _report_still_running(flow_run_id, args)
        raise


def _abort_if_confirmed(
    hook: FlowsHook, flow_run_id: str, args: Namespace, interrupt: KeyboardInterrupt
) -> FlowRun | None:
    """Abort the run if the user or `--on-interrupt` says so; return it if it is final, otherwise None."""
    try:
        if not _confirm_abort(flow_run_id, args.on_interrupt, interrupt):
            _report_still_running(flow_run_id, args)
            return None
        flow_run = hook.abort_and_wait(flow_run_id)
    except (KeyboardInterrupt, FlowError) as error:
        if isinstance(error, FlowError):
            echo_err(f"The flow run could not be aborted: {error}")
        _report_still_running(flow_run_id, args)
        return None
    if flow_run is None:
        echo_err(f"The flow run {flow_run_id} no longer exists at the service.")
    elif not flow_run.is_final:
        echo_err(
            f"The abort of the {flow_run} was requested; it is still {flow_run.raw_state}. "
            f"Watch it: {command_line('watch', flow_run, args)}"
        )
    return flow_run if flow_run is not None and flow_run.is_final else None


def _confirm_abort(flow_run_id: str, on_interrupt: str, interrupt: KeyboardInterrupt) -> bool:
    if on_interrupt == "ask" and is_interactive() and not isinstance(interrupt, SigtermReceived):
        return confirm(f"Abort the flow run {flow_run_id}?")
    return on_interrupt == "abort"


def _report_still_running(flow_run_id: str, args: Namespace) -> None:
    watch_command = command_line("watch", flow_run_id, args)
    abort_command = command_line("abort", flow_run_id, args)
    echo_err(f"The flow run {flow_run_id} continues. Watch it: {watch_command}; abort it: {abort_command}")


def _echo_log_line(_: int, line: str) -> None:
    echo_err(line)


def _echo_warning(level: int, line: str) -> None:
    """Write what the bar does not show."""
    if level >= logging.WARNING:
        echo_err(line)


@contextmanager
def _no_progress_bar() -> Iterator[ProgressCallback]:
    yield lambda _: None


@contextmanager
def _progress_bar(flow_run_id: str) -> Iterator[ProgressCallback]:
    """Show a progress bar on stderr during the block; it remains there afterwards."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[end]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(f"{escape_control_chars(flow_run_id)} ...", total=1.0, end="")

        def show(flow_run: FlowRun) -> None:
            raw_state = escape_control_chars(flow_run.raw_state)
            progress.update(
                task,
                completed=flow_run.progress,
                description=f"{escape_control_chars(flow_run_id)} {raw_state}",
                end=_expected_end_text(flow_run),
                refresh=True,
            )

        yield show


def _expected_end_text(flow_run: FlowRun) -> str:
    end = flow_run.expected_end
    if flow_run.is_final or end is None:
        return ""
    return f"expected end {end.in_timezone('UTC'):%H:%M:%S} UTC"
