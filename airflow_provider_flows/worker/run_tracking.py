"""Tracking of a task's flow run while the task works: its id and its links in XCom, and OpenLineage.

Each XCom is a request to Airflow's API server. By itself Airflow pushes every link of a task after each part
of a try. The plugin instead computes the links of the package's own operators when the UI asks for them. Only
what it cannot know is pushed, once: the page of a run at a service that has such pages, the console of a
storage, and the links of subclasses in other packages, for which Airflow does not ask a plugin.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.providers.common.compat.sdk import BaseOperatorLink, conf

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context
    from airflow.sdk.types import TaskInstanceKey

    from airflow_provider_flows.core.flow_run import FlowRun
    from airflow_provider_flows.hooks import FlowsHook

log = logging.getLogger(__name__)

PACKAGE = "airflow_provider_flows"
PAGES_PREFIX = "/flows"  # of the plugin's pages (`plugin.PREFIX`), below Airflow's own address
RUN_LINK_KEY = "flow_run_link"
OUTPUTS_LINK_KEY = "flow_outputs_link"
RUN_ID_KEY = "flow_run_id"
# of a task instance; a flow run has them in its stamp, and its region if it is in one
STAMPED_ATTRIBUTES = ("dag_id", "run_id", "task_id", "map_index", "try_number")
REPLACED_RUN = "The %s of an iteration that a Clear has replaced with this one was %s"
WITHOUT_REGION: dict[str, Any] = {"region_id": None, "region_index": None}
NOT_OWN_RUN = (
    "Flow run %s, whose id is in the XCom of this task, is neither fetched nor aborted: %s. If it is active, "
    "it continues, and is billed. Check it at the service"
)


class RunTrackingMixin:
    """A task that has a flow run.

    `flow_run` is the run as last polled, with its outputs once they are fetched; None while there is no run.
    `flow_run_url` is the link to it, as far as the plugin does not compute it; empty otherwise.
    """

    flow_run: FlowRun | None = None
    flow_run_url: str = ""
    _has_variables = False  # whether the service's inputs are variables
    operator_extra_links: Collection[BaseOperatorLink] = ()

    def get_run_tracker(
        self,
        context: Context,
        hook: FlowsHook,
        flow_run_id: str | None = None,
        *,
        after_deferral: bool = False,
    ) -> Callable[[FlowRun], None]:
        """Return the function to call with the run whenever it has changed.

        :param flow_run_id: the run, if only its id is available yet, as in a task that is resumed after a
            deferral.
        :param after_deferral: whether the task was deferred. What it pushed before that is still in XCom,
            unlike after a reschedule.
        """
        from airflow_provider_flows.core.flow_run import FlowRun  # importing the operators stays cheap

        self._has_variables = hook.service.has_variables
        ti: Any = context["ti"]
        self._select_pushed_links(has_unserved_files=False)

        def on_run_update(run: FlowRun) -> None:
            self.flow_run = run
            url = self._get_pushed_run_url(hook, run, ti)
            if url != self.flow_run_url:
                self.flow_run_url = url
                _push_run_link(ti, url)
            self._select_pushed_links(has_unserved_files=self._has_unserved_files(run))

        if isinstance(flow_run_id, str) and flow_run_id.strip():
            run = FlowRun(flow_run_id.strip(), hook.service.name, getattr(self, "flow", None))
            if after_deferral:
                self.flow_run_url = self._get_pushed_run_url(hook, run, ti)
            elif self.flow_run is None:  # in this process; a sensor in poke mode polls many times in one
                push_run_id(ti, run.flow_run_id)
            on_run_update(run)
        return on_run_update

    def _get_pushed_run_url(self, hook: FlowsHook, run: FlowRun, ti: TaskInstanceKey) -> str:
        """Return the link to a run; empty if the plugin computes it."""
        return get_run_url(hook, run) or ("" if has_served_links(type(self)) else get_page_url(ti))

    def _has_unserved_files(self, run: FlowRun) -> bool:
        """Return whether the link to a run's files cannot be computed by the plugin."""
        from airflow_provider_flows.storage.paths import (
            may_have_console,
        )  # importing the operators stays cheap

        uris = [output.uri for output in run.outputs if output.uri is not None]
        return bool(uris) and (not has_served_links(type(self)) or may_have_console(uris))

    def _select_pushed_links(self, *, has_unserved_files: bool) -> None:
        """Choose the links that Airflow pushes when this part of the try ends."""
        links: Any = type(self).operator_extra_links
        if not isinstance(links, property):  # a subclass may compute them
            omitted = {RUN_LINK_KEY} if has_unserved_files else {RUN_LINK_KEY, OUTPUTS_LINK_KEY}
            self.operator_extra_links = tuple(link for link in links if link.xcom_key not in omitted)

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


def has_served_links(operator_class: type) -> bool:
    """Return whether the plugin computes the links of an operator: it is one of this package."""
    return operator_class.__module__.partition(".")[0] == PACKAGE


