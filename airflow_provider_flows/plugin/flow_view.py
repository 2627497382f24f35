"""The flows of a connection: their ids, definitions and exported graphs."""

from __future__ import annotations

from contextlib import closing

from airflow_provider_flows.core.definition import FlowDefinition
from airflow_provider_flows.core.exceptions import FlowError, FlowInputError
from airflow_provider_flows.core.graph import FlowGraph
from airflow_provider_flows.core.retry import NO_RETRY
from airflow_provider_flows.plugin.cache import FINAL_TTL_SECONDS, RESPONSE_CACHE, CachedResponse
from airflow_provider_flows.plugin.run_view import PAGE_TIMEOUT_SECONDS, get_flows_hook

MAX_FLOWS = 500


async def get_flow_ids(conn_id: str) -> CachedResponse[list[str]]:
    """Return the ids of the flows with an exported graph in the connection's folder, and of its test flow."""
    return await RESPONSE_CACHE.get(
        ("flows", conn_id), lambda: _load_flow_ids(conn_id), lambda _: FINAL_TTL_SECONDS
    )


def _load_flow_ids(conn_id: str) -> list[str]:
    extra = get_flows_hook(conn_id).extra
    test_flow = extra.get("test_flow")
    flow_ids = {*_list_exported_flows(extra.get("graphs")), *([test_flow] if test_flow else [])}
    return sorted(flow_ids)[:MAX_FLOWS]


def _list_exported_flows(folder: str | None) -> list[str]:
    if not folder:
        return []
    from airflow.sdk import ObjectStoragePath  # slow to import; most connections have no such folder

    try:
        names = [path.name for path in ObjectStoragePath(folder).iterdir()]
    except Exception as error:
        raise FlowInputError(
            f"The folder of flow graphs {folder!r} cannot be read: {type(error).__name__}. "
            "Check the connection's Flow graphs field."
        ) from error
    return [name.removesuffix(".json") for name in names if name.endswith(".json")]


async def get_definition(conn_id: str, flow: str) -> tuple[FlowDefinition | None, FlowError | None]:
    """Return a flow's definition, None if there is none yet, and the error of the last attempt to load it."""
    response = await RESPONSE_CACHE.get(
        ("definition", conn_id, flow), lambda: _load_definition(conn_id, flow), lambda _: FINAL_TTL_SECONDS
    )
    return response.value, response.error


def _load_definition(conn_id: str, flow: str) -> FlowDefinition:
    with closing(get_flows_hook(conn_id)) as hook:
        return hook.preflight.load_definition(
            flow,
            lambda conversation: hook.run(conversation, retry=NO_RETRY, timeout=PAGE_TIMEOUT_SECONDS),
        )


async def get_graph(conn_id: str | None, flow: str | None) -> FlowGraph | None:
    """Return a flow's exported graph, None if none is configured or it cannot be read."""
    if conn_id is None or not flow:
        return None
    response = await RESPONSE_CACHE.get(
        ("graph", conn_id, flow), lambda: _load_graph(conn_id, flow), lambda _: FINAL_TTL_SECONDS
    )
    return response.value


def _load_graph(conn_id: str, flow: str) -> FlowGraph | None:
    return get_flows_hook(conn_id).get_graph(flow)
