"""PromptChainer's flow graphs: reading one, telling what it needs, and evaluating it.

What a model would say or draw is handed in; nothing here knows HTTP.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from importlib import resources
from typing import Any

# What a model makes of a node and its filled-in prompt; None: it failed.
Model = Callable[["Node", str], str | None]
PLACEHOLDER = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True)
class Node:
    """One node of a graph."""

    node_id: str
    kind: str
    name: str
    prompt: str = ""
    model: str = ""


@dataclass(frozen=True)
class Output:
    """What one output node got: a value for each node wired to it, in the order of the wires."""

    name: str
    values: dict[str, str | None]


@dataclass(frozen=True)
class FlowGraph:
    """A flow, as PromptChainer's editor exports it."""

    source: dict[str, Any] = field(repr=False)
    nodes: dict[str, Node]
    edges: tuple[tuple[str, str], ...]
    order: tuple[str, ...]

    @classmethod
    def parse(cls, source: dict[str, Any]) -> FlowGraph:
        """Read an exported graph; ValueError says what is wrong with it."""
        try:
            nodes = {item["id"]: _parse_node(item) for item in source["nodes"]}
            edges = tuple((edge["source"], edge["target"]) for edge in source["edges"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"Not a flow graph; this is missing or of the wrong type: {error}") from error
        loose = {end for wire in edges for end in wire if end not in nodes}
        if loose:
            raise ValueError(f"The graph has wires to nodes that are not there: {', '.join(sorted(loose))}")
        sorter = TopologicalSorter({node: [start for start, end in edges if end == node] for node in nodes})
        try:
            order = tuple(sorter.static_order())
        except CycleError as error:
            raise ValueError(f"The graph runs in a circle: {' -> '.join(error.args[1])}") from error
        return cls(source, nodes, edges, order)

    @property
    def variables(self) -> list[str]:
        """The labels of the variables, in node order."""
        return [node.name for node in self.nodes.values() if node.kind == "variableNode"]

    @property
    def outputs(self) -> list[str]:
        """The names of the outputs, in node order."""
        return [node.name for node in self.nodes.values() if node.kind == "outputNode"]

    def evaluate(self, variables: Mapping[str, str], model: Model) -> list[Output]:
        """Run the graph; every model is asked once, after all that its prompt is filled with."""
        values: dict[str, str | None] = {}
        for node_id in self.order:
            node = self.nodes[node_id]
            if node.kind == "variableNode":
                values[node_id] = variables.get(node.name, "")
            elif node.kind in {"actionNode", "imageNode"}:
                values[node_id] = model(node, self._fill_prompt(node, values))
            else:
                # Conditions and code cannot be run here: they are passed over with nothing to say.
                values[node_id] = ""
        return [
            Output(node.name, {start: values[start] for start in self._get_sources(node.node_id)})
            for node in self.nodes.values()
            if node.kind == "outputNode"
        ]

    def _get_sources(self, node_id: str) -> list[str]:
        return [start for start, end in self.edges if end == node_id]

    def _fill_prompt(self, node: Node, values: Mapping[str, str | None]) -> str:
        """Return the prompt with what is wired to the node in its places; the rest stays as it stands."""
        known = {self.nodes[start].name: values[start] or "" for start in self._get_sources(node.node_id)}
        return PLACEHOLDER.sub(lambda found: known.get(found[1], found[0]), node.prompt)


def sample_graphs() -> dict[str, FlowGraph]:
    """Return the flows that come with the emulator, by id."""
    folder = resources.files("airflow_provider_flows.emulator") / "graphs"
    return {
        item.name.removesuffix(".json"): FlowGraph.parse(json.loads(item.read_text(encoding="utf-8")))
        for item in folder.iterdir()
        if item.name.endswith(".json")
    }


def _parse_node(item: dict[str, Any]) -> Node:
    data = item["data"]
    name = data["variable"]["label"] if item["type"] == "variableNode" else data.get("name", "")
    if item["type"] == "outputNode" and not name:
        raise KeyError("the name of an output node")
    parameters = data.get("modelParams") or {}
    return Node(item["id"], item["type"], name, data.get("prompt", ""), parameters.get("model", ""))
