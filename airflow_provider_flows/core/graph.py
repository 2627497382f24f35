"""The model and the parser of a PromptChainer flow graph, as its editor exports it (vendor_notes.md, 2.4)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import count
from typing import Any

from airflow_provider_flows.core.exceptions import FlowInputError

MAX_NODES = 1_000  # a flow drawn in the editor has a few dozen
MAX_EDGES = 10_000
MAX_NODE_NAME_LENGTH = 1_000  # characters; a longer name of a variable or an output is rejected
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
    """A flow's nodes and edges in the order of the export; it may have cycles and isolated parts.

    :param warnings: what is wrong with the export, and affects the picture only.
    """

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...] = ()
    warnings: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def parse(cls, value: Any) -> FlowGraph:
        """Parse `{"nodes": [...], "edges": [...]}` (vendor_notes.md, 2.4).

        Only the variables and the outputs define a run; the rest is for the picture, and never rejects a
        graph. Invalid or missing types, positions, sizes and data of nodes are ignored. A node without an id
        of its own gets one, with a warning. An edge that does not connect two nodes is left out, as in the
        editor's library (React Flow). Of several edges between the same nodes, one remains.

        :param value: a decoded JSON value.
        :raises FlowInputError: the value is not a flow graph or has too many nodes; the message states the
            position.
        """
        warnings: list[str] = []
        nodes = [_parse_node(item, f"nodes[{at}]") for at, item in enumerate(_get_nodes(value))]
        nodes = list(_make_ids_unique(nodes, warnings))
        return cls(tuple(nodes), tuple(dict.fromkeys(_parse_edges(value, nodes, warnings))), tuple(warnings))

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


def _get_nodes(value: Any) -> Sequence[Any]:
    if not isinstance(value, Mapping):
        raise _graph_error("it is not a JSON object")
    rows = value.get("nodes")
    if not isinstance(rows, list | tuple):
        raise _graph_error("it has no list of nodes")
    if len(rows) > MAX_NODES:
        raise _graph_error(f"it has {len(rows):,} nodes; the maximum is {MAX_NODES:,}")
    return rows


def _make_ids_unique(nodes: Sequence[Node], warnings: list[str]) -> Iterator[Node]:
    """Yield the nodes, each with an id of its own. The first node with an id keeps it, and has its edges."""
    taken = {node.node_id for node in nodes}
    index_by_id: dict[str, int] = {}
    for at, node in enumerate(nodes):
        first = index_by_id.setdefault(node.node_id, at)
        if first == at and node.node_id:
            yield node
            continue
        problem = f"has the same id as nodes[{first}]" if node.node_id else "has no id"
        warnings.append(f"nodes[{at}] {problem}, so the picture shows it without edges")
        new_id = next(name for n in count(at) if (name := f"{node.node_id}#{n}") not in taken)
        taken.add(new_id)
        yield replace(node, node_id=new_id)


def _parse_edges(value: Mapping[str, Any], nodes: Sequence[Node], warnings: list[str]) -> Iterator[Edge]:
    """Yield the edges that connect two nodes."""
    rows = value.get("edges")
    if not isinstance(rows, list | tuple):
        warnings.append("it has no list of edges, so the picture has none")
        return
    if len(rows) > MAX_EDGES:
        warnings.append(f"it has {len(rows):,} edges, of which the picture has {MAX_EDGES:,}")
    ids = {node.node_id for node in nodes}
    for row in rows[:MAX_EDGES]:
        source, target = (_to_short_text(_to_mapping(row).get(key)) for key in ("source", "target"))
        if source in ids and target in ids:
            yield Edge(source, target)


def _parse_node(item: Any, where: str) -> Node:
    if not isinstance(item, Mapping):
        raise _graph_error(f"{where} is not a JSON object")
    raw_type = _to_short_text(item.get("type"))
    data = _to_mapping(item.get("data"))
    kind = NodeKind.parse(raw_type)
    name = _to_mapping(data.get("variable")).get("label") if kind is NodeKind.VARIABLE else data.get("name")
    if kind in {NodeKind.VARIABLE, NodeKind.OUTPUT}:
        _expect_short_name(name, where)
    prompt = data.get("prompt")
    position = _to_mapping(item.get("positionAbsolute")) or _to_mapping(item.get("position"))
    return Node(
        node_id=_to_short_text(item.get("id")),
        kind=kind,
        raw_type=raw_type,
        name=_to_short_text(name),
        prompt=prompt[:MAX_PROMPT_LENGTH] if isinstance(prompt, str) else "",
        model=_to_short_text(_to_mapping(data.get("modelParams")).get("model")),
        x=_parse_coordinate(position.get("x")),
        y=_parse_coordinate(position.get("y")),
        width=_parse_coordinate(item.get("width")),
        height=_parse_coordinate(item.get("height")),
    )


def _expect_short_name(name: Any, where: str) -> None:
    """Raise an error for a variable's or an output's name that is too long; a cut name is another name."""
    if isinstance(name, str) and len(name) > MAX_NODE_NAME_LENGTH:
        raise _graph_error(
            f"the name of {where} has {len(name):,} characters; the maximum is {MAX_NODE_NAME_LENGTH:,}"
        )


def _to_short_text(value: Any) -> str:
    """Return the start of a string, or an integer as a string; an empty string for any other value."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18:
        return str(value)
    return value[:MAX_NODE_NAME_LENGTH] if isinstance(value, str) else ""


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
