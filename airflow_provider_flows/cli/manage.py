"""The commands that end or remove a flow run: abort and delete."""

from __future__ import annotations

from argparse import Namespace

from airflow_provider_flows.cli.command import command
from airflow_provider_flows.cli.exit_codes import Exit
from airflow_provider_flows.cli.query import to_run_summary
from airflow_provider_flows.cli.terminal import confirm, echo_err, is_interactive, show_one
from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.hooks import FlowsHook


@command
def abort(args: Namespace) -> None:
    """Abort a flow run, without waiting for its end, and print its state."""
    hook = FlowsHook.get_hook(args.conn_id)
    hook.abort(args.flow_run_id)
    show_one(to_run_summary(hook.get_run(args.flow_run_id)), args.output)


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
