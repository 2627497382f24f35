"""Tests of the parser of exported flow graphs.

The sample is the one on the vendor's page, which the emulator contains.
"""

from __future__ import annotations

import contextlib
import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import airflow_provider_flows.emulator
from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.graph import (
    MAX_NODES,
    MAX_PROMPT_LENGTH,
    Edge,
    FlowGraph,
    Node,
    NodeKind,
)
from airflow_provider_flows.drawing import to_mermaid, to_svg

GRAPHS = Path(airflow_provider_flows.emulator.__file__).parent / "graphs"
SAMPLE: dict[str, Any] = json.loads((GRAPHS / "clibnwpno000bmc0k9hvv3y7f.json").read_text())
SIGNED = "https://store.example.com/img.png?sig=LZRCEQJp3hEzEp1SXJ5bxI1JrBa6PunwJJto7xGiHbU"


def graph_of(*nodes: Any, edges: Any = ()) -> FlowGraph:
    """Parse a graph of these nodes from JSON."""
    return FlowGraph.parse(json.loads(json.dumps({"nodes": nodes, "edges": edges})))


def test_sample_of_the_vendor_is_parsed() -> None:
    """Names, kinds, prompts, models, places and edges of the sample are its own."""
    graph = FlowGraph.parse(SAMPLE)
    assert graph.variables == ("color", "item")
    assert graph.outputs == ("image", "text")
    assert [(node.kind.value, node.name) for node in graph.nodes] == [
        ("variable", "color"),
        ("variable", "item"),
        ("image", "img"),
        ("output", "image"),
        ("action", "joke"),
        ("output", "text"),
    ]
    names = {node.node_id: node.name for node in graph.nodes}
    assert {(names[edge.source], names[edge.target]) for edge in graph.edges} == {
        ("item", "img"),
        ("color", "img"),
        ("img", "image"),
        ("color", "joke"),
        ("item", "joke"),
        ("joke", "text"),
    }
    image, joke = graph.nodes[2], graph.nodes[4]
    assert (image.prompt, image.model, image.raw_type) == (
        "A picture of a {color} and big {item}",
        "dall-e",
        "imageNode",
    )
    assert (image.x, image.y, image.width, image.height) == (1669, 547, 271, 1019)
    assert (joke.model, joke.x) == ("gpt-3.5-turbo", 2370.04377754738)


def test_results_and_test_values_of_nodes_are_dropped() -> None:
    """Signed links in `output` and test values of variables are in no part of the graph."""
    data = deepcopy(SAMPLE)
    data["nodes"][2]["data"]["output"] = SIGNED
    data["nodes"][3]["data"]["output"] = {"e7c5": SIGNED}
    data["nodes"][0]["data"]["variable"]["value"] = SIGNED
    graph = FlowGraph.parse(data)
    assert graph == FlowGraph.parse(SAMPLE)
    assert "sig=" not in "".join(str(getattr(node, name)) for node in graph.nodes for name in Node.__slots__)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "not a JSON object"),
        ([], "not a JSON object"),
        ("graph", "not a JSON object"),
        ({}, "no list of nodes"),
        ({"nodes": {}, "edges": []}, "no list of nodes"),
        ({"nodes": [7], "edges": []}, r"nodes\[0\] is not a JSON object"),
        (
            {"nodes": [{"id": "a", "type": "outputNode", "data": {"name": "x" * 5_000}}], "edges": []},
            r"the name of nodes\[0\] has 5,000",
        ),
        (
            {"nodes": [{"id": str(n)} for n in range(MAX_NODES + 1)], "edges": []},
            "1,001 nodes; the maximum is 1,000",
        ),
    ],
)
def test_invalid_graph_is_rejected_with_the_location(value: Any, reason: str) -> None:
    """The error names the problem, its location and the remedy."""
    with pytest.raises(FlowInputError, match=f"{reason}.*Export it again"):
        FlowGraph.parse(value)


