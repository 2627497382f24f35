"""The commands that wait: `run` starts a flow run first and fetches what it made, `watch` waits for one that there is.

How a start goes stands in flow/starting.py, how a wait looks in following.py; here is only their order.
"""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from airflow_provider_flows.cli import reading
from airflow_provider_flows.cli.exits import Exit
from airflow_provider_flows.cli.fetching import ENDED, ended, reason
from airflow_provider_flows.cli.following import followed, interrupted
from airflow_provider_flows.cli.frame import command
from airflow_provider_flows.cli.looking import seen
from airflow_provider_flows.cli.printing import say, show_one
from airflow_provider_flows.flow.errors import FlowInputError
from airflow_provider_flows.flow.starting import Order, Record
from airflow_provider_flows.hooks import FlowsHook

if TYPE_CHECKING:
    from airflow_provider_flows.flow.run import FlowRun

LINEAGE = 0  # a command is tried once


@command
def run(args: Namespace) -> Exit:
    """Start a flow run, wait for it, fetch its outputs, print what a task would return."""
    hook, delivery = FlowsHook.get_hook(args.conn_id), reading.delivery_of(args)
    order, schedule = reading.order_of(args, hook), reading.schedule_of(args)
    delivery.checked(hook.service)
    made = _Start(hook, order, args).made()
    if made is None:
        return Exit.INTERRUPTED
    if args.no_wait and not made.final:
        show_one(made.as_dict(), args.output)
        return Exit.DONE
    final = made if made.final else followed(hook, made.flow_run_id, schedule, args)
    return Exit.INTERRUPTED if final is None else ended(hook, final, delivery, args)


@command
def watch(args: Namespace) -> Exit:
    """Wait for a flow run, and print how it ended."""
    hook = FlowsHook.get_hook(args.conn_id)
    schedule = reading.schedule_of(args)
    now = hook.get_run(args.flow_run_id)  # first, for a wait is patient with an id that nobody knows
    final = now if now.final else followed(hook, args.flow_run_id, schedule, args)
    if final is None:
        return Exit.INTERRUPTED
    if not final.completed:
        say(reason(final))
    show_one(seen(final), args.output)
    return ENDED.get(final.state, Exit.FAILED)


class _Start:
    """One start, and what Ctrl-C makes of it."""

    def __init__(self, hook: FlowsHook, order: Order, args: Namespace) -> None:
        self._hook, self._order, self._args = hook, order, args
        self._record = Record(order.fingerprint, LINEAGE)
        self._validate = not args.no_validate
        self._sent = False
        self._lasts = hook.service.offers("get_run")  # a run has an id there, and can be asked for after its start

    def made(self) -> FlowRun | None:
        """Start the flow run; None if Ctrl-C came before it was started, or it was left going then."""
        try:
            made = self._hook.start(self._order, record=self._record, keep=self._keep, validate=self._validate)
            if self._lasts:
                say(f"The {made} is started.")
        except KeyboardInterrupt:
            return self._interrupted()
        except FlowInputError as error:
            raise FlowInputError(str(error).replace("validate=False", "--no-validate")) from error
        return made

    def _keep(self, record: Record | None) -> None:
        self._sent = record is not None
        if record is None:
            return
        self._record = record
        if not self._lasts and record.flow_run_id is None:
            say(f"The flow {self._order.flow} is sent; it is answered when it is over.")
        elif self._hook.service.steps and record.flow_run_id is not None:
            say(f"The flow run {record.flow_run_id} of flow {self._order.flow} is made; its inputs are sent now.")

    def _interrupted(self) -> FlowRun | None:
        """Delete a run that was not started; ask about one that was."""
        unknown = self._record.flow_run_id is None and not self._hook.service.steps
        if unknown or not self._lasts:
            told = "may run all the same, and what it makes cannot be fetched" if self._sent else "was not run"
            say(f"Interrupted. The flow {self._order.flow} {told}.")
            return None
        going = self._hook.pick_up(self._order, self._record, LINEAGE, abort=False)
        if going is None:
            say("Interrupted. No flow run was started; what was made of one is deleted.")
            return None
        return going if going.final else interrupted(self._hook, going.flow_run_id, self._args)
