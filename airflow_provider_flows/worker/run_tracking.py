"""What a task knows of its flow run beside its result, and shows: links on the task instance, lineage, the run's id in XCom.

The operator and the sensor share it; how the links are made stands in links.py, how the lineage in lineage.py.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.links import RUN_LINK_KEY, FlowOutputsLink, FlowRunLink, get_run_url

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import BaseOperatorLink, Context

    from airflow_provider_flows.core.run import FlowRun
    from airflow_provider_flows.hooks import FlowsHook

log = logging.getLogger(__name__)

MAX_PARAMETERS = 100
MAX_REDACTED_BYTES = (
    8 * 1024
)  # of all parameters together, and of all inputs' names; what is told is kept by whoever collects it
MAX_REDACTION_DEPTH = 20  # levels at which secrets are looked for, as the openlineage provider does


class RunTrackingMixin:
    """A task that has a flow run."""

    operator_extra_links: Collection[BaseOperatorLink] = (FlowRunLink(), FlowOutputsLink())

    flow_run: FlowRun | None = None  # as it was seen last, with its outputs once they are fetched
    flow_run_url: str = ""

    def get_run_tracker(
        self, context: Context, hook: FlowsHook, flow_run_id: str | None = None
    ) -> Callable[[FlowRun], None]:
        """Give the function that is told of the run whenever more of it is known.

        :param flow_run_id: the run, if nothing but its id is known yet; an object that goes on after a deferral knows no more.
        """
        from airflow_provider_flows.core.run import FlowRun  # needed when a task runs only

        def on_run_update(run: FlowRun) -> None:
            self.flow_run = run
            url = get_run_url(hook, run)
            if url != self.flow_run_url:
                self.flow_run_url = url
                _push_run_link(context, url)

        if isinstance(flow_run_id, str) and flow_run_id.strip():
            on_run_update(FlowRun(flow_run_id.strip(), hook.service.name, getattr(self, "flow", None)))
        return on_run_update

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:  # noqa: ARG002  # Airflow's signature
        """Give inputs and outputs as datasets, and the facet of the flow run; the openlineage provider asks for it."""
        from airflow_provider_flows.worker.lineage import (
            get_lineage,
        )  # imports that provider, which may not be installed

        return get_lineage(self)

    def get_openlineage_facets_on_failure(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Give the same of a task that failed: what it was to work on, and what is known of the run."""
        return self.get_openlineage_facets_on_complete(task_instance)


def _push_run_link(context: Context, url: str) -> None:
    """Push the run's link while the run is waited for; at the end Airflow does it anyway."""
    try:
        context["ti"].xcom_push(RUN_LINK_KEY, url)
    except Exception as error:  # noqa: BLE001  # whatever the XCom backend raises, a link is not worth a run that is paid for
        log.warning("The link to the flow run could not be pushed: %r", error)


def redact_parameters(parameters: Any) -> dict[str, Any]:
    """Give parameters as they may be told: without secrets, and without the largest where they are too large together.

    A signed URL among them loses its query: only the request itself needs it whole. What Airflow keeps by itself of a task's
    templated arguments it masks by the names of keys alone, and by the signatures that read_order has told it of.
    """
    from airflow.providers.common.compat.sdk import redact

    if not isinstance(parameters, Mapping):
        return {}
    first = dict(list(parameters.items())[:MAX_PARAMETERS])
    try:
        plain: dict[str, Any] = _strip_signatures(
            json.loads(json.dumps(redact(first, max_depth=MAX_REDACTION_DEPTH), default=str, skipkeys=True))
        )
    except (ValueError, RecursionError):  # they hold themselves; no run is started with such
        return {}
    sizes = {name: len(json.dumps(value)) for name, value in plain.items()}
    for name in sorted(sizes, key=sizes.__getitem__, reverse=True):
        if sum(sizes.values()) + sum(map(len, sizes)) <= MAX_REDACTED_BYTES:
            break
        plain[name] = f"left out: {sizes[name]} bytes"
        sizes[name] = len(plain[name])
    return plain


def _strip_signatures(value: Any) -> Any:
    """Give plain JSON values without the signatures of the URLs in their texts."""
    from airflow_provider_flows.core.signed_urls import strip_signatures  # needed when a task runs only

    if isinstance(value, dict):
        return {key: _strip_signatures(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_strip_signatures(each) for each in value]
    return strip_signatures(value) if isinstance(value, str) else value


def redacted_uris(inputs: Any) -> list[str]:
    """Give the URIs of the files among inputs as they may be told: without secrets, and as many as fit."""
    from airflow_provider_flows.storage.inputs import get_file_uris
    from airflow_provider_flows.storage.paths import redact_path

    uris, remaining = list[str](), MAX_REDACTED_BYTES
    for uri in map(redact_path, get_file_uris(inputs)):
        remaining -= len(uri)
        if remaining < 0:
            break
        uris.append(uri)
    return uris
