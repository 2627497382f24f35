"""Which column of the picture each node stands in, so that all edges but those that close a circle run to the right.

What stands above what within a column, and where in pixels, is layout.py's.
"""

from __future__ import annotations

from collections.abc import Collection
from graphlib import TopologicalSorter

from airflow_provider_flows.core.graph import Edge, FlowGraph, Node

FEW = 5  # columns that a page shows side by side at a size that can be read
USUAL_WIDTH = 260.0  # pixels; what the editor gives a variable (vendor-api 2.4)


def explore(graph: FlowGraph) -> tuple[list[str], frozenset[Edge]]:
    """Follow the edges in depth: give the ids in the order they are met, and the edges that lead back into a circle."""
    onward: dict[str, list[str]] = {node.node_id: [] for node in graph.nodes}
    for edge in graph.edges:
        onward[edge.source].append(edge.target)
    entered = {edge.target for edge in graph.edges}
    met: dict[str, None] = {}
    under_way: set[str] = set()
    back: set[Edge] = set()
    for start in sorted(onward, key=entered.__contains__):
        path = [] if start in met else [(start, iter(onward[start]))]
        met[start] = None
        while path:
            node, rest = path[-1]
            under_way.add(node)
            target = next(rest, None)
            if target is None:
                path.pop()
                under_way.discard(node)
            elif target in under_way:
                back.add(Edge(node, target))
            elif target not in met:
                met[target] = None
                path.append((target, iter(onward[target])))
    return list(met), frozenset(back)


def columns_of(graph: FlowGraph, back: Collection[Edge]) -> tuple[dict[str, int], bool]:
    """Give each node's column by id, from 0 at the left, and whether they are the author's own.

    The author's are taken where the export tells all places, every edge runs to the right in them, and a page has room for
    them; otherwise each node stands one column to the right of the last that it needs.
    """
    forward = [edge for edge in graph.edges if edge not in back]
    layered = _layered(graph, forward)
    placed = _placed(graph.nodes)
    fits = placed and max(placed.values()) < max(FEW, max(layered.values()) + 1)
    if placed and fits and all(placed[edge.source] < placed[edge.target] for edge in forward):
        return placed, True
    return layered, False


def _placed(nodes: tuple[Node, ...]) -> dict[str, int] | None:
    """Put nodes that stand above each other in the editor into one column; None if a place is not told."""
    columns: dict[str, int] = {}
    column, end = -1, float("-inf")
    for node in sorted(nodes, key=lambda node: (node.x is None, node.x)):
        if node.x is None or node.y is None:
            return None
        if node.x >= end:
            column, end = column + 1, node.x + max(node.width or USUAL_WIDTH, 1)
        columns[node.node_id] = column
    return columns


def _layered(graph: FlowGraph, forward: list[Edge]) -> dict[str, int]:
    needs: dict[str, list[str]] = {node.node_id: [] for node in graph.nodes}
    gives: dict[str, list[str]] = {node.node_id: [] for node in graph.nodes}
    for edge in forward:
        needs[edge.target].append(edge.source)
        gives[edge.source].append(edge.target)
    columns: dict[str, int] = {}
    for node in TopologicalSorter(needs).static_order():
        columns[node] = max((columns[source] + 1 for source in needs[node]), default=0)
    # What needs nothing stands right before the first that needs it: shorter edges are easier to follow.
    columns |= {
        node: min(columns[target] for target in gives[node]) - 1
        for node in gives
        if gives[node] and not needs[node]
    }
    alone = [node for node in gives if not gives[node] and not needs[node]]
    across = sorted((3, max(columns.values(), default=0) + 1, FEW))[1]
    return columns | {node: at % across for at, node in enumerate(alone)}
