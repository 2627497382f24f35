"""The model of a flow's definition: its documented inputs, parameters and outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.safe_text import set_lines, to_line

if TYPE_CHECKING:
    from airflow_provider_flows.core.graph import FlowGraph


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter or variable of a flow; undocumented properties are None or empty.

    :param types: allowed JSON Schema types: string, integer, number, boolean, array, object, null.
    :param default: the value that the service uses if the parameter is missing.
    :param values: the allowed values.
    :param minimum: lower bound of a number, inclusive.
    :param maximum: upper bound of a number, inclusive.
    :param required: whether the service has no default.
    """

    name: str
    types: tuple[str, ...] = ()
    default: Any = None
    description: str | None = None
    values: tuple[Any, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    required: bool = False

    @property
    def type(self) -> str | None:
        """The types, joined for display, or None."""
        return " or ".join(self.types) or None


@dataclass(frozen=True, slots=True)
class FlowDefinition:
    """The definition of a flow; undocumented properties are None or empty.

    :param flow: the id, or the name if there is no id.
    :param service: the service's name.
    :param inputs: media types (Generio), or names of variables (PromptChainer).
    :param has_variables: whether `inputs` are names of variables, all of which are required and texts.
    :param variables: by name, if more than the name is documented: types, lists among them, defaults, bounds,
        and whether a variable is required. `inputs` has their names then.
    :param parameters: by name.
    :param outputs: media types, or names.
    :param min_inputs: minimum number of inputs of a run. Neither Generio nor PromptChainer documents one; a
        third service may set it.
    :param max_inputs: maximum number of inputs of a run, as for `min_inputs`.
    :param is_complete: whether all parameters and variables are documented; otherwise unknown names are
        accepted.
    :param raw: the service's response.
    """

    flow: str
    service: str
    name: str | None = None
    description: str | None = None
    inputs: tuple[str, ...] = ()
    has_variables: bool = False
    variables: Mapping[str, Parameter] = field(default_factory=dict)
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    min_inputs: int | None = None
    max_inputs: int | None = None
    is_complete: bool = False
    raw: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Make the id and the names that are logged and displayed lines."""
        set_lines(self, "flow", "name")
        object.__setattr__(self, "outputs", tuple(map(to_line, self.outputs)))
        if self.variables:
            object.__setattr__(self, "has_variables", True)
            object.__setattr__(self, "inputs", tuple(self.variables))

    @classmethod
    def from_graph(cls, flow: str, service: str, graph: FlowGraph, raw: Any = None) -> FlowDefinition:
        """Return the definition in an exported flow graph (vendor_notes.md, 2.4)."""
        return cls(
            flow,
            service,
            inputs=graph.variables,
            has_variables=True,
            outputs=graph.outputs,
            is_complete=True,
            raw=raw,
        )

    @property
    def display_name(self) -> str:
        """The name, or the id if there is no name."""
        return self.name or self.flow


def find_definition(flow: str, definitions: Iterable[FlowDefinition]) -> FlowDefinition | None:
    """Return the definition of the flow with this id or name (vendor_notes.md, G-26), or None.

    The field that a start refers to is not documented. Therefore a definition also matches if any string
    field of its raw form equals `flow`; ids and names take precedence.

    :raises FlowInputError: several flows have this name. Which of them the service would run is not
        documented.
    """
    definitions = list(definitions)
    predicates = (
        lambda one: one.flow == flow,
        lambda one: one.name == flow,
        lambda one: flow in _get_texts(one.raw),
    )
    for matches in predicates:
        found = {one.flow: one for one in reversed(definitions) if matches(one)}  # the first of each id
        if len(found) > 1:
            ids = " or ".join(map(repr, reversed(found)))
            count = f"{definitions[0].service} has {len(found)} flows named {flow!r}"
            message = f"{count}; set flow to one of their ids: {ids}"
            raise FlowInputError(message)
        if found:
            return next(iter(found.values()))
    return None


def _get_texts(raw: Any) -> list[str]:
    return [value for value in raw.values() if isinstance(value, str)] if isinstance(raw, Mapping) else []
