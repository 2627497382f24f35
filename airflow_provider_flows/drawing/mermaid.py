"""Writes a flow graph as Mermaid text, for README files, wikis and notebooks that draw it themselves.

Mermaid lays it out on its own: where the author placed the nodes is not told to it.
"""

from __future__ import annotations

from airflow_provider_flows.core.graph import FlowGraph, NodeKind
from airflow_provider_flows.drawing.style import light
from airflow_provider_flows.drawing.svg import kind_word, shown_name
from airflow_provider_flows.drawing.text import clean

LONGEST_LABEL = 120  # characters
_PLAIN = frozenset(" .,:!?'()+-/=_")
_SHAPES = {
    NodeKind.VARIABLE: ("[/", "/]"),
    NodeKind.ACTION: ("(", ")"),
    NodeKind.IMAGE: ("[[", "]]"),
    NodeKind.OUTPUT: ("([", "])"),
    NodeKind.OTHER: ("{{", "}}"),
}


def to_mermaid(graph: FlowGraph) -> str:
    """Write a flow graph as a Mermaid flowchart from left to right, a line for each node and each edge.

    Nodes get ids of our own (`n0`, `n1`, ...): the export's could be words that Mermaid keeps to itself. Whatever could mean
    something to Mermaid in a label is written as a character code. Mermaid draws up to 500 edges and 50,000 characters unless
    its page allows more (its `maxEdges`, `maxTextSize`).
    """
    ids = {node.node_id: f"n{at}" for at, node in enumerate(graph.nodes)}
    lines = ["flowchart LR"]
    for node in graph.nodes:
        opening, closing = _SHAPES[node.kind]
        label = _escaped(f"{kind_word(node)}: {clean(shown_name(node), LONGEST_LABEL)}")
        lines.append(f'    {ids[node.node_id]}{opening}"{label}"{closing}')
    lines += [f"    {ids[edge.source]} --> {ids[edge.target]}" for edge in graph.edges]
    for kind in NodeKind:
        members = [ids[node.node_id] for node in graph.nodes if node.kind is kind]
        if members:
            colours = f"fill:{light(f'{kind.value}-tint')},stroke:{light(kind.value)},color:{light('ink')}"
            lines += [f"    classDef {kind.value} {colours}", f"    class {','.join(members)} {kind.value}"]
    return "\n".join(lines) + "\n"


def _escaped(label: str) -> str:
    """Write everything but letters, digits and a few signs as `#code;` (Mermaid, flowchart syntax, entity codes)."""
    return "".join(
        char if char.isalnum() or char in _PLAIN else "#quot;" if char == '"' else f"#{ord(char)};"
        for char in label
    )
