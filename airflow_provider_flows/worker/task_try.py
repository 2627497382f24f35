"""One try of an operator's task: how it comes by its flow run, and what becomes of the run when the try ends badly.

How a start goes stands in flow/starting.py, what is remembered in memory.py; it waits for nothing and fetches nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Any, cast

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException, AirflowTaskTimeout

from airflow_provider_flows.core.exceptions import FlowError, FlowTimeout
from airflow_provider_flows.core.problems import Findings
from airflow_provider_flows.core.start import EarlierOrder
from airflow_provider_flows.preflight import refuse
from airflow_provider_flows.storage.atomic_file import Halt
from airflow_provider_flows.storage.inputs import read_order
from airflow_provider_flows.worker.finish import end_late
from airflow_provider_flows.worker.kill_check import ON_KILL_SECONDS, is_over

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.types import Logger

    from airflow_provider_flows.core.run import FlowRun
    from airflow_provider_flows.core.start import Order, Record
    from airflow_provider_flows.hooks import FlowsHook
    from airflow_provider_flows.storage.output_options import Delivery


class Attempt:
    """One try of a task.

    :param new_hook: gives a hook of this connection, or of the task's own.
    :param earlier: whether it only answers for what an earlier try has left, over the connection that this was started by.
    :param durable: whether a retry goes on with the same flow run.
    :param abort_on_kill: whether the flow run is stopped when nobody waits for it any more.
    :param validate: whether a new run's order is checked against what its flow takes.
    :param log: the task's own.
    """

    def __init__(
        self,
        context: Context,
        new_hook: Callable[[str | None], FlowsHook],
        *,
        earlier: bool = False,
        durable: bool,
        abort_on_kill: bool,
        validate: bool,
        log: Logger,
    ) -> None:
        """Read what an earlier try kept."""
        from airflow_provider_flows.worker.task_state import Memory  # needed when a task runs only

        self.memory = Memory(context, durable=durable)
        kept = self.memory.record if earlier else None
        self._new_hook = partial(new_hook, None if kept is None else kept.conn_id)
        self.hook = self._new_hook()
        self.halt = Halt()
        self.flow_run_id: str | None = None  # of the run that is this try's to stop
        self._context, self._ti = context, cast("Any", context["ti"])
        self._durable = durable
        self._abort_on_kill = abort_on_kill
        self._validate = validate
        self._log = log
        self._killed = False
        self._unread: tuple[Order, Findings] | None = None  # an order that could not be read, and why

    @property
    def began(self) -> float:
        """When the try began, in epoch seconds."""
        return float(self._ti.start_date.timestamp())

    def order(self, given: tuple[Any, Any, Any, Any, str | None], delivery: Delivery) -> Order:
        """Read what is to be started; a try that goes on with a run does not need its inputs any more, and they may be gone.

        :param given: flow, inputs, parameters, additional, and the connection of the storage that files among the inputs lie in.
        :raises FlowInputError: its outputs cannot be delivered, or it cannot be read and no try before has started it; naming
            all that is wrong.
        """
        unread, findings = Findings(), Findings()
        order = read_order(*given, unread)
        delivery.checked(self.hook.service, findings)
        known = self.memory.of_this_lineage
        goes_on = known is not None and known.flow_run_id is not None and self.hook.service.offers("get_run")
        if unread and goes_on and not findings:
            self._unread = order, unread
            told = "This try cannot read its inputs, so it can only go on with what was started: %s"
            self._log.warning(told, unread.error())
            return EarlierOrder(order.flow, (), known=known.fingerprint if known is not None else "")
        unread.join(findings)
        refuse(self.hook, order, unread, validate=self._validate)
        return order

    def started(self, order: Order, deadline: float | None) -> FlowRun:
        """Give the run that an earlier try left, or start one.

        :param deadline: epoch seconds, or None.
        :raises FlowInputError: naming all that is wrong with a new one.
        :raises FlowTimeout: it has passed already.
        """
        run = self._picked_up(order)
        if run is None and self._unread is not None:
            refuse(self.hook, *self._unread, validate=self._validate)
        if run is None:
            run = self._newly_started(order, deadline)
        self.flow_run_id = run.flow_run_id
        return run

    def _newly_started(self, order: Order, deadline: float | None) -> FlowRun:
        if deadline is not None and time.time() >= deadline:
            message = f"The timeout of this task was over before a flow run of {order.flow} was started; none was started."
            raise FlowTimeout(message)
        if self.memory.in_doubt(order) and not self.hook.service.steps:
            self._log.warning(
                "An earlier try sent flow %s to %s and its answer never came: it may have run before, and this try runs it again",
                order.flow,
                self.hook.service.name,
            )

        def keep(record: Record | None) -> None:
            self.memory.keep(record)
            if record is not None and record.flow_run_id is not None and self.hook.service.offers("get_run"):
                self.flow_run_id = record.flow_run_id
            if self._killed:
                message = f"The task was killed while a flow run of {order.flow} was being started; it is not started."
                raise FlowError(message)

        record = replace(self.memory.fresh(order, deadline), conn_id=self.hook.flows_conn_id)
        run = self.hook.start(
            order, record=record if self._durable else None, keep=keep, validate=self._validate
        )
        if not self._durable:
            keep(replace(record, flow_run_id=run.flow_run_id))
        self._log.info("Started the %s", run)
        if run.final:
            self._log.info("The %s is %s", run, run.state_word)
        return run

    def _picked_up(self, order: Order) -> FlowRun | None:
        """Give the run that an earlier try left, if this one goes on with it; a kill meanwhile stops it."""
        memory, known = (
            self.memory,
            self.memory.record.flow_run_id if self.memory.record is not None else None,
        )
        if memory.fits(order) and self.hook.service.offers("get_run"):
            self.flow_run_id = known
        run = self.hook.pick_up(order, memory.record, memory.lineage, abort=self._abort_on_kill)
        self.flow_run_id = run.flow_run_id if run is not None else None
        if run is not None:
            self._log.info(
                "An earlier try started the %s; it is %s, and this try goes on with it", run, run.state_word
            )
        elif known is not None and not memory.fits(order):
            stopped = self._abort_on_kill and self.hook.service.offers("abort")
            fate = "it is stopped" if stopped else "it is left alone"
            told = "Flow run %s is of an earlier request (the task was cleared, or its arguments changed): %s, and a new one starts"
            self._log.info(told, known, fate)
        return run

    def cut_off(self, order: Order) -> FlowRun | None:
        """Leave the run to the next try when execution_timeout is over in a worker, or end it as any deadline does.

        None if Airflow's own error is all there is to say: a try is left, or no run of this order is known.
        """
        record = self.memory.record
        flow_run_id = record.flow_run_id if record is not None and self.memory.fits(order) else None
        if flow_run_id is None or not self.hook.service.offers("get_run"):
            return None
        if self.memory.outlives(time.time()):
            self._log.warning(
                "The execution_timeout is over; the next try goes on with flow run %s", flow_run_id
            )
            return None
        self.flow_run_id = flow_run_id
        return self.late(FlowTimeout("The execution_timeout of the task is over."))

    def late(self, error: FlowTimeout) -> FlowRun:
        """Give the run if it completed although its time is over.

        :raises FlowTimeout: it did not; a run that the next try goes on with is not stopped.
        """
        stop = not self.memory.outlives(time.time())
        run = end_late(self.hook, str(self.flow_run_id), error, stop=stop, abort_on_kill=self._abort_on_kill)
        self._log.info("The time was over, but the %s is completed", run)
        return run

    @contextmanager
    def in_charge(self) -> Iterator[None]:
        """Let an error in the block that ends the task leave no run behind that nobody waits for any more."""
        try:
            yield
        except FlowTimeout:  # what became of the run is settled, and told in it
            raise
        except (Exception, AirflowTaskTimeout) as error:
            self._give_up(error)
            raise

    def _give_up(self, error: BaseException) -> None:
        """Stop the run, also one that an earlier try left, if no try follows that goes on with it."""
        flow_run_id = self._in_hand
        lasts = self.hook.service.offers("get_run")
        if flow_run_id is None or not self._abort_on_kill or not lasts or self._is_followed(error):
            return
        try:
            self.hook.stop(flow_run_id)
        except FlowError as trouble:
            self._log.warning(
                "Flow run %s could not be stopped; look at it at the service: %s", flow_run_id, trouble
            )

    @property
    def _in_hand(self) -> str | None:
        """The id of the run that is this try's to stop, or else that an earlier try left and this one has not come to yet."""
        return self.flow_run_id or (None if self.memory.record is None else self.memory.record.flow_run_id)

    def _is_followed(self, error: BaseException) -> bool:
        """Whether a try after this error goes on with the run; what Airflow will ask of the task's retry policy is asked here."""
        if isinstance(error, (AirflowSkipException, AirflowFailException)) or not self.memory.outlives(
            time.time()
        ):
            return False
        policy = getattr(self._context.get("task"), "retry_policy", None)
        if policy is None:
            return True
        try:
            decided = policy.evaluate(error, self._ti.try_number, self.memory.lineage, self._context)
        except Exception:  # noqa: BLE001  # whatever somebody's policy raises: Airflow then retries as if there were none
            return True
        return str(decided.action.value) != "fail"

    def killed(self) -> None:
        """Stop the run if the task is really over; in doubt do nothing, the next try goes on with it. Never raises."""
        # A thread, because Airflow calls this from a signal handler, which may have interrupted a talk with the supervisor.
        thread = Thread(target=self._stop_if_over, daemon=True)
        thread.start()
        thread.join(ON_KILL_SECONDS)

    def _stop_if_over(self) -> None:
        try:
            if not is_over(self._ti):
                self._log.info("The task is not over for Airflow; flow run %s goes on", self.flow_run_id)
                return
            self._killed = True  # before the id is looked at: who keeps an id looks at this afterwards
            self.halt.now()
            if (flow_run_id := self._in_hand) is not None and self.hook.service.offers("get_run"):
                self._new_hook().stop(flow_run_id)  # not `hook`, which the main thread may be using
                self._log.info("The task was killed; flow run %s is stopped", flow_run_id)
        except Exception:  # noqa: BLE001  # a kill must not fail for any reason; the next try or a person finds the run
            self._log.exception(
                "The flow run %s could not be stopped; look at it at the service", self.flow_run_id
            )
