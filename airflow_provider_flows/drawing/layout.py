"""Where each box stands and where each edge runs, in pixels: boxes never overlap, and edges keep to lanes between them.

What is in a box, and how either looks, is not known here.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from airflow_provider_flows.core.graph import Edge, FlowGraph
from airflow_provider_flows.drawing.columns import columns_of, explore

MARGIN = 26.0  # pixels, all round; edges that run back turn within it
BETWEEN_COLUMNS = 68.0
BETWEEN_BOXES = 22.0
BETWEEN_LANES = 13.0
MOST_LANES = 4_000  # beyond, the longest edges run straight, over boxes: nobody can follow them anyway
SWEEPS = 8
LIGHT = 0.01  # the weight of lanes that run back, beside boxes and other lanes: they make way

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in pixels, by its left upper corner."""

    x: float
    y: float
    width: float
    height: float

    @property
    def middle(self) -> float:
        """Its vertical centre: edges come in and go out there."""
        return self.y + self.height / 2


@dataclass(frozen=True, slots=True)
class Layout:
    """The picture's size, a box for each node by id, and the points of each edge.

    An edge's points are pairs: the stretch between the two of a pair lies in a gap between columns and is curved, the stretch
    from one pair to the next lies in a lane within a column and is straight.
    """

    width: float
    height: float
    boxes: Mapping[str, Box]
    routes: Mapping[Edge, tuple[Point, ...]]


@dataclass(frozen=True, slots=True)
class Lane:
    """Room that edges of one source take within a column that they cross; those running back take their own."""

    source: str
    column: int
    back_to: str | None = None


Cell = str | Lane  # a node's id, or a lane


@dataclass(slots=True)
class _Grid:
    """Cells by column from top to bottom, and which cells of the next columns each hangs together with."""

    columns: list[list[Cell]]
    lanes: dict[Edge, list[Lane]]
    height: dict[Cell, float]
    left: dict[Cell, list[Cell]] = field(default_factory=dict)
    right: dict[Cell, list[Cell]] = field(default_factory=dict)
    turning: dict[Cell, str] = field(
        default_factory=dict
    )  # by lane, the node of its own column that its edge turns round

    def connect(self, cells: Iterable[Cell]) -> None:
        """Take note of the cells that an edge passes, from left to right."""
        for one, other in pairwise(cells):
            if other not in self.right.setdefault(one, []):
                self.right[one].append(other)
                self.left.setdefault(other, []).append(one)

    def crossings(self) -> int:
        """Count how often edges cross."""
        places = {cell: at for column in self.columns for at, cell in enumerate(column)}
        count = 0
        for column in self.columns:
            ends: list[int] = []
            for cell in column:
                targets = [places[other] for other in self.right.get(cell, ())]
                count += sum(len(ends) - bisect_right(ends, target) for target in targets)
                for target in targets:
                    insort(ends, target)
        return count


def arrange(graph: FlowGraph, sizes: Mapping[str, tuple[float, float]]) -> Layout:
    """Place boxes of these sizes (width, height; by node id); all boxes of a column get the width of its widest."""
    met, back = explore(graph)
    columns, by_author = columns_of(graph, back)
    hints = {node.node_id: node.y for node in graph.nodes if node.y is not None}
    if len(hints) < len(graph.nodes):
        hints = {node_id: float(at) for at, node_id in enumerate(met)}
    grid = _grid(graph, back, columns, sizes, hints)
    if not by_author:
        _untangle(grid)
    middles = _settle_all(grid)
    return _measured(grid, columns, sizes, middles, graph.edges)


def _grid(
    graph: FlowGraph,
    back: frozenset[Edge],
    columns: Mapping[str, int],
    sizes: Mapping[str, tuple[float, float]],
    hints: Mapping[str, float],
) -> _Grid:
    height: dict[Cell, float] = {}
    height.update((node, size[1]) for node, size in sizes.items())
    grid = _Grid([[] for _ in range(max(columns.values(), default=-1) + 1)], {}, height)
    order: dict[Cell, float] = {}
    order.update(hints.items())
    for edge in sorted(graph.edges, key=lambda edge: abs(columns[edge.target] - columns[edge.source])):
        start, end = columns[edge.source], columns[edge.target]
        turns = edge in back
        crossed = range(end, start + 1) if turns else range(start + 1, end)
        if len(grid.height) + len(crossed) - len(sizes) > MOST_LANES:
            continue
        lanes = [Lane(edge.source, column, edge.target if turns else None) for column in crossed]
        grid.lanes[edge] = lanes[::-1] if turns else lanes
        if turns:
            grid.turning |= {lanes[0]: edge.target, lanes[-1]: edge.source}
        grid.height.update(dict.fromkeys(lanes, 0.0))
        grid.connect(lanes if turns else [edge.source, *lanes, edge.target])
        for lane in lanes:
            part = (lane.column - start) / (end - start) if not turns else 1.0
            below = max(hints[edge.source], hints[edge.target]) + 0.5
            order.setdefault(
                lane, below if turns else hints[edge.source] * (1 - part) + hints[edge.target] * part
            )
    for cell in order:
        grid.columns[cell.column if isinstance(cell, Lane) else columns[cell]].append(cell)
    for column in grid.columns:
        column.sort(key=order.__getitem__)
    return grid


