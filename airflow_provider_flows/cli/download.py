"""The command download, and how `run` fetches and prints the outputs of a finished flow run."""

from __future__ import annotations

import shlex
from argparse import Namespace
from typing import TYPE_CHECKING

from airflow_provider_flows.cli import arguments
from airflow_provider_flows.cli.command import command
from airflow_provider_flows.cli.flow_runs import OUTPUT_COLUMNS
from airflow_provider_flows.cli.parser import Exit
from airflow_provider_flows.cli.terminal import echo_err, show_many, show_one
from airflow_provider_flows.core.exceptions import FlowConflict, FlowNotFound, reason_sentence
from airflow_provider_flows.core.flow_run import FlowRun, FlowState
from airflow_provider_flows.hooks import FlowsHook
from airflow_provider_flows.storage.outputs import fetch_outputs

if TYPE_CHECKING:
    from airflow_provider_flows.storage.output_options import OutputOptions

EXIT_CODES_BY_STATE = {
    FlowState.COMPLETED: Exit.DONE,
    FlowState.ABORTED: Exit.ABORTED,
}  # for any other state, Exit.FAILED


@command
def download(args: Namespace) -> Exit:
    """Write outputs to files, and print a list of them."""
    hook, output_options = FlowsHook.get_hook(args.conn_id), arguments.parse_output_options(args)
    run = hook.get_run(args.flow_run_id)
    if not run.is_final:
        watch = command_line("watch", run, args)
        message = (
            f"The {run} is {run.raw_state}; its outputs are available when it is completed. Wait: {watch}"
        )
        raise FlowConflict(message)
    if not run.is_completed:
        echo_err(failure_message(run))
    output_options.validate(hook.service)
    run = run.with_outputs(tuple(hook.list_ready_outputs(run.flow_run_id)))
    _check_assets_exist(run, output_options)
    run, error = fetch_outputs(hook, run, output_options)
    has_warning = any(output.warning for output in run.outputs)
    columns = (*OUTPUT_COLUMNS, "warning") if has_warning else OUTPUT_COLUMNS
    show_many([output.to_dict() for output in run.outputs], args.output, columns)
    if error is not None:
        raise error
    return Exit.DONE


def _check_assets_exist(run: FlowRun, output_options: OutputOptions) -> None:
    available = {known for output in run.outputs for known in (output.asset_id, output.name)}
    missing = sorted((output_options.selection or frozenset()) - available)
    if missing:
        known = ", ".join(f"{output.name} ({output.asset_id})" for output in run.outputs) or "none"
        message = f"The {run} has no output {', '.join(missing)}; it has {known}. Nothing was written."
        raise FlowNotFound(message)


def fetch_and_print(hook: FlowsHook, run: FlowRun, output_options: OutputOptions, args: Namespace) -> Exit:
    """Fetch and print the outputs of a final run; as in a DAG, only those of a completed run are fetched.

    :raises Exception: an output could not be fetched; the others are printed.
    """
    error = None
    if run.is_completed:
        try:
            run, error = fetch_outputs(hook, run, output_options)
        except KeyboardInterrupt:
            _report_not_fetched(hook, run, args)
            return Exit.INTERRUPTED
        except Exception:  # the run is paid for, and its id must be on the terminal
            _report_not_fetched(hook, run, args)
            raise
    else:
        echo_err(failure_message(run))
    show_one(run.to_dict(), args.output)
    if error is not None:
        if hook.service.supports("get_run"):
            download = command_line("download", run, args)
            echo_err(f"Not all outputs of the {run} could be fetched; try again: {download}")
        raise error
    return EXIT_CODES_BY_STATE.get(run.state, Exit.FAILED)


def _report_not_fetched(hook: FlowsHook, run: FlowRun, args: Namespace) -> None:
    """Say how to fetch a run's outputs later; print them if the service returns them only once."""
    if hook.service.supports("get_run"):
        echo_err(f"The {run} is completed; fetch its outputs: {command_line('download', run, args)}")
        return
    echo_err(
        f"The {run} is completed, and its outputs cannot be requested again. "
        "They are printed as they arrived; links expire soon."
    )
    show_one(run.to_dict(), args.output)


def failure_message(run: FlowRun) -> str:
    """Return how a run ended that did not complete."""
    outcome = "was aborted" if run.state is FlowState.ABORTED else "failed"
    return f"The {run} {outcome}. {reason_sentence(run.error)}"


def command_line(name: str, run: FlowRun | str, args: Namespace) -> str:
    """Return the command line that continues with a run, ready to be pasted."""
    flow_run_id = run if isinstance(run, str) else run.flow_run_id
    argv = ["airflow", "flows", name, flow_run_id]
    return shlex.join([*argv, *([] if args.conn_id == "flows_default" else ["--conn-id", args.conn_id])])
