"""One output on its way into its file: whether that is there already, whole, else where its bytes come from.

How a file is written writing.py says, which outputs are to be files outputs.py.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from threading import Event
from typing import TYPE_CHECKING, Any, NoReturn

from airflow_provider_flows.core.exceptions import FlowConflict, FlowNotFound
from airflow_provider_flows.core.payload import data_uri
from airflow_provider_flows.core.redaction import redact_path
from airflow_provider_flows.core.run import ERROR, PENDING, READY, FlowOutput, FlowRun
from airflow_provider_flows.storage.atomic_file import (
    CancelledWriteError,
    PartialFile,
    compute_sha256,
    to_uri,
)
from airflow_provider_flows.storage.file_source import get_conn_id

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

    from airflow_provider_flows.storage.output_options import OutputOptions
    from airflow_provider_flows.storage.outputs import DownloadHook

log = logging.getLogger(__name__)

FILE_FIELDS = ("uri", "size", "sha256", "media_type")  # what is known of a file
VISIBILITY_DELAYS_SECONDS = (
    0.5,
    1.0,
)  # seconds; an output that is listed may not be visible everywhere at once
MAX_OUTPUT_ERROR_LENGTH = 2_000


@dataclass(frozen=True)
class OutputDownload:
    """One output that is to be a file.

    :param number: which of the run's outputs it is.
    :param name: the file's, without extension.
    :param cancel_event: is set when nobody waits for it any more.
    :param file_record: what an earlier try tells of its file.
    """

    number: int
    output: FlowOutput
    run: FlowRun
    folder: ObjectStoragePath
    name: str
    partial_file: PartialFile
    cancel_event: Event
    file_record: Mapping[str, Any] | None
    output_options: OutputOptions

    def fetch_output(self, hook: DownloadHook) -> tuple[FlowOutput, Exception | None]:
        """Give the output with its file, unless it turns out to have none; or what went wrong, and the output saying so."""
        try:
            return self._find_existing() or self._download(hook), None
        except CancelledWriteError:
            raise
        except Exception as error:  # noqa: BLE001  # raised again when all others are fetched
            message = redact_path(str(error))[:MAX_OUTPUT_ERROR_LENGTH] or type(error).__name__
            log.warning("The output %s could not be fetched: %s", self.output.name, message)
            output = replace(
                self.output, status=ERROR, error=message, value=self._value, uri=None, size=None, sha256=None
            )
            return output, error

    def _find_existing(self) -> FlowOutput | None:
        """Give the output with the file that an earlier try has written, if that is there, whole.

        Size and digest must be the same: to read a file costs less than to download it, and the run may be deleted because of it.
        """
        output, has_uri = self.output, self.output.uri is not None
        if not has_uri and self.file_record is None:
            return None
        record: dict[str, Any] = {
            key: getattr(output, key) if has_uri else (self.file_record or {}).get(key) for key in FILE_FIELDS
        }
        with suppress(Exception):  # whatever the store says of a file that is not there
            path = (
                get_file_path(output, self.output_options)
                if has_uri
                else self._get_final_path(record["media_type"])
            )
            is_same_path = has_uri or to_uri(path) == record["uri"]
            if (
                is_same_path
                and path.stat().st_size == record["size"]
                and compute_sha256(path, self.cancel_event) == record["sha256"]
            ):
                log.info("The output %s is in %s already (%d bytes)", output.name, path, record["size"])
                return output if has_uri else replace(output, status=READY, value=self._value, **record)
        if self.cancel_event.is_set():
            raise CancelledWriteError
        return None

    @property
    def _value(self) -> str | None:
        """What stays of a text beside its file: its beginning, and of a link what opens nothing."""
        value = self.output.value
        if value is None:
            return None
        return value.partition("?")[0] if self.output.is_url else self.output_options.truncate(value)

    def _get_final_path(self, media_type: str | None) -> ObjectStoragePath:
        return self.folder / (self.name + data_uri.extension(media_type))

    def _download(self, hook: DownloadHook) -> FlowOutput:
        output, partial_file = self.output, self.partial_file
        try:
            media_type = self._save(hook)
            if media_type is None:
                return output
            path = self._get_final_path(media_type)
            partial_file.commit(path)
        finally:
            partial_file.discard()
        log.info("The output %s is in %s (%d bytes)", output.name, path, partial_file.size)
        return replace(
            output,
            status=READY,
            media_type=media_type,
            value=self._value,
            uri=to_uri(path),
            size=partial_file.size,
            sha256=partial_file.sha256,
        )

    def _save(self, hook: DownloadHook) -> str | None:
        """Download into the temporary file; gives the media type, None where there is no file."""
        output = self.output
        if output.uri is not None:
            return self._download_again(hook)
        if output.value and not output.is_url:
            self.partial_file.restart()
            self.partial_file.write(output.value.encode("utf-8", "surrogatepass"))
            return output.media_type or "text/plain"
        if output.value:
            media_type = hook.save_linked_image(output.value, self.partial_file)
            if media_type is None:
                what = "looks like a link to a picture, but is none that may be fetched; its text is kept"
                log.warning("The output %s %s", output.name, what)
            return media_type
        try:
            return self._save_with_retries(hook)
        except (FlowConflict, FlowNotFound) as error:
            if output.status != PENDING:
                raise
            log.warning(
                "The output %s is still not ready; it is listed without a file: %s", output.name, error
            )
            return None

    def _download_again(self, hook: DownloadHook) -> str:
        """Download once more what an earlier try had written, while the service still has it."""
        log.warning(
            "The output %s is not in its place, whole, any more (%s); it is downloaded again",
            self.output.name,
            self.output.uri,
        )
        if self.output.asset_id is None:
            self._raise_gone(None)
        try:
            return self._save_with_retries(hook)
        except FlowNotFound as error:
            self._raise_gone(error)

    def _raise_gone(self, error: FlowNotFound | None) -> NoReturn:
        message = (
            f"The file {self.output.uri} is not what an earlier try has written, or cannot be read, and the {self.run} is gone "
            "at the service. Bring the file back and run the task again, or clear the task to run the flow again."
        )
        gone = FlowNotFound(message, status=404)
        gone.is_permanent = False  # the store may give the file a little later, and another try costs nothing
        raise gone from error

    def _save_with_retries(self, hook: DownloadHook) -> str:
        """Ask for the file; one that its list calls ready is looked for a few times, and a retry may find it (it is paid)."""
        output = self.output
        delays = VISIBILITY_DELAYS_SECONDS if output.status == READY and output.uri is None else ()
        for delay in (*delays, None):
            try:
                media_type = hook.save_output(
                    self.run.flow_run_id,
                    str(output.asset_id),
                    self.partial_file,
                    media_type=output.media_type,
                )
            except FlowNotFound as error:
                if delay is None:
                    error.is_permanent = output.status != READY
                    raise
                self.cancel_event.wait(delay)
            else:
                return media_type or output.media_type or "application/octet-stream"
        raise AssertionError  # not reached: the last look returns or raises


def get_file_path(output: FlowOutput, output_options: OutputOptions) -> ObjectStoragePath:
    """Give the path of an output's file, reached as the task's other files are."""
    from airflow.sdk import ObjectStoragePath

    conn_id = get_conn_id(
        ObjectStoragePath(str(output_options.output_path), conn_id=output_options.output_conn_id)
    )
    return ObjectStoragePath(str(output.uri), conn_id=conn_id)


def is_stored(output: FlowOutput, output_options: OutputOptions) -> bool:
    """Whether an output is a file that lies where it says; its digest was compared when it was fetched."""
    if output.status != READY or output.uri is None:
        return False
    try:
        return bool(get_file_path(output, output_options).stat().st_size == output.size)
    except Exception as error:  # noqa: BLE001  # whatever the store raises: then nobody knows
        log.info("Whether %s is in its place could not be found out (%s)", output.uri, type(error).__name__)
        return False
