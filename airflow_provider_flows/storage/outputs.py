"""The outputs of a final run: list them, choose those that become files, and download these in parallel."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol, Self

from airflow_provider_flows.core.flow_run import ERROR, PENDING, FlowOutput, FlowRun, bound_outputs
from airflow_provider_flows.core.http import Sleep
from airflow_provider_flows.core.limits import MAX_FILE_FIELDS_BYTES, MAX_METADATA_BYTES, MIN_CONTENT_BYTES
from airflow_provider_flows.storage.atomic_file import (
    Cancellation,
    CancelledWriteError,
    remove_stale_temporary_files,
)
from airflow_provider_flows.storage.output_download import FILE_FIELDS, DownloadHook, OutputDownload
from airflow_provider_flows.storage.parallel import run_parallel
from airflow_provider_flows.storage.paths import OBJECT_STORES, file_names

if TYPE_CHECKING:
    from airflow_provider_flows.core.http import Conversation
    from airflow_provider_flows.core.service import Service
    from airflow_provider_flows.storage.output_options import OutputOptions

log = logging.getLogger(__name__)

MAX_PENDING_POLLS = 10
# in XCom, as JSON
MAX_OUTPUT_VERDICT_BYTES, MAX_RUN_VERDICT_BYTES = 256, 8192
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
    The outputs of a reused run are stored already.

    :param file_records: the records of files that earlier tries have stored, to which new files are added.
    :param cancellation: ends the downloads from another thread.
    :raises FlowServiceError: the outputs could not be listed.
    :raises CancelledWriteError: the downloads were cancelled.
    """
    if run.reused:
        return run, None
    service = hook.service  # created here, because the threads below cannot look up a connection
    outputs = run.outputs
    can_list = service.supports("list_outputs")
    come_with_run = not can_list and service.supports("get_run")  # but a trigger's event has none
    has_pending = any(output.status == PENDING for output in outputs)
    if (not outputs and (can_list or come_with_run)) or (has_pending and come_with_run):
        outputs = tuple(hook.list_ready_outputs(run.flow_run_id))
    names = list(file_names(outputs, output_options.file_naming, run))  # some are made of metadata
    budget = XComBudget.of(run, outputs, output_options)
    outputs = tuple(budget.drop_large_metadata(outputs))
    large_texts = budget.find_large_texts(outputs)
    selected = tuple(filter(output_options.selects, outputs))
    _warn_about_missing(run, selected)
    if output_options.output_path is None:
        outputs = tuple(
            budget.cut(run, output, can_return=service.supports("get_run"))
            if index in large_texts
            else output
            for index, output in enumerate(outputs)
        )
        selected = tuple(filter(output_options.selects, outputs))
        _warn_about_links(selected)
        return run.with_outputs(selected), None
    # all outputs, because the file names must not depend on the selection
    outputs, error = _download_all(
        hook,
        run,
        list(zip(outputs, names, strict=True)),
        output_options,
        file_records,
        large_texts=large_texts,
        cancellation=cancellation or Cancellation(),
    )
    outputs = tuple(
        replace(output, value=budget.get_start(output.value)) if index in large_texts else output
        for index, output in enumerate(outputs)
    )
    return run.with_outputs(tuple(filter(output_options.selects, outputs))), error


