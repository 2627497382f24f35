"""What a task knows of its flow run beside its result, and shows: links on the task instance, lineage, the run's id in XCom.

The operator and the sensor share it; how the links are made stands in links.py, how the lineage in lineage.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.links import RUN_LINK_KEY, FlowOutputsLink, FlowRunLink, get_run_url

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import BaseOperatorLink, Context

    from airflow_provider_flows.core.run import FlowRun
    from airflow_provider_flows.hooks import FlowsHook

log = logging.getLogger(__name__)


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

        return get_lineage(self.flow_run, getattr(self, "inputs", None), getattr(self, "parameters", None))

    def get_openlineage_facets_on_failure(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Give the same of a task that failed: what it was to work on, and what is known of the run."""
        return self.get_openlineage_facets_on_complete(task_instance)


def _push_run_link(context: Context, url: str) -> None:
    """Push the run's link while the run is waited for; at the end Airflow does it anyway."""
    try:
        context["ti"].xcom_push(RUN_LINK_KEY, url)
    except Exception as error:  # noqa: BLE001  # whatever the XCom backend raises, a link is not worth a run that is paid for
        log.warning("The link to the flow run could not be pushed: %r", error)
