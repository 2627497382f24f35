"""A flow's definition: what it takes and gives, as far as its service tells.

It neither fetches one (flow/services do) nor checks anything against it (checking.py does).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_flows.core.graph import FlowGraph


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a flow; what the service does not tell is None or empty.

    :param types: JSON schema's words, one of which its value is: string, integer, number, boolean, array, object, null.
    :param values: those that are allowed.
    :param minimum: the least that a number may be, and `maximum` the most.
    :param required: whether a run needs it; else the service has a default.
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
        """Its types in one word or several."""
        return " or ".join(self.types) or None


@dataclass(frozen=True, slots=True)
class FlowDefinition:
    """What can be run; what the service does not tell is None or empty.

    :param flow: the id, or the name where there is no id.
    :param inputs: media types (Generio), or names of variables (PromptChainer).
    :param variables: whether `inputs` are variables, each of which must be given.
    :param parameters: by name.
    :param outputs: media types, or names.
    :param least_inputs: how many inputs a run needs, and `most_inputs` how many it takes at the most.
    :param whole: whether all names of parameters and variables were told; else there may be others.
    :param raw: what the service answered, kept for whoever needs more.
    """

    flow: str
    service: str
    name: str | None = None
    description: str | None = None
    inputs: tuple[str, ...] = ()
    has_variables: bool = False
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    min_inputs: int | None = None
    max_inputs: int | None = None
    is_complete: bool = False
    raw: Any = field(default=None, repr=False)

    @classmethod
    def from_graph(cls, flow: str, service: str, graph: FlowGraph, raw: Any = None) -> FlowDefinition:
        """Make the definition that an exported flow graph holds (vendor-api 2.4)."""
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
        """What a person calls it."""
        return self.name or self.flow


def find_definition(flow: str, definitions: Iterable[FlowDefinition]) -> FlowDefinition | None:
    """Give the definition of the flow with this id or name (vendor-api G-26), None if there is none.

    Which field holds the word that a start takes is not documented, so any short text of a row that says just this will do.
    """
    definitions = list(definitions)
    ways = (
        lambda one: one.flow == flow,
        lambda one: one.name == flow,
        lambda one: flow in _get_texts(one.raw),
    )
    return next((one for way in ways for one in definitions if way(one)), None)


def _get_texts(raw: Any) -> list[str]:
    return [value for value in raw.values() if isinstance(value, str)] if isinstance(raw, Mapping) else []
