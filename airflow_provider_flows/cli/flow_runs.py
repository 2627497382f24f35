"""The commands about flows and existing flow runs: list, describe, runs, get, outputs, abort and delete."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.cli.command import command
from airflow_provider_flows.cli.parser import Exit
from airflow_provider_flows.cli.terminal import confirm, echo_err, is_interactive, show_many, show_one
from airflow_provider_flows.core.exceptions import FlowInputError, FlowNotFound
from airflow_provider_flows.core.flow_run import FlowRun, FlowState
from airflow_provider_flows.core.service import RunPage
from airflow_provider_flows.hooks import FlowsHook

if TYPE_CHECKING:
    from airflow_provider_flows.core.definition import FlowDefinition, Parameter

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
