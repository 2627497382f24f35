"""Reader of exported PromptChainer flow graphs in a folder, named `<flow>.json`."""

from __future__ import annotations

import logging
import re
from contextlib import suppress

from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.graph import FlowGraph
from airflow_provider_flows.core.redaction import redact_path, redact_text
from airflow_provider_flows.core.responses import parse_bounded_json
from airflow_provider_flows.storage.paths import explain_store_error, to_object_path

log = logging.getLogger(__name__)

MAX_GRAPH_BYTES = 8 * 1024 * 1024  # the vendor's sample has 6 KB
GRAPH_BLOCK_BYTES = 1024 * 1024  # read from an object store at a time
MAX_LOGGED_WARNINGS = 10
_SAFE_FLOW_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")  # cannot refer to another folder


def load_graph(folder: str | None, flow: str, conn_id: str) -> FlowGraph | None:
    """Load the graph of a flow from its exported file (vendor_notes.md, 2.4).

    :param folder: a path or URI for ObjectStoragePath, from the connection's field `graphs`.
    :param conn_id: the id of that connection, for messages.
    :returns: None if there is no folder, or no such file in it.
    :raises FlowInputError: the file cannot be read, or is not a flow graph; the message names the file.
    """
    if not folder or not _SAFE_FLOW_ID.fullmatch(flow):
        return None
    location = f"{folder.rstrip('/')}/{flow}.json"
    try:
        content = _load_content(folder, flow)
        if content is None:
            _warn_about_missing_folder(folder, flow)
            return None
        graph = parse_graph(content)
    except FlowInputError as error:
        raise _unreadable_graph_error(location, conn_id, str(error)) from None
    except Exception as error:  # noqa: BLE001  # each object store's library raises its own exceptions
        raise _unreadable_graph_error(
            location, conn_id, redact_text(explain_store_error(folder, error)), is_permanent=False
        ) from None
    for warning in graph.warnings[:MAX_LOGGED_WARNINGS]:
        log.warning(
            "The flow graph %s is unusual: %s. Its variables and outputs are used as they are",
            redact_path(location),
            warning,
        )
    return graph


def _warn_about_missing_folder(folder: str, flow: str) -> None:
    with suppress(Exception):  # any error of a store: that of a missing file says nothing about the folder
        if to_object_path(folder).exists():
            return
        log.warning(
            "The folder %s of flow graphs does not exist, so there is no graph of flow %s. Correct the field "
            "graphs in the extra of the connection",
            redact_path(folder),
            flow,
        )


def _load_content(folder: str, flow: str) -> bytes | None:
    try:
        with (to_object_path(folder) / f"{flow}.json").open("rb", block_size=GRAPH_BLOCK_BYTES) as file:
            content: bytes = file.read(MAX_GRAPH_BYTES + 1)
    except FileNotFoundError:
        return None
    return content


def parse_graph(content: bytes) -> FlowGraph:
    """Parse the content of an exported file.

    :raises FlowInputError: the content is not a flow graph, or is larger than MAX_GRAPH_BYTES.
    """
    if len(content) > MAX_GRAPH_BYTES:
        message = f"The file is larger than the maximum of {MAX_GRAPH_BYTES} bytes."
        raise FlowInputError(message)
    try:
        return FlowGraph.parse(parse_bounded_json(content))
    except ValueError as error:
        message = f"The file is not JSON: {error}. Export the flow graph again."
        raise FlowInputError(message) from None


def _unreadable_graph_error(
    location: str, conn_id: str, reason: str, *, is_permanent: bool = True
) -> FlowInputError:
    message = (
        f"The flow graph {redact_path(location)} (field graphs of connection {conn_id!r}) cannot be read. "
        f"{reason}"
    )
    return FlowInputError(message, is_permanent=is_permanent)
