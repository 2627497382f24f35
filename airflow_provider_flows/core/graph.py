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

MOST_NODES = 1_000  # a flow somebody drew by hand has a few dozen
MOST_EDGES = 10_000
LONGEST_NAME = 1_000  # characters; a longer one is refused, for half a name is another name
LONGEST_PROMPT = 100_000  # characters; what follows is left out
FARTHEST = 1e6  # pixels; nobody scrolls a canvas beyond, and no sum of such numbers is infinite


class NodeKind(StrEnum):
    """What a node does in its flow; a word that nobody knows (code, a condition) is OTHER."""

    VARIABLE = "variable"
    ACTION = "action"
    IMAGE = "image"
    OUTPUT = "output"
    OTHER = "other"

    @classmethod
    def of(cls, word: str) -> NodeKind:
        """Read the editor's word, such as `variableNode`."""
        return _BY_WORD.get(word, cls.OTHER)


_BY_WORD = {f"{kind}Node": kind for kind in NodeKind if kind is not NodeKind.OTHER}


@dataclass(frozen=True, slots=True)
class Node:
    """One node; `type_word` is the editor's own word for its kind, `model` the one its prompt is sent to.

    Where it stands and its size are in the editor's pixels, None where the export does not tell. What it gave when it last ran
    (`output`) and a variable's test value are not kept: the one holds signed links, the other whatever its author pasted.
    """

    node_id: str
    kind: NodeKind
    type_word: str
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
    def read(cls, value: Any) -> FlowGraph:
        """Read what JSON gave: `{"nodes": [...], "edges": [...]}` (vendor-api 2.4, the page's sample).

        Types, places, sizes and data of nodes may be odd or missing. An edge whose node is not there is left out, as the
        editor's own library (React Flow) leaves it out; one that is there twice (two handles) is kept once.

        :raises FlowInputError: it is no flow graph, or larger than any; says where.
        """
        nodes = tuple(
            _node(item, f"nodes[{at}]") for at, item in enumerate(_rows(value, "nodes", MOST_NODES))
        )
        edges = tuple(
            _edge(item, f"edges[{at}]") for at, item in enumerate(_rows(value, "edges", MOST_EDGES))
        )
        seen: dict[str, int] = {}
        for at, node in enumerate(nodes):
            if (first := seen.setdefault(node.node_id, at)) != at:
                raise _refused(f"nodes[{at}] has the same id as nodes[{first}]")
        return cls(
            nodes, tuple(dict.fromkeys(edge for edge in edges if edge.source in seen and edge.target in seen))
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


def _rows(value: Any, name: str, most: int) -> Sequence[Any]:
    if not isinstance(value, Mapping):
        raise _refused("it is no JSON object")
    rows = value.get(name)
    if not isinstance(rows, list | tuple):
        raise _refused(f"it has no list of {name}")
    if len(rows) > most:
        raise _refused(f"it has {len(rows):,} {name}; {most:,} is the most")
    return rows


def _node(item: Any, where: str) -> Node:
    if not isinstance(item, Mapping):
        raise _refused(f"{where} is no JSON object")
    word = _text(item.get("type"), f"the type of {where}")
    data = _mapping(item.get("data"))
    kind = NodeKind.of(word)
    name = _mapping(data.get("variable")).get("label") if kind is NodeKind.VARIABLE else data.get("name")
    prompt = data.get("prompt")
    place = _mapping(item.get("positionAbsolute")) or _mapping(item.get("position"))
    return Node(
        node_id=_id(item, "id", where),
        kind=kind,
        type_word=word,
        name=_text(name, f"the name of {where}"),
        prompt=prompt[:LONGEST_PROMPT] if isinstance(prompt, str) else "",
        model=_text(_mapping(data.get("modelParams")).get("model"), f"the model of {where}"),
        x=_number(place.get("x")),
        y=_number(place.get("y")),
        width=_number(item.get("width")),
        height=_number(item.get("height")),
    )


def _edge(item: Any, where: str) -> Edge:
    if not isinstance(item, Mapping):
        raise _refused(f"{where} is no JSON object")
    return Edge(_id(item, "source", where), _id(item, "target", where))


def _id(item: Mapping[str, Any], key: str, where: str) -> str:
    text = _text(item.get(key), f"the {key} of {where}")
    if not text:
        raise _refused(f"{where} has no {key}")
    return text


def _text(value: Any, where: str) -> str:
    """Give a short text or a whole number as text, anything else as an empty one."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18:
        return str(value)
    if not isinstance(value, str):
        return ""
    if len(value) > LONGEST_NAME:
        raise _refused(f"{where} is {len(value):,} characters long; {LONGEST_NAME:,} is the most")
    return value


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    """Give a place or a size in pixels, None where it is none that could be drawn."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and abs(number) <= FARTHEST else None


def _refused(reason: str) -> FlowInputError:
    return FlowInputError(
        f"This is no flow graph that can be read: {reason}. Export it again from PromptChainer's editor."
    )