A, B = (
    {"id": "a", "type": "variableNode", "data": {"variable": {"label": "color"}}},
    {"id": "b", "type": "outputNode", "data": {"name": "joke"}},
)
# what is wrong with the picture, in the graph of a variable and an output, and what a warning says of it
UNUSUAL_GRAPHS: dict[str, tuple[Any, str | None]] = {
    "an edge without a target": ({"nodes": [A, B], "edges": [{"source": "a"}]}, None),
    "an edge without a source": ({"nodes": [A, B], "edges": [{"target": "a"}]}, None),
    "an edge to no node": ({"nodes": [A, B], "edges": [{"source": "a", "target": "gone"}]}, None),
    "an edge to null": ({"nodes": [A, B], "edges": [{"source": "a", "target": None}]}, None),
    "an edge to an object": ({"nodes": [A, B], "edges": [{"source": "a", "target": {}}]}, None),
    "an edge that is a text": ({"nodes": [A, B], "edges": ["a"]}, None),
    "an edge with a long end": ({"nodes": [A, B], "edges": [{"source": "a" * 5_000, "target": "b"}]}, None),
    "no edges": ({"nodes": [A, B]}, "no list of edges"),
    "edges that are no list": ({"nodes": [A, B], "edges": {"a": "b"}}, "no list of edges"),
    "too many edges": ({"nodes": [A, B], "edges": [{}] * 10_001}, "10,001 edges"),
    "a doubled id": (
        {"nodes": [A, {**B, "id": "a"}], "edges": []},
        r"nodes\[1\] has the same id as nodes\[0\]",
    ),
    "a doubled node": ({"nodes": [A, B, A], "edges": []}, r"nodes\[2\] has the same id as nodes\[0\]"),
    "no id": ({"nodes": [A, {**B, "id": None}], "edges": []}, r"nodes\[1\] has no id"),
    "an empty id": ({"nodes": [A, {**B, "id": ""}], "edges": []}, r"nodes\[1\] has no id"),
    "an id that is no text": ({"nodes": [A, {**B, "id": True}], "edges": []}, r"nodes\[1\] has no id"),
    "a long id": ({"nodes": [{**A, "id": "a" * 5_000}, B], "edges": []}, None),
    "a long type": ({"nodes": [A, B, {"id": "c", "type": "t" * 5_000}], "edges": []}, None),
    "a long name of an action": (
        {"nodes": [A, B, {"id": "c", "type": "actionNode", "data": {"name": "n" * 5_000}}], "edges": []},
        None,
    ),
    "a long model": (
        {"nodes": [A, B, {"id": "c", "data": {"modelParams": {"model": "m" * 5_000}}}], "edges": []},
        None,
    ),
}


@pytest.mark.parametrize("case", UNUSUAL_GRAPHS)
def test_what_concerns_the_picture_only_never_rejects_a_graph(case: str) -> None:
    """Variables and outputs are read, every node has an id of its own, and the picture can be drawn."""
    value, warning = UNUSUAL_GRAPHS[case]
    graph = FlowGraph.parse(value)
    assert (graph.variables, graph.outputs) == (("color",), ("joke",))
    assert len({node.node_id for node in graph.nodes}) == len(graph.nodes) == len(value["nodes"])
    assert all(graph.nodes[at].node_id for at in range(len(graph.nodes)))
    assert len(graph.warnings) == (0 if warning is None else 1)
    assert all(re.search(str(warning), text) for text in graph.warnings)
    assert to_svg(graph)
    assert to_mermaid(graph)


def test_first_node_of_an_id_has_its_edges() -> None:
    """The nodes with a doubled id get other ids, which no node has, and no edges."""
    graph = graph_of(
        {"id": "a"}, {"id": "a#1"}, {"id": "a"}, {"id": "a"}, edges=[{"source": "a", "target": "a#1"}]
    )
    assert [node.node_id for node in graph.nodes] == ["a", "a#1", "a#2", "a#3"]
    assert graph.edges == (Edge("a", "a#1"),)


