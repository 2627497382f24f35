"""The download of one output into its file, unless an earlier try has stored it already."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from airflow_provider_flows.core.exceptions import FlowConflict, FlowNotFound
from airflow_provider_flows.core.flow_run import ERROR, PENDING, READY, FlowOutput, FlowRun
from airflow_provider_flows.core.payload import data_uri
from airflow_provider_flows.core.redaction import redact_path
from airflow_provider_flows.core.safe_text import to_safe_text
from airflow_provider_flows.storage.atomic_file import (
    Cancellation,
    CancelledWriteError,
    PartialFile,
    compute_sha256,
)
from airflow_provider_flows.storage.paths import get_file_path, to_uri

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

    from airflow_provider_flows.core.payload.sink import Target
    from airflow_provider_flows.core.service import Service
    from airflow_provider_flows.storage.output_options import OutputOptions

log = logging.getLogger(__name__)

FILE_FIELDS = ("uri", "size", "sha256", "media_type", "warning")  # of an output, and of a file record
# an output in the list may not be visible to each server of the service at once
VISIBILITY_DELAYS_SECONDS = (0.5, 1.0)
MAX_OUTPUT_ERROR_LENGTH = 2_000
NAME_DIGEST_LENGTH = 12  # hexadecimal digits of a file's SHA-256 in its name


class DownloadHook(Protocol):
    """What a download needs of a hook."""

    flows_conn_id: str

    @property
    def service(self) -> Service:
        """The service of the hook's connection."""

    def list_ready_outputs(self, flow_run_id: str) -> list[FlowOutput]:
        """Return the outputs of a final run."""

    def save_output(
        self,
        flow_run_id: str,
        asset_id: str,
        target: Target,
        *,
        media_type: str | None = None,
        on_accepted: Callable[[str], object],
    ) -> str | None:
        """Download an output into a target, and return its media type.

        :param media_type: the media type from the list of outputs.
        :param on_accepted: called with what is wrong with a file that was accepted because it arrived twice.
        """

    def save_linked_image(
        self, url: str, target: Target, *, on_accepted: Callable[[str], object]
    ) -> str | None:
        """Download the picture at a URL into a target, and return its media type.

        Return None if there is no picture, or if its host is not allowed, which is logged.
        """

    def save_linked_file(
        self, url: str, target: Target, *, media_type: str | None = None, on_accepted: Callable[[str], object]
    ) -> str | None:
        """Download the file at a URL into a target, and return its media type.

        :param media_type: the media type that the service has declared.
        """

    def copy_for_thread(self) -> AbstractContextManager[DownloadHook]:
        """Return a copy for another thread, as a context manager that closes it."""


