"""A flow graph as Mermaid text, for README files, wikis and notebooks, which lay it out themselves."""

from __future__ import annotations

from airflow_provider_flows.core.graph import FlowGraph, NodeKind
from airflow_provider_flows.drawing.svg import clean, kind_label, node_label

MAX_LABEL_CHARACTERS = 120
_PLAIN = frozenset(" .,:!?'()+-/=_")
_SHAPES = {
    NodeKind.VARIABLE: ("[/", "/]"),
    NodeKind.ACTION: ("(", ")"),
    NodeKind.IMAGE: ("[[", "]]"),
    NodeKind.OUTPUT: ("([", "])"),
    NodeKind.OTHER: ("{{", "}}"),
}


def to_mermaid(graph: FlowGraph) -> str:
    """Return a flow graph as a Mermaid flowchart from left to right, a line for each node and each edge.

    Nodes get new ids (`n0`, `n1`, ...), because the export's could be reserved words of Mermaid.
    Characters with a meaning to Mermaid are written as character codes.
    Mermaid draws up to 500 edges and 50,000 characters unless a page raises `maxEdges` and `maxTextSize`.
    """
    ids = {node.node_id: f"n{at}" for at, node in enumerate(graph.nodes)}
    lines = ["flowchart LR"]
    for node in graph.nodes:
        opening, closing = _SHAPES[node.kind]
        label = _escape(f"{kind_label(node)}: {clean(node_label(node), MAX_LABEL_CHARACTERS)}")
        lines.append(f'    {ids[node.node_id]}{opening}"{label}"{closing}')
    lines += [f"    {ids[edge.source]} --> {ids[edge.target]}" for edge in graph.edges]
    return "\n".join(lines) + "\n"


def _escape(label: str) -> str:
    """Return a label with all but letters, digits and plain punctuation as `#code;` (entity codes)."""
    return "".join(
        char if char.isalnum() or char in _PLAIN else "#quot;" if char == '"' else f"#{ord(char)};"
        for char in label
    )
