"""Exported flow graphs in a folder: finding the one of a flow, and reading it.

What a graph holds stands in flow/graph.py; whether one is needed is for definitions.py to say.
"""

from __future__ import annotations

import re

from airflow_provider_flows.core.bounded_json import parse_bounded_json
from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.graph import FlowGraph
from airflow_provider_flows.storage.paths import redact_path

MAX_GRAPH_BYTES = 8 * 1024 * 1024  # bytes; the page's sample has 6 KB
GRAPH_BLOCK_BYTES = 1024 * 1024  # what a file system fetches at a time
_SAFE_FLOW_ID = re.compile(
    r"[A-Za-z0-9_-][A-Za-z0-9._-]*"
)  # whatever else it holds would lead somewhere else


def load_graph(folder: str | None, flow: str) -> FlowGraph | None:
    """Read `<flow>.json` as PromptChainer's editor exports it (vendor-api 2.4).

    :param folder: a path or URI that ObjectStoragePath takes, as the connection's field `graphs` has it.
    :returns: None if there is no folder, or no such file in it.
    :raises FlowInputError: the file cannot be read, or is no flow graph; names the file and the field.
    """
    if not folder or not _SAFE_FLOW_ID.fullmatch(flow):
        return None
    location = f"{folder.rstrip('/')}/{flow}.json"
    try:
        content = _load_content(folder, flow)
        return None if content is None else parse_graph(content)
    except FlowInputError as error:
        raise _unreadable_graph_error(location, str(error)) from None
    except Exception as error:  # noqa: BLE001  # every store's library has errors of its own
        raise _unreadable_graph_error(
            location, f"{type(error).__name__}: {redact_path(str(error))}", is_permanent=False
        ) from None


def _load_content(folder: str, flow: str) -> bytes | None:
    from airflow.sdk import ObjectStoragePath  # heavy, and needed only where the connection names a folder

    try:
        with (ObjectStoragePath(folder) / f"{flow}.json").open("rb", block_size=GRAPH_BLOCK_BYTES) as file:
            content: bytes = file.read(MAX_GRAPH_BYTES + 1)
    except FileNotFoundError:
        return None
    return content


def parse_graph(content: bytes) -> FlowGraph:
    """Read an exported file's content.

    :raises FlowInputError: it is no flow graph, or larger than any.
    """
    if len(content) > MAX_GRAPH_BYTES:
        message = f"It is larger than {MAX_GRAPH_BYTES} bytes, as no flow graph is."
        raise FlowInputError(message)
    try:
        return FlowGraph.parse(parse_bounded_json(content))
    except ValueError as error:
        message = f"It is no JSON: {error}. Export it again."
        raise FlowInputError(message) from None


def _unreadable_graph_error(location: str, reason: str, *, is_permanent: bool = True) -> FlowInputError:
    message = (
        f"The flow graph {redact_path(location)} (field graphs of the connection) cannot be read. {reason}"
    )
    return FlowInputError(message, is_permanent=is_permanent)
