"""A flow's definition: which inputs, parameters and outputs it has, and the check of inputs before anybody pays.

It does not fetch definitions (flow/services do) and checks nothing that a service did not tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from airflow_provider_flows.flow.errors import FlowInputError


@dataclass(frozen=True, slots=True)
class FlowDefinition:
    """What can be run: `inputs` are media types (Generio) or variable names (PromptChainer), `outputs` likewise."""

    flow: str
    service: str
    name: str | None = None
    description: str | None = None
    inputs: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    raw: Any = field(default=None, repr=False)

    def check_variables(self, given: Mapping[str, str]) -> None:
        """Check that every variable is given and none that the flow does not have; names are case-sensitive.

        :raises FlowInputError: naming every variable that is missing or unknown, and the nearest match of each.
        """
        missing = [name for name in self.inputs if name not in given]
        unknown = [name for name in given if name not in self.inputs]
        findings = [f"variable {name!r} is missing{_nearest(name, unknown)}" for name in missing]
        findings += [f"variable {name!r} is not known{_nearest(name, self.inputs)}" for name in unknown]
        if findings:
            message = (
                f"The inputs do not fit the {self.service} flow {self.flow}: {'; '.join(findings)}. "
                f"It takes {', '.join(map(repr, self.inputs)) or 'no variables'}. No flow run was made."
            )
            raise FlowInputError(message)


def _nearest(name: str, among: tuple[str, ...] | list[str]) -> str:
    """Word the nearest match to a name, or nothing."""
    by_lower = {other.lower(): other for other in among}
    found = get_close_matches(name.lower(), by_lower, n=1)
    return f" (did you mean {by_lower[found[0]]!r}?)" if found else ""
