"""The command that draws the graph of a flow, or of an exported file, as SVG or Mermaid."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from airflow_provider_flows.cli.command import command
from airflow_provider_flows.cli.terminal import echo_err, ignore_broken_pipe, write_out
from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.graph import FlowGraph
from airflow_provider_flows.drawing import to_mermaid, to_svg
from airflow_provider_flows.hooks import FlowsHook
from airflow_provider_flows.storage.graph_files import MAX_GRAPH_BYTES, parse_graph

MERMAID_SUFFIXES = frozenset({".mmd", ".mermaid"})  # of --to


@command
def draw(args: Namespace) -> None:
    """Write the picture to stdout or to a file."""
    graph, to = _get_graph(args), None if args.to is None else Path(args.to).expanduser()
    mermaid = args.format == "mermaid" or (
        args.format is None and to is not None and to.suffix.lower() in MERMAID_SUFFIXES
    )
    picture = (
        to_mermaid(graph)
        if mermaid
        else to_svg(graph, title=Path(args.flow).stem if _is_file(args.flow) else args.flow)
    )
    text = picture if picture.endswith("\n") else f"{picture}\n"
    if to is None:
        with ignore_broken_pipe(sys.stdout):
            write_out(text, errors="xmlcharrefreplace")  # Mermaid's labels are ASCII
        return
    to.write_text(text, encoding="utf-8")
    echo_err(f"Wrote {to}.")


def _get_graph(args: Namespace) -> FlowGraph:
    file = args.file or (args.flow if _is_file(args.flow) else None)
    if file is not None:
        return _load_graph_file(Path(file).expanduser())
    graph = FlowsHook.get_hook(args.conn_id).get_graph(args.flow)
    if graph is None:
        message = (
            f"No flow graph of {args.flow} was found. Export it from PromptChainer's editor and pass "
            f"the file (--file), or store it as {args.flow}.json in the folder that the field graphs of "
            f"connection {args.conn_id!r} names"
        )
        raise FlowInputError(message)
    return graph


def _is_file(flow: str) -> bool:
    return flow.lower().endswith(".json") or "/" in flow


def _load_graph_file(path: Path) -> FlowGraph:
    try:
        with path.open("rb") as file:
            return parse_graph(file.read(MAX_GRAPH_BYTES + 1))
    except OSError as error:
        message = f"The flow graph {path} cannot be read: {error.strerror or error}"
        raise FlowInputError(message) from error
    except FlowInputError as error:
        message = f"{path}: {error}"
        raise FlowInputError(message) from error
