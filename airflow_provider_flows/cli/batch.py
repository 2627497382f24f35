"""The command `batch`: many flow runs, one for each item of a file, with a progress bar.

What has happened to each item is saved below the output path. So the same command continues a batch that has
ended early, however it has ended.
"""

from __future__ import annotations

import asyncio
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self
from uuid import uuid4

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from airflow_provider_flows.batch.batch_try import BatchTry, create_output_options
from airflow_provider_flows.batch.options import RunOptions
from airflow_provider_flows.cli import arguments
from airflow_provider_flows.cli.command import SigtermReceived, command
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
from airflow_provider_flows.core.batch import BatchPolicy, BatchProgress, BatchState
from airflow_provider_flows.hooks import FlowsHook
from airflow_provider_flows.storage.batch_manifest import FileStore

ProgressCallback = Callable[[BatchState], None]
CALLS_KEY = "calls"
RESUMED = "The same command with the same output path continues the batch."


@command
def batch(args: Namespace) -> Exit:
    """Run the items that have not completed yet, and print what a task would return."""
    output_path = arguments.to_absolute(args.output_path)
    hook = FlowsHook.get_hook(args.conn_id)
    hook.max_transfer_seconds = args.timeout
    policy = BatchPolicy(
        args.max_active, args.min_success_ratio, args.stop_after_failures or None, args.item_retries
    )
    output_options = create_output_options(
        output_path,
        args.output_conn_id,
        reuse=args.reuse,
        reuse_path=None if args.reuse_path is None else arguments.to_absolute(args.reuse_path),
    )
    output_options.validate(hook.service)
    store = FileStore(output_path, args.output_conn_id)
    with store.lock():
        calls = Calls.record_next(store)
        command_try = CommandTry(
            hook,
            arguments.to_absolute(args.items),
            {name: field or None for name, field in args.column} if args.column else None,
            policy,
            _parse_run_options(args, output_options, calls),
            create_hook=lambda: FlowsHook.get_hook(args.conn_id),
            file_store=store,
            calls=calls,
            skips_invalid_items=args.skip_invalid,
        )
        return command_try.run_to_end(args)


def _parse_run_options(args: Namespace, output_options: Any, calls: Calls) -> RunOptions:
    schedule = arguments.parse_schedule(args)
    return RunOptions(
        args.flow,
        dict(args.param) if args.param else None,
        args.input_conn_id,
        output_options,
        schedule.poll_interval,
        schedule.max_poll_interval,
        args.timeout,
        not args.no_validate,
        abort_on_kill=True,
        stamp=calls.stamp,
    )


@dataclass(frozen=True, slots=True)
class Calls:
    """The calls of the command for one batch.

    :param batch_id: tags the flow runs of all calls at the service.
    :param count: how many calls there were, with this one.
    """

    batch_id: str
    count: int

    @classmethod
    def record_next(cls, store: FileStore) -> Self:
        """Record a call, and return the calls with it.

        :raises OSError: the store does not accept the file.
        """
        saved = store.get(CALLS_KEY) or {"batch_id": uuid4().hex, "count": 0}
        calls = cls(saved["batch_id"], saved["count"] + 1)
        store.set(CALLS_KEY, {"batch_id": calls.batch_id, "count": calls.count})
        return calls

    @property
    def stamp(self) -> dict[str, Any]:
        """What the stamp of each flow run says about the batch."""
        return {"batch_id": self.batch_id}


@dataclass(kw_only=True)
class CommandTry(BatchTry):
    """One call of the command, which is a try: a call after it resumes what this one leaves.

    :param file_store: where the records are.
    """

    file_store: FileStore
    calls: Calls

    @property
    def store(self) -> FileStore:
        """The store of the records."""
        return self.file_store

    @property
    def generation(self) -> int:
        """The same number in all calls, because nothing clears a batch."""
        return 0

    @property
    def try_number(self) -> int:
        """The number of the call."""
        return self.calls.count

    @property
    def earlier_stamp(self) -> dict[str, Any] | None:
        """The stamp of the runs of earlier calls; None in the first one."""
        return self.calls.stamp if self.calls.count > 1 else None

    def is_resumed_after(self, error: BaseException) -> bool:  # noqa: ARG002  # a task decides by the error
        """Return that the active runs are left to the next call."""
        return True

    def run_to_end(self, args: Namespace) -> Exit:
        """Run the items, print the result and return the exit code.

        :raises Exception: the batch has failed, or was ended early by an error.
        """
        try:
            with _report_progress() as self.on_change:
                program = self.run()
        except KeyboardInterrupt as interrupt:
            return self._handle_interrupt(args, interrupt)
        except Exception:
            if self.records is not None and self.records.get_active():
                self._report_active()
            raise
        result = self.get_result(program)
        show_one(result, args.output)
        self.raise_if_failed(program, result)
        return Exit.DONE

    def _handle_interrupt(self, args: Namespace, interrupt: KeyboardInterrupt) -> Exit:
        """Write what has completed, and abort the active flow runs if the user says so."""
        echo_err(INTERRUPTED_MESSAGE)
        with suppress(KeyboardInterrupt):  # a second one: nothing more is done
            if self.program is not None:
                asyncio.run(self.program.flush_results())
            active = 0 if self.records is None else len(self.records.get_active_run_ids())
            if active and self._confirm_abort(active, args.on_interrupt, interrupt):
                aborted = self.abort_all(self.hook).active
                others = "" if aborted == active else "; the others have ended, or continue"
                echo_err(f"Flow runs that were aborted: {aborted:,} of {active:,}{others}. {RESUMED}")
                return Exit.ABORTED if aborted else Exit.INTERRUPTED
        self._report_active()
        return Exit.INTERRUPTED

    def _confirm_abort(self, count: int, on_interrupt: str, interrupt: KeyboardInterrupt) -> bool:
        if not self.hook.service.supports("abort"):
            return False
        if on_interrupt == "ask" and is_interactive() and not isinstance(interrupt, SigtermReceived):
            return confirm(f"Abort the flow runs that are active, which are at most {count:,}?")
        return on_interrupt == "abort"

    def _report_active(self) -> None:
        active = () if self.records is None else self.records.get_active().values()
        known = sum(record.flow_run_id is not None for record in active)
        if self.hook.service.supports("get_run"):
            text = f"Flow runs that may be active, and continue: {known:,}. {RESUMED}" if known else RESUMED
        elif unanswered := len(active) - known:
            text = (
                f"Items that have no response yet: {unanswered:,}. They may run nevertheless, but their "
                f"outputs cannot be fetched. {RESUMED} It sends these items again, which is billed again."
            )
        else:
            text = RESUMED
        echo_err(text)


@contextmanager
def _report_progress() -> Iterator[ProgressCallback]:
    """Show a progress bar on stderr during the block, or a line from time to time without a terminal."""
    if not (is_terminal(sys.stdout) and is_terminal(sys.stderr)):
        yield _create_line_writer()
        return
    columns = (
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("reading the items", total=None)
        estimates: list[BatchProgress] = []

        def show(state: BatchState) -> None:
            if not estimates:
                estimates.append(BatchProgress(state, time.monotonic()))
            text = escape_control_chars(estimates[0].describe(time.monotonic()))
            progress.update(task, total=state.total, completed=state.ended, description=text)

        yield show


def _create_line_writer() -> ProgressCallback:
    progress: list[BatchProgress] = []

    def write(state: BatchState) -> None:
        if not progress:
            progress.append(BatchProgress(state, time.monotonic()))
        if (line := progress[0].take_line(time.monotonic())) is not None:
            echo_err(line)

    return write
