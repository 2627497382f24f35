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
from airflow_provider_flows.core.run import ERROR, PENDING, READY, FlowOutput, FlowRun
from airflow_provider_flows.storage.atomic_file import Part, StoppedError, digest_of, uri_of
from airflow_provider_flows.storage.file_source import conn_id_of, shown

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

    from airflow_provider_flows.storage.output_options import Delivery
    from airflow_provider_flows.storage.outputs import Downloads

log = logging.getLogger(__name__)

TOLD = ("uri", "size", "sha256", "media_type")  # what is known of a file
PAUSES_UNTIL_THERE = (0.5, 1.0)  # seconds; an output that is listed may not be visible everywhere at once
LONGEST_REASON = 2_000


@dataclass(frozen=True)
class File:
    """One output that is to be a file.

    :param number: which of the run's outputs it is.
    :param name: the file's, without extension.
    :param stop: is set when nobody waits for it any more.
    :param known: what an earlier try tells of its file.
    """

    number: int
    output: FlowOutput
    run: FlowRun
    folder: ObjectStoragePath
    name: str
    part: Part
    stop: Event
    known: Mapping[str, Any] | None
    delivery: Delivery

    def fetched(self, hook: Downloads) -> tuple[FlowOutput, Exception | None]:
        """Give the output with its file, unless it turns out to have none; or what went wrong, and the output saying so."""
        try:
            return self._there() or self._downloaded(hook), None
        except StoppedError:
            raise
        except Exception as error:  # noqa: BLE001  # raised again when all others are fetched
            told = shown(str(error))[:LONGEST_REASON] or type(error).__name__
            log.warning("The output %s could not be fetched: %s", self.output.name, told)
            output = replace(
                self.output, status=ERROR, error=told, value=self._value, uri=None, size=None, sha256=None
            )
            return output, error

    def _there(self) -> FlowOutput | None:
        """Give the output with the file that an earlier try has written, if that is there, whole.

        Size and digest must be the same: to read a file costs less than to download it, and the run may be deleted because of it.
        """
        output, kept = self.output, self.output.uri is not None
        if not kept and self.known is None:
            return None
        told: dict[str, Any] = {
            key: getattr(output, key) if kept else (self.known or {}).get(key) for key in TOLD
        }
        with suppress(Exception):  # whatever the store says of a file that is not there
            path = place_of(output, self.delivery) if kept else self._path(told["media_type"])
            mine = kept or uri_of(path) == told["uri"]
            if mine and path.stat().st_size == told["size"] and digest_of(path, self.stop) == told["sha256"]:
                log.info("The output %s is in %s already (%d bytes)", output.name, path, told["size"])
                return output if kept else replace(output, status=READY, value=self._value, **told)
        if self.stop.is_set():
            raise StoppedError
        return None

    @property
    def _value(self) -> str | None:
        """What stays of a text beside its file: its beginning, and of a link what opens nothing."""
        value = self.output.value
        if value is None:
            return None
        return value.partition("?")[0] if self.output.link else self.delivery.cut(value)

    def _path(self, media_type: str | None) -> ObjectStoragePath:
        return self.folder / (self.name + data_uri.extension(media_type))

    def _downloaded(self, hook: Downloads) -> FlowOutput:
        output, part = self.output, self.part
        try:
            media_type = self._save(hook)
            if media_type is None:
                return output
            path = self._path(media_type)
            part.settle(path)
        finally:
            part.discard()
        log.info("The output %s is in %s (%d bytes)", output.name, path, part.size)
        return replace(
            output,
            status=READY,
            media_type=media_type,
            value=self._value,
            uri=uri_of(path),
            size=part.size,
            sha256=part.sha256,
        )

    def _save(self, hook: Downloads) -> str | None:
        """Download into the temporary file; gives the media type, None where there is no file."""
        output = self.output
        if output.uri is not None:
            return self._saved_anew(hook)
        if output.value and not output.link:
            self.part.restart()
            self.part.write(output.value.encode("utf-8", "surrogatepass"))
            return output.media_type or "text/plain"
        if output.value:
            media_type = hook.save_link(output.value, self.part)
            if media_type is None:
                what = "looks like a link to a picture, but is none that may be fetched; its text is kept"
                log.warning("The output %s %s", output.name, what)
            return media_type
        try:
            return self._asked(hook)
        except (FlowConflict, FlowNotFound) as error:
            if output.status != PENDING:
                raise
            log.warning(
                "The output %s is still not ready; it is listed without a file: %s", output.name, error
            )
            return None

    def _saved_anew(self, hook: Downloads) -> str:
        """Download once more what an earlier try had written, while the service still has it."""
        log.warning(
            "The output %s is not in its place, whole, any more (%s); it is downloaded again",
            self.output.name,
            self.output.uri,
        )
        if self.output.asset_id is None:
            self._gone(None)
        try:
            return self._asked(hook)
        except FlowNotFound as error:
            self._gone(error)

    def _gone(self, error: FlowNotFound | None) -> NoReturn:
        message = (
            f"The file {self.output.uri} is not what an earlier try has written, or cannot be read, and the {self.run} is gone "
            "at the service. Bring the file back and run the task again, or clear the task to run the flow again."
        )
        gone = FlowNotFound(message, status=404)
        gone.lasting = False  # the store may give the file a little later, and another try costs nothing
        raise gone from error

    def _asked(self, hook: Downloads) -> str:
        """Ask for the file; one that its list calls ready is looked for a few times, and a retry may find it (it is paid)."""
        output = self.output
        looks = PAUSES_UNTIL_THERE if output.status == READY and output.uri is None else ()
        for pause in (*looks, None):
            try:
                told = hook.save_output(
                    self.run.flow_run_id, str(output.asset_id), self.part, media_type=output.media_type
                )
            except FlowNotFound as error:
                if pause is None:
                    error.lasting = output.status != READY
                    raise
                self.stop.wait(pause)
            else:
                return told or output.media_type or "application/octet-stream"
        raise AssertionError  # not reached: the last look returns or raises


def place_of(output: FlowOutput, delivery: Delivery) -> ObjectStoragePath:
    """Give the path of an output's file, reached as the task's other files are."""
    from airflow.sdk import ObjectStoragePath

    conn_id = conn_id_of(ObjectStoragePath(str(delivery.output_path), conn_id=delivery.output_conn_id))
    return ObjectStoragePath(str(output.uri), conn_id=conn_id)


def in_place(output: FlowOutput, delivery: Delivery) -> bool:
    """Whether an output is a file that lies where it says; its digest was compared when it was fetched."""
    if output.status != READY or output.uri is None:
        return False
    try:
        return bool(place_of(output, delivery).stat().st_size == output.size)
    except Exception as error:  # noqa: BLE001  # whatever the store raises: then nobody knows
        log.info("Whether %s is in its place could not be found out (%s)", output.uri, type(error).__name__)
        return False
