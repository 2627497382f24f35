"""PromptChainer's flow graphs: parsing, evaluation, and the fake models that text and image nodes use."""

from __future__ import annotations

import io
import json
import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from importlib import resources
from typing import Any

from airflow_provider_flows.emulator.colours import digest, get_colour

# Returns a model's result for a node and its prompt; None means that the model failed.
Model = Callable[["PromptNode", str], str | None]
PLACEHOLDER = re.compile(r"\{([^{}]+)\}")
IMAGE_SIDE_PIXELS = 512
TEXT_TEMPLATES = (
    "You asked for this: {prompt}. Here it is, as well as an emulator can write it.",
    "Once upon a time there was a prompt: {prompt}. And so it was written.",
    "About '{prompt}' an emulator knows one thing for sure: that it was asked for it.",
)


@dataclass(frozen=True)
class PromptNode:
    """One node of a graph."""

    node_id: str
    kind: str
    name: str
    prompt: str = ""
    model: str = ""


@dataclass(frozen=True)
class GraphOutput:
    """The values of one output node by upstream node id, in the order of the edges."""

    name: str
    values: dict[str, str | None]


@dataclass(frozen=True)
class PromptGraph:
    """A flow as PromptChainer's editor exports it (vendor_notes.md, 2.4).

    `edges` are pairs of source and target; `order` has the node ids in order of evaluation.
    """

    source: dict[str, Any] = field(repr=False)
    nodes: dict[str, PromptNode]
    edges: tuple[tuple[str, str], ...]
    order: tuple[str, ...]

    @classmethod
    def parse(cls, source: dict[str, Any]) -> PromptGraph:
        """Parse an exported graph.

        :raises ValueError: it is not a flow graph.
        """
        try:
            nodes = {item["id"]: _parse_prompt_node(item) for item in source["nodes"]}
            edges = tuple((edge["source"], edge["target"]) for edge in source["edges"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"Not a flow graph; this is missing or of the wrong type: {error}") from error
        unknown = {end for edge in edges for end in edge if end not in nodes}
        if unknown:
            raise ValueError(f"The graph has edges to nodes that are not there: {', '.join(sorted(unknown))}")
        sorter = TopologicalSorter({node: [start for start, end in edges if end == node] for node in nodes})
        try:
            order = tuple(sorter.static_order())
        except CycleError as error:
            raise ValueError(f"The graph runs in a circle: {' -> '.join(error.args[1])}") from error
        return cls(source, nodes, edges, order)

    @property
    def variables(self) -> list[str]:
        """The labels of the variables, in node order."""
        return [node.name for node in self.nodes.values() if node.kind == "variableNode"]

    @property
    def outputs(self) -> list[str]:
        """The names of the outputs, in node order."""
        return [node.name for node in self.nodes.values() if node.kind == "outputNode"]

    def evaluate(self, variables: Mapping[str, str], model: Model) -> list[GraphOutput]:
        """Evaluate the graph, and return its outputs in node order.

        :param model: called once for each text or image node, after all nodes that its prompt refers to.
        """
        values: dict[str, str | None] = {}
        for node_id in self.order:
            node = self.nodes[node_id]
            if node.kind == "variableNode":
                values[node_id] = variables.get(node.name, "")
            elif node.kind in {"actionNode", "imageNode"}:
                values[node_id] = model(node, self._fill_prompt(node, values))
            else:
                # Conditions and code are not emulated: their result is empty.
                values[node_id] = ""
        return [
            GraphOutput(node.name, {start: values[start] for start in self._get_sources(node.node_id)})
            for node in self.nodes.values()
            if node.kind == "outputNode"
        ]

    def _get_sources(self, node_id: str) -> list[str]:
        return [start for start, end in self.edges if end == node_id]

    def _fill_prompt(self, node: PromptNode, values: Mapping[str, str | None]) -> str:
        """Return the prompt with the upstream nodes' values; other placeholders remain as they are."""
        known = {self.nodes[start].name: values[start] or "" for start in self._get_sources(node.node_id)}
        return PLACEHOLDER.sub(lambda match: known.get(match[1], match[0]), node.prompt)


def sample_graphs() -> dict[str, PromptGraph]:
    """Return the flows that are part of the emulator, by id."""
    folder = resources.files("airflow_provider_flows.emulator") / "graphs"
    return {
        item.name.removesuffix(".json"): PromptGraph.parse(json.loads(item.read_text(encoding="utf-8")))
        for item in folder.iterdir()
        if item.name.endswith(".json")
    }


def create_text(prompt: str) -> str:
    """Return a text that contains the prompt, always the same for the same prompt."""
    return TEXT_TEMPLATES[digest(prompt)[0] % len(TEXT_TEMPLATES)].format(prompt=prompt)


def create_image(prompt: str) -> bytes:
    """Return a PNG with the prompt and shapes in its colour, always the same for the same prompt."""
    from PIL import Image, ImageDraw, ImageFont

    side = IMAGE_SIDE_PIXELS
    colour = get_colour(prompt)
    numbers = digest("picture", prompt)
    image = Image.new("RGB", (side, side), tuple((part + 3 * 255) // 4 for part in colour))
    draw = ImageDraw.Draw(image)
    for number in range(3):
        across, down, size = (part * side // 256 for part in numbers[3 * number : 3 * number + 3])
        reach = 60 + size // 4
        shade = tuple(part * (4 - number) // 4 for part in colour)
        box = (across - reach, down - reach, across + reach, down + reach)
        (draw.ellipse if numbers[9 + number] % 2 else draw.rectangle)(box, fill=shade)
    centre = (side // 4, side // 5, side * 3 // 4, side * 7 // 10)
    draw.ellipse(centre, fill=colour, outline="white", width=4)
    caption = "\n".join(textwrap.wrap(prompt, 38)[:4])
    font = ImageFont.load_default(22)
    draw.rectangle((0, side - 116, side, side), fill="white")
    draw.multiline_text((16, side - 106), caption, fill="black", font=font)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _parse_prompt_node(item: dict[str, Any]) -> PromptNode:
    data = item["data"]
    name = data["variable"]["label"] if item["type"] == "variableNode" else data.get("name", "")
    if item["type"] == "outputNode" and not name:
        raise KeyError("the name of an output node")
    parameters = data.get("modelParams") or {}
    return PromptNode(item["id"], item["type"], name, data.get("prompt", ""), parameters.get("model", ""))
