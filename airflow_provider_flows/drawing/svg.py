"""Draws a flow graph as SVG: a box for each node, a curve for each edge, a text for those who cannot see them.

Where things stand is layout.py's; colours are style.py's.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise
from xml.etree import ElementTree as ET

from airflow_provider_flows.core.graph import FlowGraph, Node, NodeKind
from airflow_provider_flows.drawing.layout import Box, Layout, Point, arrange
from airflow_provider_flows.drawing.style import FONT, STYLE, light
from airflow_provider_flows.drawing.text import Run, bold, clean, emphasised, wrap

PADDING, TILE, HEAD = 12.0, 28.0, 7.0  # pixels
NAME_SIZE, LABEL_SIZE, PROMPT_SIZE = 14.0, 11.0, 12.0
NAME_LINE, PROMPT_LINE = 18.0, 16.5
MOST_NAME_LINES, MOST_PROMPT_LINES = 2, 3
NARROW, BROAD = 172.0, 228.0  # boxes without and with a prompt
LONGEST_PROMPT = 600  # characters of a prompt that the picture holds; the box shows the first lines, pointing at it shows all
LONGEST_TOLD = 60  # nodes that the description names one by one

WORDS = {
    NodeKind.VARIABLE: "Variable",
    NodeKind.ACTION: "Prompt",
    NodeKind.IMAGE: "Image",
    NodeKind.OUTPUT: "Output",
}
ICONS = {  # in a square of 16
    NodeKind.VARIABLE: "M6 2.5C4.2 2.5 4.2 4 4.2 5.3 4.2 6.8 3.6 8 2.4 8 3.6 8 4.2 9.2 4.2 10.7 4.2 12 4.2 13.5 6 13.5"
    "M10 2.5C11.8 2.5 11.8 4 11.8 5.3 11.8 6.8 12.4 8 13.6 8 12.4 8 11.8 9.2 11.8 10.7 11.8 12 11.8 13.5 10 13.5",
    NodeKind.ACTION: "M3 2.8h10a1.3 1.3 0 0 1 1.3 1.3v5.6a1.3 1.3 0 0 1-1.3 1.3H7.6L4.4 13.7V11H3a1.3 1.3 0 0 1-1.3-1.3"
    "V4.1A1.3 1.3 0 0 1 3 2.8zM5 5.8h6M5 8.2h4",
    NodeKind.IMAGE: "M3.2 2.6h9.6a1 1 0 0 1 1 1v8.8a1 1 0 0 1-1 1H3.2a1 1 0 0 1-1-1V3.6a1 1 0 0 1 1-1z"
    "M2.4 11.4l3.3-3.6 2.7 2.8 1.9-1.9 3.3 3.1M10.7 5.7h.01",
    NodeKind.OUTPUT: "M9.2 2.6h3a1.2 1.2 0 0 1 1.2 1.2v8.4a1.2 1.2 0 0 1-1.2 1.2h-3M2.2 8h7.2M6.7 5.2L9.5 8l-2.8 2.8",
    NodeKind.OTHER: "M8 2.2L13.8 8 8 13.8 2.2 8zM8 8h.01",
}


@dataclass(frozen=True, slots=True)
class _Lettered:
    """A node with its texts as they are shown, and the size of its box."""

    node: Node
    label: str
    name: list[str]
    prompt: list[list[Run]]

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in pixels."""
        head = max(TILE, 13 + NAME_LINE * len(self.name))
        below = 6 + PROMPT_LINE * len(self.prompt) if self.prompt else 0
        return _width(self.node), PADDING * 2 + head + below


def to_svg(graph: FlowGraph, *, title: str = "", styled: bool = True, theme: str = "") -> str:
    """Draw a flow graph.

    The picture is one `<svg class="flow-drawing">` without ids, scripts and references, so that several fit into one page and
    all may be put into it as they are. Equal graphs give equal text.

    :param title: what the picture is called, such as the flow's name.
    :param styled: with its own `<style>`, which follows a class `light` or `dark` or an attribute `data-theme` of anything around
        it, and otherwise the reader's own choice of theme. False for a page that brings `STYLE` in its own style sheet, as it
        must where its Content-Security-Policy forbids styles in the page; without either it is drawn in light colours.
    :param theme: `light` or `dark` fixes the theme; `""` leaves it to the reader.
    """
    names = {clean(node.name) for node in graph.nodes if node.kind is not NodeKind.OUTPUT}
    lettered = [_lettered(node, names) for node in graph.nodes]
    layout = arrange(graph, {item.node.node_id: item.size for item in lettered})
    called = clean(title, 200) or "Flow graph"
    size = (
        {"width": _number(layout.width), "height": _number(layout.height)}
        if lettered
        else {"width": "240", "height": "64"}
    )
    root = ET.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "class": f"flow-drawing {theme}".rstrip(),
            "viewBox": f"0 0 {size['width']} {size['height']}",
            **size,
            "role": "img",
            "aria-label": called,
            "font-family": FONT,
        },
    )
    ET.SubElement(root, "title").text = called
    ET.SubElement(root, "desc").text = _told(graph)
    if styled:
        ET.SubElement(root, "style").text = STYLE
    if not lettered:
        _text(
            root,
            (120, 37),
            "This flow has no nodes",
            "soft",
            {"text-anchor": "middle", "font-size": "13", "fill": light("soft")},
        )
    _draw_edges(root, graph, layout)
    for item in lettered:
        _draw_node(root, item, layout.boxes[item.node.node_id])
    return ET.tostring(root, encoding="unicode")


