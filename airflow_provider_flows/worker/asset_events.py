"""What the events of a task's outlets tell of its flow run.

That there are events at all, and only of tasks that succeed, is Airflow's doing; which files there are, outputs.py's.
"""

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

MAX_EVENT_FILES = (
    100  # that one event names, or that one alias makes assets of: all of it lies in Airflow's database
)
MAX_EVENT_URI_CHARACTERS = 32 * 1024  # of all URIs in one event
MAX_URI_CHARACTERS = 1500  # characters; Airflow takes no asset with more


def add_asset_event_extra(context: Context, run: FlowRun) -> None:
    """Put into the event of each outlet which flow run it is of; make the files assets where an outlet is an alias.

    An asset's event gets the extra `flow`, `flow_run_id`, `service`, `state`, `uris` and `sizes` (bytes, None where it is not
    known), the last two in the same order, and `more`, how many files are not named there. An alias gets an event for each
    file, whose asset has the file's URI (percent-encoded where it is not ASCII); its extra has `uri`, `size`, `sha256` and
    `media_type` instead of the lists. What the task's author has put into an event stays. Nothing is raised: the flow run is
    paid for, and its outputs are there.
    """
    for outlet in getattr(context.get("task"), "outlets", None) or ():
        try:
            _add_extra(context["outlet_events"][outlet], outlet, run)
        except Exception as error:  # noqa: BLE001  # an outlet of whatever kind, or an asset that Airflow does not take
            log.warning("The event of outlet %r does not tell of the %s: %r", outlet, run, error)


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
    """Give the outputs that are files, as many as one event may name."""
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
    """Give a URI as Airflow takes it for an asset's; with another its server would fail the task, after all is done."""
    return uri if uri.isascii() else quote(uri, safe=printable)
