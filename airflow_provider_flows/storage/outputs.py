"""The outputs of a final run: list them, choose those that become files, and download these in parallel."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from airflow_provider_flows.core.flow_run import ERROR, PENDING, FlowOutput, FlowRun, bound_outputs
from airflow_provider_flows.core.http import Sleep
from airflow_provider_flows.core.limits import MAX_METADATA_BYTES
from airflow_provider_flows.storage.atomic_file import (
    Cancellation,
    CancelledWriteError,
    remove_stale_temporary_files,
)
from airflow_provider_flows.storage.output_download import FILE_FIELDS, DownloadHook, OutputDownload
from airflow_provider_flows.storage.parallel import run_parallel
from airflow_provider_flows.storage.paths import OBJECT_STORES, file_names, get_run_folder

if TYPE_CHECKING:
    from airflow_provider_flows.core.http import Conversation
    from airflow_provider_flows.core.service import Service
    from airflow_provider_flows.storage.output_options import OutputOptions

log = logging.getLogger(__name__)

MAX_PENDING_POLLS = 10
MAX_PARALLEL_DOWNLOADS = 4  # of one task
MAX_PARALLEL_OBJECT_STORE_WRITES = 2  # because each buffers a block in memory


class FileRecordStore(Protocol):
    """A store of records of the files that earlier tries have stored."""

    def get_file_record(self, asset_id: str) -> Mapping[str, Any] | None:
        """Return the `FILE_FIELDS` of an output's file, None without a record."""

    def save_file_record(self, asset_id: str, entry: Mapping[str, Any]) -> None:
        """Save the same for a file that is stored."""


def list_ready_outputs(service: Service, flow_run_id: str) -> Conversation[list[FlowOutput]]:
    """Return a final run's outputs; list them again for up to half a minute while any is pending.

    See vendor_notes.md, G-03.
    """
    for attempt in range(1, MAX_PENDING_POLLS + 1):
        outputs = yield from list_outputs(service, flow_run_id)
        if attempt == MAX_PENDING_POLLS or all(output.status != PENDING for output in outputs):
            return outputs
        yield Sleep(min(0.5 * attempt, 5.0))
    raise AssertionError  # the last attempt returns


def list_outputs(service: Service, flow_run_id: str) -> Conversation[list[FlowOutput]]:
    """Return a run's outputs; a service that does not list them returns them with the run."""
    outputs: Sequence[FlowOutput]
    if service.supports("list_outputs") or not service.supports("get_run"):
        outputs = yield from service.list_outputs(flow_run_id)
    else:
        outputs = (yield from service.get_run(flow_run_id)).outputs
    return bound_outputs(outputs, "They remain at the service.")


def fetch_outputs(
    hook: DownloadHook,
    run: FlowRun,
    output_options: OutputOptions,
    file_records: FileRecordStore | None = None,
    cancellation: Cancellation | None = None,
) -> tuple[FlowRun, Exception | None]:
    """Return the run with its selected outputs, and the first error of a download.

    If `output_path` is set, outputs are stored as files below it, several at a time: those that are not
    texts, texts that are too large for XCom, and links to pictures. A file that an earlier try has stored is
    not downloaded again. An output that cannot be fetched states its error, and the others are downloaded.

    :param file_records: the records of files that earlier tries have stored, to which new files are added.
    :param cancellation: ends the downloads from another thread.
    :raises FlowServiceError: the outputs could not be listed.
    :raises CancelledWriteError: the downloads were cancelled.
    """
    service = hook.service  # created here, because the threads below cannot look up a connection
    outputs = run.outputs
    can_list = service.supports("list_outputs")
    come_with_run = not can_list and service.supports("get_run")  # but a trigger's event has none
    has_pending = any(output.status == PENDING for output in outputs)
    if (not outputs and (can_list or come_with_run)) or (has_pending and come_with_run):
        outputs = tuple(hook.list_ready_outputs(run.flow_run_id))
    names = list(file_names(outputs, output_options.file_naming, run))  # some are made of metadata
    outputs = tuple(_drop_large_metadata(outputs, output_options))
    selected = tuple(filter(output_options.selects, outputs))
    _warn_about_missing(run, selected)
    if output_options.output_path is None:
        _warn_about_unfetched(selected, output_options)
        return run.with_outputs(selected), None
    # all outputs, because the file names must not depend on the selection
    outputs, error = _download_all(
        hook,
        run,
        list(zip(outputs, names, strict=True)),
        output_options,
        file_records,
        cancellation=cancellation or Cancellation(),
    )
    return run.with_outputs(tuple(filter(output_options.selects, outputs))), error


