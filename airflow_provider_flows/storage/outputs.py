"""From a run's outputs to files: which are fetched, how many at once, and which are there already.

How an output is downloaded flow/services say, how it comes into its file filing.py; it waits for pending outputs only.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from airflow_provider_flows.core.http import Sleep
from airflow_provider_flows.core.run import ERROR, PENDING, FlowOutput, FlowRun
from airflow_provider_flows.storage.atomic_file import (
    OBJECT_STORES,
    Cancellation,
    PartialFile,
    remove_stale_temporary_files,
)
from airflow_provider_flows.storage.output_download import FILE_FIELDS, OutputDownload
from airflow_provider_flows.storage.parallel import run_parallel
from airflow_provider_flows.storage.paths import file_names, safe_name

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

    from airflow_provider_flows.core.http import Conversation
    from airflow_provider_flows.core.payload.sink import Target
    from airflow_provider_flows.core.service import Service
    from airflow_provider_flows.storage.output_options import OutputOptions

log = logging.getLogger(__name__)

MAX_PENDING_POLLS = 10
MAX_PARALLEL_DOWNLOADS = 4  # downloads of one task
MAX_PARALLEL_OBJECT_STORE_WRITES = 2  # where what is written is collected in memory first


class DownloadHook(Protocol):
    """What of a hook is needed to fetch outputs."""

    @property
    def service(self) -> Service:
        """The service, which says whether it lists outputs."""

    def list_ready_outputs(self, flow_run_id: str) -> list[FlowOutput]:
        """List a final run's outputs."""

    def save_output(
        self, flow_run_id: str, asset_id: str, target: Target, *, media_type: str | None = None
    ) -> str | None:
        """Download one output, of which a list told the media type; gives its media type."""

    def save_linked_image(self, url: str, target: Target) -> str | None:
        """Download the picture that an output links to; gives its media type, None if it may not be fetched or is none."""

    def copy_for_thread(self) -> AbstractContextManager[DownloadHook]:
        """Give the same once more, for another thread."""


class FileRecordStore(Protocol):
    """What an earlier try has written, kept wherever a task keeps things."""

    def get_file_record(self, asset_id: str) -> Mapping[str, Any] | None:
        """Tell of an output's file `uri, size, sha256, media_type`, None if nothing is known of it."""

    def save_file_record(self, asset_id: str, entry: Mapping[str, Any]) -> None:
        """Keep that of a file that is whole in its place."""


def list_ready_outputs(service: Service, flow_run_id: str) -> Conversation[list[FlowOutput]]:
    """List a final run's outputs, again and again for about half a minute while some are still pending (vendor-api G-03)."""
    for attempt in range(1, MAX_PENDING_POLLS + 1):
        outputs = yield from service.list_outputs(flow_run_id)
        if attempt == MAX_PENDING_POLLS or all(output.status != PENDING for output in outputs):
            return outputs
        yield Sleep(min(0.5 * attempt, 5.0))
    raise AssertionError  # not reached: the last look returns


def fetch_outputs_or_raise(
    hook: DownloadHook,
    run: FlowRun,
    output_options: OutputOptions,
    file_records: FileRecordStore | None = None,
) -> FlowRun:
    """Give the run with its outputs, as `fetch_outputs` does.

    :raises FlowServiceError: an output could not be listed or downloaded; what was written stays, whole.
    """
    run, error = fetch_outputs(hook, run, output_options, file_records)
    if error is not None:
        raise error
    return run


def fetch_outputs(
    hook: DownloadHook,
    run: FlowRun,
    output_options: OutputOptions,
    file_records: FileRecordStore | None = None,
    cancellation: Cancellation | None = None,
) -> tuple[FlowRun, Exception | None]:
    """Give the run with the outputs that are wanted, files written below `output_path` if that is given; and the first error.

    Several files come at once; they are written whole or not at all, and one that is there whole already is not fetched again.
    An output that cannot be had says so, and keeps no other from being fetched. A text that is too large for XCom is a file too.

    :param file_records: knows which files an earlier try has written.
    :param cancellation: ends it, from another thread.
    :raises FlowServiceError: the outputs could not be listed.
    """
    outputs, service = (
        run.outputs,
        hook.service,
    )  # the service needs the connection, and only this thread may look it up
    if not outputs and service.supports(
        "list_outputs"
    ):  # else all outputs were told with the run, or kept by an earlier try
        outputs = tuple(hook.list_ready_outputs(run.flow_run_id))
    outputs = tuple(_drop_large_metadata(output, output_options) for output in outputs)
    selected = tuple(filter(output_options.selects, outputs))
    for output in selected:
        if output.status == ERROR:
            log.warning(
                "The output %s of the %s is not there: %s",
                output.name,
                run,
                output.error or "no reason was given",
            )
        elif output.status == PENDING:
            log.warning(
                "The output %s of the %s is not called ready; it is fetched if it can be", output.name, run
            )
    if output_options.output_path is None:
        _warn_about_unfetched(selected, output_options)
        return run.with_outputs(selected), None
    # all of them, for the names of files must not depend on which are wanted
    outputs, error = _download_all(
        hook, run, outputs, output_options, file_records, cancellation=cancellation or Cancellation()
    )
    return run.with_outputs(tuple(filter(output_options.selects, outputs))), error


