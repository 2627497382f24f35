"""What a service can do, as conversations: the class that one module a service fills in.

It holds no service's paths or words; those stand in the module of that service and nowhere else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote

from airflow_provider_flows.core.definition import find_definition
from airflow_provider_flows.core.exceptions import FlowInputError, FlowNotFound

if TYPE_CHECKING:
    from airflow_provider_flows.core.definition import FlowDefinition
    from airflow_provider_flows.core.http import Conversation
    from airflow_provider_flows.core.payload.data_uri import Content
    from airflow_provider_flows.core.payload.sink import Target
    from airflow_provider_flows.core.polling.bulk import ActiveRuns
    from airflow_provider_flows.core.problems import Problems
    from airflow_provider_flows.core.run import FlowInput, FlowOutput, FlowRun, FlowState

Inputs = Sequence["FlowInput"] | Mapping[str, Any]  # a list of inputs, or a mapping of variables


class Service(ABC):
    """One service that runs flows.

    Only `headers` and `check` are demanded, and a way to start: `start`, or with `steps` all of `checked`, `create`, `add_input`,
    `begin`, `get_run` and `delete`. A service whose runs have an id gives `get_run`; what a service does not offer raises
    `FlowInputError` and says so.
    """

    name: ClassVar[str]
    staged_start: ClassVar[bool] = False  # whether a run is made, filled and started by separate requests

    @abstractmethod
    def auth_headers(self, token: str) -> dict[str, str]:
        """Give the headers that carry the credentials."""

    @abstractmethod
    def check_credentials(self) -> Conversation[str]:
        """Ask the service whether it takes the key; returns what to tell the user.

        :raises FlowServiceError: the service refuses the key or cannot be asked.
        """

    def start(
        self,
        flow: str,
        inputs: Inputs,
        parameters: Any,
        additional: Any,
        *,
        before_start: Callable[[], None] = lambda: None,
        expected_outputs: Collection[str] | None = None,
    ) -> Conversation[FlowRun]:
        """Start a flow run with everything it needs, in as few requests as the service allows.

        Its answer need not be of a run that is over, where the service gives `get_run`.

        :param about: called when all is checked and the next request is the one that may cost money.
        :param promised: names of the outputs that the flow's definition promises, None where it is not known; for a service
            whose answer to the start holds them all.
        """
        raise self._unsupported("start a flow run in one go")

    def to_flow_inputs(self, inputs: Inputs) -> list[FlowInput]:
        """Give the inputs as they are added one by one.

        :raises FlowInputError: they are none that this service takes; nothing was sent.
        """
        raise self._unsupported("take inputs one by one")

    def validate(self, inputs: Inputs, parameters: Any, problems: Problems) -> None:
        """Note what of these it takes for no flow at all; nothing is asked."""
        if self.supports("to_flow_inputs") and not any(
            part.startswith("inputs") for part in problems.invalid
        ):
            with problems.collect("inputs"):
                self.to_flow_inputs(inputs)

    def create(self, flow: str, parameters: Any, additional: Any) -> Conversation[FlowRun]:
        """Make a flow run that does not run yet and costs nothing yet."""
        raise self._unsupported("make a flow run without starting it")

    def add_input(self, flow_run_id: str, item: FlowInput) -> Conversation[str | None]:
        """Add an input to a run that was made but not started; returns the input's asset id if the service tells it."""
        raise self._unsupported("add inputs to a flow run")

    def start_created(self, flow_run_id: str) -> Conversation[None]:
        """Start a run that was made before."""
        raise self._unsupported("start a flow run that was made before")

    def get_run(self, flow_run_id: str) -> Conversation[FlowRun]:
        """Read a run as it is now."""
        raise self._unsupported(
            "look at a flow run: a run has no id there and is over when its start is answered"
        )

    def run_url(self, flow_run_id: str, flow: str | None) -> str | None:
        """Give where a person finds a run: an absolute address if a console is known, else the API's path; None if neither is.

        It is shown to whoever may see the task, so it carries no credentials.
        """
        return None

    def list_runs(self, state: FlowState | None = None) -> Conversation[list[FlowRun]]:
        """Read the account's runs, those in `state` if it is given."""
        raise self._unsupported("list flow runs")

    def list_active(self, flow_run_ids: Collection[str]) -> Conversation[ActiveRuns]:
        """Read, in as few requests as it takes, which of these runs are running, and how far they are.

        A run that is not named may be over, or not running yet, or left out: only a look at itself can tell.
        """
        raise self._unsupported("tell of many flow runs at once")

    def abort(self, flow_run_id: str) -> Conversation[None]:
        """Ask that a run be stopped; it may take a moment until it is."""
        raise self._unsupported("abort a flow run")

    def delete(self, flow_run_id: str) -> Conversation[None]:
        """Delete a run with all its inputs and outputs, for ever."""
        raise self._unsupported("delete a flow run")

    def list_inputs(self, flow_run_id: str, *, include_data: bool = False) -> Conversation[list[FlowOutput]]:
        """Read a run's inputs, in the form of outputs."""
        raise self._unsupported("list a flow run's inputs")

    def get_input(self, flow_run_id: str, asset_id: str) -> Conversation[Content]:
        """Read one input's content."""
        raise self._unsupported("give a flow run's inputs back")

    def list_outputs(self, flow_run_id: str, *, include_data: bool = False) -> Conversation[list[FlowOutput]]:
        """Read the outputs of a run that is final."""
        raise self._unsupported("list a flow run's outputs")

    def download_output(
        self, flow_run_id: str, asset_id: str, media_type: str | None = None
    ) -> Conversation[Content]:
        """Read one output's content, whole, into memory."""
        raise self._unsupported("download a flow run's outputs")

    def save_output(
        self, flow_run_id: str, asset_id: str, target: Target, media_type: str | None = None
    ) -> Conversation[str | None]:
        """Read one output's content into `target`, best a piece at a time; returns its media type.

        :param media_type: what a list of outputs told of it.
        """
        content = yield from self.download_output(flow_run_id, asset_id, media_type)
        target.restart()
        target.write(content.data)
        return content.media_type

    def get_definition(self, flow: str) -> Conversation[FlowDefinition]:
        """Read what a flow takes and gives; from all definitions, by name or id, where the service lists them.

        :raises FlowNotFound: there is none; the message lists those there are.
        """
        if not self.supports("list_definitions"):
            raise self._unsupported("tell a flow's definition")
        definitions = yield from self.list_definitions()
        if (found := find_definition(flow, definitions)) is not None:
            return found
        names = ", ".join(sorted(definition.display_name for definition in definitions))
        message = f"{self.name} has no flow {flow!r}. It has: {names or 'none'}."
        raise FlowNotFound(message, status=404)

    def list_definitions(self) -> Conversation[list[FlowDefinition]]:
        """Read the definitions of all flows."""
        raise self._unsupported("list its flows")

    def supports(self, method: str) -> bool:
        """Whether this service fills in a method of this class that is not demanded."""
        return getattr(type(self), method) is not getattr(Service, method)

    def _unsupported(self, action: str) -> FlowInputError:
        return FlowInputError(f"The service {self.name} cannot {action}.")


def quote_path_segment(name: str, value: str) -> str:
    """Quote an id as one segment of a path.

    :raises FlowInputError: it is empty, or would lead elsewhere; `name` says which argument it is.
    """
    try:
        quoted = quote(value, safe="")
    except UnicodeEncodeError:
        quoted = ""
    if quoted in {"", ".", ".."}:
        message = f"{name} must be an id, not {value!r}"
        raise FlowInputError(message)
    return quoted
