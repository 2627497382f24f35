"""Tests of a flow graph's picture: everything is in it, columns do not overlap, and no name becomes markup.

How it looks is not tested; the layout is checked by its numbers.
"""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import combinations
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from airflow_provider_flows.core.graph import MAX_NODES, Edge, FlowGraph, Node, NodeKind
from airflow_provider_flows.drawing import STYLE, to_mermaid, to_svg
from airflow_provider_flows.drawing.picture import MAX_HEIGHT, Box, arrange, clean
from tests.core.test_graph import SAMPLE

SVG = "{http://www.w3.org/2000/svg}"
WORDS = {
    NodeKind.VARIABLE: "variableNode",
    NodeKind.ACTION: "actionNode",
    NodeKind.OUTPUT: "outputNode",
    NodeKind.OTHER: "codeNode",
}
HOSTILE = "</text><script>alert(1)</script> \"'&\x00\x07\u202e]]> <!-- onload=x --> %%{init: {}}%% `end`"


def node(node_id: str, kind: NodeKind = NodeKind.ACTION, **known: Any) -> Node:
    """Return a node."""
    return Node(node_id, kind, WORDS.get(kind, "imageNode"), **{"name": node_id, **known})


def graph_of(*nodes: Node, pairs: str = "") -> FlowGraph:
    """Return a graph; pairs such as `ab bc` are its edges."""
    return FlowGraph(nodes, tuple(Edge(source, target) for source, target in pairs.split()))


def parsed(svg: str) -> ET.Element:
    """Parse a picture as XML."""
    return ET.fromstring(svg)  # noqa: S314  # our own output


def classed(svg: str, role: str) -> list[ET.Element]:
    """Return the elements of a picture that have a class."""
    return [part for part in parsed(svg).iter() if part.get("class") == role]


def texts(svg: str) -> list[str]:
    """Return the visible texts of a picture."""
    return [
        "".join(part.itertext())
        for part in parsed(svg).iter()
        if part.tag in {f"{SVG}text", f"{SVG}title", f"{SVG}desc"}
    ]


def overlaps(one: Box, other: Box) -> bool:
    """Return whether two boxes overlap, except for rounding."""
    across = min(one.x + one.width, other.x + other.width) - max(one.x, other.x)
    return across > 0.01 and min(one.y + one.height, other.y + other.height) - max(one.y, other.y) > 0.01


def test_the_complete_sample_is_drawn() -> None:
    """The picture contains all nodes and edges of the vendor's sample, and lists them in its description."""
    graph = FlowGraph.parse(SAMPLE)
    svg = to_svg(graph, title="Toys")
    root = parsed(svg)
    assert (root.tag, root.get("role"), root.get("aria-label")) == (f"{SVG}svg", "img", "Toys")
    assert len(classed(svg, "edge")) == len(classed(svg, "head")) == 6
    assert [len(classed(svg, kind)) for kind in ("variable", "action", "image", "output")] == [2, 1, 1, 2]
    assert {"color", "Variable", "img", "Image · dall-e", "joke", "Prompt · gpt-3.5-turbo", "image"} <= set(
        texts(svg)
    )
    assert [part.text for part in classed(svg, "placeholder")] == ["{color}", "{item}"] * 2
    assert "A flow with 2 variables, 1 image, 2 outputs, 1 prompt. item goes to img, joke." in svg


def test_nodes_are_where_their_author_put_them() -> None:
    """Positions and widths are those of the export; heights are limited."""
    graph = FlowGraph.parse(SAMPLE)
    boxes = {item.name: arrange(graph)[item.node_id] for item in graph.nodes}
    positions = {item.name: (item.x, item.y) for item in graph.nodes}
    for name, (x, y) in positions.items():
        assert boxes[name].x - boxes["color"].x == pytest.approx(x - positions["color"][0])
        assert boxes[name].y - boxes["color"].y == pytest.approx(y - positions["color"][1])
    assert [boxes[name].width for name in ("color", "img", "joke")] == [260, 271, 218]
    assert {boxes["img"].height, boxes["joke"].height} == {MAX_HEIGHT}


