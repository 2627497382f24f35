"""The commands about flows and existing flow runs, which do not wait: list, draw, get, download and so on.

The command `run` fetches and prints the outputs of a finished flow run with functions of `download`.
"""

from __future__ import annotations

import shlex
import sys
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.cli import arguments
from airflow_provider_flows.cli.command import command
from airflow_provider_flows.cli.parser import Exit
from airflow_provider_flows.cli.terminal import (
    confirm,
    echo_err,
    ignore_broken_pipe,
    is_interactive,
    show_many,
    show_one,
    write_out,
)
from airflow_provider_flows.core.exceptions import FlowConflict, FlowInputError, FlowNotFound, reason_sentence
from airflow_provider_flows.core.flow_run import FlowRun, FlowState
from airflow_provider_flows.core.graph import FlowGraph
from airflow_provider_flows.core.service import RunPage
from airflow_provider_flows.drawing import to_mermaid, to_svg
from airflow_provider_flows.hooks import FlowsHook
from airflow_provider_flows.storage.graph_files import MAX_GRAPH_BYTES, parse_graph
from airflow_provider_flows.storage.outputs import fetch_outputs
from airflow_provider_flows.storage.reuse_index import save_reusable_run

if TYPE_CHECKING:
    from airflow_provider_flows.core.definition import FlowDefinition, Parameter
    from airflow_provider_flows.core.reuse import ReuseLookup
    from airflow_provider_flows.storage.output_options import OutputOptions

RUN_COLUMNS = (
    "flow_run_id",
    "flow",
    "state",
    "progress",
    "created_at",
    "started_at",
    "finished_at",
    "duration",
)
OUTPUT_COLUMNS = ("name", "asset_id", "status", "media_type", "value", "uri", "size", "error")
MERMAID_SUFFIXES = frozenset({".mmd", ".mermaid"})  # of --to
EXIT_CODES_BY_STATE = {
    FlowState.COMPLETED: Exit.DONE,
    FlowState.ABORTED: Exit.ABORTED,
}  # for any other state, Exit.FAILED


@command
def list(args: Namespace) -> None:  # noqa: A001  # named like the command
    """Print the definitions of all flows."""
    found = FlowsHook.get_hook(args.conn_id).list_definitions()
    show_many(
        [_definition_to_dict(each) for each in found],
        args.output,
        ("flow", "name", "inputs", "parameters", "outputs"),
    )


@command
def describe(args: Namespace) -> None:
    """Print the definition of one flow."""
    show_one(_definition_to_dict(FlowsHook.get_hook(args.conn_id).get_definition(args.flow)), args.output)


@command
def runs(args: Namespace) -> None:
    """Print the account's flow runs."""
    state = FlowState.parse_argument(args.state)
    hook = FlowsHook.get_hook(args.conn_id)
    found = hook.list_newest(args.limit, state) if args.limit else RunPage(hook.list_runs(state))
    newest = found.runs[: args.limit or None]
    show_many([to_run_summary(run) for run in newest], args.output, RUN_COLUMNS)
    if found.next_page is not None:
        echo_err("Older flow runs are not shown; --limit 0 shows all.")
    elif more := len(found.runs) - len(newest):
        echo_err(f"{more} older flow runs are not shown; --limit 0 shows all.")


@command
def get(args: Namespace) -> None:
    """Print the current state of a flow run."""
    show_one(to_run_summary(FlowsHook.get_hook(args.conn_id).get_run(args.flow_run_id)), args.output)


@command
def outputs(args: Namespace) -> None:
    """Print the outputs of a flow run."""
    found = FlowsHook.get_hook(args.conn_id).list_ready_outputs(args.flow_run_id)
    show_many([output.to_dict() for output in found], args.output, OUTPUT_COLUMNS)


@command
def abort(args: Namespace) -> None:
    """Abort a flow run, without waiting for its end, and print its state; a run never started is deleted."""
    hook = FlowsHook.get_hook(args.conn_id)
    was_aborted = hook.abort(args.flow_run_id)
    try:
        run = hook.get_run(args.flow_run_id)
        summary = to_run_summary(run)
        if run.is_final and not was_aborted:
            echo_err(f"The {run} is already {run.raw_state}; there is nothing to abort.")
    except FlowNotFound:
        if not was_aborted:
            raise
        summary = {"flow_run_id": args.flow_run_id, "deleted": True}
    show_one(summary, args.output)