@dataclass(slots=True)
class XComBudget:
    """How many bytes of JSON are left in a task's XCom for the texts and the metadata of its outputs.

    :param options: which outputs are returned, and `max_xcom_bytes`.
    :param remaining: bytes; None for any number.
    :param cut_texts: how many texts share what remains in the end.
    """

    options: OutputOptions
    remaining: int | None
    cut_texts: int = 0

    @classmethod
    def of(cls, run: FlowRun, outputs: Iterable[FlowOutput], options: OutputOptions) -> Self:
        """Return the budget of a run: `max_xcom_bytes` without all that must be returned anyway."""
        limit = options.max_xcom_bytes
        if limit is None:
            return cls(options, None)
        fixed = [
            replace(output, value=output.value if output.is_url else None, additional=None)
            for output in filter(options.selects, outputs)
        ]
        size = get_json_size(run.with_outputs(tuple(fixed)).to_dict())
        if options.output_path is not None:
            size += len(fixed) * (len(options.output_path) + len(run.flow_run_id) + MAX_FILE_FIELDS_BYTES)
        if options.check_outputs is not None:
            size += len(fixed) * MAX_OUTPUT_VERDICT_BYTES + MAX_RUN_VERDICT_BYTES
        return cls(options, max(limit - size, min(limit, MIN_CONTENT_BYTES)))

    def drop_large_metadata(self, outputs: Iterable[FlowOutput]) -> Iterator[FlowOutput]:
        """Yield the outputs without metadata that does not fit; it remains at the service."""
        limit = MAX_METADATA_BYTES if self.remaining is None else min(MAX_METADATA_BYTES, self.remaining)
        total = 0
        for output in outputs:
            size = 0 if output.additional is None else get_json_size(output.additional)
            if total + size <= limit:
                total += size
                yield output
                continue
            log.warning(
                "Output %s: its metadata (`additional`) is omitted, because the task would return more than "
                "max_xcom_bytes (%s), or more than %d bytes of metadata. It remains at the service",
                output.name,
                self.options.max_xcom_bytes,
                MAX_METADATA_BYTES,
            )
            yield replace(output, additional=None)
        if self.remaining is not None:
            self.remaining -= total

    def find_large_texts(self, outputs: Sequence[FlowOutput]) -> frozenset[int]:
        """Return the indexes of the texts that do not fit; the shortest ones have precedence."""
        if self.remaining is None:
            return frozenset()
        sizes = {
            index: get_json_size(output.value)
            for index, output in enumerate(outputs)
            if output.value and not output.is_url and self.options.selects(output)
        }
        by_size = sorted(sizes, key=lambda index: sizes[index])
        large_texts = set[int]()
        self.remaining -= sum(sizes.values())
        while self.remaining < 0 and by_size:
            index = by_size.pop()
            large_texts.add(index)
            self.remaining += sizes[index]
            if self.options.output_path is None:
                self.remaining -= MAX_FILE_FIELDS_BYTES  # for the warning in place of a file's fields
        self.cut_texts = len(large_texts)
        return frozenset(large_texts)

    def get_start(self, text: str | None) -> str | None:
        """Return the start of a text that does not fit: its share of what remains."""
        if text is None or self.remaining is None:
            return text
        share = self.remaining // max(1, self.cut_texts) - len('""')
        sizes = accumulate(get_json_size(character) - len('""') for character in text[: max(0, share)])
        return text[: sum(size <= share for size in sizes)]

    def cut(self, run: FlowRun, output: FlowOutput, *, can_return: bool) -> FlowOutput:
        """Return an output that does not fit and is not stored as a file with the start of its text.

        A text that the service cannot return again is not cut, because that would lose it.
        """
        length = len(output.value or "")
        reason = f"is a text of {length} characters, and the task would return more than max_xcom_bytes"
        hint = "Set output_path to store it as a file"
        if not can_return:
            log.warning("Output %s %s (%s). %s", output.name, reason, self.options.max_xcom_bytes, hint)
            return output
        text = (
            f"Only the start of this text of {length} characters was returned (max_xcom_bytes). All of it is "
            f"at the service: run `airflow flows download {run.flow_run_id}`. {hint}"
        )
        log.error("Output %s: %s", output.name, text)
        return replace(output, value=self.get_start(output.value), warning=output.warning or text)


def get_json_size(value: Any) -> int:
    """Return the bytes of a value's JSON, as Airflow measures them."""
    return len(json.dumps(value))


def _warn_about_missing(run: FlowRun, outputs: Iterable[FlowOutput]) -> None:
    for output in outputs:
        if output.status == ERROR:
            reason = output.error or "the service gave no reason"
            log.warning("Output %s of the %s is missing: %s", output.name, run.short_name, reason)
        elif output.status == PENDING:
            log.warning("Output %s of the %s is not ready; it is fetched if possible", output.name, run)


def _warn_about_links(outputs: Iterable[FlowOutput]) -> None:
    for output in outputs:
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
    large_texts: Collection[int],
    cancellation: Cancellation,
) -> tuple[tuple[FlowOutput, ...], Exception | None]:
    """Return all outputs, those with files stored, and the first error of a download.

    :param named_outputs: the outputs, with the names of their files without extension.
    """
    folder = output_options.get_folder(run)
    downloads: dict[int, OutputDownload] = {}  # by the index of the output
    for index, (output, name) in enumerate(named_outputs):
        if _needs_file(output, output_options, is_large=index in large_texts):
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


def _needs_file(output: FlowOutput, output_options: OutputOptions, *, is_large: bool) -> bool:
    """Return whether an output has to be a file: it is no text, a link, or a text too large for XCom."""
    if output.status == ERROR or not output_options.selects(output):
        return False
    if output.uri is not None:  # stored by an earlier try, and to be verified
        return True
    if output.value:
        return output.is_url or is_large
    return output.asset_id is not None and output.value is None