@pytest.mark.parametrize(
    ("pairs", "columns"),
    [
        ("ab bc cd", "0123"),
        ("ab ac bc cd", "0123"),
        ("ad bd", "0001"),
        ("ab bc ca cd", "0123"),
        ("aa ab", "0100"),
        ("", "0000"),
    ],
)
def test_nodes_without_positions_are_in_columns_by_depth(pairs: str, columns: str) -> None:
    """A node is right of all that lead to it, unless they form a cycle, and no two boxes overlap."""
    boxes = arrange(graph_of(*map(node, "abcd"), pairs=pairs))
    order = sorted({box.x for box in boxes.values()})
    assert "".join(str(order.index(boxes[name].x)) for name in "abcd") == columns
    assert not [pair for pair in combinations(boxes.values(), 2) if overlaps(*pair)]


def test_prompt_is_wrapped_cut_and_emphasised() -> None:
    """A prompt fills its box and ends in an ellipsis; only names of the flow's nodes are emphasised."""
    prompt = 'Use {the name} in {"json": 1} and {other} ' + "word " * 100
    svg = to_svg(graph_of(node("a", NodeKind.VARIABLE, name="the name"), node("b", prompt=prompt)))
    assert [part.text for part in classed(svg, "placeholder")] == ["{the\u00a0name}"]
    lines = ["".join(part.itertext()) for part in classed(svg, "soft")]
    assert len(lines) > 2
    assert lines[-1].endswith(" …")


def test_picture_is_self_contained() -> None:
    """No ids, references, scripts or handlers; without styles, the picture has no style sheet."""
    graph = FlowGraph.parse(SAMPLE)
    svg = to_svg(graph)
    parts = list(parsed(svg).iter())
    assert not [
        name
        for part in parts
        for name in part.attrib
        if name == "id" or "href" in name or name.startswith("on")
    ]
    assert not re.search(r"url\(|@import|<script|style=", svg)
    assert "style" not in to_svg(graph, styled=False)
    assert svg.replace(f"<style>{STYLE}</style>", "") == to_svg(graph, styled=False)
    assert re.findall(r"[{}]([^{}@]+)\{", STYLE.replace("svg:root", ".flow-drawing"))
    for selector in re.findall(r"(?:^|[{}])([^{}@]+)\{", STYLE):
        assert all(".flow-drawing" in one or one == "svg:root" for one in selector.split(",")), selector


def test_hostile_names_are_text() -> None:
    """A name that contains markup is text in the picture, without invisible characters."""
    svg = to_svg(graph_of(node("a", name=HOSTILE, prompt=f"{HOSTILE} {{x}}", model=HOSTILE)), title=HOSTILE)
    assert "<script" not in svg
    assert not re.search("[\x00-\x08\u202e]", svg)
    assert any(clean(HOSTILE) in text for text in texts(svg))
    assert {part.tag.removeprefix(SVG) for part in parsed(svg).iter()} <= {
        *("svg", "title", "desc", "style", "path", "rect", "text", "tspan")
    }


def test_unnamed_and_unknown_nodes_are_labelled() -> None:
    """A node without a name, one of an unknown kind and a flow without nodes are labelled."""
    svg = to_svg(graph_of(node("a", NodeKind.OUTPUT, name="\x00"), node("b", NodeKind.OTHER, name="split")))
    assert {"(no name)", "Code", "split"} <= set(texts(svg))
    assert "This flow has no nodes" in to_svg(graph_of())


def test_largest_graph_is_drawn() -> None:
    """A graph of the maximum size, with long edges and a cycle, is drawn completely."""
    nodes = [Node(str(at), NodeKind.ACTION, "actionNode", f"step {at}") for at in range(MAX_NODES)]
    pairs = [
        (at, at + far) for at in range(MAX_NODES) for far in (1, 7, 19, 400, 800) if at + far < MAX_NODES
    ] + [(999, 0)]
    graph = FlowGraph(tuple(nodes), tuple(Edge(str(source), str(target)) for source, target in pairs))
    svg = to_svg(graph)
    assert (svg.count('class="edge"'), svg.count('class="action"')) == (len(pairs), MAX_NODES)


