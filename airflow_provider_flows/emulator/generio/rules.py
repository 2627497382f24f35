"""What Generio allows: creating, feeding, starting, aborting and deleting flow runs.

It knows nothing of HTTP but the status of a refusal; how answers look is the views' affair.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from airflow_provider_flows.emulator.errors import Refusal, complaint
from airflow_provider_flows.emulator.generio import templates
from airflow_provider_flows.emulator.generio.inputs import read_input
from airflow_provider_flows.emulator.generio.templates import Template
from airflow_provider_flows.emulator.models import make
from airflow_provider_flows.emulator.runs import GenerioRun, InputAsset, OutputAsset
from airflow_provider_flows.emulator.state import World

# The status under which FastAPI lists complaints one by one.
UNPROCESSABLE: Final = 422
OBJECT_ID = re.compile(r"[0-9a-f]{24}")
DELETABLE = frozenset({"created", "completed", "failed", "aborted"})


@dataclass(frozen=True)
class Rules:
    """The rules, applied to one world."""

    world: World

    def template(self, reference: str) -> Template:
        """Return the template of that name or id."""
        found = templates.find(reference)
        if found is None:
            raise Refusal(404, "Template not found")
        return found

    def run(self, flow_run_id: str) -> GenerioRun:
        """Return the flow run of that id."""
        found = self.world.runs.get(flow_run_id)
        if found is None:
            raise self._missing(flow_run_id, "Flow")
        return found

    def input(self, run: GenerioRun, asset_id: str) -> InputAsset:
        """Return one input of a flow run."""
        found = next((item for item in run.inputs if item.asset_id == asset_id), None)
        if found is None:
            raise self._missing(asset_id, "Asset")
        return found

    def outputs(self, run: GenerioRun) -> list[OutputAsset]:
        """Return the outputs of a flow run that is over."""
        state = run.state
        if not run.moment.final:
            raise self._conflict(f"Outputs are available once the flow has ended, not while it is {state}")
        outputs = run.outputs
        if not outputs and state != "completed" and self.world.switches.outputs_after_failure == "refuse":
            raise self._conflict(f"A flow that is {state} has no outputs")
        return outputs

    def output(self, run: GenerioRun, asset_id: str) -> OutputAsset:
        """Return one output that was really made."""
        found = next((item for item in self.outputs(run) if item.asset_id == asset_id), None)
        if found is None:
            raise self._missing(asset_id, "Asset")
        if found.error is not None:
            raise Refusal(404, f"Asset was not made: {found.error}")
        if self.world.switches.outputs_ready == "later" and not run.settled:
            raise self._conflict("Asset is still processing")
        return found

    def create(
        self, template: Template, parameters: object, additional: object, inputs: list[InputAsset]
    ) -> GenerioRun:
        """Create a flow run, and start it if it has inputs."""
        given = {} if parameters is None else parameters
        complaints = template.complaints(
            given, refuse_unknown=self.world.switches.unknown_parameter == "refuse"
        )
        broken = self._bad_parameters(complaints)
        if inputs:
            self._charge()
            broken = broken or self.why_broken(template, inputs)
        known = {parameter.name for parameter in template.parameters}
        # What is wrong is not kept: the flow run is bound to fail by it, and shows the defaults.
        sound = given if isinstance(given, dict) and not complaints else {}
        kept = {name: value for name, value in sound.items() if name in known}
        run = GenerioRun(template, kept, additional, self.world.plans.take(), self.world.clock)
        run.inputs.extend(inputs)
        run.error = broken
        with self.world.lock:
            self.world.runs[run.flow_run_id] = run
            if inputs:
                self._begin(run, broken)
        return run

    def read_input(
        self, template: Template, data: str, additional: object, where: list[str | int]
    ) -> InputAsset:
        """Return an input asset, or refuse the data."""
        return InputAsset(read_input(data, template, self.world.switches, where), additional)

    def add_input(self, run: GenerioRun, data: str, additional: object) -> InputAsset:
        """Give a flow run that was only created one more input."""
        self._need(run, frozenset({"created"}), "Inputs can be added")
        asset = self.read_input(run.spec, data, additional, ["body", "data"])
        with self.world.lock:
            self._need(run, frozenset({"created"}), "Inputs can be added")
            run.inputs.append(asset)
        return asset

    def start(self, run: GenerioRun) -> None:
        """Start a flow run that was only created."""
        self._need(run, frozenset({"created"}), "A flow can be started")
        if not run.inputs:
            raise Refusal(
                422, [complaint(["body", "action"], "The flow has no inputs", "value_error", "start")]
            )
        self._charge()
        broken = run.error or self.why_broken(run.spec, run.inputs)
        with self.world.lock:
            self._need(run, frozenset({"created"}), "A flow can be started")
            self._begin(run, broken)

    def abort(self, run: GenerioRun) -> None:
        """Abort a flow run that is under way."""
        with self.world.lock:
            if run.course.aborted_at is not None or not run.ever_started or run.moment.final:
                raise self._conflict(
                    f"A flow can be aborted while it is starting or running, not {run.state}"
                )
            run.abort(self.world.switches.abort)

    def delete(self, run: GenerioRun) -> None:
        """Delete a flow run that is not under way."""
        with self.world.lock:
            self._need(run, DELETABLE, "A flow can be deleted")
            del self.world.runs[run.flow_run_id]
            run.deleted = True

    @staticmethod
    def why_broken(template: Template, inputs: list[InputAsset]) -> str | None:
        """Say which input cannot be worked with, and why."""
        for number, asset in enumerate(inputs):
            try:
                make.check(template.name, asset.media.content)
            except make.UnreadableInputError as error:
                return f"Input {number}: {error}"
        return None

    def _begin(self, run: GenerioRun, broken: str | None) -> None:
        run.start(self.world.run_seconds, broken)
        self.world.paid.append(run)

    def _charge(self) -> None:
        quota = self.world.switches.quota
        if quota != "plenty":
            raise Refusal(quota, "Generation quota used up")

    def _bad_parameters(self, complaints: list[dict[str, Any]]) -> str | None:
        """Refuse bad parameters, or return why the flow run is going to fail by them."""
        if not complaints:
            return None
        way = self.world.switches.bad_parameter
        text = "; ".join(f"{item['loc'][-1]}: {item['msg']}" for item in complaints)
        if way == "fail":
            return f"Bad parameters: {text}"
        raise Refusal(way, complaints if way == UNPROCESSABLE else f"Bad parameters: {text}")

    def _need(self, run: GenerioRun, states: frozenset[str], what: str) -> None:
        state = run.state
        if state not in states:
            raise self._conflict(f"{what} while it is {' or '.join(sorted(states))}, not {state}")

    def _conflict(self, text: str) -> Refusal:
        return Refusal(self.world.switches.conflict, text)

    def _missing(self, reference: str, what: str) -> Refusal:
        if OBJECT_ID.fullmatch(reference):
            return Refusal(404, f"{what} not found")
        return Refusal(self.world.switches.malformed_id, f"{what} not found")
