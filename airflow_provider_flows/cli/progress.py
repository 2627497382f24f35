"""How a wait looks at a terminal, and what Ctrl-C does to it.

When to look is the wait's own business (flow/waiting.py); here is only what is shown and asked.
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

from airflow_provider_flows.cli.download import command_line
from airflow_provider_flows.cli.prompts import confirm, is_interactive
from airflow_provider_flows.cli.signals import SignalReceived
from airflow_provider_flows.cli.terminal import echo_err, escape_control_chars
from airflow_provider_flows.core.exceptions import FlowError, FlowNotFound, FlowServiceError, FlowTimeout
from airflow_provider_flows.core.retry import NO_RETRY
from airflow_provider_flows.core.run import FlowRun

if TYPE_CHECKING:
    from airflow_provider_flows.core.polling.schedule import Schedule
    from airflow_provider_flows.hooks import FlowsHook

ProgressCallback = Callable[[FlowRun], None]


def wait_for_run(hook: FlowsHook, flow_run_id: str, schedule: Schedule, args: Namespace) -> FlowRun | None:
    """Wait for a flow run, and show how far it is; None if Ctrl-C ended the wait and the run goes on.

    :raises FlowTimeout: the time is over; the run goes on.
    """
    try:
        bar = sys.stdout.isatty() and sys.stderr.isatty()
        wait = hook.create_wait(flow_run_id, schedule, _echo_warning if bar else _echo_log_line)
        with _progress_bar(flow_run_id) if bar else _no_progress_bar() as show:
            return hook.run(wait.poll_until_final(show), retry=NO_RETRY)
    except FlowTimeout as error:
        message = f"{error} The flow run goes on; watch it: {command_line('watch', flow_run_id, args)}"
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
    """Do what Ctrl-C, or a signal like it, is to do to a flow run: gives it if it was stopped and is over, None if it goes on."""
    try:
        if not _confirm_abort(flow_run_id, args.on_interrupt, interrupt):
            _report_still_running(flow_run_id, args)
            return None
        run = hook.cancel_and_wait(flow_run_id)
    except (KeyboardInterrupt, FlowError) as error:
        if isinstance(error, FlowError):
            echo_err(f"The flow run could not be stopped: {error}")
        _report_still_running(flow_run_id, args)
        return None
    if run is None:
        echo_err(f"The flow run {flow_run_id} is gone from the service.")
    elif not run.is_final:
        echo_err(
            f"The {run} was asked to stop; it is {run.raw_state} still. Watch it: {command_line('watch', run, args)}"
        )
    return run if run is not None and run.is_final else None


def _confirm_abort(flow_run_id: str, on_interrupt: str, interrupt: KeyboardInterrupt) -> bool:
    if on_interrupt == "ask" and is_interactive() and not isinstance(interrupt, SignalReceived):
        return confirm(f"Abort the flow run {flow_run_id}?")
    return on_interrupt == "abort"


def _report_still_running(flow_run_id: str, args: Namespace) -> None:
    watch, abort = command_line("watch", flow_run_id, args), command_line("abort", flow_run_id, args)
    echo_err(f"The flow run {flow_run_id} goes on. Watch it: {watch}; abort it: {abort}")


def _echo_log_line(_: int, line: str) -> None:
    echo_err(line)


def _echo_warning(level: int, line: str) -> None:
    """Say what the bar does not show."""
    if level >= logging.WARNING:
        echo_err(line)


@contextmanager
def _no_progress_bar() -> Iterator[ProgressCallback]:
    yield lambda _: None


@contextmanager
def _progress_bar(flow_run_id: str) -> Iterator[ProgressCallback]:
    """Show a progress bar on stderr as long as the block lasts; it stays there when it is over."""
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
