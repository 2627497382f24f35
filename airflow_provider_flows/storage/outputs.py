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

from airflow_provider_flows.core.http import Pause
from airflow_provider_flows.core.run import ERROR, PENDING, FlowOutput, FlowRun
from airflow_provider_flows.storage.atomic_file import OBJECT_STORES, Halt, Part, remove_leftovers
from airflow_provider_flows.storage.output_download import TOLD, File
from airflow_provider_flows.storage.parallel import abreast
from airflow_provider_flows.storage.paths import file_names, safe_name

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

    from airflow_provider_flows.core.http import Conversation
    from airflow_provider_flows.core.payload.sink import Target
    from airflow_provider_flows.core.service import Service
    from airflow_provider_flows.storage.output_options import Delivery

log = logging.getLogger(__name__)

LOOKS_AT_PENDING = 10
MOST_AT_ONCE = 4  # downloads of one task
MOST_TO_A_STORE = 2  # where what is written is collected in memory first


class Downloads(Protocol):
    """What of a hook is needed to fetch outputs."""

    @property
    def service(self) -> Service:
        """The service, which says whether it lists outputs."""

    def settled_outputs(self, flow_run_id: str) -> list[FlowOutput]:
        """List a final run's outputs."""

    def save_output(
        self, flow_run_id: str, asset_id: str, target: Target, *, media_type: str | None = None
    ) -> str | None:
        """Download one output, of which a list told the media type; gives its media type."""

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
    """Give the run with its outputs, as `gather` does.

    :raises FlowServiceError: an output could not be listed or downloaded; what was written stays, whole.
    """
    run, error = gather(hook, run, delivery, memory)
    if error is not None:
        raise error
    return run


def gather(
    hook: Downloads, run: FlowRun, delivery: Delivery, memory: Memory | None = None, halt: Halt | None = None
) -> tuple[FlowRun, Exception | None]:
    """Give the run with the outputs that are wanted, files written below `output_path` if that is given; and the first error.

    Several files come at once; they are written whole or not at all, and one that is there whole already is not fetched again.
    An output that cannot be had says so, and keeps no other from being fetched. A text that is too large for XCom is a file too.

    :param memory: knows which files an earlier try has written.
    :param halt: ends it, from another thread.
    :raises FlowServiceError: the outputs could not be listed.
    """
    outputs, service = (
        run.outputs,
        hook.service,
    )  # the service needs the connection, and only this thread may look it up
    if not outputs and service.offers(
        "list_outputs"
    ):  # else all outputs were told with the run, or kept by an earlier try
        outputs = tuple(hook.settled_outputs(run.flow_run_id))
    outputs = tuple(_bounded(output, delivery) for output in outputs)
    wanted = tuple(filter(delivery.wants, outputs))
    for output in wanted:
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
    if delivery.output_path is None:
        _warn_of_what_stays(wanted, delivery)
        return run.with_outputs(wanted), None
    # all of them, for the names of files must not depend on which are wanted
    outputs, error = _all_fetched(hook, run, outputs, delivery, memory, halt=halt or Halt())
    return run.with_outputs(tuple(filter(delivery.wants, outputs))), error


def _bounded(output: FlowOutput, delivery: Delivery) -> FlowOutput:
    """Leave out metadata that is too large for XCom; the service keeps it."""
    if output.additional is None or not delivery.too_large(json.dumps(output.additional)):
        return output
    told = "The `additional` of the output %s is left out: its JSON is larger than max_xcom_bytes (%s). The service keeps it"
    log.warning(told, output.name, delivery.max_xcom_bytes)
    return replace(output, additional=None)


def _warn_of_what_stays(outputs: Iterable[FlowOutput], delivery: Delivery) -> None:
    for output in outputs:
        if not output.link and delivery.too_large(output.value or ""):
            told = "The output %s is a text of %d characters, beyond max_xcom_bytes (%s). Set output_path to have a file of it"
            log.warning(told, output.name, len(output.value or ""), delivery.max_xcom_bytes)
        if output.link and output.value:
            until = output.expires_at or "a moment that it does not tell"
            log.warning(
                "The output %s is a link that ends at %s. Set output_path to keep the file itself",
                output.name,
                until,
            )


def folder_of(run: FlowRun, output_path: str, output_conn_id: str | None) -> ObjectStoragePath:
    """Give the folder of a run's files: `output_path/<flow_run_id>`, the id made safe."""
    from airflow.sdk import ObjectStoragePath  # heavy, and only needed where there are files

    return ObjectStoragePath(output_path, conn_id=output_conn_id) / safe_name(run.flow_run_id)


def _all_fetched(
    hook: Downloads,
    run: FlowRun,
    outputs: Sequence[FlowOutput],
    delivery: Delivery,
    memory: Memory | None,
    *,
    halt: Halt,
) -> tuple[tuple[FlowOutput, ...], Exception | None]:
    """Download what are files among the outputs, several at once, and write them; give the first error too."""
    folder = folder_of(run, str(delivery.output_path), delivery.output_conn_id)
    stop, errors = halt.event, list[Exception]()
    ended = list(outputs)
    known = memory.known if memory else lambda _: None
    files = [
        File(
            number,
            output,
            run,
            folder,
            name,
            Part(folder, name, stop),
            stop,
            known(output.asset_id or name),
            delivery,
        )
        for number, (output, name) in enumerate(zip(outputs, file_names(outputs), strict=True))
        if _is_file(output, delivery)
    ]

    def take(place: int, fetched: tuple[FlowOutput, Exception | None]) -> None:
        file, (output, error) = files[place], fetched
        ended[file.number] = output
        if error is not None:
            errors.append(error)
        elif memory is not None and output.uri is not None:
            memory.note(output.asset_id or file.name, {key: getattr(output, key) for key in TOLD})

    if files:
        remove_leftovers(folder, [file.name for file in files])
    most = MOST_TO_A_STORE if folder.protocol in OBJECT_STORES else MOST_AT_ONCE
    halt.over([file.part for file in files])
    try:
        abreast([file.fetched for file in files], hook.twin, most, stop, take)
    finally:
        halt.now()
    return tuple(ended), errors[0] if errors else None


def _is_file(output: FlowOutput, delivery: Delivery) -> bool:
    """Whether an output is to be a file: one that is no text, a link to a picture, or a text too large for XCom."""
    if output.status == ERROR or not delivery.wants(output):
        return False
    if output.uri is not None:  # kept by an earlier try: its file is looked at
        return True
    if output.value:
        return output.link or delivery.too_large(output.value)
    return output.asset_id is not None and output.value is None
