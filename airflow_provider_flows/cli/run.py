"""The commands that wait: `run` starts a flow run first and fetches what it made, `watch` waits for one that there is.

How a start goes stands in flow/starting.py, how a wait looks in following.py; here is only their order.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from airflow_provider_flows.cli import arguments
from airflow_provider_flows.cli.command import command
from airflow_provider_flows.cli.download import ENDED, again, ended, reason
from airflow_provider_flows.cli.exit_codes import Exit
from airflow_provider_flows.cli.progress import followed, interrupted
from airflow_provider_flows.cli.query import seen
from airflow_provider_flows.cli.terminal import INTERRUPTED, say, show_one
from airflow_provider_flows.core.exceptions import FlowError, FlowInputError, FlowInvalid, FlowServiceError
from airflow_provider_flows.core.problems import Findings
from airflow_provider_flows.core.start import Order, Record
from airflow_provider_flows.hooks import FlowsHook
from airflow_provider_flows.preflight import refuse

if TYPE_CHECKING:
    from airflow_provider_flows.core.run import FlowRun

LINEAGE = 0  # a command is tried once


@command
def run(args: Namespace) -> Exit:
    """Start a flow run, wait for it, fetch its outputs, print what a task would return."""
    hook, delivery, findings = FlowsHook.get_hook(args.conn_id), arguments.delivery_of(args), Findings()
    order, schedule = arguments.order_of(args, findings), arguments.schedule_of(args)
    delivery.checked(hook.service, findings)
    with _in_its_words():
        refuse(hook, order, findings, validate=not args.no_validate)
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
    schedule = arguments.schedule_of(args)
    now = hook.get_run(args.flow_run_id)  # first, for a wait is patient with an id that nobody knows
    final = now if now.final else followed(hook, args.flow_run_id, schedule, args)
    if final is None:
        return Exit.INTERRUPTED
    if not final.completed:
        say(reason(final))
    show_one(seen(final), args.output)
    return ENDED.get(final.state, Exit.FAILED)


@contextmanager
def _in_its_words() -> Iterator[None]:
    """Let an error name the option in place of the argument that it stands for."""
    try:
        yield
    except FlowInputError as error:
        raise FlowInputError(str(error).replace("validate=False", "--no-validate")) from error


class _Start:
    """One start, and what Ctrl-C makes of it."""

    def __init__(self, hook: FlowsHook, order: Order, args: Namespace) -> None:
        self._hook, self._order, self._args = hook, order, args
        self._record = Record(order.fingerprint, LINEAGE)
        self._validate = not args.no_validate
        self._sent = False
        self._lasts = hook.service.offers(
            "get_run"
        )  # a run has an id there, and can be asked for after its start

    def made(self) -> FlowRun | None:
        """Start the flow run; None if Ctrl-C came before it was started, or it was left going then.

        :raises FlowInputError: the service refuses the arguments.
        :raises FlowServiceError: it was not started, as far as can be found out; what cannot is said.
        """
        try:
            made = self._hook.start(
                self._order, record=self._record, keep=self._keep, validate=self._validate
            )
            if self._lasts:
                say(f"The {made} is started.")
        except KeyboardInterrupt as by:
            return self._interrupted(by)
        except FlowInvalid as error:  # what was sent is refused, so nothing is paid
            raise FlowInputError(str(error)) from error
        except FlowServiceError as error:
            found = self._found_again() if error.in_doubt and self._sent else None
            if found is None:
                raise
            say(f"The {found} is started, although the service's answer was: {error}")
            return found
        return made

    def _keep(self, record: Record | None) -> None:
        self._sent = record is not None
        if record is None:
            return
        self._record = record
        if not self._lasts and record.flow_run_id is None:
            say(f"The flow {self._order.flow} is sent; it is answered when it is over.")
        elif self._hook.service.steps and record.flow_run_id is not None:
            say(
                f"The flow run {record.flow_run_id} of flow {self._order.flow} is made; its inputs are sent now."
            )

    def _interrupted(self, by: KeyboardInterrupt) -> FlowRun | None:
        """Delete a run that was not started; ask about one that was."""
        if not self._sent:
            say(f"{INTERRUPTED} The flow {self._order.flow} was not run.")
            return None
        say(INTERRUPTED)
        going = self._found_again()
        if going is None:
            return None
        return going if going.final else interrupted(self._hook, going.flow_run_id, self._args, by)

    def _found_again(self) -> FlowRun | None:
        """Give the run if it was started, else delete what was made of it; say what could not be found out. None without one."""
        flow_run_id, service = self._record.flow_run_id, self._hook.service
        if not self._lasts or (flow_run_id is None and not service.steps):
            fate = (
                "look for its run: airflow flows runs"
                if service.offers("list_runs")
                else "what it makes cannot be fetched"
            )
            say(f"The flow {self._order.flow} may run all the same; {fate}.")
            return None
        try:
            found = self._hook.pick_up(self._order, self._record, LINEAGE, abort=False)
        except (FlowError, KeyboardInterrupt) as error:
            if isinstance(error, FlowError):
                say(error)
            if flow_run_id is not None:
                look, stop = again("get", flow_run_id, self._args), again("abort", flow_run_id, self._args)
                say(f"The flow run {flow_run_id} may have started. Look: {look}; abort it: {stop}")
            return None
        if found is None:
            say("No flow run goes on; what was made of one is deleted.")
        return found