@pytest.mark.parametrize(
    "place", [None, 7, [], {}, {"x": None, "y": True}, {"x": "left", "y": [1]}, {"x": 10**400, "y": 1e300}]
)
def test_invalid_positions_are_none(place: Any) -> None:
    """An invalid position is None, and the node remains."""
    (node,) = graph_of(
        {"id": "a", "type": "actionNode", "position": place, "width": [place], "data": place}
    ).nodes
    assert node == Node("a", NodeKind.ACTION, "actionNode", "")


def test_positions_in_the_formats_of_the_editor() -> None:
    """The absolute place wins over the one within a group; a number may be text."""
    inner = {"id": "a", "position": {"x": 1, "y": 2}, "positionAbsolute": {"x": 101, "y": "102.5"}}
    (node,) = graph_of(inner).nodes
    assert (node.x, node.y) == (101, 102.5)


def test_unknown_node_kinds_have_their_type_and_name() -> None:
    """Code, conditions and nodes without a type are part of the graph."""
    graph = graph_of({"id": 1, "type": "codeNode", "data": {"name": "split"}}, {"id": "b", "type": None})
    assert graph.nodes == (Node("1", NodeKind.OTHER, "codeNode", "split"), Node("b", NodeKind.OTHER, "", ""))


def test_dangling_and_duplicate_edges_are_dropped_and_cycles_remain() -> None:
    """An edge to nowhere is dropped, one that is there twice is one, a circle and a loop are no fault."""
    pairs = [("a", "b"), ("b", "a"), ("a", "a"), ("a", "gone"), ("gone", "b"), ("a", "b")]
    graph = graph_of(
        {"id": "a"}, {"id": "b"}, edges=[{"source": source, "target": target} for source, target in pairs]
    )
    assert graph.edges == (Edge("a", "b"), Edge("b", "a"), Edge("a", "a"))


def test_variables_are_unique_and_outputs_are_not() -> None:
    """Variables of the same label are one input; output nodes of the same name are several outputs."""
    graph = graph_of(
        *(
            {"id": f"v{n}", "type": "variableNode", "data": {"variable": {"label": label}}}
            for n, label in enumerate("bab")
        ),
        *({"id": f"o{n}", "type": "outputNode", "data": {"name": name}} for n, name in enumerate("yxy")),
        {"id": "v", "type": "variableNode", "data": {"variable": "c"}},
        {"id": "o", "type": "outputNode", "data": {"name": None}},
    )
    assert graph.variables == ("b", "a")
    assert graph.outputs == ("y", "x", "y")


def test_long_prompt_is_truncated() -> None:
    """The stored part of a prompt is bounded."""
    (node,) = graph_of(
        {"id": "a", "type": "actionNode", "data": {"prompt": "p" * (MAX_PROMPT_LENGTH + 1)}}
    ).nodes
    assert node.prompt == "p" * MAX_PROMPT_LENGTH


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)
SOME_NODE = st.fixed_dictionaries(
    {},
    optional={
        "id": st.sampled_from("abc") | ANYTHING,
        "type": st.sampled_from(["variableNode", "actionNode"]) | ANYTHING,
        "position": st.fixed_dictionaries({"x": ANYTHING}) | ANYTHING,
        "data": st.fixed_dictionaries({"name": ANYTHING, "variable": ANYTHING, "modelParams": ANYTHING})
        | ANYTHING,
    },
)
SOME_EDGE = st.fixed_dictionaries(
    {}, optional={"source": st.sampled_from("abc") | ANYTHING, "target": ANYTHING}
)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    value=ANYTHING
    | st.fixed_dictionaries(
        {
            "nodes": st.lists(SOME_NODE | ANYTHING, max_size=4),
            "edges": st.lists(SOME_EDGE | ANYTHING, max_size=4),
        }
    )
)
def test_any_json_is_parsed_or_rejected(value: Any) -> None:
    """Nothing but FlowInputError comes of a broken graph, and edges of a read one end at its nodes."""
    with contextlib.suppress(FlowInputError):
        graph = FlowGraph.parse(value)
        ids = {node.node_id for node in graph.nodes}
        assert all({edge.source, edge.target} <= ids for edge in graph.edges)
