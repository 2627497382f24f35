"""The links on a task instance in Airflow's UI: its flow run, and its output files.

Airflow evaluates them in the worker, and stores them as XComs. For this package's own operators the plugin
evaluates them in the API server, with these XComs as a source (`worker.run_tracking`).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperatorLink

from airflow_provider_flows.worker.run_tracking import OUTPUTS_LINK_KEY, RUN_LINK_KEY, get_page_url

if TYPE_CHECKING:
    from airflow.sdk.types import TaskInstanceKey

log = logging.getLogger(__name__)


class FlowRunLink(BaseOperatorLink):
    """The page of the flow run at its service, else the provider's own page of it."""

    name = "Flow run"

    @property
    def xcom_key(self) -> str:
        """The XCom of the link, which a task pushes as soon as it has its run."""
        return RUN_LINK_KEY

    def get_link(self, operator: Any, *, ti_key: TaskInstanceKey) -> str:  # noqa: ARG002  # Airflow's signature
        """Return the URL; empty without a run."""
        return str(getattr(operator, "flow_run_url", ""))


class FlowOutputsLink(BaseOperatorLink):
    """The output file, or the folder of several, in the console of its storage.

    A storage without a known console, such as a local disk, Azure or MinIO, has the provider's own page of
    the flow run instead, with its files.
    """

    name = "Outputs"

    @property
    def xcom_key(self) -> str:
        """The XCom of the link."""
        return OUTPUTS_LINK_KEY

    def get_link(self, operator: Any, *, ti_key: TaskInstanceKey) -> str:
        """Return the URL; empty without files."""
        from airflow_provider_flows.storage.paths import console_url

        run = getattr(operator, "flow_run", None)
        uris = [output.uri for output in run.outputs if output.uri is not None] if run is not None else []
        url = console_url(uris, _s3_endpoint_url(uris, getattr(operator, "output_conn_id", None)))
        return url or (get_page_url(ti_key) if uris else "")


def _s3_endpoint_url(uris: list[str], conn_id: str | None) -> str | None:
    """Return the endpoint of the client that wrote these files, which may not be Amazon's; None if not S3."""
    if not uris or not uris[0].startswith("s3"):
        return None
    from airflow.sdk import ObjectStoragePath

    try:
        return str(ObjectStoragePath(uris[0], conn_id=conn_id).fs.s3.meta.endpoint_url)
    except Exception as error:  # noqa: BLE001  # a storage library may raise anything
        reason = type(error).__name__
        log.info(
            "The outputs have no link to a console: the S3 endpoint of %s is unknown (%s)", uris[0], reason
        )
        return "unknown"