@dataclass(frozen=True, slots=True)
class DownloadResult:
    """An output with its file, or an output that states an error, with that error."""

    output: FlowOutput
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class OutputDownload:
    """An output that has to be stored as a file.

    :param name: the file's name without extension.
    :param file_record: the `FILE_FIELDS` of the file that an earlier try has stored, None without one.
    """

    output: FlowOutput
    run: FlowRun
    folder: ObjectStoragePath
    name: str
    output_options: OutputOptions
    file_record: Mapping[str, Any] | None = None

    def fetch(self, hook: DownloadHook, cancellation: Cancellation) -> DownloadResult:
        """Return the output with its file, which is downloaded if it is not stored yet.

        :raises CancelledWriteError: the task was cancelled. Any other error is part of the result.
        """
        try:
            return DownloadResult(self.find_stored_file(cancellation) or self.download(hook, cancellation))
        except CancelledWriteError:
            raise
        except Exception as error:  # noqa: BLE001  # raised by the caller, after all other downloads
            message = to_safe_text(redact_path(str(error)))[:MAX_OUTPUT_ERROR_LENGTH] or type(error).__name__
            log.warning("Output %s could not be fetched: %s", self.output.name, message)
            output = replace(
                self.output,
                status=ERROR,
                error=message,
                value=self._xcom_value,
                uri=None,
                size=None,
                sha256=None,
                warning=None,
            )
            return DownloadResult(output, error)

    def find_stored_file(self, cancellation: Cancellation) -> FlowOutput | None:
        """Return the output with the file that an earlier try has stored, None if it is missing or differs.

        Size and digest must match: to read a file is cheaper than to download it, and the run may be deleted
        at the service because its files are stored.

        :raises CancelledWriteError: the task was cancelled.
        """
        if self.output.uri is not None:
            stored = self.output
        elif self.file_record is not None:
            fields: dict[str, Any] = {name: self.file_record.get(name) for name in FILE_FIELDS}
            stored = replace(self.output, status=READY, value=self._xcom_value, **fields)
        else:
            return None
        with suppress(Exception):  # any error of the store, or a malformed record: there is no such file
            path = self._stored_path(stored)
            if (
                path is not None
                and path.stat().st_size == stored.size
                and compute_sha256(path, cancellation) == stored.sha256
            ):
                level = self.output_options.file_log_level
                log.log(level, "Output %s is already stored in %s (%d bytes)", stored.name, path, stored.size)
                return stored
        cancellation.raise_if_cancelled()
        return None

    def download(self, hook: DownloadHook, cancellation: Cancellation) -> FlowOutput:
        """Download the output, and return it with its file.

        Return it without a file if it is a link that does not lead to an image or whose host is not allowed,
        or if the service does not have it ready.

        :raises CancelledWriteError: the task was cancelled.
        :raises FlowServiceError: the download failed.
        :raises OSError: the store does not accept the file.
        """
        output = self.output
        warnings: list[str] = []
        with PartialFile(self.folder, self.name, cancellation) as file:
            media_type = self._write(hook, file, cancellation, warnings.append)
            if media_type is None:
                return output
            path = self._commit(file, media_type, cancellation)
        warning = to_safe_text(redact_path("; ".join(warnings)))[:MAX_OUTPUT_ERROR_LENGTH] or None
        if warning is None:
            level = self.output_options.file_log_level
            log.log(level, "Output %s is stored in %s (%d bytes)", output.name, path, file.size)
        else:
            log.warning(
                "Output %s is stored in %s (%d bytes), but it may be unusable: %s. It arrived twice with the "
                "same SHA-256, so it is what %s has. Check the file before you use it.",
                output.name,
                path,
                file.size,
                warning,
                self.run.service,
            )
        return replace(
            output,
            status=READY,
            media_type=media_type,
            value=self._xcom_value,
            uri=to_uri(path),
            size=file.size,
            sha256=file.sha256,
            warning=warning,
        )

    @property
    def _xcom_value(self) -> str | None:
        """The text for XCom in addition to the file, or a link without its signature."""
        value = self.output.value
        return value.partition("?")[0] if value is not None and self.output.is_url else value

    def _commit(
        self, file: PartialFile, media_type: str | None, cancellation: Cancellation
    ) -> ObjectStoragePath:
        """Commit a file to its final path, and return that.

        Only the file that this task has stored itself is replaced. If another one is at the path, for example
        that of another service's run with the same id, the file's name is extended by its digest. A file with
        the same content, such as that of an earlier try, is used as it is.

        :raises FileExistsError: there are other files at both paths.
        """
        paths = self._possible_paths(media_type, file.sha256)
        for path in paths:
            try:
                file.commit(path, may_replace=self._is_own(path))
            except FileExistsError:
                if compute_sha256(path, cancellation) == file.sha256:
                    return path
                log.warning("%s is a file of something else, and is not replaced", path)
            else:
                return path
        raise FileExistsError(
            errno.EEXIST,
            f"output {self.output.name} of the {self.run} cannot be stored: {paths[0]} and {paths[1]} are "
            "files of something else, which are not replaced. Move them, or set another output_path.",
        )

    def _possible_paths(self, media_type: str | None, sha256: str) -> tuple[ObjectStoragePath, ...]:
        """Return the paths at which a file can be stored, in the order in which they are tried."""
        extension = data_uri.extension(media_type)
        names = (self.name, f"{self.name}--{sha256[:NAME_DIGEST_LENGTH]}")
        return tuple(self.folder / (name + extension) for name in names)

    def _is_own(self, path: ObjectStoragePath) -> bool:
        """Return whether this task, or an earlier try of it, has stored the file at a path."""
        recorded = self.output.uri if self.file_record is None else self.file_record.get("uri")
        return recorded is not None and recorded == to_uri(path)

    def _stored_path(self, stored: FlowOutput) -> ObjectStoragePath | None:
        """Return the path of a stored file, None if a download would be stored somewhere else."""
        if self.output.uri is not None:
            options = self.output_options
            return get_file_path(str(stored.uri), str(options.output_path), options.output_conn_id)
        paths = self._possible_paths(stored.media_type, str(stored.sha256))
        return next((path for path in paths if to_uri(path) == stored.uri), None)

    def _write(
        self,
        hook: DownloadHook,
        file: PartialFile,
        cancellation: Cancellation,
        on_accepted: Callable[[str], object],
    ) -> str | None:
        """Write the output to a file, and return its media type, None if the output has no file."""
        output = self.output
        if output.uri is not None:
            return self._download_again(hook, file, cancellation, on_accepted)
        if output.value and not output.is_url:
            file.restart()
            file.write(output.value.encode("utf-8", "surrogatepass"))
            return output.media_type or "text/plain"
        if output.value:
            if (output.media_type or "image/").startswith("image/"):
                media_type = hook.save_linked_image(output.value, file, on_accepted=on_accepted)
            else:
                media_type = hook.save_linked_file(
                    output.value, file, media_type=output.media_type, on_accepted=on_accepted
                )
            if media_type is None:
                log.warning(
                    "Output %s is a link that does not lead to an image or whose host is not allowed "
                    "(picture_hosts in the extra of connection %r), so no file was stored. The task returns "
                    "the link itself, which may expire.",
                    output.name,
                    hook.flows_conn_id,
                )
            return media_type
        try:
            return self._download_asset(hook, file, cancellation, on_accepted)
        except (FlowConflict, FlowNotFound) as error:
            if output.status != PENDING:
                raise
            log.warning("Output %s is still not ready; it is listed without a file: %s", output.name, error)
            return None

    def _download_again(
        self,
        hook: DownloadHook,
        file: PartialFile,
        cancellation: Cancellation,
        on_accepted: Callable[[str], object],
    ) -> str:
        """Download a file that an earlier try had stored, as long as the service has it."""
        log.warning(
            "Output %s is not stored in %s any more, or has changed; it is downloaded again",
            self.output.name,
            self.output.uri,
        )
        if self.output.asset_id is None:
            self._raise_gone(None)
        try:
            return self._download_asset(hook, file, cancellation, on_accepted)
        except FlowNotFound as error:
            self._raise_gone(error)

    def _raise_gone(self, error: FlowNotFound | None) -> NoReturn:
        gone = FlowNotFound(
            f"The file {self.output.uri} has changed since an earlier try, or cannot be read, and the "
            f"{self.run} is gone at the service. Restore the file and run the task again, or clear the task "
            "to run the flow again.",
            status=404,
        )
        gone.is_permanent = False  # the store may be able to read the file later, and another try is free
        raise gone from error

    def _download_asset(
        self,
        hook: DownloadHook,
        file: PartialFile,
        cancellation: Cancellation,
        on_accepted: Callable[[str], object],
    ) -> str:
        """Download the output from the service, and return its media type.

        If the list says that the output is ready, a 404 is retried a few times, and then raised as an error
        that is not permanent, because the output is paid for.
        """
        output = self.output
        delays = VISIBILITY_DELAYS_SECONDS if output.status == READY and output.uri is None else ()
        for delay in (*delays, None):
            try:
                media_type = hook.save_output(
                    self.run.flow_run_id,
                    str(output.asset_id),
                    file,
                    media_type=output.media_type,
                    on_accepted=on_accepted,
                )
            except FlowNotFound as error:
                if delay is None:
                    error.is_permanent = output.status != READY
                    raise
                cancellation.event.wait(delay)
            else:
                return media_type or output.media_type or "application/octet-stream"
        raise AssertionError  # the last attempt returns or raises


def is_stored(output: FlowOutput, output_options: OutputOptions) -> bool:
    """Return whether an output's file exists with its size. Its digest was compared when it was fetched."""
    if output.status != READY or output.uri is None:
        return False
    try:
        folder = output_options.output_path or output_options.reuse_path
        path = get_file_path(output.uri, str(folder), output_options.output_conn_id)
        return bool(path.stat().st_size == output.size)
    except Exception as error:  # noqa: BLE001  # any error of the store: in doubt the file is not stored
        log.info("%s could not be found in its store (%s)", output.uri, type(error).__name__)
        return False
