"""The links on a task instance in Airflow's UI: its flow run at the service, and its output files.

Airflow evaluates them in the worker after each try of a task, and stores them as XComs.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperatorLink

from airflow_provider_flows.worker.run_tracking import RUN_LINK_KEY

if TYPE_CHECKING:
    from airflow.sdk.types import TaskInstanceKey

log = logging.getLogger(__name__)

OUTPUTS_LINK_KEY = "flow_outputs_link"


class FlowRunLink(BaseOperatorLink):
    """The flow run at the service.

    Generio documents no console, so its link is the URL of the API, which needs the API token.
    """

    name = "Flow run"

    @property
    def xcom_key(self) -> str:
        """The XCom of the link, which the task pushes as soon as it has its run."""
        return RUN_LINK_KEY

    def get_link(self, operator: Any, *, ti_key: TaskInstanceKey) -> str:  # noqa: ARG002  # Airflow's signature
        """Return the URL; empty without a run, or if its service has no address for it."""
        return str(getattr(operator, "flow_run_url", ""))


class FlowOutputsLink(BaseOperatorLink):
    """The output file, or the folder of several, in the console of its storage."""

    name = "Outputs"

    @property
    def xcom_key(self) -> str:
        """The XCom of the link."""
        return OUTPUTS_LINK_KEY

    def get_link(self, operator: Any, *, ti_key: TaskInstanceKey) -> str:  # noqa: ARG002  # Airflow's signature
        """Return the URL; empty without files, or if their storage has no console."""
        from airflow_provider_flows.storage.paths import console_url

        run = getattr(operator, "flow_run", None)
        uris = [output.uri for output in run.outputs if output.uri is not None] if run is not None else []
        return console_url(uris, _s3_endpoint_url(uris, getattr(operator, "output_conn_id", None))) or ""


def _s3_endpoint_url(uris: list[str], conn_id: str | None) -> str | None:
    """Return the endpoint of the client that wrote these files, which may not be Amazon's; None if not S3."""
    if not uris or not uris[0].startswith("s3"):
        return None
    from airflow.sdk import ObjectStoragePath

    try:
        return str(ObjectStoragePath(uris[0], conn_id=conn_id).fs.s3.meta.endpoint_url)
    except Exception as error:  # noqa: BLE001  # a storage library may raise anything
        reason = type(error).__name__
        log.info("The outputs have no link: the S3 endpoint of %s is unknown (%s)", uris[0], reason)
        return "unknown"
