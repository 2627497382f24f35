"""The hook of any service, and those of Generio and PromptChainer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from airflow_provider_flows import connection as conn
from airflow_provider_flows import metrics
from airflow_provider_flows.base_hook import BaseFlowsHook, log_accepted_file
from airflow_provider_flows.core import start_or_resume
from airflow_provider_flows.core.exceptions import FlowError, FlowInputError, FlowServiceError
from airflow_provider_flows.core.flow_run import FlowState
from airflow_provider_flows.core.http import allow_urls
from airflow_provider_flows.core.payload.data_uri import Content
from airflow_provider_flows.core.payload.download import RepeatedFileFilter
from airflow_provider_flows.core.payload.sink import MemoryBuffer
from airflow_provider_flows.core.polling.schedule import Schedule, expected_end, to_seconds
from airflow_provider_flows.core.polling.wait import Wait
from airflow_provider_flows.core.retry import NO_RETRY
from airflow_provider_flows.core.service import abort_run, abort_run_and_wait
from airflow_provider_flows.core.validation import (
    Problems,
    coerce_inputs,
    coerce_parameters,
    collect_problems,
)
from airflow_provider_flows.hooks.preflight import AccountGuard, Preflight

if TYPE_CHECKING:
    from airflow_provider_flows.core.account_limits import StartWait
    from airflow_provider_flows.core.definition import FlowDefinition
    from airflow_provider_flows.core.flow_run import FlowOutput, FlowRun
    from airflow_provider_flows.core.graph import FlowGraph
    from airflow_provider_flows.core.http import Conversation
    from airflow_provider_flows.core.payload.sink import Target
    from airflow_provider_flows.core.polling.wait import LogFunction
    from airflow_provider_flows.core.service import RunPage, Service
    from airflow_provider_flows.core.start_or_resume import RunRecord, RunRequest, SaveRecord

# The services and storage are imported in the methods that use them: a triggerer needs one service and no
# storage.

log = logging.getLogger(__name__)

PUBLIC_MODULE = "airflow_provider_flows.hooks"  # from which the hooks are imported, and which metadata names
TEST_TIMEOUT_SECONDS = 5.0  # Airflow calls `test_connection` inside its web server


class FlowsHook(BaseFlowsHook):
    """The hook of any service; `FlowsHook.get_hook(conn_id)` returns the hook of the connection's type.

    To add a service, write a subclass with its own connection type, default host, fields and
    `create_service`, and register it as Airflow registers any connection type.

    Every method that sends a request raises a `FlowServiceError` if it fails, and a `FlowInputError` if the
    service does not support it.

    :param flows_conn_id: the Airflow connection to use.
    """

    __module__ = PUBLIC_MODULE

    def start(
        self,
        flow: str,
        inputs: Any = None,
        parameters: Mapping[str, Any] | None = None,
        additional: Any = None,
        *,
        input_conn_id: str | None = None,
        validate: bool = True,
    ) -> FlowRun:
        """Start a flow run, in as few requests as the service allows.

        :param flow: the flow's name or id.
        :param inputs: the flow's input data, in the forms that `RunFlowOperator` documents.
        :param parameters: the flow's settings.
        :param additional: your own metadata, stored with the flow run (Generio).
        :param input_conn_id: the Airflow connection of the storage that contains the files among the inputs.
        :param validate: whether to validate the arguments against the flow's definition first. Then strings
            that represent numbers or Booleans are converted to the parameter's type, and a None that the flow
            does not accept is left out.
        :raises FlowInputError: arguments cannot be sent, or do not match the flow's definition. The message
            lists every problem, and no flow run was created.
        :raises FlowServiceError: the service rejected the request.
        """
        from airflow_provider_flows.storage.inputs import build_request

        problems = Problems()
        request = build_request(flow, inputs, parameters, additional, input_conn_id, problems, self)
        starting = partial(start_or_resume.start_without_record, self.service)
        return self._start(request, problems, starting, validate=validate)

    def start_from_request(
        self,
        request: RunRequest,
        *,
        record: RunRecord | None = None,
        save: SaveRecord | None = None,
        validate: bool = True,
        wait: StartWait | None = None,
    ) -> FlowRun:
        """Start a flow run from a request that `build_request` has returned.

        :param record: what to save about this start. With `record` and `save` the flow run is started by the
            protocol that saves its id before anything is billed (core.start_or_resume); otherwise in as few
            requests as possible.
        :param save: saves a record, so that a later try of the task can resume the flow run.
        :param validate: as for `start`.
        :param wait: how to wait for the limits of the account; by default without a deadline.
        :raises FlowInputError: as for `start`.
        :raises FlowTimeout: the account had too many active flow runs until the deadline of `wait`.
        :raises FlowServiceError: as for `start`.
        """
        starting = partial(start_or_resume.start_without_record, self.service)
        if record is not None and save is not None:
            starting = partial(start_or_resume.start, self.service, record=record, save=save)
        return self._start(request, Problems(), starting, wait, validate=validate)

    def _start(
        self,
        request: RunRequest,
        problems: Problems,
        starting: Callable[[RunRequest], Conversation[FlowRun]],
        wait: StartWait | None = None,
        *,
        validate: bool,
    ) -> FlowRun:
        self.hidden_inputs = request.inputs
        with self.account.check_quota(f"Flow {request.flow} was not started"):
            request = self.prepare(request, problems, validate=validate)
            reservation = self.run(self.account.wait_for_start(request.flow, wait))
            with reservation.hold(), self.log_start(request.flow):
                return self.run(starting(request))

    @property
    def account(self) -> AccountGuard:
        """The checks of the account's quota and limits before a flow run is started."""
        return AccountGuard(self)

    def prepare(self, request: RunRequest, problems: Problems, *, validate: bool) -> RunRequest:
        """Validate a request, and return it with what the flow's definition adds.

        :param problems: the problems that were found while the request was built.
        :raises FlowInputError: there are problems.
        """
        result = self.preflight.check(request, problems, validate=validate)
        result.raise_if_invalid()
        if result.definition is None:
            return request
        definition = result.definition
        return replace(
            request,
            inputs=coerce_inputs(definition, request.inputs),
            parameters=coerce_parameters(definition, request.parameters),
            expected_outputs=definition.outputs,
        )

    def build_request(
        self, flow: Any, inputs: Any, parameters: Any, additional: Any, input_conn_id: str | None = None
    ) -> RunRequest:
        """Return the arguments of `start` as a request.

        This reads the files among the inputs, and sends nothing.

        :raises FlowInputError: arguments cannot be sent; the message lists all of them.
        """
        from airflow_provider_flows.storage.inputs import build_request

        with collect_problems(None) as problems:
            return build_request(flow, inputs, parameters, additional, input_conn_id, problems, self)

    def validate(self, request: RunRequest) -> FlowDefinition | None:
        """Validate a request against the definition of its flow; this starts nothing and costs nothing.

        :param request: a request that `build_request` has returned.
        :returns: the flow's definition, None if it is not available, which is logged and is not an error.
        :raises FlowInputError: the request does not match the definition; the message lists every problem,
            with the names that come closest.
        """
        result = self.preflight.check(request)
        result.problems.raise_if_any()
        return result.definition

    @property
    def preflight(self) -> Preflight:
        """The validation of this hook's requests against the definitions of its service's flows."""
        return Preflight(self, self.get_graph, next_requests=self._next_definition_requests)

    @cached_property
    def _next_definition_requests(self) -> dict[Hashable, float]:
        return {}  # shared by the copies for other threads

    def resume(
        self,
        fingerprint: str,
        record: RunRecord | None,
        generation: int,
        *,
        abort: bool = True,
        on_abort: Callable[[str], None] = lambda _: None,
        on_missing: Callable[[str], None] = lambda _: None,
    ) -> FlowRun | None:
        """Return the flow run of an earlier try, None if a new one must be started (core.start_or_resume)."""
        return self.run(
            start_or_resume.resume(
                self.service,
                fingerprint,
                record,
                generation,
                abort=abort,
                on_abort=on_abort,
                on_missing=on_missing,
            )
        )

    def abort(self, flow_run_id: str) -> bool:
        """Abort a flow run that is active, and delete one that never started.

        A flow run that is aborting, final or unknown to the service is left alone. The service may take some
        time until an aborted run is final.

        :returns: whether the flow run was deleted or its abort was requested.
        """
        return self.run(abort_run(self.service, flow_run_id))

    def abort_and_wait(self, flow_run_id: str) -> FlowRun | None:
        """Abort a flow run as `abort` does, and wait up to about ten seconds until it is final.

        :returns: the flow run as last polled, None if it no longer exists.
        """
        return self.run(abort_run_and_wait(self.service, flow_run_id))

    def get_run(self, flow_run_id: str) -> FlowRun:
        """Return a flow run as it is now, with the end that its progress suggests (`expected_end`)."""
        run = self.run(self.service.get_run(flow_run_id))
        return run if run.is_final else replace(run, expected_end_epoch=expected_end(run, time.time()))

    def list_runs(self, state: FlowState | str | None = None) -> list[FlowRun]:
        """Return the account's flow runs.

        :param state: return only the runs in this state.
        """
        return self.run(self.service.list_runs(FlowState.parse_argument(state)))

    def list_newest(self, limit: int, state: FlowState | str | None = None) -> RunPage:
        """Return the account's newest flow runs, at least `limit` of them if there are as many.

        :returns: the flow runs, with a `next_page` that is not None if there are others that were not listed.
        """
        return self.run(self.service.list_newest(limit, FlowState.parse_argument(state)))

    def delete(self, flow_run_id: str) -> None:
        """Delete a flow run permanently, with all its inputs and outputs; it must not be active."""
        self.run(self.service.delete(flow_run_id))

    def create(
        self, flow: str, parameters: Mapping[str, Any] | None = None, additional: Any = None
    ) -> FlowRun:
        """Create a flow run that does not run and costs nothing yet.

        `add_input` adds its inputs, and `start_created_run` starts it.
        """
        with self.account.check_quota(f"No flow run of {flow} was created", clear=False):
            return self.run(self.service.create(flow, parameters, additional))

    def add_input(self, flow_run_id: str, item: Any, input_conn_id: str | None = None) -> str | None:
        """Add one input to a flow run that was created and not started.

        :param item: one input, in the forms that `RunFlowOperator` documents.
        :param input_conn_id: the Airflow connection of the storage that contains the input's file.
        :returns: the input's asset id, None if the service does not return it.
        :raises FlowInputError: this is not exactly one input, or it cannot be sent.
        """
        from airflow_provider_flows.storage.inputs import parse_inputs

        inputs = parse_inputs([item], input_conn_id, hook=self)
        if not isinstance(inputs, Sequence) or len(inputs) != 1:
            message = "add_input takes one input"
            raise FlowInputError(message)
        self.hidden_inputs = inputs
        with self.account.check_quota(f"No input was added to flow run {flow_run_id}", clear=False):
            return self.run(self.service.add_input(flow_run_id, inputs[0]))

    def start_created_run(self, flow_run_id: str) -> None:
        """Start a flow run that `create` has created."""
        account = self.account
        with (
            account.check_quota(f"Flow run {flow_run_id} was not started"),
            self.run(account.wait_for_start(f"run {flow_run_id}")).hold(),
        ):
            self.run(self.service.start_created_run(flow_run_id))

    def get_input(self, flow_run_id: str, asset_id: str) -> Content:
        """Download one input into memory."""
        return self.run_download(lambda: self.service.get_input(flow_run_id, asset_id))

    def list_inputs(self, flow_run_id: str, *, include_data: bool = False) -> list[FlowOutput]:
        """Return a flow run's inputs, in the form of outputs."""
        return self.run(self.service.list_inputs(flow_run_id, include_data=include_data))

    def list_outputs(self, flow_run_id: str, *, include_data: bool = False) -> list[FlowOutput]:
        """Return the outputs of a final flow run."""
        return self.run(self.service.list_outputs(flow_run_id, include_data=include_data))

    def list_ready_outputs(self, flow_run_id: str) -> list[FlowOutput]:
        """Return the outputs of a final flow run, after waiting about half a minute for pending ones."""
        from airflow_provider_flows.storage.outputs import list_ready_outputs

        return self.run(list_ready_outputs(self.service, flow_run_id))

    def download_output(self, flow_run_id: str, asset_id: str, media_type: str | None = None) -> Content:
        """Download one output into memory.

        :param media_type: as for `save_output`.
        """
        buffer = MemoryBuffer()
        received_type = self.save_output(flow_run_id, asset_id, buffer, media_type=media_type)
        return Content(bytes(buffer.data), received_type)

    def save_output(
        self,
        flow_run_id: str,
        asset_id: str,
        target: Target,
        *,
        media_type: str | None = None,
        on_accepted: Callable[[str], object] = log_accepted_file,
    ) -> str | None:
        """Download one output into a target, a chunk at a time, and return its media type.

        :param target: receives the bytes; it is restarted when the download is repeated.
        :param media_type: the media type in the list of outputs; plain text is accepted only if this is
            `text/...`.
        :param on_accepted: called with what is wrong with a file that contradicts its header or its media
            type, and was accepted because it arrived twice.
        :raises FlowServiceError: the output could not be downloaded completely; discard what the target
            received.
        """
        service, is_allowed = self.service, self.create_url_filter()
        repeated = RepeatedFileFilter(on_accepted)
        return self.run_download(
            lambda: repeated.filter(
                allow_urls(service.save_output(flow_run_id, asset_id, target, media_type), is_allowed)
            )
        )

    def get_definition(self, flow: str) -> FlowDefinition:
        """Return a flow's definition.

        It comes from the service, or from the flow's exported graph (`get_graph`) if the service does not
        provide it.
        """
        return self.preflight.load_definition(flow, self.run)

    def get_graph(self, flow: str) -> FlowGraph | None:  # noqa: ARG002  # subclasses need it
        """Return a flow's exported graph from the folder in the connection's extra, None if there is none."""
        return None

    def list_definitions(self) -> list[FlowDefinition]:
        """Return the definitions of all flows."""
        return self.run(self.service.list_definitions())

    def create_wait(
        self,
        flow_run_id: str,
        schedule: Schedule,
        log: LogFunction | None = None,
        min_log_interval: float = 0.0,
        *,
        is_named: bool = False,
    ) -> Wait:
        """Create the wait for a flow run, which any driver can run.

        :param schedule: when to poll, and until when.
        :param log: receives a logging level and a line; by default the hook's logger.
        :param min_log_interval: shortest time between two log lines about progress, in seconds.
        :param is_named: whether a log line before has named the run in full, so that these need not.
        """
        return Wait(
            flow_run_id,
            self.poll_run,
            schedule=schedule,
            clock=time.time,
            log=log or self.log.log,
            min_log_interval=min_log_interval,
            is_named=is_named,
            count_poll=metrics.count_poll,
            on_final=metrics.record_final_run,
        )

    def wait(
        self,
        flow_run_id: str,
        poll_interval: float | timedelta = 5,
        max_poll_interval: float | timedelta = 60,
        timeout: float | timedelta | None = None,
    ) -> FlowRun:
        """Wait until a flow run is final, and return it; this blocks.

        A failed or aborted flow run is returned as well, not raised.

        :param poll_interval: shortest time between two polls, in seconds or as a timedelta.
        :param max_poll_interval: longest time between two polls.
        :param timeout: time from now after which to give up; None waits for ever.
        :raises FlowTimeout: the timeout has passed; the flow run continues.
        """
        limit = to_seconds("timeout", timeout)
        schedule = Schedule.of(
            poll_interval, max_poll_interval, None if limit is None else time.time() + limit
        )
        return self.run(self.create_wait(flow_run_id, schedule).poll_until_final(), retry=NO_RETRY)

    def test_connection(self) -> tuple[bool, str]:
        """Check whether the service accepts the API key, for Airflow's Test button.

        :returns: whether it does, and a message that distinguishes a wrong key from an unreachable host.
        """
        try:
            check = self.service.check_credentials()
            message = self.run(check, retry=NO_RETRY, timeout=TEST_TIMEOUT_SECONDS)
            unknown_fields = ", ".join(conn.find_unknown_fields(self.connection, self.fields))
        except FlowError as error:  # the id is temporary: Airflow tests a copy of the connection
            name = error.connection if isinstance(error, FlowServiceError) else None
            text = str(error).replace(f"(Connection {name}, ", "(")
            text = text.replace(f"of connection {self.flows_conn_id!r}", "of the connection")
            return False, text.replace(f"Connection {self.flows_conn_id!r}", "The connection")
        if unknown_fields:
            message += f" {conn.UNKNOWN_FIELDS.format('the connection', unknown_fields)}."
        return True, message


