"""The hooks: what can be asked of a service, in this provider's words, over an Airflow connection.

They know no paths and no states (flow/services do); how a conversation is held stands in connected.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_provider_flows import connection as conn
from airflow_provider_flows.base_hook import BaseFlowsHook
from airflow_provider_flows.core.exceptions import FlowError, FlowInputError
from airflow_provider_flows.core.http import restrict_redirects
from airflow_provider_flows.core.payload.data_uri import Content
from airflow_provider_flows.core.payload.download import download_image
from airflow_provider_flows.core.payload.sink import MemoryBuffer
from airflow_provider_flows.core.polling.schedule import Schedule, expected_end, to_seconds
from airflow_provider_flows.core.polling.wait import Wait
from airflow_provider_flows.core.redaction import find_signatures
from airflow_provider_flows.core.retry import NO_RETRY, Retry
from airflow_provider_flows.core.validation import Problems, collect_problems
from airflow_provider_flows.preflight import Preflight

if TYPE_CHECKING:
    from airflow_provider_flows.core.definition import FlowDefinition
    from airflow_provider_flows.core.graph import FlowGraph
    from airflow_provider_flows.core.http import Conversation, T
    from airflow_provider_flows.core.payload.sink import Target
    from airflow_provider_flows.core.polling.progress_log import LogFunction
    from airflow_provider_flows.core.run import FlowOutput, FlowRun, FlowState
    from airflow_provider_flows.core.service import Service
    from airflow_provider_flows.core.start import RunRecord, RunRequest, SaveRecord

TEST_SECONDS = 5.0  # Airflow runs the Test button inside its web server
MIN_DOWNLOAD_ATTEMPTS = 3


class FlowsHook(BaseFlowsHook):
    """What every service's hook does; `FlowsHook.get_hook(conn_id)` gives the hook of that connection's type.

    A third service is added by a subclass with its own connection type, default host, fields and `make_service`,
    registered as any Airflow connection type is.

    :param flows_conn_id: the Airflow connection to use.
    """

    def start(
        self,
        flow: str | RunRequest,
        inputs: Any = None,
        parameters: Mapping[str, Any] | None = None,
        additional: Any = None,
        *,
        record: RunRecord | None = None,
        save: SaveRecord | None = None,
        input_conn_id: str | None = None,
        validate: bool = True,
    ) -> FlowRun:
        """Start a flow run.

        :param flow: the flow's name or id; or an order that `order` has made of all four arguments.
        :param inputs: what it works on, in the forms that `RunFlowOperator` documents.
        :param parameters: how it works.
        :param additional: the caller's own metadata, stored with the run (Generio).
        :param record: what is to be kept of this start, and `keep` the function that keeps it (flow/starting.py); without them
            as few requests as the service allows do it all.
        :param input_conn_id: the Airflow connection of the storage that files among the inputs lie in.
        :param validate: whether the order is checked first against what the flow takes (`check`); texts that spell numbers
            and Booleans are sent as such, and a None where none will do is left out.
        :raises FlowInputError: arguments cannot be sent, or do not fit the flow: all that is wrong; no run was made.
        :raises FlowServiceError: the service refused.
        """
        from airflow_provider_flows.core import start
        from airflow_provider_flows.core.validation import coerce_parameters
        from airflow_provider_flows.storage.inputs import build_request

        problems = Problems()
        arguments = (flow, inputs, parameters, additional, input_conn_id)
        request = flow if isinstance(flow, start.RunRequest) else build_request(*arguments, problems)
        checked = self.preflight.check(request, problems, validate=validate)
        checked.raise_if_invalid()
        definition = checked.definition
        if definition is not None:
            request = replace(
                request,
                expected_outputs=definition.outputs,
                parameters=coerce_parameters(definition, request.parameters),
            )
        if record is not None and save is not None:
            return self.run(start.start(self.service, request, record, save))
        return self.run(start.start_in_one_request(self.service, request))

    def validate(self, request: RunRequest) -> FlowDefinition | None:
        """Check an order against what its flow takes: nothing is made and nothing is paid.

        :param order: what `order` has made.
        :returns: what the flow takes and gives, None if nothing tells it: that is logged, and no reason to fail.
        :raises FlowInputError: naming all that does not fit, with the nearest matches.
        """
        checked = self.preflight.check(request)
        checked.problems.raise_if_any()
        return checked.definition

    @property
    def preflight(self) -> Preflight:
        """The validation of this hook's requests against the definitions of its service's flows."""
        return Preflight(self, self.get_graph)

    def resume(
        self, fingerprint: str, record: RunRecord | None, generation: int, *, abort: bool = True
    ) -> FlowRun | None:
        """Give the flow run that an earlier try left, None if a new one must be started (flow/starting.py)."""
        from airflow_provider_flows.core.start import resume

        return self.run(resume(self.service, fingerprint, record, generation, abort=abort))

    def cancel(self, flow_run_id: str) -> None:
        """Stop a flow run wherever it is: delete one that never ran, abort one under way, leave a final one alone."""
        from airflow_provider_flows.core.start import cancel

        self.run(cancel(self.service, flow_run_id))

    def cancel_and_wait(self, flow_run_id: str) -> FlowRun | None:
        """Stop a flow run and wait for about ten seconds until it is final; None if it is gone."""
        from airflow_provider_flows.core.start import cancel_and_wait

        return self.run(cancel_and_wait(self.service, flow_run_id))

    def build_request(
        self, flow: Any, inputs: Any, parameters: Any, additional: Any, input_conn_id: str | None = None
    ) -> RunRequest:
        """Read the arguments of a start; files are read once here, nothing is sent.

        :raises FlowInputError: naming all arguments that cannot be sent.
        """
        from airflow_provider_flows.storage.inputs import build_request

        with collect_problems(None) as problems:
            return build_request(flow, inputs, parameters, additional, input_conn_id, problems)

    def get_run(self, flow_run_id: str) -> FlowRun:
        """Read a flow run as it is now, with the end that its progress lets expect (`expected_end`)."""
        run = self.run(self.service.get_run(flow_run_id))
        return run if run.is_final else replace(run, expected_at=expected_end(run, time.time()))

    def list_runs(self, state: FlowState | None = None) -> list[FlowRun]:
        """Read the account's flow runs, those in `state` if it is given."""
        return self.run(self.service.list_runs(state))

    def abort(self, flow_run_id: str) -> None:
        """Ask that a flow run be stopped; one that is stopping or final already is left as it is."""
        self.run(self.service.abort(flow_run_id))

    def delete(self, flow_run_id: str) -> None:
        """Delete a flow run with all its inputs and outputs, for ever; it must not be under way."""
        self.run(self.service.delete(flow_run_id))

    def add_input(self, flow_run_id: str, item: Any, input_conn_id: str | None = None) -> str | None:
        """Add one input to a flow run that was made and not started; gives its asset id if the service tells it."""
        from airflow_provider_flows.storage.inputs import parse_inputs

        parsed = parse_inputs([item], input_conn_id)
        if not isinstance(parsed, Sequence) or len(parsed) != 1:
            message = "add_input takes one input"
            raise FlowInputError(message)
        return self.run(self.service.add_input(flow_run_id, parsed[0]))

    def create(
        self, flow: str, parameters: Mapping[str, Any] | None = None, additional: Any = None
    ) -> FlowRun:
        """Make a flow run that does not run yet and costs nothing yet; `add_input` fills it, `begin` starts it."""
        return self.run(self.service.create(flow, parameters, additional))

    def start_created(self, flow_run_id: str) -> None:
        """Start a flow run that was made before."""
        self.run(self.service.start_created(flow_run_id))

    def get_input(self, flow_run_id: str, asset_id: str) -> Content:
        """Download one input."""
        return self._run_download(lambda: self.service.get_input(flow_run_id, asset_id))

    def list_inputs(self, flow_run_id: str, *, include_data: bool = False) -> list[FlowOutput]:
        """List a flow run's inputs."""
        return self.run(self.service.list_inputs(flow_run_id, include_data=include_data))

    def list_outputs(self, flow_run_id: str, *, include_data: bool = False) -> list[FlowOutput]:
        """List a final flow run's outputs."""
        return self.run(self.service.list_outputs(flow_run_id, include_data=include_data))

    def list_ready_outputs(self, flow_run_id: str) -> list[FlowOutput]:
        """List a final flow run's outputs, waiting for about half a minute for those that are still pending."""
        from airflow_provider_flows.storage.outputs import list_ready_outputs

        return self.run(list_ready_outputs(self.service, flow_run_id))

    def download_output(self, flow_run_id: str, asset_id: str, media_type: str | None = None) -> Content:
        """Download one output, whole, into memory; `media_type` as for `save_output`."""
        buffer = MemoryBuffer()
        kind = self.save_output(flow_run_id, asset_id, buffer, media_type=media_type)
        return Content(bytes(buffer.data), kind)

    def save_output(
        self, flow_run_id: str, asset_id: str, target: Target, *, media_type: str | None = None
    ) -> str | None:
        """Download one output into `target` (flow/sink.py), a piece at a time; gives its media type.

        :param media_type: what the list of outputs told of it; a plain text is taken only if that is `text/...`.
        :raises FlowServiceError: the output could not be read, or not all of it; what is in the target is worth nothing then.
        """
        service, is_allowed = self.service, self.settings.is_allowed_url
        return self._run_download(
            lambda: restrict_redirects(
                service.save_output(flow_run_id, asset_id, target, media_type), is_allowed
            )
        )

    def save_linked_image(self, url: str, target: Target) -> str | None:
        """Download the picture that an output links to; gives its media type, None if it may not be fetched or is no picture.

        The credentials do not go there unless it is the service's own host.
        """
        from airflow.providers.common.compat.sdk import mask_secret

        for secret in find_signatures(url):
            mask_secret(secret)  # the libraries below write whole URLs into a debug log
        settings, link = self.settings, url.strip()
        if not settings.is_allowed_url(link):
            return None
        return self._run_download(
            lambda: restrict_redirects(
                download_image(link, target, settings.max_response_bytes), settings.is_allowed_url
            )
        )

    def _run_download(self, create_conversation: Callable[[], Conversation[T]]) -> T:
        """Run a conversation that only reads; run it again, at least three times in all, while what arrives is incomplete."""
        retry = Retry(attempts=max(MIN_DOWNLOAD_ATTEMPTS, 1 + self.extra["retries"]))
        return self.run(retry.retry_incomplete(create_conversation), retry=retry)

    def get_definition(self, flow: str) -> FlowDefinition:
        """Read what a flow takes and gives; where the service cannot tell it, from the flow's exported graph (`get_graph`)."""
        return self.preflight.load_definition(flow, self.run)

    def get_graph(self, flow: str) -> FlowGraph | None:  # noqa: ARG002  # subclasses need it
        """Read a flow's graph from the folder that the connection names, None if there is none."""
        return None

    def list_definitions(self) -> list[FlowDefinition]:
        """Read the definitions of all flows."""
        return self.run(self.service.list_definitions())

    def create_wait(
        self, flow_run_id: str, schedule: Schedule, log: LogFunction | None = None, min_interval: float = 0.0
    ) -> Wait:
        """Give the wait for a flow run, for whichever driver is to hold it.

        :param tell: takes a logging level and a line; this hook's log if it is not given.
        :param apart: seconds that lie between two lines about progress at the least.
        """
        from airflow_provider_flows import metrics

        get_run, log_function = self.service.get_run, log or self.log.log
        return Wait(
            flow_run_id,
            get_run,
            schedule=schedule,
            clock=time.time,
            log=log_function,
            min_interval=min_interval,
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
        """Wait, blocking, until a flow run is final; a run that failed is given back, not raised.

        :param timeout: seconds or timedelta from now, None for ever.
        :raises FlowTimeout: the time is over; the run goes on.
        """
        limit = to_seconds("timeout", timeout)
        schedule = Schedule.of(
            poll_interval, max_poll_interval, None if limit is None else time.time() + limit
        )
        return self.run(self.create_wait(flow_run_id, schedule).poll_until_final(), retry=NO_RETRY)

    def test_connection(self) -> tuple[bool, str]:
        """Ask the service whether it takes the key; tells a wrong key from a host that cannot be reached."""
        try:
            return True, self.run(self.service.check_credentials(), retry=NO_RETRY, timeout=TEST_SECONDS)
        except FlowError as error:
            return False, str(error)


class GenerioHook(FlowsHook):
    """Generio Flows, https://flows.generio.ai: connection type `generio`, password = API token."""

    conn_type = "generio"
    hook_name = "Generio"
    default_host = "https://flows.generio.ai"
    fields = conn.GENERIO_FIELDS

    def create_service(self, extra: Mapping[str, Any]) -> Service:  # noqa: ARG002  # Generio has no options of its own
        """Make the Generio service."""
        from airflow_provider_flows.services.generio.api import Generio

        return Generio()


class PromptChainerHook(FlowsHook):
    """PromptChainer, https://api.promptchainer.io: connection type `promptchainer`, password = API key."""

    conn_type = "promptchainer"
    hook_name = "PromptChainer"
    default_host = "https://api.promptchainer.io"
    fields = conn.PROMPTCHAINER_FIELDS

    def create_service(self, extra: Mapping[str, Any]) -> Service:
        """Make the PromptChainer service."""
        from airflow_provider_flows.services.promptchainer import PromptChainer

        return PromptChainer(extra["test_flow"])

    def get_graph(self, flow: str) -> FlowGraph | None:
        """Read `<flow>.json`, as PromptChainer's editor exports it, from the folder in the connection's field `graphs`.

        :raises FlowInputError: it is there and cannot be read.
        """
        from airflow_provider_flows.storage.graph_files import load_graph

        return load_graph(self.extra["graphs"], flow)