def get_page_url(key: TaskInstanceKey, region: Mapping[str, Any] | None = None) -> str:
    """Return the address of the page with a task instance's flow run, which the plugin serves.

    Without a configured address of Airflow it is a path.

    :param region: the task instance's region, if the key does not have it (`get_region`).
    """
    from airflow_provider_flows.compat import get_region  # importing the operators stays cheap

    region = get_region(key) if region is None else region
    base_url = conf.get("api", "base_url", fallback=None) or ""
    index = f"{region['region_index']}@{region['region_id']}" if region else str(key.map_index)
    parts = (key.dag_id, key.run_id, key.task_id, index)
    return "/".join((base_url.rstrip("/") + PAGES_PREFIX, "task", *(quote(part, safe="@") for part in parts)))


def get_run_url(hook: FlowsHook, run: FlowRun) -> str:
    """Return the address of a flow run's page at its service; empty if the service has no such pages.

    No request is sent.
    """
    try:
        url = hook.service.run_url(run.flow_run_id, run.flow) or ""
    except Exception as error:  # noqa: BLE001  # a link is not worth a failure
        log.info("The %s has no link: %s", run, error)
        return ""
    return url if url.startswith(("https://", "http://")) else ""


def get_own_stamp(ti: Any) -> dict[str, Any]:
    """Return what the stamp of a flow run says about the try that starts it; None stands for no region."""
    from airflow_provider_flows.compat import get_region  # importing the operators stays cheap

    return {name: getattr(ti, name) for name in STAMPED_ATTRIBUTES} | WITHOUT_REGION | get_region(ti)


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
    from airflow_provider_flows.core.start_or_resume import has_stamp

    flow_run_id = ti.xcom_pull(ti.task_id, key=RUN_ID_KEY, map_indexes=ti.map_index)
    if not isinstance(flow_run_id, str) or not flow_run_id:
        return None
    try:
        is_own_run = has_stamp(hook.get_run(flow_run_id), get_own_stamp(ti))
    except FlowError as error:
        log.warning(NOT_OWN_RUN, flow_run_id, error)
        return None
    if is_own_run:
        return flow_run_id
    log.warning(NOT_OWN_RUN, flow_run_id, "it does not have the stamp of this try")
    return None


def abort_replaced_runs(context: Context, hook: FlowsHook) -> None:
    """Abort the flow runs of the iterations of a task loop that this one replaces after a Clear. Never fails.

    The Clear of an iteration ends the later ones, and their tasks have no next try that aborts their runs.
    Airflow starts these iterations again in another region.
    """
    from airflow_provider_flows.core.exceptions import FlowError  # importing the operators stays cheap
    from airflow_provider_flows.core.flow_run import FlowState

    ti: Any = context["ti"]
    was_cleared = bool(getattr(context.get("dag_run"), "clear_number", 0))
    if not (was_cleared and "loop" in context and ti.try_number <= 1 and ti.map_index < 0):
        return
    if not (hook.service.staged_start and hook.service.supports("list_runs")):
        return
    try:
        for state in (FlowState.CREATED, FlowState.STARTING, FlowState.RUNNING):
            for run in hook.run(hook.service.list_runs(state)):
                if _is_replaced(run, ti):
                    outcome = "aborted" if hook.abort(run.flow_run_id) else "final already"
                    log.info(REPLACED_RUN, run, outcome)
    except FlowError as error:
        log.warning("Whether a Clear has replaced iterations with active flow runs is unknown: %s", error)


def _is_replaced(run: FlowRun, ti: Any) -> bool:
    """Return whether a flow run is of the same task, in this iteration or a later one of another region."""
    from airflow_provider_flows.compat import get_region  # importing the operators stays cheap
    from airflow_provider_flows.core.start_or_resume import get_stamp

    stamp = get_stamp(run)
    if any(stamp.get(name) != getattr(ti, name) for name in STAMPED_ATTRIBUTES if name != "try_number"):
        return False
    region_id, region_index = stamp.get("region_id"), stamp.get("region_index")
    is_other_region = isinstance(region_id, str) and region_id != get_region(ti).get("region_id")
    return is_other_region and isinstance(region_index, int) and region_index >= ti.region_index


def _push_run_link(ti: TaskInstanceKey, url: str) -> None:
    """Push the run's link during the wait, as Airflow pushes links: past the XCom backend.

    The UI reads a link from Airflow's database. A backend may have put it elsewhere.
    """
    try:
        from airflow.sdk.execution_time.xcom import XCom  # slow to import

        key = {name: getattr(ti, name) for name in ("dag_id", "run_id", "task_id", "map_index")}
        XCom._set_xcom_in_db(key=RUN_LINK_KEY, value=url, **key)  # noqa: SLF001  # there is no public way
    except Exception as error:  # noqa: BLE001  # a link is not worth a failure
        log.warning("The link to the flow run could not be pushed to XCom: %r", error)
