"""From a run's outputs to files: which are fetched, how many at once, and which are there already.

How an output is downloaded flow/services say, how a file is written writing.py; it waits for pending outputs only.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from threading import Event
from typing import TYPE_CHECKING, Any, Protocol

from airflow_provider_flows.abreast import abreast
from airflow_provider_flows.flow import data_uri
from airflow_provider_flows.flow.errors import FlowConflict, FlowNotFound
from airflow_provider_flows.flow.exchange import Pause
from airflow_provider_flows.flow.run import ERROR, PENDING, READY, FlowOutput, FlowRun
from airflow_provider_flows.naming import file_names, safe_name
from airflow_provider_flows.writing import Part, remove_leftovers, uri_of

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

    from airflow_provider_flows.delivery import Delivery
    from airflow_provider_flows.flow.exchange import Conversation
    from airflow_provider_flows.flow.services import Service
    from airflow_provider_flows.flow.sink import Target

log = logging.getLogger(__name__)

LOOKS_AT_PENDING = 10
MOST_AT_ONCE = 4  # downloads of one task


class Downloads(Protocol):
    """What of a hook is needed to fetch outputs."""

    @property
    def service(self) -> Service:
        """The service, which says whether it lists outputs."""

    def settled_outputs(self, flow_run_id: str) -> list[FlowOutput]:
        """List a final run's outputs."""

    def save_output(self, flow_run_id: str, asset_id: str, target: Target) -> str | None:
        """Download one output; gives its media type."""

    def save_link(self, url: str, target: Target) -> str | None:
        """Download the picture that an output links to; gives its media type, None if it may not be fetched or is none."""

    def twin(self) -> AbstractContextManager[Downloads]:
        """Give the same once more, for another thread."""


class Memory(Protocol):
    """What an earlier try has written, kept wherever a task keeps things."""

    def known(self, asset_id: str) -> Mapping[str, Any] | None:
        """Tell of an output's file `uri, size, sha256, media_type`, None if nothing is known of it."""

    def note(self, asset_id: str, told: Mapping[str, Any]) -> None:
        """Keep that of a file that is whole in its place."""


def settled_outputs(service: Service, flow_run_id: str) -> Conversation[list[FlowOutput]]:
    """List a final run's outputs, again and again for about half a minute while some are still pending (vendor-api G-03)."""
    for look in range(1, LOOKS_AT_PENDING + 1):
        found = yield from service.list_outputs(flow_run_id)
        if look == LOOKS_AT_PENDING or all(output.status != PENDING for output in found):
            return found
        yield Pause(min(0.5 * look, 5.0))
    raise AssertionError  # not reached: the last look returns


def fetch(hook: Downloads, run: FlowRun, delivery: Delivery, memory: Memory | None = None) -> FlowRun:
    """Give the run with its outputs, every file among them written below `output_path` if that is given.

    Several files come at once; they are written whole or not at all, and one that is there whole already is not fetched again.
    A text that is too large for XCom is a file too.

    :param memory: knows which files an earlier try has written.
    :raises FlowServiceError: an output could not be listed or downloaded; what was written before stays, whole.
    """
    outputs, service = run.outputs, hook.service  # the service needs the connection, and only this thread may look it up
    if not outputs and service.offers("list_outputs"):  # a service without it has told all outputs with the run
        outputs = tuple(hook.settled_outputs(run.flow_run_id))
    for output in outputs:
        if output.status == ERROR:
            log.warning("The output %s of the %s is not there: %s", output.name, run, output.error or "no reason was given")
        elif output.status == PENDING:
            log.warning("The output %s of the %s is not called ready; it is fetched if it can be", output.name, run)
    if delivery.output_path is None:
        _warn_of_what_stays(outputs, delivery)
        return run.with_outputs(outputs)
    return run.with_outputs(_all_fetched(hook, run, outputs, delivery, memory))


def _warn_of_what_stays(outputs: Iterable[FlowOutput], delivery: Delivery) -> None:
    for output in outputs:
        if not output.link and delivery.too_large(output.value or ""):
            told = "The output %s is a text of %d characters, beyond max_xcom_bytes (%s). Set output_path to have a file of it"
            log.warning(told, output.name, len(output.value or ""), delivery.max_xcom_bytes)
        if output.link and output.value:
            until = output.expires_at or "a moment that it does not tell"
            log.warning("The output %s is a link that ends at %s. Set output_path to keep the file itself", output.name, until)


