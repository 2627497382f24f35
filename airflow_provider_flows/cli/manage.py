"""The commands that put an end to a flow run: abort and delete.

They do not wait until it has ended.
"""

from __future__ import annotations

from argparse import Namespace

from airflow_provider_flows.cli.command import command
from airflow_provider_flows.cli.exit_codes import Exit
from airflow_provider_flows.cli.prompts import confirm, is_interactive
from airflow_provider_flows.cli.query import to_run_summary
from airflow_provider_flows.cli.terminal import echo_err, show_one
from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.hooks import FlowsHook


@command
def abort(args: Namespace) -> None:
    """Ask that a flow run be stopped, and print how it is then."""
    hook = FlowsHook.get_hook(args.conn_id)
    hook.abort(args.flow_run_id)
    show_one(to_run_summary(hook.get_run(args.flow_run_id)), args.output)


@command
def delete(args: Namespace) -> Exit | None:
    """Delete a flow run, if a person says so."""
    hook = FlowsHook.get_hook(args.conn_id)
    if not args.yes:
        if not is_interactive():
            message = "delete asks before it deletes, and there is no terminal to ask at; say --yes"
            raise FlowInputError(message)
        if not confirm(f"Delete the flow run {args.flow_run_id} with its inputs and outputs, for ever?"):
            echo_err("Nothing was deleted.")
            return Exit.FAILED
    hook.delete(args.flow_run_id)
    show_one({"flow_run_id": args.flow_run_id, "deleted": True}, args.output)
    return None
