"""Generio's rules: which requests are accepted, which inputs are valid, and what happens to flow runs."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Any, Final

from airflow_provider_flows.emulator.generio_templates import Template, find_template, validation_error
from airflow_provider_flows.emulator.state import (
    ApiError,
    EmulatorState,
    GenerioRun,
    InputAsset,
    Media,
    OutputAsset,
)
from airflow_provider_flows.emulator.switches import Switches

# The status with which FastAPI sends a list of validation errors.
UNPROCESSABLE: Final = 422
OBJECT_ID = re.compile(r"[0-9a-f]{24}")
CREATED = frozenset({"created"})
DELETABLE = frozenset({"created", "completed", "failed", "aborted"})
# Names that are not registered media types but are in use, on the vendor's pages too (vendor_notes.md, G-12).
ALIASES = {"image/jpg": "image/jpeg", "image/tif": "image/tiff"}
MAGIC_TO_MEDIA_TYPE = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"II*\x00": "image/tiff",
    b"MM\x00*": "image/tiff",
    b"RIFF": "image/webp",
    b"BM": "image/bmp",
    b"glTF": "model/gltf-binary",
}
# How much of an invalid input its validation error contains.
MAX_ECHOED_CHARACTERS = 100


@dataclass(frozen=True)
class Rules:
    """The rules, applied to the state of one emulator; a rejected request raises ApiError."""

    emulator_state: EmulatorState

    @property
    def switches(self) -> Switches:
        """The emulator's switches."""
        return self.emulator_state.switches

    def get_template(self, reference: str) -> Template:
        """Return the template with this name or id."""
        template = find_template(reference)
        if template is None:
            raise ApiError(404, "Template not found")
        return template

    def get_run(self, flow_run_id: str) -> GenerioRun:
        """Return the flow run with this id."""
        run = self.emulator_state.runs.get(flow_run_id)
        if run is None:
            raise self._not_found_error(flow_run_id, "Flow")
        return run

    def get_input(self, run: GenerioRun, asset_id: str) -> InputAsset:
        """Return one input of a flow run."""
        asset = next((item for item in run.inputs if item.asset_id == asset_id), None)
        if asset is None:
            raise self._not_found_error(asset_id, "Asset")
        return asset

    def get_outputs(self, run: GenerioRun) -> list[OutputAsset]:
        """Return the outputs of a final flow run."""
        state = run.state
        if not run.current.is_final:
            raise self._conflict_error(
                f"Outputs are available once the flow has ended, not while it is {state}"
            )
        outputs = run.outputs
        if not outputs and state != "completed" and self.switches.outputs_after_failure == "reject":
            raise self._conflict_error(f"A flow that is {state} has no outputs")
        return outputs

    def get_output(self, run: GenerioRun, asset_id: str) -> OutputAsset:
        """Return one output that has a file and is ready."""
        asset = next((item for item in self.get_outputs(run) if item.asset_id == asset_id), None)
        if asset is None:
            raise self._not_found_error(asset_id, "Asset")
        if asset.error is not None:
            raise ApiError(404, f"Asset was not created: {asset.error}")
        if self.switches.outputs_ready == "later" and not run.has_ready_outputs:
            raise self._conflict_error("Asset is still processing")
        return asset

    def create(
        self, template: Template, parameters: object, additional: object, inputs: list[InputAsset]
    ) -> GenerioRun:
        """Create a flow run, and start it if it has inputs."""
        values = {} if parameters is None else parameters
        errors = template.validation_errors(
            values, reject_unknown=self.switches.unknown_parameter == "reject"
        )
        failure = self._parameter_failure(errors)
        if inputs:
            self._check_quota()
            failure = failure or self.input_error(template, inputs)
        known = {parameter.name for parameter in template.parameters}
        # Invalid parameters are not stored: the flow run will fail because of them, and shows the defaults.
        valid_values = values if isinstance(values, dict) and not errors else {}
        run = GenerioRun(
            template,
            {name: value for name, value in valid_values.items() if name in known},
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
        """Parse the data of an input, and create its asset."""
        return InputAsset(parse_data(data, template, self.switches, location), additional)

    def add_input(self, run: GenerioRun, data: str, additional: object) -> InputAsset:
        """Add an input to a flow run that has not been started."""
        self._require_state(run, CREATED, "Inputs can be added")
        asset = self.parse_input(run.spec, data, additional, ["body", "data"])
        with self.emulator_state.lock:
            self._require_state(run, CREATED, "Inputs can be added")
            run.inputs.append(asset)
        return asset

    def start(self, run: GenerioRun) -> None:
        """Start a flow run that was created without inputs and has some now."""
        self._require_state(run, CREATED, "A flow can be started")
        if not run.inputs:
            raise ApiError(
                422, [validation_error(["body", "action"], "The flow has no inputs", "value_error", "start")]
            )
        self._check_quota()
        failure = run.error or self.input_error(run.spec, run.inputs)
        with self.emulator_state.lock:
            self._require_state(run, CREATED, "A flow can be started")
            self._start_run(run, failure)

    def abort(self, run: GenerioRun) -> None:
        """Abort a flow run that is in progress."""
        with self.emulator_state.lock:
            if run.timeline.aborted_at is not None or not run.has_started or run.current.is_final:
                raise self._conflict_error(
                    f"A flow can be aborted while it is starting or running, not {run.state}"
                )
            run.abort(self.switches.abort)

    def delete(self, run: GenerioRun) -> None:
        """Delete a flow run that is not in progress."""
        with self.emulator_state.lock:
            self._require_state(run, DELETABLE, "A flow can be deleted")
            del self.emulator_state.runs[run.flow_run_id]
            run.is_deleted = True

    @staticmethod
    def input_error(template: Template, inputs: list[InputAsset]) -> str | None:
        """Return which input cannot be read, and why; None if all can."""
        if all(asset.media.media_type == "text/plain" for asset in inputs):
            return None
        # Imported here because the mesh libraries take time and memory, and prompts do not need them.
        from airflow_provider_flows.emulator.models import UnreadableInputError, validate_input

        for number, asset in enumerate(inputs):
            try:
                validate_input(template.name, asset.media.content)
            except UnreadableInputError as error:
                return f"Input {number}: {error}"
        return None

    def _start_run(self, run: GenerioRun, failure: str | None) -> None:
        run.start(self.emulator_state.run_seconds, failure)
        self.emulator_state.paid_runs.append(run)

    def _check_quota(self) -> None:
        quota = self.switches.quota
        if quota != "plenty":
            raise ApiError(quota, "Generation quota used up")

    def _parameter_failure(self, errors: list[dict[str, Any]]) -> str | None:
        """Reject invalid parameters, or return the error with which the flow run will fail."""
        if not errors:
            return None
        status = self.switches.bad_parameter
        text = "; ".join(f"{item['loc'][-1]}: {item['msg']}" for item in errors)
        if status == "fail":
            return f"Bad parameters: {text}"
        raise ApiError(status, errors if status == UNPROCESSABLE else f"Bad parameters: {text}")

    def _require_state(self, run: GenerioRun, states: frozenset[str], what: str) -> None:
        state = run.state
        if state not in states:
            raise self._conflict_error(f"{what} while it is {' or '.join(sorted(states))}, not {state}")

    def _conflict_error(self, text: str) -> ApiError:
        return ApiError(self.switches.conflict, text)

    def _not_found_error(self, reference: str, what: str) -> ApiError:
        if OBJECT_ID.fullmatch(reference):
            return ApiError(404, f"{what} not found")
        return ApiError(self.switches.malformed_id, f"{what} not found")


def parse_data(data: str, template: Template, switches: Switches, location: list[str | int]) -> Media:
    """Parse the data of an input: a prompt, a data URI or, with a switch, bare base64.

    :param location: path of the input in the request, for validation errors.
    :raises ApiError: the data is malformed, or the template does not accept its media type.
    """
    if template.has_text_inputs:
        media = _parse_text(data, switches, location)
    elif data.startswith("data:"):
        media = _parse_data_uri(data, switches, location)
    elif switches.bare_base64 == "accept":
        media = _parse_bare_base64(data, location)
    else:
        raise _invalid_input_error(
            location, "Input should be a data URI: data:<media type>;base64,<data>", data
        )
    allowed = {*template.input_types, *(["image/bmp"] if switches.bmp == "accept" else [])}
    if media.media_type not in allowed or (media.media_type == "image/bmp" and "image/png" not in allowed):
        types = ", ".join(template.input_types)
        raise ApiError(
            switches.unsupported_media,
            f"Media type {media.media_type} is not allowed by {template.name}, only {types}",
        )
    return media


def _parse_text(data: str, switches: Switches, location: list[str | int]) -> Media:
    if not data.startswith("data:") or switches.text_data_uri == "literal":
        media = Media("text/plain", data.encode())
    elif switches.text_data_uri == "reject":
        raise _invalid_input_error(location, "Input should be the bare text, not a data URI", data)
    else:
        media = _parse_data_uri(data, switches, location)
    if media.media_type == "text/plain" and not media.content.strip():
        raise _invalid_input_error(location, "Input should have at least 1 character", data)
    return media


def _parse_data_uri(data: str, switches: Switches, location: list[str | int]) -> Media:
    head, comma, payload = data.removeprefix("data:").partition(",")
    if comma and not head.endswith(";base64") and payload.startswith("base64;"):
        # The vendor's misprint, with comma and semicolon swapped (vendor_notes.md, G-10).
        if switches.swapped_data_uri == "reject":
            raise _invalid_input_error(
                location, "Data URI has comma and semicolon swapped; write ;base64,", data
            )
        head, payload = f"{head};base64", payload.removeprefix("base64;")
    if not comma or not head.endswith(";base64"):
        raise _invalid_input_error(
            location, "Data URI should have the form data:<media type>;base64,<data>", data
        )
    media_type = head.split(";")[0].strip().lower()
    return Media(ALIASES.get(media_type, media_type), _decode_base64(payload, location))


def _parse_bare_base64(data: str, location: list[str | int]) -> Media:
    content = _decode_base64(data, location)
    media_type = next(
        (name for magic, name in MAGIC_TO_MEDIA_TYPE.items() if content.startswith(magic)),
        "application/octet-stream",
    )
    return Media(media_type, content)


def _decode_base64(payload: str, location: list[str | int]) -> bytes:
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _invalid_input_error(location, f"Base64 cannot be decoded: {error}", payload) from error


def _invalid_input_error(location: list[str | int], message: str, data: str) -> ApiError:
    excerpt = data if len(data) <= MAX_ECHOED_CHARACTERS else f"{data[:MAX_ECHOED_CHARACTERS]}..."
    return ApiError(422, [validation_error(location, message, "value_error", excerpt)])
