"""Exported flow graphs in a folder: finding the one of a flow, and reading it.

What a graph holds stands in flow/graph.py; whether one is needed is for definitions.py to say.
"""

from __future__ import annotations

import re

from airflow_provider_flows.core.bounded_json import parse
from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.graph import FlowGraph
from airflow_provider_flows.storage.file_source import shown

LARGEST = 8 * 1024 * 1024  # bytes; the page's sample has 6 KB
BLOCK = 1024 * 1024  # what a file system fetches at a time
_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")  # whatever else it holds would lead somewhere else


def read_graph(folder: str | None, flow: str) -> FlowGraph | None:
    """Read `<flow>.json` as PromptChainer's editor exports it (vendor-api 2.4).

    :param folder: a path or URI that ObjectStoragePath takes, as the connection's field `graphs` has it.
    :returns: None if there is no folder, or no such file in it.
    :raises FlowInputError: the file cannot be read, or is no flow graph; names the file and the field.
    """
    if not folder or not _ID.fullmatch(flow):
        return None
    named = f"{folder.rstrip('/')}/{flow}.json"
    try:
        content = _read(folder, flow)
        return None if content is None else graph_of(content)
    except FlowInputError as error:
        raise _refused(named, str(error)) from None
    except Exception as error:  # noqa: BLE001  # every store's library has errors of its own
        raise _refused(named, f"{type(error).__name__}: {shown(str(error))}", lasting=False) from None


def _read(folder: str, flow: str) -> bytes | None:
    from airflow.sdk import ObjectStoragePath  # heavy, and needed only where the connection names a folder

    try:
        with (ObjectStoragePath(folder) / f"{flow}.json").open("rb", block_size=BLOCK) as file:
            content: bytes = file.read(LARGEST + 1)
    except FileNotFoundError:
        return None
    return content


def graph_of(content: bytes) -> FlowGraph:
    """Read an exported file's content.

    :raises FlowInputError: it is no flow graph, or larger than any.
    """
    if len(content) > LARGEST:
        message = f"It is larger than {LARGEST} bytes, as no flow graph is."
        raise FlowInputError(message)
    try:
        return FlowGraph.read(parse(content))
    except ValueError as error:
        message = f"It is no JSON: {error}. Export it again."
        raise FlowInputError(message) from None


def _refused(named: str, reason: str, *, lasting: bool = True) -> FlowInputError:
    message = f"The flow graph {shown(named)} (field graphs of the connection) cannot be read. {reason}"
    return FlowInputError(message, lasting=lasting)
