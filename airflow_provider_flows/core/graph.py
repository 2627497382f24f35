"""A PromptChainer flow graph, as its editor exports it: nodes, edges, and what the flow takes and gives (vendor-api 2.4).

It neither draws a graph (drawing/ does) nor asks anybody for one (services/promptchainer.py does).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from airflow_provider_flows.core.exceptions import FlowInputError

MAX_NODES = 1_000  # a flow somebody drew by hand has a few dozen
MAX_EDGES = 10_000
MAX_NODE_NAME_LENGTH = 1_000  # characters; a longer one is refused, for half a name is another name
MAX_PROMPT_LENGTH = 100_000  # characters; what follows is left out
MAX_COORDINATE = 1e6  # pixels; nobody scrolls a canvas beyond, and no sum of such numbers is infinite


class NodeKind(StrEnum):
    """What a node does in its flow; a word that nobody knows (code, a condition) is OTHER."""

    VARIABLE = "variable"
    ACTION = "action"
    IMAGE = "image"
    OUTPUT = "output"
    OTHER = "other"

    @classmethod
    def parse(cls, value: str) -> NodeKind:
        """Read the editor's word, such as `variableNode`."""
        return _KINDS_BY_TYPE.get(value, cls.OTHER)


_KINDS_BY_TYPE = {f"{kind}Node": kind for kind in NodeKind if kind is not NodeKind.OTHER}


@dataclass(frozen=True, slots=True)
class Node:
    """One node; `type_word` is the editor's own word for its kind, `model` the one its prompt is sent to.

    Where it stands and its size are in the editor's pixels, None where the export does not tell. What it gave when it last ran
    (`output`) and a variable's test value are not kept: the one holds signed links, the other whatever its author pasted.
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
    """One connection: the id of the node whose result goes out, and of the node that takes it."""

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class FlowGraph:
    """A flow's nodes and edges in the export's order; it may have circles and parts that hang together with nothing."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...] = ()

    @classmethod
    def parse(cls, value: Any) -> FlowGraph:
        """Read what JSON gave: `{"nodes": [...], "edges": [...]}` (vendor-api 2.4, the page's sample).

        Types, places, sizes and data of nodes may be odd or missing. An edge whose node is not there is left out, as the
        editor's own library (React Flow) leaves it out; one that is there twice (two handles) is kept once.

        :raises FlowInputError: it is no flow graph, or larger than any; says where.
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
        """The labels of the variable nodes, each once, in node order: what a run must be given."""
        return tuple(
            dict.fromkeys(node.name for node in self.nodes if node.kind is NodeKind.VARIABLE and node.name)
        )

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the output nodes in node order: what a run gives, one answer for each node."""
        return tuple(node.name for node in self.nodes if node.kind is NodeKind.OUTPUT and node.name)


def _get_items(value: Any, name: str, max_items: int) -> Sequence[Any]:
    if not isinstance(value, Mapping):
        raise _graph_error("it is no JSON object")
    rows = value.get(name)
    if not isinstance(rows, list | tuple):
        raise _graph_error(f"it has no list of {name}")
    if len(rows) > max_items:
        raise _graph_error(f"it has {len(rows):,} {name}; {max_items:,} is the most")
    return rows


def _parse_node(item: Any, where: str) -> Node:
    if not isinstance(item, Mapping):
        raise _graph_error(f"{where} is no JSON object")
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
        raise _graph_error(f"{where} is no JSON object")
    return Edge(_parse_id(item, "source", where), _parse_id(item, "target", where))


def _parse_id(item: Mapping[str, Any], key: str, where: str) -> str:
    text = _parse_short_text(item.get(key), f"the {key} of {where}")
    if not text:
        raise _graph_error(f"{where} has no {key}")
    return text


def _parse_short_text(value: Any, where: str) -> str:
    """Give a short text or a whole number as text, anything else as an empty one."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18:
        return str(value)
    if not isinstance(value, str):
        return ""
    if len(value) > MAX_NODE_NAME_LENGTH:
        raise _graph_error(f"{where} is {len(value):,} characters long; {MAX_NODE_NAME_LENGTH:,} is the most")
    return value


def _to_mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _parse_coordinate(value: Any) -> float | None:
    """Give a place or a size in pixels, None where it is none that could be drawn."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and abs(number) <= MAX_COORDINATE else None


def _graph_error(reason: str) -> FlowInputError:
    return FlowInputError(
        f"This is no flow graph that can be read: {reason}. Export it again from PromptChainer's editor."
    )
