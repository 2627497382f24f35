"""Generio's three templates, with the validation of their parameters (vendor_notes.md, 1.6)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from airflow_provider_flows.emulator.switches import Switches

GLB = "model/gltf-binary"
IMAGES = ("image/png", "image/jpeg", "image/tiff", "image/webp")
SHORT_NAMES = {GLB: "glb", "text/plain": "text", "prompt": "prompt"}
TYPES: dict[str, type] = {"string": str, "integer": int, "boolean": bool}


def validation_error(location: list[str | int], message: str, kind: str, value: object) -> dict[str, Any]:
    """Return one entry of the ``detail`` list that FastAPI sends with status 422.

    :param location: path of the value in the request, such as ``["body", "parameters", "seed"]``.
    :param kind: pydantic's error type, such as ``"missing"``.
    """
    return {"type": kind, "loc": location, "msg": message, "input": value}


@dataclass(frozen=True)
class TemplateParameter:
    """One parameter of a template."""

    name: str
    type: str
    default: str | int | bool
    description: str
    values: tuple[str, ...] = ()
    minimum: int | None = None

    def validation_error(self, value: object) -> dict[str, Any] | None:
        """Return the validation error of a value, or None if it is valid."""
        location: list[str | int] = ["body", "parameters", self.name]
        # The exact type is compared, because True is an int in Python but not for the service.
        if type(value) is not TYPES[self.type]:
            return validation_error(
                location, f"Input should be a valid {self.type}", f"{self.type}_type", value
            )
        if self.values and value not in self.values:
            choices = " or ".join(f"'{choice}'" for choice in self.values)
            return validation_error(location, f"Input should be {choices}", "literal_error", value)
        if self.minimum is not None and isinstance(value, int) and value < self.minimum:
            message = f"Input should be greater than or equal to {self.minimum}"
            return validation_error(location, message, "greater_than_equal", value)
        return None

    def to_json(self) -> dict[str, Any]:
        """Return the parameter as GET /templates sends it."""
        body = {
            "name": self.name,
            "type": self.type,
            "default": self.default,
            "description": self.description,
        }
        return body | ({"values": list(self.values)} if self.values else {})

    def to_json_schema(self) -> dict[str, Any]:
        """Return the parameter as a JSON schema."""
        schema = {"type": self.type, "default": self.default, "title": self.description}
        allowed = {"enum": list(self.values)} if self.values else {}
        return schema | allowed | ({"minimum": self.minimum} if self.minimum is not None else {})


@dataclass(frozen=True)
class Template:
    """One template."""

    name: str
    description: str
    category: str
    input_types: tuple[str, ...]
    parameters: tuple[TemplateParameter, ...]

    @property
    def template_id(self) -> str:
        """An id in the form of a MongoDB ObjectId, derived from the name."""
        return hashlib.sha256(self.name.encode()).hexdigest()[:24]

    @property
    def has_text_inputs(self) -> bool:
        """Whether its inputs are prompts."""
        return "text/plain" in self.input_types

    def defaults(self) -> dict[str, Any]:
        """Return the default value of each parameter."""
        return {parameter.name: parameter.default for parameter in self.parameters}

    def validation_errors(self, values: object, *, reject_unknown: bool) -> list[dict[str, Any]]:
        """Return the validation errors of the parameters in a request.

        :param reject_unknown: whether a parameter that the template does not have is an error.
        """
        if not isinstance(values, dict):
            return [
                validation_error(
                    ["body", "parameters"], "Input should be a valid dictionary", "dict_type", values
                )
            ]
        known = {parameter.name: parameter for parameter in self.parameters}
        errors = [known[name].validation_error(value) for name, value in values.items() if name in known]
        if reject_unknown:
            message = "Extra inputs are not permitted"
            errors += [
                validation_error(["body", "parameters", name], message, "extra_forbidden", values[name])
                for name in values
                if name not in known
            ]
        return [item for item in errors if item is not None]

    def to_json(self, switches: Switches) -> dict[str, Any]:
        """Return the template as GET /templates sends it, in the form of the switches."""
        body = self._common_fields() | {"parameters": self._parameters(switches.template_parameters)}
        body |= dict.fromkeys(("inputs", "input_types"), self._inputs(switches.template_inputs))
        return {name: value for name, value in body.items() if value is not None}

    def _parameters(self, style: str) -> Any:
        if style == "list":
            return [parameter.to_json() for parameter in self.parameters]
        if style == "mapping":
            return {parameter.name: parameter.to_json() for parameter in self.parameters}
        if style == "schema":
            return {
                "type": "object",
                "properties": {parameter.name: parameter.to_json_schema() for parameter in self.parameters},
            }
        return [parameter.name for parameter in self.parameters] if style == "names" else None

    def _inputs(self, style: str) -> Any:
        # The vendor's README lists "prompt" next to text/plain (vendor_notes.md, G-13).
        kinds = [*self.input_types, *(["prompt"] if self.has_text_inputs else [])]
        if style == "objects":
            return [{"type": kind} for kind in kinds]
        if style == "words":
            return [SHORT_NAMES.get(kind, kind.partition("/")[2]) for kind in kinds]
        return kinds if style == "strings" else None

    def _common_fields(self) -> dict[str, Any]:
        return {
            "template_id": self.template_id,
            "id": self.template_id,
            "name": self.name,
            "description": self.description,
            "category": self.category,
            "outputs": [GLB],
            "output_types": [GLB],
        }


GENERATION_PARAMETERS = (
    TemplateParameter("quality", "string", "high", "Resolution of the mesh", values=("low", "high")),
    TemplateParameter(
        "seed", "integer", -1, "The same seed gives the same model; -1 lets the service choose", minimum=-1
    ),
    TemplateParameter("texture", "boolean", default=True, description="Whether the model has a PBR texture"),
)
TEMPLATES = (
    Template(
        "model_generate_fromprompt",
        "A 3D model from a prompt",
        "Assets → 3D Model",
        ("text/plain",),
        GENERATION_PARAMETERS,
    ),
    Template(
        "model_generate_fromimage",
        "A 3D model from an image or a sketch",
        "Assets → 3D Model",
        IMAGES,
        GENERATION_PARAMETERS,
    ),
    Template(
        "model_optimize",
        "The same 3D model with fewer polygons",
        "3D Model → Enhanced 3D Model",
        (GLB,),
        (
            TemplateParameter(
                "polygon_count", "integer", 100_000, "The most polygons that the model may have", minimum=1
            ),
        ),
    ),
)


def find_template(reference: str) -> Template | None:
    """Return the template with this name or id, or None."""
    return next((item for item in TEMPLATES if reference in {item.name, item.template_id}), None)
