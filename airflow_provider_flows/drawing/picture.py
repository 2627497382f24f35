"""The picture of a flow graph: as SVG, with its style, and as Mermaid text.

The SVG has a box for each node, a curve for each edge, and a description in words. Mermaid text is for README
files, wikis and notebooks, which lay it out themselves.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict, deque
from textwrap import wrap
from typing import NamedTuple
from xml.etree import ElementTree as ET

from airflow_provider_flows.core.graph import FlowGraph, Node, NodeKind

MARGIN, PADDING = 24.0, 14.0  # pixels, as all sizes here
WIDTH, HEIGHT = 240.0, 140.0  # of a node whose size the export does not give
MIN_WIDTH, MIN_HEIGHT, MAX_HEIGHT = 120.0, 64.0, 160.0  # in the editor, boxes also show results
COLUMN_GAP, ROW_GAP = 90.0, 32.0
TEXT_STYLES = {"kind": ("12", "600"), "name": ("16", "650"), "soft": ("13", "400")}  # font size and weight
PROMPT_SIZE, LINE_HEIGHT = 13.0, 17.5
CHARACTER_WIDTH = 0.56  # of the font size, on average; what is wider is clipped at the edge of its box
MAX_PROMPT_CHARACTERS = 600  # pointing at a box shows so many, the box itself as many as fit
MAX_DESCRIBED_NODES = 60

KIND_LABELS = {"variable": "Variable", "action": "Prompt", "image": "Image", "output": "Output"}
_PLACEHOLDER = re.compile(r"(\{[^{}]{1,1000}\})")  # single braces (vendor_notes.md, 2.4)
_SPACE = "{http://www.w3.org/XML/1998/namespace}space"
_JOINERS = "\u200c\u200d"  # Persian letters and emoji are joined by these
_INVISIBLE = {"Cc", "Cf", "Cs"}  # control characters, changes of direction, lone surrogates
MAX_LABEL_CHARACTERS = 120  # of a node in Mermaid text
_UNESCAPED = frozenset(" .,:!?'()+-/=_")
_MERMAID_SHAPES = {
    NodeKind.VARIABLE: ("[/", "/]"),
    NodeKind.ACTION: ("(", ")"),
    NodeKind.IMAGE: ("[[", "]]"),
    NodeKind.OUTPUT: ("([", "])"),
    NodeKind.OTHER: ("{{", "}}"),
}

FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

# name -> light, dark; a page overrides each by the custom property `--flow-NAME`
COLOURS = {
    "paper": ("#ffffff", "#1b2028"),
    "ink": ("#1d2430", "#e8edf4"),
    "soft": ("#566173", "#a3afbf"),
    "edge": ("#98a3b3", "#6c7889"),
    "variable": ("#b45309", "#f5b83d"),
    "action": ("#4f46e5", "#a9b1fb"),
    "image": ("#be185d", "#f79cc4"),
    "output": ("#047857", "#3ddba3"),
    "other": ("#475569", "#b8c4d3"),
}


def get_light_colour(name: str) -> str:
    """Return the colour of this name on a light page."""
    return COLOURS[name][0]


def _properties(theme: int) -> str:
    return "".join(f"--f-{name}:var(--flow-{name},{both[theme]});" for name, both in COLOURS.items())


def _style_sheet() -> str:
    """Return the rules: all below `.flow-drawing`, so that they change nothing else of a page."""
    light, dark = _properties(0), _properties(1)
    kinds = "".join(
        f".flow-drawing .{kind} .box{{stroke:var(--f-{kind})}}"
        f".flow-drawing .{kind} .kind{{fill:var(--f-{kind})}}"
        for kind in ("variable", "action", "image", "output", "other")
    )
    return (
        "svg:root{color-scheme:light dark}"
        f".flow-drawing{{max-width:100%;height:auto;{light}}}"
        f"@media (prefers-color-scheme:dark){{.flow-drawing{{{dark}}}}}"
        f'.light .flow-drawing,[data-theme="light"] .flow-drawing{{{light}}}'
        f'.dark .flow-drawing,[data-theme="dark"] .flow-drawing{{{dark}}}'
        ".flow-drawing .box{fill:var(--f-paper)}"
        ".flow-drawing .edge{stroke:var(--f-edge)}"
        ".flow-drawing .head{fill:var(--f-edge)}"
        ".flow-drawing .name{fill:var(--f-ink)}"
        ".flow-drawing .soft{fill:var(--f-soft)}"
        f"{kinds}"
        ".flow-drawing .placeholder{fill:var(--f-variable)}"
    )


STYLE = _style_sheet()


class Box(NamedTuple):
    """Where a node is drawn."""

    x: float
    y: float
    width: float
    height: float


def to_svg(graph: FlowGraph, *, title: str = "", styled: bool = True) -> str:
    """Return the picture as one `<svg class="flow-drawing">` without ids, scripts and references.

    :param title: what the picture is called, such as the flow's name.
    :param styled: whether it contains its `<style>`, which follows a class `light` or `dark` or an attribute
        `data-theme` of an element around it, and otherwise the reader's theme. A page whose
        Content-Security-Policy forbids that includes `STYLE` in its own style sheet.
    """
    boxes = arrange(graph)
    width = max((box.x + box.width for box in boxes.values()), default=WIDTH) + MARGIN
    height = max((box.y + box.height for box in boxes.values()), default=MARGIN) + MARGIN
    size = {"width": _number(width), "height": _number(height)}
    box = f"0 0 {size['width']} {size['height']}"
    label = clean(title, 200) or "Flow graph"
    attributes = {"xmlns": "http://www.w3.org/2000/svg", "class": "flow-drawing", "font-family": FONT}
    root = ET.Element("svg", {**attributes, **size, "viewBox": box, "role": "img", "aria-label": label})
    ET.SubElement(root, "title").text = label
    ET.SubElement(root, "desc").text = _describe(graph)
    if styled:
        ET.SubElement(root, "style").text = STYLE
    if not boxes:
        _add_text(root, 37, "This flow has no nodes", "soft", "soft")
    for edge in graph.edges:
        _add_edge(root, boxes[edge.source], boxes[edge.target])
    names = {clean(node.name) for node in graph.nodes if node.kind is not NodeKind.OUTPUT}
    for node in graph.nodes:
        _add_node(root, node, boxes[node.node_id], names)
    return ET.tostring(root, encoding="unicode")


def arrange(graph: FlowGraph) -> dict[str, Box]:
    """Return each node's box: where its author put it, or in columns if the export lacks positions."""
    positions = {(node.x, node.y) for node in graph.nodes if node.x is not None and node.y is not None}
    if len(positions) < len(graph.nodes):
        return _arrange_in_columns(graph)
    left = min((x for x, _ in positions if x is not None), default=0.0) - MARGIN
    top = min((y for _, y in positions if y is not None), default=0.0) - MARGIN
    boxes = {}
    for node in graph.nodes:
        width = max(node.width or WIDTH, MIN_WIDTH)
        height = min(max(node.height or HEIGHT, MIN_HEIGHT), MAX_HEIGHT)
        boxes[node.node_id] = Box((node.x or 0) - left, (node.y or 0) - top, width, height)
    return boxes