class GenerioHook(FlowsHook):
    """Generio Flows, https://flows.generio.ai. Connection type: `generio`; password: API token."""

    __module__ = PUBLIC_MODULE
    conn_type = "generio"
    hook_name = "Generio"
    default_host = "https://flows.generio.ai"
    fields = conn.GENERIO_FIELDS

    def create_service(self, extra: Mapping[str, Any]) -> Service:  # noqa: ARG002  # Generio reads none
        """Create the Generio service."""
        from airflow_provider_flows.services.generio.api import Generio

        return Generio()


class PromptChainerHook(FlowsHook):
    """PromptChainer, https://api.promptchainer.io. Connection type: `promptchainer`; password: API key."""

    __module__ = PUBLIC_MODULE
    conn_type = "promptchainer"
    hook_name = "PromptChainer"
    default_host = "https://api.promptchainer.io"
    fields = conn.PROMPTCHAINER_FIELDS

    def create_service(self, extra: Mapping[str, Any]) -> Service:
        """Create the PromptChainer service."""
        from airflow_provider_flows.services.promptchainer import PromptChainer

        return PromptChainer(extra["test_flow"])

    def get_graph(self, flow: str) -> FlowGraph | None:
        """Return the graph in `<flow>.json`, which PromptChainer's editor exports, None if there is none.

        The folder is the connection's field `graphs`.

        :raises FlowInputError: the file exists and cannot be read.
        """
        from airflow_provider_flows.storage.graph_files import load_graph

        return load_graph(self.extra["graphs"], flow, self.flows_conn_id)