def _lettered(node: Node, names: Collection[str]) -> _Lettered:
    width = _width(node)
    beside = width - 3 * PADDING - TILE
    label = " · ".join(filter(None, (kind_word(node), clean(node.model, 200))))
    prompt = emphasised(clean(node.prompt, LONGEST_PROMPT), names)
    return _Lettered(
        node,
        _joined(wrap(bold(label), beside, LABEL_SIZE, 1))[0],
        _joined(wrap(bold(shown_name(node)), beside, NAME_SIZE, MOST_NAME_LINES)),
        wrap(prompt, width - 2 * PADDING, PROMPT_SIZE, MOST_PROMPT_LINES) if prompt else [],
    )


def _joined(lines: list[list[Run]]) -> list[str]:
    return ["".join(text for text, _ in line) for line in lines]


def kind_word(node: Node) -> str:
    """Word a node's kind as the picture shows it; a kind that nobody knows keeps the editor's word."""
    word = clean(node.raw_type.removesuffix("Node"), 60)
    return WORDS.get(node.kind) or word[:1].upper() + word[1:] or "Node"


def shown_name(node: Node) -> str:
    """Give a node's name as the picture shows it."""
    return clean(node.name) or "(no name)"


def _width(node: Node) -> float:
    return BROAD if node.prompt or node.kind in {NodeKind.ACTION, NodeKind.IMAGE} else NARROW


def _draw_edges(root: ET.Element, graph: FlowGraph, layout: Layout) -> None:
    group = ET.SubElement(root, "g", {"fill": "none", "stroke-width": "1.6", "stroke-linecap": "round"})
    for edge in graph.edges:
        points = layout.routes[edge]
        ET.SubElement(group, "path", {"class": "edge", "d": _curve(points), "stroke": light("edge")})
        x, y = points[-1]
        head = f"M{_number(x - 1)} {_number(y)}l-9 -4.6v9.2z"
        ET.SubElement(group, "path", {"class": "head", "d": head, "fill": light("edge")})


def _curve(points: tuple[Point, ...]) -> str:
    """Write an edge as a path: curved in the gaps between columns, straight in its lanes."""
    end = (points[-1][0] - HEAD, points[-1][1])
    path = [f"M{_pair(points[0])}"]
    for at, ((x, y), (to_x, to_y)) in enumerate(pairwise((*points[:-1], end))):
        if at % 2:
            path.append(f"L{_pair((to_x, to_y))}")
            continue
        # An edge that runs back turns round within the gap beside its box: rightwards where it starts, leftwards where it ends.
        turns = abs(x - to_x) < HEAD + 1
        bend, into = (
            ((28.0, 28.0) if at == 0 else (-28.0, -28.0)) if turns else ((to_x - x) / 2, (x - to_x) / 2)
        )
        path.append(f"C{_pair((x + bend, y))} {_pair((to_x + into, to_y))} {_pair((to_x, to_y))}")
    return "".join(path)


def _draw_node(root: ET.Element, item: _Lettered, box: Box) -> None:
    node, kind = item.node, item.node.kind.value
    group = ET.SubElement(root, "g", {"class": kind, "transform": f"translate({_pair((box.x, box.y))})"})
    told = (f"{kind_word(node)} {shown_name(node)}", clean(node.prompt, LONGEST_PROMPT))
    ET.SubElement(group, "title").text = ": ".join(filter(None, told))
    _draw_box(group, node.kind, box)
    left = PADDING * 2 + TILE
    look = {"font-size": _number(LABEL_SIZE), "font-weight": "600", "fill": light(kind)}
    _text(group, (left, PADDING + 9.5), item.label, "kind", look)
    for at, line in enumerate(item.name):
        look = {"font-size": _number(NAME_SIZE), "font-weight": "650", "fill": light("ink")}
        _text(group, (left, PADDING + 26.5 + at * NAME_LINE), line, "name", look)
    top = item.size[1] - PADDING - len(item.prompt) * PROMPT_LINE
    for at, pieces in enumerate(item.prompt):
        look = {"font-size": _number(PROMPT_SIZE), "fill": light("soft")}
        text = _text(group, (PADDING, top + 12.5 + at * PROMPT_LINE), "", "soft", look)
        for piece, marked in pieces:
            mark = {"class": "placeholder", "font-weight": "650", "fill": light("variable")} if marked else {}
            ET.SubElement(text, "tspan", mark).text = piece