def _untangle(grid: _Grid) -> None:
    """Change the order within columns, to the mean place of what a cell hangs together with, while fewer edges cross."""
    best, fewest = [list(column) for column in grid.columns], grid.crossings()
    for sweep in range(SWEEPS if fewest else 0):
        beside, ahead = (grid.left, grid.columns) if sweep % 2 == 0 else (grid.right, grid.columns[::-1])
        for before, column in pairwise(ahead):
            places = {cell: float(at) for at, cell in enumerate(before)}
            own = {cell: float(at) for at, cell in enumerate(column)}
            wanted = {cell: _mean(beside.get(cell, ()), places, own[cell]) for cell in column}
            loops = [cell for cell in column if isinstance(cell, Lane) and cell.back_to == cell.source]
            wanted |= {cell: wanted[cell.source] + 1e-6 for cell in loops}
            column.sort(key=wanted.__getitem__)
        count = grid.crossings()
        if count < fewest:
            best, fewest = [list(column) for column in grid.columns], count
    grid.columns = best


def _settle_all(grid: _Grid) -> dict[Cell, float]:
    """Give the vertical centre of every cell, as near as can be to those that it hangs together with."""
    middles: dict[Cell, float] = {}
    for column in grid.columns:
        steps = _steps(column, grid.height)
        middles |= zip(
            column, _settle([sum(steps) / 2] * len(column), [1.0] * len(column), steps), strict=True
        )
    for sweep in range(SWEEPS * 2 + 1):
        forth = sweep % 2 == 0
        for column in grid.columns if forth else grid.columns[::-1]:
            sides = [grid.left, grid.right] if sweep >= SWEEPS else [grid.left if forth else grid.right]
            near = [_near(cell, sides, grid) for cell in column]
            wanted = [_mean(cells, middles, middles[cell]) for cell, cells in zip(column, near, strict=True)]
            weights = [LIGHT if isinstance(cell, Lane) and cell.back_to else 1.0 for cell in column]
            middles |= zip(column, _settle(wanted, weights, _steps(column, grid.height)), strict=True)
    return middles


def _near(cell: Cell, sides: Iterable[Mapping[Cell, list[Cell]]], grid: _Grid) -> list[Cell]:
    """Give what a cell wants to be near: where an edge turns round, that is the box that it turns round."""
    if cell in grid.turning:
        return [grid.turning[cell]]
    return [other for side in sides for other in side.get(cell, ())]


def _mean(cells: Iterable[Cell], places: Mapping[Cell, float], otherwise: float) -> float:
    known = [places[cell] for cell in cells if cell in places]
    return sum(known) / len(known) if known else otherwise


def _steps(column: list[Cell], height: Mapping[Cell, float]) -> list[float]:
    """Give the least distances between the centres of neighbours."""
    return [
        (height[one] + height[other]) / 2
        + (BETWEEN_LANES if isinstance(one, Lane) or isinstance(other, Lane) else BETWEEN_BOXES)
        for one, other in pairwise(column)
    ]


def _settle(wanted: list[float], weights: list[float], steps: list[float]) -> list[float]:
    """Move centres as little as can be (weighted squares) so that neighbours keep their distance: isotonic regression."""
    offsets = list(accumulate(steps, initial=0.0))
    pools: list[tuple[float, float, int]] = []  # sum, weight and number of those that touch each other
    for value, weight, offset in zip(wanted, weights, offsets, strict=False):
        total, heavy, count = (value - offset) * weight, weight, 1
        while pools and pools[-1][0] / pools[-1][1] >= total / heavy:
            before = pools.pop()
            total, heavy, count = total + before[0], heavy + before[1], count + before[2]
        pools.append((total, heavy, count))
    means = [total / heavy for total, heavy, count in pools for _ in range(count)]
    return [mean + offset for mean, offset in zip(means, offsets, strict=False)]


def _measured(
    grid: _Grid,
    columns: Mapping[str, int],
    sizes: Mapping[str, tuple[float, float]],
    middles: Mapping[Cell, float],
    edges: Iterable[Edge],
) -> Layout:
    """Put the columns side by side, the uppermost cell at the margin, and run the edges through their lanes."""
    widths = [
        max((sizes[cell][0] for cell in column if isinstance(cell, str)), default=0.0)
        for column in grid.columns
    ]
    lefts = [MARGIN]
    for width in widths:
        lefts.append(lefts[-1] + width + BETWEEN_COLUMNS)
    shift = MARGIN - min((middle - grid.height[cell] / 2 for cell, middle in middles.items()), default=0.0)
    lowest = max((middle + grid.height[cell] / 2 for cell, middle in middles.items()), default=0.0)
    boxes = {
        node: Box(lefts[at], middles[node] + shift - sizes[node][1] / 2, widths[at], sizes[node][1])
        for node, at in columns.items()
    }
    routes: dict[Edge, tuple[Point, ...]] = {}
    for edge in edges:
        source, target = boxes[edge.source], boxes[edge.target]
        points = [(source.x + source.width, source.middle)]
        for lane in grid.lanes.get(edge, ()):
            ends = [lefts[lane.column], lefts[lane.column] + widths[lane.column]]
            points += [(x, middles[lane] + shift) for x in (ends if lane.back_to is None else ends[::-1])]
        routes[edge] = (*points, (target.x, target.middle))
    return Layout(lefts[-1] - BETWEEN_COLUMNS + MARGIN, lowest + shift + MARGIN, boxes, routes)
