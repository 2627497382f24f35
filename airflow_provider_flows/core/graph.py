"""The model and the parser of a PromptChainer flow graph, as its editor exports it (vendor_notes.md, 2.4)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from airflow_provider_flows.core.exceptions import FlowInputError

MAX_NODES = 1_000  # a flow drawn in the editor has a few dozen
MAX_EDGES = 10_000
MAX_NODE_NAME_LENGTH = 1_000  # characters; a longer name is rejected, because a cut name is another name
MAX_PROMPT_LENGTH = 100_000  # characters; the rest is cut
MAX_COORDINATE = 1e6  # pixels; larger than any canvas, and sums of such numbers are finite


class NodeKind(StrEnum):
    """Kind of a node; all kinds without a meaning for this provider (code, a condition) are OTHER."""

    VARIABLE = "variable"
    ACTION = "action"
    IMAGE = "image"
    OUTPUT = "output"
    OTHER = "other"

    @classmethod
    def parse(cls, value: str) -> NodeKind:
        """Parse the editor's type of a node, such as `variableNode`."""
        return _KINDS_BY_TYPE.get(value, cls.OTHER)


_KINDS_BY_TYPE = {f"{kind}Node": kind for kind in NodeKind if kind is not NodeKind.OTHER}


@dataclass(frozen=True, slots=True)
class Node:
    """One node.

    The output of a node's last run and the test value of a variable are not stored: an output contains signed
    URLs, and a test value may contain private data.

    :param raw_type: the editor's own type, such as `variableNode`.
    :param name: the node's name, or the label of a variable.
    :param model: the model that the prompt is sent to.
    :param x: horizontal position in the editor's pixels, None if the export has none; so are y, width and
        height.
    """

    node_id: str
    kind: NodeKind
    raw_type: str
    name: str
    prompt: str = field(default="", repr=False)
    model: str = ""
    x: float | None = None
    y: float | None = None
    width: float | None = None
    height: float | None = None


@dataclass(frozen=True, slots=True)
class Edge:
    """One connection between nodes.

    :param source: id of the node whose output is passed on.
    :param target: id of the node that receives it.
    """

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class FlowGraph:
    """A flow's nodes and edges in the order of the export; it may have cycles and isolated parts."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...] = ()

    @classmethod
    def parse(cls, value: Any) -> FlowGraph:
        """Parse `{"nodes": [...], "edges": [...]}` (vendor_notes.md, 2.4).

        Invalid or missing types, positions, sizes and data of nodes are ignored. An edge with a missing node
        is left out, as in the editor's library (React Flow). Of several edges between the same nodes, one
        remains.

        :param value: a decoded JSON value.
        :raises FlowInputError: the value is not a flow graph or is too large; the message states the
            position.
        """
        nodes = tuple(
            _parse_node(item, f"nodes[{at}]") for at, item in enumerate(_get_items(value, "nodes", MAX_NODES))
        )
        edges = tuple(
            _parse_edge(item, f"edges[{at}]") for at, item in enumerate(_get_items(value, "edges", MAX_EDGES))
        )
        index_by_id: dict[str, int] = {}
        for at, node in enumerate(nodes):
            if (first := index_by_id.setdefault(node.node_id, at)) != at:
                raise _graph_error(f"nodes[{at}] has the same id as nodes[{first}]")
        return cls(
            nodes,
            tuple(
                dict.fromkeys(
                    edge for edge in edges if edge.source in index_by_id and edge.target in index_by_id
                )
            ),
        )

    @property
    def variables(self) -> tuple[str, ...]:
        """Unique labels of the variable nodes, in node order: the inputs of a run."""
        return tuple(
            dict.fromkeys(node.name for node in self.nodes if node.kind is NodeKind.VARIABLE and node.name)
        )

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the output nodes, in node order: a run has one output for each of them."""
        return tuple(node.name for node in self.nodes if node.kind is NodeKind.OUTPUT and node.name)


def _get_items(value: Any, name: str, max_items: int) -> Sequence[Any]:
    if not isinstance(value, Mapping):
        raise _graph_error("it is not a JSON object")
    rows = value.get(name)
    if not isinstance(rows, list | tuple):
        raise _graph_error(f"it has no list of {name}")
    if len(rows) > max_items:
        raise _graph_error(f"it has {len(rows):,} {name}; the maximum is {max_items:,}")
    return rows


def _parse_node(item: Any, where: str) -> Node:
    if not isinstance(item, Mapping):
        raise _graph_error(f"{where} is not a JSON object")
    raw_type = _parse_short_text(item.get("type"), f"the type of {where}")
    data = _to_mapping(item.get("data"))
    kind = NodeKind.parse(raw_type)
    name = _to_mapping(data.get("variable")).get("label") if kind is NodeKind.VARIABLE else data.get("name")
    prompt = data.get("prompt")
    position = _to_mapping(item.get("positionAbsolute")) or _to_mapping(item.get("position"))
    return Node(
        node_id=_parse_id(item, "id", where),
        kind=kind,
        raw_type=raw_type,
        name=_parse_short_text(name, f"the name of {where}"),
        prompt=prompt[:MAX_PROMPT_LENGTH] if isinstance(prompt, str) else "",
        model=_parse_short_text(_to_mapping(data.get("modelParams")).get("model"), f"the model of {where}"),
        x=_parse_coordinate(position.get("x")),
        y=_parse_coordinate(position.get("y")),
        width=_parse_coordinate(item.get("width")),
        height=_parse_coordinate(item.get("height")),
    )


def _parse_edge(item: Any, where: str) -> Edge:
    if not isinstance(item, Mapping):
        raise _graph_error(f"{where} is not a JSON object")
    return Edge(_parse_id(item, "source", where), _parse_id(item, "target", where))


def _parse_id(item: Mapping[str, Any], key: str, where: str) -> str:
    text = _parse_short_text(item.get(key), f"the {key} of {where}")
    if not text:
        raise _graph_error(f"{where} has no {key}")
    return text


def _parse_short_text(value: Any, where: str) -> str:
    """Return a short string, or an integer as a string; an empty string for any other value."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18:
        return str(value)
    if not isinstance(value, str):
        return ""
    if len(value) > MAX_NODE_NAME_LENGTH:
        raise _graph_error(f"{where} has {len(value):,} characters; the maximum is {MAX_NODE_NAME_LENGTH:,}")
    return value


def _to_mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _parse_coordinate(value: Any) -> float | None:
    """Return a position or size in pixels, or None if it cannot be drawn."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and abs(number) <= MAX_COORDINATE else None


def _graph_error(reason: str) -> FlowInputError:
    return FlowInputError(
        f"The flow graph cannot be read: {reason}. Export it again from PromptChainer's editor."
    )
