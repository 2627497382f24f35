"""The commands that wait: `run`, which also starts a flow run and fetches its outputs, and `watch`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from airflow_provider_flows.cli import arguments
from airflow_provider_flows.cli.command import command
from airflow_provider_flows.cli.download import (
    EXIT_CODES_BY_STATE,
    command_line,
    failure_message,
    fetch_and_print,
)
from airflow_provider_flows.cli.exit_codes import Exit
from airflow_provider_flows.cli.progress import handle_interrupt, wait_for_run
from airflow_provider_flows.cli.query import to_run_summary
from airflow_provider_flows.cli.terminal import INTERRUPTED_MESSAGE, echo_err, show_one
from airflow_provider_flows.core.exceptions import FlowError, FlowInputError, FlowInvalid, FlowServiceError
from airflow_provider_flows.core.start import RunRecord, RunRequest
from airflow_provider_flows.core.validation import Problems
from airflow_provider_flows.hooks import FlowsHook

if TYPE_CHECKING:
    from airflow_provider_flows.core.run import FlowRun

GENERATION = 0  # a command has no retries


@command
def run(args: Namespace) -> Exit:
    """Start a flow run, wait for it, fetch its outputs and print what a task would return."""
    hook, output_options, problems = (
        FlowsHook.get_hook(args.conn_id),
        arguments.parse_output_options(args),
        Problems(),
    )
    request, schedule = arguments.parse_request(args, problems), arguments.parse_schedule(args)
    output_options.validate(hook.service, problems)
    with _use_option_names():
        if problems:
            hook.preflight.check(request, problems, validate=not args.no_validate).raise_if_invalid()
        flow_run = _RunStarter(hook, request, args).start()
    if flow_run is None:
        return Exit.INTERRUPTED
    if args.no_wait and not flow_run.is_final:
        show_one(flow_run.to_dict(), args.output)
        return Exit.DONE
    final = flow_run if flow_run.is_final else wait_for_run(hook, flow_run.flow_run_id, schedule, args)
    return Exit.INTERRUPTED if final is None else fetch_and_print(hook, final, output_options, args)


@command
def watch(args: Namespace) -> Exit:
    """Wait for a flow run, and print how it ended."""
    hook = FlowsHook.get_hook(args.conn_id)
    schedule = arguments.parse_schedule(args)
    flow_run = hook.get_run(args.flow_run_id)  # before the wait, which would poll an unknown id several times
    final = flow_run if flow_run.is_final else wait_for_run(hook, args.flow_run_id, schedule, args)
    if final is None:
        return Exit.INTERRUPTED
    if not final.is_completed:
        echo_err(failure_message(final))
    show_one(to_run_summary(final), args.output)
    return EXIT_CODES_BY_STATE.get(final.state, Exit.FAILED)


@contextmanager
def _use_option_names() -> Iterator[None]:
    """Name the command-line option in an error that names the operator's argument."""
    try:
        yield
    except FlowInputError as error:
        raise FlowInputError(str(error).replace("validate=False", "--no-validate")) from error


class _RunStarter:
    """One start, which Ctrl-C may interrupt."""

    def __init__(self, hook: FlowsHook, request: RunRequest, args: Namespace) -> None:
        self._hook, self._request, self._args = hook, request, args
        self._record = RunRecord(request.fingerprint, GENERATION)
        self._validate = not args.no_validate
        self._is_sent = False
        # whether a run has an id at the service and can be polled
        self._supports_get_run = hook.service.supports("get_run")

    def start(self) -> FlowRun | None:
        """Start the flow run; return None if Ctrl-C prevented the start or left the run running.

        :raises FlowInputError: the service rejects the arguments.
        :raises FlowServiceError: no run was started, as far as is known; stderr says what is not.
        """
        try:
            flow_run = self._hook.start_request(
                self._request, record=self._record, save=self._save, validate=self._validate
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
            else handle_interrupt(self._hook, flow_run.flow_run_id, self._args, interrupt)
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
        try:
            found = self._hook.resume(self._request.fingerprint, self._record, GENERATION, abort=False)
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
        if found is None:
            echo_err("No flow run is running; the one that had been created was deleted.")
        return found