def folder_of(run: FlowRun, output_path: str, output_conn_id: str | None) -> ObjectStoragePath:
    """Give the folder of a run's files: `output_path/<flow_run_id>`, the id made safe."""
    from airflow.sdk import ObjectStoragePath  # heavy, and only needed where there are files

    return ObjectStoragePath(output_path, conn_id=output_conn_id) / safe_name(run.flow_run_id)


def in_place(output: FlowOutput, delivery: Delivery) -> bool:
    """Whether an output is a file that lies, whole, where it says."""
    if output.uri is None:
        return False
    from airflow.sdk import ObjectStoragePath

    try:
        conn_id = ObjectStoragePath(str(delivery.output_path), conn_id=delivery.output_conn_id).conn_id
        return bool(ObjectStoragePath(output.uri, conn_id=conn_id).stat().st_size == output.size)
    except Exception as error:  # noqa: BLE001  # whatever the store raises: then nobody knows
        log.info("Whether %s is in its place could not be found out (%s)", output.uri, type(error).__name__)
        return False


def _all_fetched(
    hook: Downloads, run: FlowRun, outputs: Sequence[FlowOutput], delivery: Delivery, memory: Memory | None
) -> tuple[FlowOutput, ...]:
    """Download what are files among the outputs, several at once, and write them."""
    folder = folder_of(run, str(delivery.output_path), delivery.output_conn_id)
    stop = Event()
    ended = list(outputs)
    known = memory.known if memory else lambda _: None
    files = [
        _File(number, output, run, folder, name, Part(folder, name, stop), known(output.asset_id or name), delivery)
        for number, (output, name) in enumerate(zip(outputs, file_names(outputs), strict=True))
        if _is_file(output, delivery)
    ]

    def take(place: int, output: FlowOutput) -> None:
        file = files[place]
        ended[file.number] = output
        if memory is not None and output.uri is not None:
            told = {"uri": output.uri, "size": output.size, "sha256": output.sha256, "media_type": output.media_type}
            memory.note(output.asset_id or file.name, told)

    if files:
        remove_leftovers(folder, [file.name for file in files])
    try:
        abreast([file.fetched for file in files], hook.twin, MOST_AT_ONCE, stop, take)
    finally:
        for file in files:
            file.part.discard()
    return tuple(ended)


def _is_file(output: FlowOutput, delivery: Delivery) -> bool:
    """Whether an output is to become a file: one that is no text, a link to a picture, or a text too large for XCom."""
    if output.status == ERROR or output.uri is not None:
        return False
    if output.value:
        return output.link or delivery.too_large(output.value)
    return output.asset_id is not None and output.value is None


@dataclass(frozen=True)
class _File:
    """One output that is to become a file."""

    number: int
    output: FlowOutput
    run: FlowRun
    folder: ObjectStoragePath
    name: str
    part: Part
    known: Mapping[str, Any] | None
    delivery: Delivery

    def fetched(self, hook: Downloads) -> FlowOutput:
        """Give the output with its file, unless it turns out to have none."""
        return self._there() or self._downloaded(hook)

    def _there(self) -> FlowOutput | None:
        """Give the output with the file that an earlier try has written, if that is there, whole."""
        if self.known is None:
            return None
        told: dict[str, Any] = {key: self.known.get(key) for key in ("uri", "size", "sha256", "media_type")}
        with suppress(Exception):  # whatever the store says of a file that is not there
            path = self._path(told["media_type"])
            if uri_of(path) == told["uri"] and path.stat().st_size == told["size"]:
                log.info("The output %s is in %s already (%d bytes)", self.output.name, path, told["size"])
                return replace(self.output, status=READY, value=self._value, **told)
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
            output, status=READY, media_type=media_type, value=self._value, uri=uri_of(path), size=part.size, sha256=part.sha256
        )

    def _save(self, hook: Downloads) -> str | None:
        """Download into the temporary file; gives the media type, None where there is no file."""
        output = self.output
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
            told = hook.save_output(self.run.flow_run_id, str(output.asset_id), self.part)
        except (FlowConflict, FlowNotFound) as error:
            if output.status != PENDING:
                raise
            log.warning("The output %s is still not ready; it is listed without a file: %s", output.name, error)
            return None
        return told or output.media_type or "application/octet-stream"