def _arrange_in_columns(graph: FlowGraph) -> dict[str, Box]:
    """Put each node in the column after those that lead to it; a cycle starts at its first node."""
    targets = defaultdict(list)
    missing = dict.fromkeys((node.node_id for node in graph.nodes), 0)  # sources without a column, by node
    for edge in graph.edges:
        if edge.source != edge.target:
            targets[edge.source].append(edge.target)
            missing[edge.target] += 1
    depths = dict.fromkeys(missing, 0)
    queue = deque(node_id for node_id, count in missing.items() if not count)
    while missing:
        node_id = queue.popleft() if queue else next(iter(missing))
        if missing.pop(node_id, None) is None:
            continue
        for target in targets[node_id]:
            if target in missing:
                depths[target] = max(depths[target], depths[node_id] + 1)
                missing[target] -= 1
                if not missing[target]:
                    queue.append(target)
    bottoms: dict[int, float] = defaultdict(lambda: MARGIN)
    boxes = {}
    for node in graph.nodes:
        depth = depths[node.node_id]
        boxes[node.node_id] = Box(MARGIN + depth * (WIDTH + COLUMN_GAP), bottoms[depth], WIDTH, HEIGHT)
        bottoms[depth] += HEIGHT + ROW_GAP
    return boxes


def _add_edge(root: ET.Element, source: Box, target: Box) -> None:
    x, y = source.x + source.width, source.y + source.height / 2
    to_x, to_y = target.x, target.y + target.height / 2
    bend = max(40.0, abs(to_x - x) / 2)
    points = ((x, y), (x + bend, y), (to_x - bend, to_y), (to_x - 7, to_y))
    start, *curve = (f"{_number(x)} {_number(y)}" for x, y in points)
    colour = get_light_colour("edge")
    attributes = {"fill": "none", "stroke": colour, "stroke-width": "1.6"}
    ET.SubElement(root, "path", {"class": "edge", "d": f"M{start}C{' '.join(curve)}", **attributes})
    head = {"d": f"M{_number(to_x)} {_number(to_y)}l-9 -5v10z", "fill": colour}
    ET.SubElement(root, "path", {"class": "head", **head})