@command
def delete(args: Namespace) -> Exit | None:
    """Delete a flow run after confirmation."""
    hook = FlowsHook.get_hook(args.conn_id)
    if not args.yes:
        if not is_interactive():
            message = "delete asks for confirmation, and there is no terminal to ask at; use --yes"
            raise FlowInputError(message)
        if not confirm(f"Delete the flow run {args.flow_run_id} with its inputs and outputs permanently?"):
            echo_err("Nothing was deleted.")
            return Exit.FAILED
    hook.delete(args.flow_run_id)
    show_one({"flow_run_id": args.flow_run_id, "deleted": True}, args.output)
    return None


def to_run_summary(run: FlowRun) -> dict[str, Any]:
    """Return a run without its outputs, with its expected end and the reason of a failure."""
    fields = {name: value for name, value in run.to_dict().items() if name != "outputs"}
    end = run.expected_end
    return {
        **fields,
        "expected_end": None if end is None else end.isoformat(timespec="seconds"),
        "error": run.error,
    }


def _definition_to_dict(definition: FlowDefinition) -> dict[str, Any]:
    return {
        "flow": definition.flow,
        "service": definition.service,
        "name": definition.name,
        "description": definition.description,
        "inputs": [*definition.inputs],
        "parameters": {
            name: _parameter_to_dict(parameter) for name, parameter in definition.parameters.items()
        },
        "outputs": [*definition.outputs],
        "min_inputs": definition.min_inputs,
        "max_inputs": definition.max_inputs,
    }


def _parameter_to_dict(parameter: Parameter) -> dict[str, Any]:
    """Return what the service says about a parameter."""
    items = asdict(parameter).items()
    return {
        key: [*value] if isinstance(value, tuple) else value
        for key, value in items
        if value not in (None, ())
    }


@command
def draw(args: Namespace) -> None:
    """Write the picture to stdout or to a file."""
    graph, to = _get_graph(args), None if args.to is None else Path(args.to).expanduser()
    mermaid = args.format == "mermaid" or (
        args.format is None and to is not None and to.suffix.lower() in MERMAID_SUFFIXES
    )
    picture = (
        to_mermaid(graph)
        if mermaid
        else to_svg(graph, title=Path(args.flow).stem if _is_file(args.flow) else args.flow)
    )
    text = picture if picture.endswith("\n") else f"{picture}\n"
    if to is None:
        with ignore_broken_pipe(sys.stdout):
            write_out(text, errors="xmlcharrefreplace")  # Mermaid's labels are ASCII
        return
    to.write_text(text, encoding="utf-8")
    echo_err(f"Wrote {to}.")


def _get_graph(args: Namespace) -> FlowGraph:
    file = args.file or (args.flow if _is_file(args.flow) else None)
    if file is not None:
        return _load_graph_file(Path(file).expanduser())
    graph = FlowsHook.get_hook(args.conn_id).get_graph(args.flow)
    if graph is None:
        message = (
            f"No flow graph of {args.flow} was found. Export it from PromptChainer's editor and pass "
            f"the file (--file), or store it as {args.flow}.json in the folder that the field graphs of "
            f"connection {args.conn_id!r} names"
        )
        raise FlowInputError(message)
    return graph


def _is_file(flow: str) -> bool:
    return flow.lower().endswith(".json") or "/" in flow


def _load_graph_file(path: Path) -> FlowGraph:
    try:
        with path.open("rb") as file:
            return parse_graph(file.read(MAX_GRAPH_BYTES + 1))
    except OSError as error:
        message = f"The flow graph {path} cannot be read: {error.strerror or error}"
        raise FlowInputError(message) from error
    except FlowInputError as error:
        message = f"{path}: {error}"
        raise FlowInputError(message) from error


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


def fetch_and_print(
    hook: FlowsHook,
    run: FlowRun,
    output_options: OutputOptions,
    args: Namespace,
    lookup: ReuseLookup | None = None,
) -> Exit:
    """Fetch and print the outputs of a final run; as in a DAG, only those of a completed run are fetched.

    :param lookup: of the request in the index of reusable outputs, to which they are added; or None.
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
        if error is None:
            save_reusable_run(output_options, lookup, run)
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