def _draw_box(group: ET.Element, kind: NodeKind, box: Box) -> None:
    """Draw a box without its texts: its outline, the place where edges go out, and the kind's sign."""
    colour, paper = light(kind.value), light("paper")
    dashes = {"stroke-dasharray": "5 4"} if kind is NodeKind.OTHER else {}
    look = {"fill": paper, "stroke": colour, "stroke-opacity": "0.45", **dashes}
    ET.SubElement(group, "path", {"class": "box", "d": _outline(kind, box), **look})
    if kind is not NodeKind.OUTPUT:
        place = {"cx": _number(box.width), "cy": _number(box.height / 2), "r": "4.2"}
        look = {"fill": colour, "stroke": paper, "stroke-width": "1.6"}
        ET.SubElement(group, "circle", {"class": "handle", **place, **look})
    side = {"x": _number(PADDING), "y": _number(PADDING), "width": _number(TILE), "height": _number(TILE)}
    corners = TILE / 2 if kind is NodeKind.VARIABLE else 8
    ET.SubElement(
        group, "rect", {"class": "tile", **side, "rx": _number(corners), "fill": light(f"{kind.value}-tint")}
    )
    inside = PADDING + (TILE - 16) / 2
    look = {
        "fill": "none",
        "stroke": colour,
        "stroke-width": "1.5",
        "stroke-linecap": "round",
        "stroke-linejoin": "round",
    }
    ET.SubElement(
        group,
        "path",
        {"class": "icon", "d": ICONS[kind], "transform": f"translate({_pair((inside, inside))})", **look},
    )


def _outline(kind: NodeKind, box: Box) -> str:
    """Write a box's outline: a variable is round at its left, an output at its right, an image has a corner folded down."""
    width, height = box.width, box.height
    end = min(height / 2, PADDING + TILE / 2)
    left, right = (end if kind is NodeKind.VARIABLE else 10), (end if kind is NodeKind.OUTPUT else 10)
    n = _number
    corner = (
        f"H{n(width - 18)}L{n(width)} 18"
        if kind is NodeKind.IMAGE
        else f"H{n(width - right)}a{n(right)} {n(right)} 0 0 1 {n(right)} {n(right)}"
    )
    return (
        f"M{n(left)} 0{corner}V{n(height - right)}a{n(right)} {n(right)} 0 0 1 {n(-right)} {n(right)}"
        f"H{n(left)}a{n(left)} {n(left)} 0 0 1 {n(-left)} {n(-left)}V{n(left)}a{n(left)} {n(left)} 0 0 1 {n(left)} {n(-left)}z"
        + (f"M{n(width - 18)} 0V12a6 6 0 0 0 6 6H{n(width)}" if kind is NodeKind.IMAGE else "")
    )


def _text(parent: ET.Element, at: Point, text: str, role: str, look: dict[str, str]) -> ET.Element:
    made = ET.SubElement(parent, "text", {"class": role, "x": _number(at[0]), "y": _number(at[1]), **look})
    made.text = text
    return made


def _told(graph: FlowGraph) -> str:
    """Put the picture into words: how much of what there is, and which goes where."""
    counts = [(sum(node.kind is kind for node in graph.nodes), kind) for kind in NodeKind]
    amounts = ", ".join(
        f"{count} {WORDS.get(kind, 'other node').lower()}{'s' * (count != 1)}"
        for count, kind in counts
        if count
    )
    names = {node.node_id: shown_name(node) for node in graph.nodes}
    onward: dict[str, list[str]] = {}
    for edge in graph.edges:
        onward.setdefault(edge.source, []).append(names[edge.target])
    lines = [
        f"{names[source]} goes to {', '.join(targets)}."
        for source, targets in list(onward.items())[:LONGEST_TOLD]
    ]
    return " ".join([f"A flow with {amounts or 'no nodes'}.", *lines])


def _pair(point: Point) -> str:
    return f"{_number(point[0])} {_number(point[1])}"


def _number(value: float) -> str:
    return f"{round(value, 1):.10g}" if round(value, 1) else "0"
