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

from airflow_provider_flows.cli.download import again
from airflow_provider_flows.cli.prompts import agreed, at_a_terminal
from airflow_provider_flows.cli.signals import Ended
from airflow_provider_flows.cli.terminal import harmless, say
from airflow_provider_flows.core.exceptions import FlowError, FlowNotFound, FlowServiceError, FlowTimeout
from airflow_provider_flows.core.run import FlowRun

if TYPE_CHECKING:
    from airflow_provider_flows.core.polling.schedule import Schedule
    from airflow_provider_flows.hooks import FlowsHook

Show = Callable[[FlowRun], None]


def followed(hook: FlowsHook, flow_run_id: str, schedule: Schedule, args: Namespace) -> FlowRun | None:
    """Wait for a flow run, and show how far it is; None if Ctrl-C ended the wait and the run goes on.

    :raises FlowTimeout: the time is over; the run goes on.
    """
    try:
        bar = sys.stdout.isatty() and sys.stderr.isatty()
        wait = hook.waiting_for(flow_run_id, schedule, _tell_trouble if bar else _tell)
        with _bar(flow_run_id) if bar else _nothing() as show:
            return hook.hold(wait.until_final(show))
    except FlowTimeout as error:
        message = f"{error} The flow run goes on; watch it: {again('watch', flow_run_id, args)}"
        raise FlowTimeout(message) from error
    except KeyboardInterrupt as by:
        return interrupted(hook, flow_run_id, args, by)
    except FlowServiceError as error:
        if not isinstance(error, FlowNotFound):
            _left(flow_run_id, args)
        raise


def interrupted(hook: FlowsHook, flow_run_id: str, args: Namespace, by: KeyboardInterrupt) -> FlowRun | None:
    """Do what Ctrl-C, or a signal like it, is to do to a flow run: gives it if it was stopped and is over, None if it goes on."""
    try:
        if not _unwanted(flow_run_id, args.on_interrupt, by):
            _left(flow_run_id, args)
            return None
        run = hook.see_off(flow_run_id)
    except (KeyboardInterrupt, FlowError) as error:
        if isinstance(error, FlowError):
            say(f"The flow run could not be stopped: {error}")
        _left(flow_run_id, args)
        return None
    if run is None:
        say(f"The flow run {flow_run_id} is gone from the service.")
    elif not run.final:
        say(
            f"The {run} was asked to stop; it is {run.state_word} still. Watch it: {again('watch', run, args)}"
        )
    return run if run is not None and run.final else None


def _unwanted(flow_run_id: str, on_interrupt: str, by: KeyboardInterrupt) -> bool:
    if on_interrupt == "ask" and at_a_terminal() and not isinstance(by, Ended):
        return agreed(f"Abort the flow run {flow_run_id}?")
    return on_interrupt == "abort"


def _left(flow_run_id: str, args: Namespace) -> None:
    watch, abort = again("watch", flow_run_id, args), again("abort", flow_run_id, args)
    say(f"The flow run {flow_run_id} goes on. Watch it: {watch}; abort it: {abort}")


def _tell(_: int, line: str) -> None:
    say(line)


def _tell_trouble(level: int, line: str) -> None:
    """Say what the bar does not show."""
    if level >= logging.WARNING:
        say(line)


@contextmanager
def _nothing() -> Iterator[Show]:
    yield lambda _: None


@contextmanager
def _bar(flow_run_id: str) -> Iterator[Show]:
    """Show a progress bar on stderr as long as the block lasts; it stays there when it is over."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[end]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(f"{harmless(flow_run_id)} ...", total=1.0, end="")

        def show(run: FlowRun) -> None:
            word = harmless(run.state_word)
            progress.update(
                task,
                completed=run.progress,
                description=f"{harmless(flow_run_id)} {word}",
                end=_expected(run),
                refresh=True,
            )

        yield show


def _expected(run: FlowRun) -> str:
    end = run.expected_end
    if run.final or end is None:
        return ""
    return f"expected end {end.in_timezone('UTC'):%H:%M:%S} UTC"