def _drop_large_metadata(
    outputs: Iterable[FlowOutput], output_options: OutputOptions
) -> Iterator[FlowOutput]:
    """Yield the outputs without metadata that is too large for XCom; it remains at the service."""
    total = 0
    for output in outputs:
        text = None if output.additional is None else json.dumps(output.additional)
        if text is None:
            yield output
        elif output_options.is_too_large(text):
            log.warning(
                "Output %s: its metadata (`additional`) is omitted, because its JSON is larger than "
                "max_xcom_bytes (%s). It remains at the service",
                output.name,
                output_options.max_xcom_bytes,
            )
            yield replace(output, additional=None)
        elif total + len(text) > MAX_METADATA_BYTES:
            log.warning(
                "Output %s: its metadata (`additional`) is omitted, because that of all outputs together is "
                "larger than %d bytes. It remains at the service",
                output.name,
                MAX_METADATA_BYTES,
            )
            yield replace(output, additional=None)
        else:
            total += len(text)
            yield output


def _warn_about_missing(run: FlowRun, outputs: Iterable[FlowOutput]) -> None:
    for output in outputs:
        if output.status == ERROR:
            reason = output.error or "the service gave no reason"
            log.warning("Output %s of the %s is missing: %s", output.name, run.short_name, reason)
        elif output.status == PENDING:
            log.warning("Output %s of the %s is not ready; it is fetched if possible", output.name, run)


def _warn_about_unfetched(outputs: Iterable[FlowOutput], output_options: OutputOptions) -> None:
    for output in outputs:
        if not output.is_url and output_options.is_too_large(output.value or ""):
            log.warning(
                "Output %s is a text of %d characters, larger than max_xcom_bytes (%s). Set output_path to "
                "store it as a file",
                output.name,
                len(output.value or ""),
                output_options.max_xcom_bytes,
            )
        if output.is_url and output.value:
            log.warning(
                "Output %s is a link that expires at %s. Set output_path to store the file itself",
                output.name,
                output.expires_at or "an unknown time",
            )


def _download_all(
    hook: DownloadHook,
    run: FlowRun,
    named_outputs: Sequence[tuple[FlowOutput, str]],
    output_options: OutputOptions,
    file_records: FileRecordStore | None,
    *,
    cancellation: Cancellation,
) -> tuple[tuple[FlowOutput, ...], Exception | None]:
    """Return all outputs, those with files stored, and the first error of a download.

    :param named_outputs: the outputs, with the names of their files without extension.
    """
    folder = get_run_folder(run, str(output_options.output_path), output_options.output_conn_id)
    downloads: dict[int, OutputDownload] = {}  # by the index of the output
    for index, (output, name) in enumerate(named_outputs):
        if _needs_file(output, output_options):
            record = file_records.get_file_record(output.asset_id or name) if file_records else None
            downloads[index] = OutputDownload(output, run, folder, name, output_options, record)
    if downloads:
        remove_stale_temporary_files(folder, [download.name for download in downloads.values()])
    jobs = {
        index: partial(download.fetch, cancellation=cancellation) for index, download in downloads.items()
    }
    fetched, completed, first_error = [output for output, _ in named_outputs], set[int](), None
    is_object_store = folder.protocol in OBJECT_STORES
    max_workers = MAX_PARALLEL_OBJECT_STORE_WRITES if is_object_store else MAX_PARALLEL_DOWNLOADS
    try:
        with closing(run_parallel(jobs, hook.copy_for_thread, max_workers, cancellation.event)) as results:
            for index, result in results:
                fetched[index] = result.output
                first_error = first_error or result.error
                completed.add(index)
                if file_records is not None and result.error is None:
                    _save_file_record(file_records, downloads[index].name, result.output)
    except BaseException:
        cancellation.cancel()
        raise
    if completed != downloads.keys():  # cancelled between two downloads, so that none of them noticed
        raise CancelledWriteError
    return tuple(fetched), first_error


def _save_file_record(file_records: FileRecordStore, name: str, output: FlowOutput) -> None:
    if output.uri is not None:
        record = {field: getattr(output, field) for field in FILE_FIELDS}
        file_records.save_file_record(output.asset_id or name, record)


def _needs_file(output: FlowOutput, output_options: OutputOptions) -> bool:
    """Return whether an output has to be a file: it is no text, a link, or a text too large for XCom."""
    if output.status == ERROR or not output_options.selects(output):
        return False
    if output.uri is not None:  # stored by an earlier try, and to be verified
        return True
    if output.value:
        return output.is_url or output_options.is_too_large(output.value)
    return output.asset_id is not None and output.value is None
