"""The commands that put an end to a flow run: abort and delete.

They do not wait until it has ended.
"""

from __future__ import annotations

from argparse import Namespace

from airflow_provider_flows.cli.command import command
from airflow_provider_flows.cli.exit_codes import Exit
from airflow_provider_flows.cli.prompts import agreed, at_a_terminal
from airflow_provider_flows.cli.query import seen
from airflow_provider_flows.cli.terminal import say, show_one
from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.hooks import FlowsHook


@command
def abort(args: Namespace) -> None:
    """Ask that a flow run be stopped, and print how it is then."""
    hook = FlowsHook.get_hook(args.conn_id)
    hook.abort(args.flow_run_id)
    show_one(seen(hook.get_run(args.flow_run_id)), args.output)


@command
def delete(args: Namespace) -> Exit | None:
    """Delete a flow run, if a person says so."""
    hook = FlowsHook.get_hook(args.conn_id)
    if not args.yes:
        if not at_a_terminal():
            message = "delete asks before it deletes, and there is no terminal to ask at; say --yes"
            raise FlowInputError(message)
        if not agreed(f"Delete the flow run {args.flow_run_id} with its inputs and outputs, for ever?"):
            say("Nothing was deleted.")
            return Exit.FAILED
    hook.delete(args.flow_run_id)
    show_one({"flow_run_id": args.flow_run_id, "deleted": True}, args.output)
    return None
