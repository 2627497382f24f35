"""The wait for a flow run at a terminal: its progress bar, and what Ctrl-C does."""

from __future__ import annotations

import logging
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from airflow_provider_flows.cli.command import SigtermReceived
from airflow_provider_flows.cli.download import command_line
from airflow_provider_flows.cli.terminal import confirm, echo_err, escape_control_chars, is_interactive
from airflow_provider_flows.core.exceptions import FlowError, FlowNotFound, FlowServiceError, FlowTimeout
from airflow_provider_flows.core.retry import NO_RETRY
from airflow_provider_flows.core.run import FlowRun

if TYPE_CHECKING:
    from airflow_provider_flows.core.polling.schedule import Schedule
    from airflow_provider_flows.hooks import FlowsHook

ProgressCallback = Callable[[FlowRun], None]


def wait_for_run(hook: FlowsHook, flow_run_id: str, schedule: Schedule, args: Namespace) -> FlowRun | None:
    """Wait for a flow run and show its progress; return None if Ctrl-C ended the wait and the run continues.

    :raises FlowTimeout: the timeout expired; the run continues.
    """
    try:
        bar = sys.stdout.isatty() and sys.stderr.isatty()
        wait = hook.create_wait(flow_run_id, schedule, _echo_warning if bar else _echo_log_line)
        with _progress_bar(flow_run_id) if bar else _no_progress_bar() as show:
            return hook.run(wait.poll_until_final(show), retry=NO_RETRY)
    except FlowTimeout as error:
        message = f"{error} The flow run continues; watch it: {command_line('watch', flow_run_id, args)}"
        raise FlowTimeout(message) from error
    except KeyboardInterrupt as interrupt:
        return handle_interrupt(hook, flow_run_id, args, interrupt)
    except FlowServiceError as error:
        if not isinstance(error, FlowNotFound):
            _report_still_running(flow_run_id, args)
        raise


def handle_interrupt(
    hook: FlowsHook, flow_run_id: str, args: Namespace, interrupt: KeyboardInterrupt
) -> FlowRun | None:
    """Abort the run if the user or `--on-interrupt` says so; return it if it is final, otherwise None."""
    try:
        if not _confirm_abort(flow_run_id, args.on_interrupt, interrupt):
            _report_still_running(flow_run_id, args)
            return None
        run = hook.cancel_and_wait(flow_run_id)
    except (KeyboardInterrupt, FlowError) as error:
        if isinstance(error, FlowError):
            echo_err(f"The flow run could not be aborted: {error}")
        _report_still_running(flow_run_id, args)
        return None
    if run is None:
        echo_err(f"The flow run {flow_run_id} no longer exists at the service.")
    elif not run.is_final:
        echo_err(
            f"The abort of the {run} was requested; it is still {run.raw_state}. "
            f"Watch it: {command_line('watch', run, args)}"
        )
    return run if run is not None and run.is_final else None


def _confirm_abort(flow_run_id: str, on_interrupt: str, interrupt: KeyboardInterrupt) -> bool:
    if on_interrupt == "ask" and is_interactive() and not isinstance(interrupt, SigtermReceived):
        return confirm(f"Abort the flow run {flow_run_id}?")
    return on_interrupt == "abort"


def _report_still_running(flow_run_id: str, args: Namespace) -> None:
    watch, abort = command_line("watch", flow_run_id, args), command_line("abort", flow_run_id, args)
    echo_err(f"The flow run {flow_run_id} continues. Watch it: {watch}; abort it: {abort}")


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

        def show(run: FlowRun) -> None:
            raw_state = escape_control_chars(run.raw_state)
            progress.update(
                task,
                completed=run.progress,
                description=f"{escape_control_chars(flow_run_id)} {raw_state}",
                end=_expected_end_text(run),
                refresh=True,
            )

        yield show


def _expected_end_text(run: FlowRun) -> str:
    end = run.expected_end
    if run.is_final or end is None:
        return ""
    return f"expected end {end.in_timezone('UTC'):%H:%M:%S} UTC"
