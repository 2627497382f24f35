"""The index of completed flow runs in a folder of a store, for tasks that reuse their outputs.

Each entry is a small file, because object stores cannot append to one. It is written when the outputs of a
run are stored, so that no reader finds a part of it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.core.flow_run import FlowRun
from airflow_provider_flows.core.redaction import redact_text
from airflow_provider_flows.core.reuse import (
    ReuseEntry,
    ReuseLookup,
    compute_fingerprint,
    find_obstacle,
    format_age,
    is_fingerprint,
)
from airflow_provider_flows.core.timestamps import to_epoch
from airflow_provider_flows.metrics import count_reused_run
from airflow_provider_flows.storage.atomic_file import PartialFile
from airflow_provider_flows.storage.output_download import is_stored
from airflow_provider_flows.storage.outputs import get_json_size
from airflow_provider_flows.storage.paths import to_object_path

if TYPE_CHECKING:
    from airflow_provider_flows.core.service import Service
    from airflow_provider_flows.core.start_or_resume import RunRequest
    from airflow_provider_flows.storage.output_options import OutputOptions

log = logging.getLogger(__name__)

FOLDER_NAME = ".flows-reuse"  # below the path; the folder of no run or item begins with a dot
SUFFIX = ".json"
MAX_ENTRY_BYTES = 64 * 1024 * 1024
RAN_TWICE = (
    "Another task ran the same request at the same time, as flow run %s. Both are billed. The index of "
    "reusable outputs now has flow run %s"
)


class ReuseIndex:
    """The entries below a path.

    :param path: the absolute path or URI of the folder that has the index.
    :param conn_id: the Airflow connection of its store.
    """

    def __init__(self, path: str, conn_id: str | None = None) -> None:
        self._folder = to_object_path(path, conn_id) / FOLDER_NAME

    def find(self, fingerprint: str) -> ReuseEntry | None:
        """Return the entry of a request; None if there is none that can be read.

        :raises Exception: any error of the store, except that there is no such file.
        """
        path = self._folder / f"{fingerprint}{SUFFIX}"
        path.fs.invalidate_cache(self._folder.path)  # another process may have written it since
        try:
            # not `path.open`, which would report the entry to Airflow's lineage as an input of the task
            with path.fs.open(path.path, "rb") as file:
                content: bytes = file.read(MAX_ENTRY_BYTES)
        except (FileNotFoundError, PermissionError):  # S3 returns the latter where listing is not allowed
            return None
        return ReuseEntry.from_json(content, fingerprint)

    def save(self, entry: ReuseEntry) -> None:
        """Write an entry, in place of an earlier one of the same request.

        :raises OSError: the store does not accept the file.
        """
        with PartialFile(self._folder, entry.fingerprint) as file:
            file.restart()
            file.write(entry.to_json().encode())
            file.commit(self._folder / f"{entry.fingerprint}{SUFFIX}", may_replace=True)

    def __iter__(self) -> Iterator[ReuseEntry]:
        """Yield all entries that can be read.

        :raises Exception: any error of the store, except that there is no index.
        """
        self._folder.fs.invalidate_cache(self._folder.path)
        if not self._folder.exists():
            return
        for path in sorted(self._folder.iterdir(), key=lambda path: str(path.name)):
            fingerprint = path.name.removesuffix(SUFFIX)
            if path.name.endswith(SUFFIX) and is_fingerprint(fingerprint):
                entry = self.find(fingerprint)
                if entry is not None:
                    yield entry

    def forget(self, entry: ReuseEntry) -> None:
        """Delete an entry; the files of its outputs remain.

        :raises Exception: any error of the store.
        """
        (self._folder / f"{entry.fingerprint}{SUFFIX}").unlink(missing_ok=True)


def create_lookup(
    options: OutputOptions, service: Service, host: str, request: RunRequest
) -> ReuseLookup | None:
    """Return the lookup of a request, None if its task reuses no outputs.

    :param host: the base URL of the connection.
    :param request: with its files, as `build_request` returned it.
    """
    if options.max_reuse_age is None:
        return None
    return ReuseLookup(compute_fingerprint(service.name, host, request), time.time())


def restore_lookup(options: OutputOptions, fingerprint: Any, run: FlowRun) -> ReuseLookup | None:
    """Return the lookup that another process did before it started a run, None if it is not known.

    :param fingerprint: from the stamp of the run.
    """
    if options.max_reuse_age is None or not is_fingerprint(fingerprint):
        return None
    return ReuseLookup(fingerprint, math.inf if run.created_at is None else to_epoch(run.created_at))


def find_reusable_run(options: OutputOptions, lookup: ReuseLookup | None) -> FlowRun | None:
    """Return the completed run of an earlier request that was the same, with its outputs, or None.

    Each of its files exists with its size, and the outputs satisfy the task's checks. The result of a lookup
    is logged. No error is raised: in doubt, the flow is run.
    """
    max_age = options.max_reuse_age
    if lookup is None or max_age is None:
        return None
    try:
        entry = _get_index(options).find(lookup.fingerprint)
    except Exception as error:  # noqa: BLE001  # any error of the store
        log.warning("The index of reusable outputs cannot be read (%s); the flow is run", _describe(error))
        return None
    if entry is None:
        return None
    problem = entry.find_age_problem(max_age, lookup.looked_up_at)
    problem = problem or _find_storage_problem(options, entry.run)
    run = entry.run
    if problem is None and options.check_outputs is not None:
        run, problem = _check(options, run)
    level = options.file_log_level
    if problem is not None:
        log.log(level, "The outputs of the %s for the same request are not reused: %s", entry.run, problem)
        return None
    age = format_age(lookup.looked_up_at - entry.saved_at)
    log.log(level, "No flow run is started: the %s had the same request %s ago, and its outputs are reused",
            entry.run, age)  # fmt: skip
    count_reused_run()
    return replace(run, reused=True)


def save_reusable_run(options: OutputOptions, lookup: ReuseLookup | None, run: FlowRun) -> None:
    """Add a completed run, whose outputs are stored, to the index. No error is raised: the run is paid for.

    If another task has run the same request since the lookup, log that.
    """
    if lookup is None or run.reused or options.max_reuse_age is None:
        return
    obstacle = find_obstacle(run)
    if obstacle is not None:
        level, name = options.file_log_level, run.short_name
        log.log(level, "The outputs of the %s cannot be reused: %s", name, obstacle)
        return
    try:
        index = _get_index(options)
        earlier = index.find(lookup.fingerprint)
        index.save(ReuseEntry(lookup.fingerprint, time.time(), run))
    except Exception as error:  # noqa: BLE001  # any error of the store
        log.warning("The outputs of the %s cannot be reused, because the index cannot be written: %s",
                    run.short_name, _describe(error))  # fmt: skip
        return
    if earlier is not None and earlier.is_from_meanwhile(lookup, run):
        log.warning(RAN_TWICE, earlier.run.flow_run_id, run.flow_run_id)


def _get_index(options: OutputOptions) -> ReuseIndex:
    return ReuseIndex(str(options.reuse_path or options.output_path), options.output_conn_id)


def _find_storage_problem(options: OutputOptions, run: FlowRun) -> str | None:
    """Return why the outputs of an entry cannot be the result of a task, None if they can."""
    limit = options.max_xcom_bytes
    if limit is not None and get_json_size(run.to_dict()) > limit:
        return f"they have more than max_xcom_bytes ({limit})"
    for output in run.outputs:
        if output.uri is not None and not is_stored(output, options):
            return f"the file {output.uri} is missing, or has another size"
    return None


def _check(options: OutputOptions, run: FlowRun) -> tuple[FlowRun, str | None]:
    """Return a run with the verdicts of the task's checks, and why it is not reused, None if it is."""
    from airflow_provider_flows.checks.files import check_outputs  # imports stay cheap

    try:
        run = check_outputs(run, options)
    except Exception as error:  # noqa: BLE001  # any error of the store, or of a function of the author's
        return run, f"they cannot be checked ({_describe(error)})"
    verdict = run.verdict or {}
    if verdict["accepted"]:
        return run, None
    return run, f"they do not satisfy check_outputs: {'; '.join(verdict['problems'])}"


def _describe(error: Exception) -> str:
    return redact_text(str(error)) or type(error).__name__
