"""The lines of a batch's items in its manifest, and those of an earlier try that still hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.core.batch import BatchItem, ItemProblem, ItemState
from airflow_provider_flows.core.exceptions import FlowError
from airflow_provider_flows.core.flow_run import READY, FlowOutput
from airflow_provider_flows.core.redaction import redact_text
from airflow_provider_flows.core.safe_text import to_line, to_safe_text
from airflow_provider_flows.storage.batch_manifest import BatchManifest, ManifestLine
from airflow_provider_flows.storage.output_download import is_stored

if TYPE_CHECKING:
    from airflow_provider_flows.batch.records import ItemRecord
    from airflow_provider_flows.core.flow_run import FlowRun
    from airflow_provider_flows.storage.output_options import OutputOptions

SKIPPED = "skipped"  # the state of an item in the manifest whose run was not started when the batch ended
MAX_FAILURE_LENGTH = 500  # characters of a line about a failed item
MAX_ERROR_LENGTH = 2_000  # characters
FILE_CHECKS = 8  # of stored files at the same time
FAILED_STATES = frozenset({ItemState.FAILED, ItemState.ABORTED, ItemState.INVALID})
_FIELDS = frozenset(field.name for field in fields(ManifestLine))

StoredItem = tuple[int, BatchItem, "ItemRecord"]
"""An item that has ended in an earlier part of the task, with its number from 0 on and its record."""


class BatchResults:
    """What a batch writes about its items.

    :param options: where.
    """

    def __init__(self, options: OutputOptions) -> None:
        self._options = options
        self._manifest = BatchManifest(str(options.output_path), options.output_conn_id)
        self._new_settled: list[str] = []
        self._lock = Lock()

    @property
    def manifest_uri(self) -> str:
        """The URI of the manifest."""
        return self._manifest.uri

    @property
    def failed_items_uri(self) -> str:
        """The URI of the file with the items that failed."""
        return self._manifest.failed_items_uri

    def add_completed(self, item: BatchItem, record: ItemRecord, run: FlowRun) -> None:
        """Add the line of an item whose outputs are stored."""
        self._add(item, ItemState.COMPLETED, record, run, None)
        with self._lock:
            self._new_settled.append(item.key)

    def add_failure(
        self, item: BatchItem, state: ItemState, record: ItemRecord, error: Exception, run: FlowRun | None
    ) -> None:
        """Add the line of an item that has failed, with the error's text."""
        text = to_safe_text(redact_text(str(error)))[:MAX_ERROR_LENGTH] or type(error).__name__
        self._add(item, state, record, run, to_line(text))
        if run is not None and run.verdict is not None:  # nothing of it is fetched again
            with self._lock:
                self._new_settled.append(item.key)

    def add_problem(self, problem: ItemProblem) -> None:
        """Add the line of an item that cannot be sent."""
        key = problem.key or f"{problem.row:06}-invalid"
        self._manifest.record(ManifestLine(key, ItemState.INVALID, error=problem.message), problem.row)

    def _add(
        self,
        item: BatchItem,
        state: str,
        record: ItemRecord | None,
        run: FlowRun | None = None,
        error: str | None = None,
    ) -> None:
        outputs: Sequence[Mapping[str, Any]] = ()
        times: dict[str, Any] = {}
        if run is not None:
            data = run.to_dict()
            is_shown = state == ItemState.COMPLETED or run.verdict is not None
            outputs = data["outputs"] if is_shown else ()
            times = {"started_at": data["started_at"], "finished_at": data["finished_at"]}
        flow_run_id = None if record is None else record.flow_run_id
        attempts = 0 if record is None else record.attempts
        is_reused = run is not None and run.reused
        line = ManifestLine(
            item.key,
            state,
            flow_run_id,
            outputs,
            error,
            attempts,
            **times,
            reused=is_reused,
            verdict=None if run is None else run.verdict,
        )
        self._manifest.record(line, item.row)

    def restore(
        self, stored: Iterable[StoredItem], *, checks_files: bool
    ) -> Iterator[tuple[StoredItem, ManifestLine | None]]:
        """Add the lines of items that have ended before, and yield each item with its line, None without.

        A completed item's line counts only if it is about the run that its record names, and if its files
        exist with their sizes.

        :param checks_files: whether the files are checked.
        :raises FlowInputError: the manifest cannot be read.
        """
        stored = list(stored)
        if not stored:
            return
        earlier = BatchManifest(str(self._options.output_path), self._options.output_conn_id)
        earlier.load()
        with ThreadPoolExecutor(FILE_CHECKS, "flows-batch-files") as executor:
            lines = executor.map(partial(self._find_line, earlier, checks_files=checks_files), stored)
            for one, line in zip(stored, lines, strict=True):
                if line is not None:
                    self._manifest.record(line, one[1].row)
                yield one, line

    def _find_line(
        self, earlier: BatchManifest, stored: StoredItem, *, checks_files: bool
    ) -> ManifestLine | None:
        _, item, record = stored
        data = earlier.get(item.key)
        is_own = data is not None and (data["state"], data.get("flow_run_id")) == (
            record.state.value,
            record.flow_run_id,
        )
        if data is None or not is_own:
            failed = ManifestLine(item.key, record.state, record.flow_run_id, attempts=record.attempts)
            return failed if record.state in FAILED_STATES else None
        line = ManifestLine(**{name: value for name, value in data.items() if name in _FIELDS})
        is_completed = record.state is ItemState.COMPLETED
        if checks_files and is_completed and not all(map(self._is_file_stored, line.outputs)):
            return None
        return line

    def _is_file_stored(self, output: Mapping[str, Any]) -> bool:
        uri, size = output.get("uri"), output.get("size")
        if uri is None:
            return True  # a text, which is in the line itself
        return is_stored(FlowOutput(str(output.get("name")), status=READY, uri=uri, size=size), self._options)

    def write(self, active: Mapping[str, tuple[int, ItemRecord]]) -> list[str]:
        """Write the manifest, and return the keys of the items that have been settled since the last time.

        Their outputs are stored, and are accepted or rejected for good.

        :param active: the rows and the records of the items whose runs are active, by key.
        :raises OSError: the store does not accept the file.
        """
        with self._lock:
            settled, self._new_settled = self._new_settled, []
        for key, (row, record) in active.items():
            line = ManifestLine(key, ItemState.ACTIVE, record.flow_run_id, attempts=record.attempts)
            self._manifest.record(line, row)
        try:
            self._manifest.write()
        except BaseException:
            with self._lock:
                self._new_settled += settled
            raise
        return settled

    def write_end(self, source: Iterable[BatchItem | ItemProblem], get: Any) -> None:
        """Add the lines of items that were not started, and write the manifest and the items that failed.

        :param source: yields all items again.
        :param get: returns the record of a key, or None.
        :raises OSError: the store does not accept a file.
        """
        for item in source:
            if isinstance(item, BatchItem):
                line = self._manifest.get(item.key)
                if line is None or line["state"] == ItemState.ACTIVE:
                    self._add(item, SKIPPED, get(item.key))
        self._manifest.write_failed_items(one for one in source if self._has_failed(one))
        self._manifest.write()

    def _has_failed(self, item: BatchItem | ItemProblem) -> bool:
        if isinstance(item, ItemProblem):
            return True
        line = self._manifest.get(item.key)
        return line is not None and line["state"] in FAILED_STATES


def to_failure_line(error: Exception) -> str:
    """Return the text of an error for one line of the log."""
    text = str(error) if isinstance(error, FlowError) else redact_text(str(error))
    return to_line(text)[:MAX_FAILURE_LENGTH] or type(error).__name__
