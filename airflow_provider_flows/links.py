"""The links on a task instance: its flow run at the service, and its output files where their store has a web address.

Airflow asks for them in the worker, after each run of the task, and keeps them as XComs; what a task knows of its run stands in
traced.py, which address a run has is for flow/services to say.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.sdk.types import TaskInstanceKey

    from airflow_provider_flows.core.run import FlowRun
    from airflow_provider_flows.hooks import FlowsHook

log = logging.getLogger(__name__)

RUN_LINK_KEY = "flow_run_link"
OUTPUTS_LINK_KEY = "flow_outputs_link"


class FlowRunLink(BaseOperatorLink):
    """The flow run at the service; Generio documents no console, so there it is the API's address, which wants the API token."""

    name = "Flow run"

    @property
    def xcom_key(self) -> str:
        """The XCom that is pushed as soon as the run is known, so that the link is there while it is waited for."""
        return RUN_LINK_KEY

    def get_link(self, operator: Any, *, ti_key: TaskInstanceKey) -> str:  # noqa: ARG002  # the signature is Airflow's
        """Give the address, empty while no run is known or where the service has none."""
        return str(getattr(operator, "flow_run_url", ""))


class FlowOutputsLink(BaseOperatorLink):
    """The output file, or the folder of several, in the console of their store."""

    name = "Outputs"

    @property
    def xcom_key(self) -> str:
        """The XCom that holds it."""
        return OUTPUTS_LINK_KEY

    def get_link(self, operator: Any, *, ti_key: TaskInstanceKey) -> str:  # noqa: ARG002  # the signature is Airflow's
        """Give the address, empty while there are no files or where their store has none."""
        from airflow_provider_flows.storage.paths import console_url  # needed when a task runs only

        run = getattr(operator, "flow_run", None)
        uris = [output.uri for output in run.outputs if output.uri is not None] if run is not None else []
        return console_url(uris, _s3_endpoint_url(uris, getattr(operator, "output_conn_id", None))) or ""


def get_run_url(hook: FlowsHook, run: FlowRun) -> str:
    """Give the web address of a flow run, empty where its service has none for it; nothing is asked."""
    try:
        url = hook.service.run_url(run.flow_run_id, run.flow) or ""
    except Exception as error:  # noqa: BLE001  # an address is not worth the failure of a run that is paid for
        log.info("The address of the %s could not be told: %s", run, error)
        return ""
    if url.startswith(("https://", "http://")):
        return url
    return f"{hook.settings.base_url}{url}" if url.startswith("/") else ""


def _s3_endpoint_url(uris: list[str], conn_id: str | None) -> str | None:
    """Give what the S3 client speaks to that has written these files, which may be a store of somebody else's."""
    if not uris or not uris[0].startswith("s3"):
        return None
    from airflow.sdk import ObjectStoragePath

    try:
        return str(ObjectStoragePath(uris[0], conn_id=conn_id).fs.s3.meta.endpoint_url)
    except Exception as error:  # noqa: BLE001  # whatever the store's library raises, a link is not worth a failure
        log.info("Where %s lies could not be found out (%s)", uris[0], type(error).__name__)
        return "unknown"