def _add_node(root: ET.Element, node: Node, box: Box, names: set[str]) -> None:
    """Add a node as an `<svg>` of its own, which clips what does not fit."""
    kind, prompt = node.kind.value, clean(node.prompt, MAX_PROMPT_CHARACTERS)
    place = {name: _number(value) for name, value in box._asdict().items()}
    group = ET.SubElement(root, "svg", {"class": kind, **place})
    title = f"{kind_label(node)} {node_label(node)}" + f": {prompt}" * bool(prompt)
    ET.SubElement(group, "title").text = title
    attributes = {"fill": get_light_colour("paper"), "stroke": get_light_colour(kind), "stroke-width": "1.5"}
    corner = "22" if node.kind in {NodeKind.VARIABLE, NodeKind.OUTPUT} else "8"
    size = {"width": _number(box.width - 2), "height": _number(box.height - 2)}
    ET.SubElement(group, "rect", {"class": "box", "x": "1", "y": "1", **size, "rx": corner, **attributes})
    model = clean(node.model, 200)
    _add_text(group, 24, kind_label(node) + f" · {model}" * bool(model), "kind", kind)
    _add_text(group, 46, node_label(node), "name", "ink")
    # A placeholder is not broken at its blanks.
    lines = wrap(
        _PLACEHOLDER.sub(lambda found: found[0].replace(" ", "\u00a0"), prompt),
        int((box.width - 2 * PADDING) / (PROMPT_SIZE * CHARACTER_WIDTH)),
        max_lines=max(1, int((box.height - 46 - PADDING) / LINE_HEIGHT)),
        placeholder=" …",
    )
    for number, line in enumerate(lines, 1):
        text = _add_text(group, 46 + number * LINE_HEIGHT, "", "soft", "soft")
        for part in filter(None, _PLACEHOLDER.split(line)):
            is_placeholder = part[0] == "{" and part[1:-1].replace("\u00a0", " ") in names
            attributes = {"class": "placeholder", "fill": get_light_colour("variable"), "font-weight": "650"}
            ET.SubElement(text, "tspan", attributes if is_placeholder else {}).text = part


def _add_text(parent: ET.Element, y: float, text: str, role: str, colour: str) -> ET.Element:
    size, weight = TEXT_STYLES[role]
    attributes = {
        "font-size": size,
        "font-weight": weight,
        "fill": get_light_colour(colour),
        _SPACE: "preserve",
    }
    element = ET.SubElement(
        parent, "text", {"class": role, "x": _number(PADDING), "y": _number(y), **attributes}
    )
    element.text = text
    return element


def kind_label(node: Node) -> str:
    """Return what the picture calls a node's kind: the editor's own word for an unknown one."""
    word = clean(node.raw_type.removesuffix("Node"), 60)
    return KIND_LABELS.get(node.kind) or word[:1].upper() + word[1:] or "Node"


def node_label(node: Node) -> str:
    """Return a node's name as the picture shows it."""
    return clean(node.name) or "(no name)"


def clean(text: str, max_length: int = 2_000) -> str:
    """Return a text in one line, without invisible characters and without those that XML forbids."""
    line = " ".join(text[: max_length * 4].split())
    visible = (char for char in line if char in _JOINERS or unicodedata.category(char) not in _INVISIBLE)
    return "".join(char for char in visible if char not in "\ufffe\uffff").strip()[:max_length]


def _describe(graph: FlowGraph) -> str:
    """Return the picture in words: how many nodes of each kind, and which leads to which."""
    kinds = Counter(KIND_LABELS.get(node.kind, "other node").lower() for node in graph.nodes)
    amounts = ", ".join(f"{count} {kind}{'s' * (count != 1)}" for kind, count in kinds.items())
    names = {node.node_id: node_label(node) for node in graph.nodes}
    targets = defaultdict(list)
    for edge in graph.edges:
        targets[edge.source].append(names[edge.target])
    lines = [f"{names[source]} goes to {', '.join(found)}." for source, found in targets.items()]
    return " ".join([f"A flow with {amounts or 'no nodes'}.", *lines[:MAX_DESCRIBED_NODES]])


def _number(value: float) -> str:
    return f"{round(value, 1):.10g}" if round(value, 1) else "0"


def to_mermaid(graph: FlowGraph) -> str:
    """Return a flow graph as a Mermaid flowchart from left to right, a line for each node and each edge.

    Nodes get new ids (`n0`, `n1`, ...), because the export's could be reserved words of Mermaid.
    Characters with a meaning to Mermaid are written as character codes.
    Mermaid draws up to 500 edges and 50,000 characters unless a page raises `maxEdges` and `maxTextSize`.
    """
    ids = {node.node_id: f"n{at}" for at, node in enumerate(graph.nodes)}
    lines = ["flowchart LR"]
    for node in graph.nodes:
        opening, closing = _MERMAID_SHAPES[node.kind]
        label = _escape_label(f"{kind_label(node)}: {clean(node_label(node), MAX_LABEL_CHARACTERS)}")
        lines.append(f'    {ids[node.node_id]}{opening}"{label}"{closing}')
    lines += [f"    {ids[edge.source]} --> {ids[edge.target]}" for edge in graph.edges]
    return "\n".join(lines) + "\n"


def _escape_label(label: str) -> str:
    """Return a label with all but letters, digits and plain punctuation as `#code;` (entity codes)."""
    return "".join(
        char if char.isalnum() or char in _UNESCAPED else "#quot;" if char == '"' else f"#{ord(char)};"
        for char in label
    )
