"""What Generio allows: creating, feeding, starting, aborting and deleting flow runs.

It knows nothing of HTTP but the status of a refusal; how answers look is the views' affair.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from airflow_provider_flows.emulator.errors import ApiError, validation_error
from airflow_provider_flows.emulator.generio import templates
from airflow_provider_flows.emulator.generio.inputs import parse_input
from airflow_provider_flows.emulator.generio.templates import Template
from airflow_provider_flows.emulator.models import make
from airflow_provider_flows.emulator.runs import GenerioRun, InputAsset, OutputAsset
from airflow_provider_flows.emulator.state import EmulatorState

# The status under which FastAPI lists complaints one by one.
UNPROCESSABLE: Final = 422
OBJECT_ID = re.compile(r"[0-9a-f]{24}")
DELETABLE = frozenset({"created", "completed", "failed", "aborted"})


@dataclass(frozen=True)
class Rules:
    """The rules, applied to one world."""

    emulator_state: EmulatorState

    def template(self, reference: str) -> Template:
        """Return the template of that name or id."""
        found = templates.find_template(reference)
        if found is None:
            raise ApiError(404, "Template not found")
        return found

    def run(self, flow_run_id: str) -> GenerioRun:
        """Return the flow run of that id."""
        found = self.emulator_state.runs.get(flow_run_id)
        if found is None:
            raise self._not_found_error(flow_run_id, "Flow")
        return found

    def input(self, run: GenerioRun, asset_id: str) -> InputAsset:
        """Return one input of a flow run."""
        found = next((item for item in run.inputs if item.asset_id == asset_id), None)
        if found is None:
            raise self._not_found_error(asset_id, "Asset")
        return found

    def outputs(self, run: GenerioRun) -> list[OutputAsset]:
        """Return the outputs of a flow run that is over."""
        state = run.state
        if not run.current.is_final:
            raise self._conflict_error(
                f"Outputs are available once the flow has ended, not while it is {state}"
            )
        outputs = run.outputs
        if (
            not outputs
            and state != "completed"
            and self.emulator_state.switches.outputs_after_failure == "refuse"
        ):
            raise self._conflict_error(f"A flow that is {state} has no outputs")
        return outputs

    def output(self, run: GenerioRun, asset_id: str) -> OutputAsset:
        """Return one output that was really made."""
        found = next((item for item in self.outputs(run) if item.asset_id == asset_id), None)
        if found is None:
            raise self._not_found_error(asset_id, "Asset")
        if found.error is not None:
            raise ApiError(404, f"Asset was not made: {found.error}")
        if self.emulator_state.switches.outputs_ready == "later" and not run.has_ready_outputs:
            raise self._conflict_error("Asset is still processing")
        return found

    def create(
        self, template: Template, parameters: object, additional: object, inputs: list[InputAsset]
    ) -> GenerioRun:
        """Create a flow run, and start it if it has inputs."""
        values = {} if parameters is None else parameters
        errors = template.validation_errors(
            values, reject_unknown=self.emulator_state.switches.unknown_parameter == "refuse"
        )
        failure = self._parameter_failure(errors)
        if inputs:
            self._check_quota()
            failure = failure or self.input_error(template, inputs)
        known = {parameter.name for parameter in template.parameters}
        # What is wrong is not kept: the flow run is bound to fail by it, and shows the defaults.
        valid_values = values if isinstance(values, dict) and not errors else {}
        explicit_parameters = {name: value for name, value in valid_values.items() if name in known}
        run = GenerioRun(
            template,
            explicit_parameters,
            additional,
            self.emulator_state.plans.pop(),
            self.emulator_state.clock,
        )
        run.inputs.extend(inputs)
        run.error = failure
        with self.emulator_state.lock:
            self.emulator_state.runs[run.flow_run_id] = run
            if inputs:
                self._start_run(run, failure)
        return run

    def parse_input(
        self, template: Template, data: str, additional: object, location: list[str | int]
    ) -> InputAsset:
        """Return an input asset, or refuse the data."""
        return InputAsset(parse_input(data, template, self.emulator_state.switches, location), additional)

    def add_input(self, run: GenerioRun, data: str, additional: object) -> InputAsset:
        """Give a flow run that was only created one more input."""
        self._require_state(run, frozenset({"created"}), "Inputs can be added")
        asset = self.parse_input(run.spec, data, additional, ["body", "data"])
        with self.emulator_state.lock:
            self._require_state(run, frozenset({"created"}), "Inputs can be added")
            run.inputs.append(asset)
        return asset

    def start(self, run: GenerioRun) -> None:
        """Start a flow run that was only created."""
        self._require_state(run, frozenset({"created"}), "A flow can be started")
        if not run.inputs:
            raise ApiError(
                422, [validation_error(["body", "action"], "The flow has no inputs", "value_error", "start")]
            )
        self._check_quota()
        failure = run.error or self.input_error(run.spec, run.inputs)
        with self.emulator_state.lock:
            self._require_state(run, frozenset({"created"}), "A flow can be started")
            self._start_run(run, failure)

    def abort(self, run: GenerioRun) -> None:
        """Abort a flow run that is under way."""
        with self.emulator_state.lock:
            if run.timeline.aborted_at is not None or not run.has_started or run.current.is_final:
                raise self._conflict_error(
                    f"A flow can be aborted while it is starting or running, not {run.state}"
                )
            run.abort(self.emulator_state.switches.abort)

    def delete(self, run: GenerioRun) -> None:
        """Delete a flow run that is not under way."""
        with self.emulator_state.lock:
            self._require_state(run, DELETABLE, "A flow can be deleted")
            del self.emulator_state.runs[run.flow_run_id]
            run.is_deleted = True

    @staticmethod
    def input_error(template: Template, inputs: list[InputAsset]) -> str | None:
        """Say which input cannot be worked with, and why."""
        for number, asset in enumerate(inputs):
            try:
                make.validate_input(template.name, asset.media.content)
            except make.UnreadableInputError as error:
                return f"Input {number}: {error}"
        return None

    def _start_run(self, run: GenerioRun, failure: str | None) -> None:
        run.start(self.emulator_state.run_seconds, failure)
        self.emulator_state.paid_runs.append(run)

    def _check_quota(self) -> None:
        quota = self.emulator_state.switches.quota
        if quota != "plenty":
            raise ApiError(quota, "Generation quota used up")

    def _parameter_failure(self, errors: list[dict[str, Any]]) -> str | None:
        """Refuse bad parameters, or return why the flow run is going to fail by them."""
        if not errors:
            return None
        way = self.emulator_state.switches.bad_parameter
        text = "; ".join(f"{item['loc'][-1]}: {item['msg']}" for item in errors)
        if way == "fail":
            return f"Bad parameters: {text}"
        raise ApiError(way, errors if way == UNPROCESSABLE else f"Bad parameters: {text}")

    def _require_state(self, run: GenerioRun, states: frozenset[str], what: str) -> None:
        state = run.state
        if state not in states:
            raise self._conflict_error(f"{what} while it is {' or '.join(sorted(states))}, not {state}")

    def _conflict_error(self, text: str) -> ApiError:
        return ApiError(self.emulator_state.switches.conflict, text)

    def _not_found_error(self, reference: str, what: str) -> ApiError:
        if OBJECT_ID.fullmatch(reference):
            return ApiError(404, f"{what} not found")
        return ApiError(self.emulator_state.switches.malformed_id, f"{what} not found")
