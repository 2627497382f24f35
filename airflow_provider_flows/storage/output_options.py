"""What a task wants of its run's outputs: where they go, how much of a text fits into XCom, and whether the run is deleted then.

It fetches nothing (outputs.py does) and decides nothing about a run that did not complete.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_provider_flows.core.exceptions import FlowInputError

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

    from airflow_provider_flows.core.run import FlowOutput
    from airflow_provider_flows.core.service import Service
    from airflow_provider_flows.core.validation import Problems

log = logging.getLogger(__name__)

MAX_XCOM_BYTES = 48 * 1024  # Airflow keeps XComs in its database, and some databases take no more than 64 KiB


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """What is to become of the outputs.

    :param output_path: any ObjectStoragePath; None leaves files at the service and texts in XCom.
    :param output_conn_id: the Airflow connection of that storage.
    :param max_xcom_bytes: the largest text, in bytes of UTF-8, that goes into XCom whole; None for any.
    :param fetch_partial_outputs: whether a run that failed or was aborted has its outputs fetched too.
    :param delete_after_fetch: whether the run is deleted at the service when every file is in its place.
    :param selection: asset ids or names of the outputs that are wanted; None for all.
    """

    output_path: str | None = None
    output_conn_id: str | None = None
    max_xcom_bytes: int | None = MAX_XCOM_BYTES
    fetch_partial_outputs: bool = False
    delete_after_fetch: bool = False
    selection: frozenset[str] | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be kept."""
        limit = self.max_xcom_bytes
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
            message = f"max_xcom_bytes must be a number of bytes that is not negative, or None for any size, not {limit!r}"
            raise FlowInputError(message)
        if self.delete_after_fetch and self.output_path is None:
            message = "delete_after_fetch=True needs an output_path: without one the outputs would be deleted with the run"
            raise FlowInputError(message)

    def validate(self, service: Service, problems: Problems | None = None) -> None:
        """Find out before anything is paid or awaited whether all of this can be done.

        :param problems: takes what cannot.
        :raises FlowInputError: the same without `problems`; the message names the argument.
        """
        from airflow_provider_flows.core.validation import collect_problems  # needed when a task runs only

        with collect_problems(problems) as collector:
            if self.delete_after_fetch and not service.supports("delete"):
                collector.add(
                    f"delete_after_fetch=True has no meaning here: {service.name} keeps nothing that could be deleted"
                )
            with collector.collect():
                _require_writable(self.output_path, self.output_conn_id)

    def selects(self, output: FlowOutput) -> bool:
        """Whether an output is among those that are wanted."""
        return self.selection is None or output.asset_id in self.selection or output.name in self.selection

    def is_too_large(self, text: str) -> bool:
        """Whether a text is too large for XCom."""
        return (
            self.max_xcom_bytes is not None
            and len(text.encode("utf-8", "surrogatepass")) > self.max_xcom_bytes
        )

    def truncate(self, text: str) -> str:
        """Give as much of a text from its beginning as fits into XCom."""
        return text.encode("utf-8", "surrogatepass")[: self.max_xcom_bytes].decode("utf-8", "ignore")


def _require_writable(output_path: str | None, output_conn_id: str | None) -> None:
    """Find out whether files can be written where they are to go.

    :raises FlowInputError: no filesystem serves that URI, a local folder cannot be made, or there is no such bucket.
    """
    if output_path is None:
        return
    from airflow.sdk import ObjectStoragePath

    from airflow_provider_flows.storage.atomic_file import (
        OBJECT_STORES,
    )  # dear, and needed when a task runs only

    try:
        path = ObjectStoragePath(output_path, conn_id=output_conn_id)
        local = path.fs and path.protocol in {"", "file"}
        if local:
            path.mkdir(parents=True, exist_ok=True)
        elif path.protocol in OBJECT_STORES:
            _require_bucket(path)
    except (OSError, ValueError, ImportError, TypeError) as error:
        message = (
            f"output_path {output_path!r} cannot be written to: {error}. Check its URI, its connection (output_conn_id), and "
            "that the package of its filesystem is installed"
        )
        raise FlowInputError(message) from error


def _require_bucket(path: ObjectStoragePath) -> None:
    """Refuse a path in a bucket, or container, that does not exist; whether a store that does not answer has it shows later."""
    bucket = path.path.strip("/").partition("/")[0]
    try:
        exists = path.fs.exists(bucket)
    except Exception as error:  # noqa: BLE001  # whatever its library raises; a store may let us write and not look
        log.info("Whether %s exists could not be found out (%s)", bucket, type(error).__name__)
        return
    if not exists:
        message = f"there is no {bucket!r}"
        raise FileNotFoundError(message)