def _drop_large_metadata(output: FlowOutput, output_options: OutputOptions) -> FlowOutput:
    """Leave out metadata that is too large for XCom; the service keeps it."""
    if output.additional is None or not output_options.is_too_large(json.dumps(output.additional)):
        return output
    message = "The `additional` of the output %s is left out: its JSON is larger than max_xcom_bytes (%s). The service keeps it"
    log.warning(message, output.name, output_options.max_xcom_bytes)
    return replace(output, additional=None)


def _warn_about_unfetched(outputs: Iterable[FlowOutput], output_options: OutputOptions) -> None:
    for output in outputs:
        if not output.is_url and output_options.is_too_large(output.value or ""):
            message = "The output %s is a text of %d characters, beyond max_xcom_bytes (%s). Set output_path to have a file of it"
            log.warning(message, output.name, len(output.value or ""), output_options.max_xcom_bytes)
        if output.is_url and output.value:
            until = output.expires_at or "a moment that it does not tell"
            log.warning(
                "The output %s is a link that ends at %s. Set output_path to keep the file itself",
                output.name,
                until,
            )


def get_run_folder(run: FlowRun, output_path: str, output_conn_id: str | None) -> ObjectStoragePath:
    """Give the folder of a run's files: `output_path/<flow_run_id>`, the id made safe."""
    from airflow.sdk import ObjectStoragePath  # heavy, and only needed where there are files

    return ObjectStoragePath(output_path, conn_id=output_conn_id) / safe_name(run.flow_run_id)


def _download_all(
    hook: DownloadHook,
    run: FlowRun,
    outputs: Sequence[FlowOutput],
    output_options: OutputOptions,
    file_records: FileRecordStore | None,
    *,
    cancellation: Cancellation,
) -> tuple[tuple[FlowOutput, ...], Exception | None]:
    """Download what are files among the outputs, several at once, and write them; give the first error too."""
    folder = get_run_folder(run, str(output_options.output_path), output_options.output_conn_id)
    cancel_event, errors = cancellation.event, list[Exception]()
    results = list(outputs)
    get_record = file_records.get_file_record if file_records else lambda _: None
    downloads = [
        OutputDownload(
            number,
            output,
            run,
            folder,
            name,
            PartialFile(folder, name, cancel_event),
            cancel_event,
            get_record(output.asset_id or name),
            output_options,
        )
        for number, (output, name) in enumerate(zip(outputs, file_names(outputs), strict=True))
        if _needs_file(output, output_options)
    ]

    def on_result(index: int, result: tuple[FlowOutput, Exception | None]) -> None:
        download, (output, error) = downloads[index], result
        results[download.number] = output
        if error is not None:
            errors.append(error)
        elif file_records is not None and output.uri is not None:
            file_records.save_file_record(
                output.asset_id or download.name, {key: getattr(output, key) for key in FILE_FIELDS}
            )

    if downloads:
        remove_stale_temporary_files(folder, [file.name for file in downloads])
    max_workers = (
        MAX_PARALLEL_OBJECT_STORE_WRITES if folder.protocol in OBJECT_STORES else MAX_PARALLEL_DOWNLOADS
    )
    cancellation.register([file.partial_file for file in downloads])
    try:
        run_parallel(
            [file.fetch_output for file in downloads],
            hook.copy_for_thread,
            max_workers,
            cancel_event,
            on_result,
        )
    finally:
        cancellation.cancel()
    return tuple(results), errors[0] if errors else None


def _needs_file(output: FlowOutput, output_options: OutputOptions) -> bool:
    """Whether an output is to be a file: one that is no text, a link to a picture, or a text too large for XCom."""
    if output.status == ERROR or not output_options.selects(output):
        return False
    if output.uri is not None:  # kept by an earlier try: its file is looked at
        return True
    if output.value:
        return output.is_url or output_options.is_too_large(output.value)
    return output.asset_id is not None and output.value is None
