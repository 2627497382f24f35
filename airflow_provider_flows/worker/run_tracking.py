"""Tracking of a task's flow run while the task works: its id and its link in XCom, and OpenLineage."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context

    from airflow_provider_flows.core.flow_run import FlowRun
    from airflow_provider_flows.hooks import FlowsHook

log = logging.getLogger(__name__)

RUN_LINK_KEY = "flow_run_link"
RUN_ID_KEY = "flow_run_id"
# of a task instance; a flow run has them in its stamp
STAMPED_ATTRIBUTES = ("dag_id", "run_id", "task_id", "map_index", "try_number")
NOT_OWN_RUN = (
    "Flow run %s, whose id is in the XCom of this task, is neither fetched nor aborted: %s. If it is active, "
    "it continues, and is billed. Check it at the service"
)


class RunTrackingMixin:
    """A task that has a flow run.

    `flow_run` is the run as last polled, with its outputs once they are fetched; None while there is no run.
    `flow_run_url` is its web address, empty if there is none.
    """

    flow_run: FlowRun | None = None
    flow_run_url: str = ""
    _has_variables = False  # whether the service's inputs are variables

    def get_run_tracker(
        self, context: Context, hook: FlowsHook, flow_run_id: str | None = None
    ) -> Callable[[FlowRun], None]:
        """Return the function to call with the run whenever it has changed.

        :param flow_run_id: the run, if only its id is available yet, as in a task that is resumed after a
            deferral.
        """
        from airflow_provider_flows.core.flow_run import FlowRun  # importing the operators stays cheap

        self._has_variables = hook.service.has_variables

        def on_run_update(run: FlowRun) -> None:
            self.flow_run = run
            url = get_run_url(hook, run)
            if url != self.flow_run_url:
                self.flow_run_url = url
                _push_run_link(context, url)

        if isinstance(flow_run_id, str) and flow_run_id.strip():
            if self.flow_run is None:  # in this process; a sensor in poke mode polls many times in one
                push_run_id(context["ti"], flow_run_id.strip())
            on_run_update(FlowRun(flow_run_id.strip(), hook.service.name, getattr(self, "flow", None)))
        return on_run_update

    def get_openlineage_facets_on_complete(
        self,
        task_instance: Any,  # noqa: ARG002  # the openlineage provider's signature
    ) -> OperatorLineage[Any, Any]:
        """Return the files that the task read and wrote, and its flow run, for OpenLineage."""
        from airflow.providers.common.compat.sdk import redact

        from airflow_provider_flows.core.redaction import redact_parameters
        from airflow_provider_flows.storage.inputs import get_file_uris
        from airflow_provider_flows.worker.lineage import create_lineage  # imports an optional provider

        run, parameters = self.flow_run, getattr(self, "parameters", None)
        if parameters is None and run is not None:
            parameters = run.parameters
        input_uris = get_file_uris(getattr(self, "inputs", None), has_variables=self._has_variables)
        return create_lineage(run, input_uris, redact_parameters(parameters, redact))

    def get_openlineage_facets_on_failure(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Return the same for a task that failed. If it failed before there was a run, it has inputs only."""
        return self.get_openlineage_facets_on_complete(task_instance)


def get_run_url(hook: FlowsHook, run: FlowRun) -> str:
    """Return the web address of a flow run, without sending a request; empty if its service has none."""
    try:
        url = hook.service.run_url(run.flow_run_id, run.flow) or ""
    except Exception as error:  # noqa: BLE001  # a link is not worth a failure
        log.info("The %s has no link: %s", run, error)
        return ""
    if url.startswith(("https://", "http://")):
        return url
    return f"{hook.settings.base_url}{url}" if url.startswith("/") else ""


def push_run_id(ti: Any, flow_run_id: str) -> None:
    """Push the id of a task's flow run to XCom during the wait. Airflow empties XCom when a try starts."""
    try:
        ti.xcom_push(RUN_ID_KEY, flow_run_id)
    except Exception as error:  # noqa: BLE001  # an id in XCom is not worth a paid run
        log.warning("The id of flow run %s could not be pushed to XCom: %r", flow_run_id, error)


def find_pushed_run(ti: Any, hook: FlowsHook) -> str | None:
    """Return the id of the flow run that this try of a task has pushed to XCom, None if there is none.

    Other tasks and users may be able to write XComs. So a run counts only if it has the stamp of this try:
    no other run of the account is fetched or aborted.
    """
    from airflow_provider_flows.core.exceptions import FlowError  # importing the operators stays cheap
    from airflow_provider_flows.core.start_or_resume import get_stamp

    flow_run_id = ti.xcom_pull(ti.task_id, key=RUN_ID_KEY, map_indexes=ti.map_index)
    if not isinstance(flow_run_id, str) or not flow_run_id:
        return None
    try:
        stamp = get_stamp(hook.get_run(flow_run_id))
    except FlowError as error:
        log.warning(NOT_OWN_RUN, flow_run_id, error)
        return None
    if all(name in stamp and stamp[name] == getattr(ti, name) for name in STAMPED_ATTRIBUTES):
        return flow_run_id
    log.warning(NOT_OWN_RUN, flow_run_id, "it does not have the stamp of this try")
    return None


def _push_run_link(context: Context, url: str) -> None:
    """Push the run's link during the wait. When the task ends, Airflow does it anyway."""
    try:
        context["ti"].xcom_push(RUN_LINK_KEY, url)
    except Exception as error:  # noqa: BLE001  # a link is not worth a failure
        log.warning("The link to the flow run could not be pushed to XCom: %r", error)
