"""The metadata about a flow run in the asset events of its task's outlets."""

from __future__ import annotations

import logging
from string import printable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.sdk import Asset, AssetAlias

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_flows.core.run import FlowOutput, FlowRun

log = logging.getLogger(__name__)

MAX_EVENT_FILES = 100  # in one event, or as assets of one alias; all of them are stored in Airflow's database
MAX_EVENT_URI_CHARACTERS = 32 * 1024  # of all URIs in one event
MAX_URI_CHARACTERS = 1500  # Airflow's limit for an asset's URI


def add_asset_event_extra(context: Context, run: FlowRun) -> None:
    """Add the flow run to the asset event of each outlet, and create assets for the aliases among them.

    An asset's event gets the extra `flow`, `flow_run_id`, `service` and `state`, the lists `uris` and `sizes`
    (bytes, or None if unknown) in the same order, and `more`, the number of files that are not in these
    lists. An alias gets one event for each file. Its asset has the file's URI, percent-encoded unless it is
    ASCII, and its extra has `uri`, `size`, `sha256` and `media_type` instead of the lists. An extra that the
    task's author has set takes precedence.

    Errors are logged and not raised, because the flow run is paid for and its outputs are stored.
    """
    for outlet in getattr(context.get("task"), "outlets", None) or ():
        try:
            _add_extra(context["outlet_events"][outlet], outlet, run)
        except Exception as error:  # noqa: BLE001  # an outlet may be of any type
            log.warning("The event of outlet %r has no metadata about the %s: %r", outlet, run, error)


def _add_extra(event: Any, outlet: Any, run: FlowRun) -> None:
    run_extra = {
        "flow": run.flow,
        "flow_run_id": run.flow_run_id,
        "service": run.service,
        "state": run.state.value,
    }
    files = _event_files(run)
    if not isinstance(outlet, AssetAlias):
        files_extra = {"uris": [file.uri for file in files], "sizes": [file.size for file in files]}
        more = sum(output.uri is not None for output in run.outputs) - len(files)
        event.extra = {**run_extra, **files_extra, **({"more": more} if more else {}), **event.extra}
        return
    for file in files:
        file_extra = {
            "uri": file.uri,
            "size": file.size,
            "sha256": file.sha256,
            "media_type": file.media_type,
        }
        event.add(Asset(_to_ascii(str(file.uri))), extra={**run_extra, **file_extra})


def _event_files(run: FlowRun) -> list[FlowOutput]:
    """Return the outputs that are files, at most as many as fit into one event."""
    files: list[FlowOutput] = []
    remaining = MAX_EVENT_URI_CHARACTERS
    for output in run.outputs:
        remaining -= len(output.uri or "")
        if output.uri is None or len(_to_ascii(output.uri)) > MAX_URI_CHARACTERS:
            continue
        if remaining < 0 or len(files) == MAX_EVENT_FILES:
            break
        files.append(output)
    return files


def _to_ascii(uri: str) -> str:
    """Return a URI that Airflow accepts for an asset: at its end, a task with another one would fail."""
    return uri if uri.isascii() else quote(uri, safe=printable)