def test_picture_is_the_same_in_another_process() -> None:
    """The picture does not depend on the order of sets, which differs between processes."""
    program = (
        "from tests.drawing.test_drawing import *\n"
        "graph = graph_of(*map(node, 'abcdef'), pairs='ab bc cd ad ed fd db cc ac fa')\n"
        "print(to_svg(graph), to_mermaid(graph))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            stdout=-1,
            check=True,
        )
        for seed in "12"
    ]
    assert runs[0].stdout == runs[1].stdout


def test_mermaid_of_the_sample() -> None:
    """One line for each node, each edge and each kind's style."""
    assert to_mermaid(FlowGraph.parse(SAMPLE)).splitlines()[:13] == [
        "flowchart LR",
        '    n0[/"Variable: color"/]',
        '    n1[/"Variable: item"/]',
        '    n2[["Image: img"]]',
        '    n3(["Output: image"])',
        '    n4("Prompt: joke")',
        '    n5(["Output: text"])',
        "    n1 --> n2",
        "    n0 --> n2",
        "    n2 --> n3",
        "    n0 --> n4",
        "    n1 --> n4",
        "    n4 --> n5",
    ]


def test_names_cannot_inject_mermaid() -> None:
    """Quotes, directives, markup and Mermaid's own words are codes in a label, or no ids."""
    text = to_mermaid(graph_of(node("end", name=HOSTILE), node("class", NodeKind.OTHER, name='say "end"')))
    assert '    n1{{"Code: say #quot;end#quot;"}}' in text
    labels = re.findall(r'^    n\d+\W+"(.*)"\W+$', text, re.MULTILINE)
    assert len(labels) == 2
    assert not any(sign in re.sub(r"#\w+;", "", label) for label in labels for sign in '"<>&%`{};#\\')


NAMES = st.text(max_size=30) | st.sampled_from(["end", HOSTILE, "変数の名前", "\ud800\uffff", "e\u0301" * 20])
PLACES = st.none() | st.floats(-1e6, 1e6)


@st.composite
def graphs(draw: st.DrawFn) -> FlowGraph:
    """Return graphs of all kinds, with cycles, unusual names and positions."""
    ids = "abcdefgh"[: draw(st.integers(0, 8))]
    nodes = [
        Node(
            name,
            draw(st.sampled_from(NodeKind)),
            draw(NAMES),
            draw(NAMES),
            prompt=draw(NAMES),
            x=draw(PLACES),
            y=draw(PLACES),
        )
        for name in ids
    ]
    ends = st.sampled_from(ids or " ")
    pairs = draw(st.lists(st.tuples(ends, ends), max_size=14 if ids else 0, unique=True))
    return FlowGraph(tuple(nodes), tuple(Edge(*pair) for pair in pairs))


@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(graph=graphs())
@example(graph=graph_of(node("a", name=HOSTILE), pairs="aa"))
def test_any_graph_is_drawn_completely(graph: FlowGraph) -> None:
    """The picture is well-formed, has every name and edge and no scripts, and columns do not overlap."""
    svg = to_svg(graph)
    shown = texts(svg)
    assert all(any(clean(item.name) in text for text in shown) for item in graph.nodes)
    assert len(classed(svg, "edge")) == len(graph.edges)
    assert "<script" not in svg.lower()
    assert svg == to_svg(graph)
    assert to_mermaid(graph).count(" --> ") == len(graph.edges)
    if len({(item.x, item.y) for item in graph.nodes if None not in (item.x, item.y)}) < len(graph.nodes):
        assert not [pair for pair in combinations(arrange(graph).values(), 2) if overlaps(*pair)]
